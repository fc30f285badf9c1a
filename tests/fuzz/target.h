/* SPDX-License-Identifier: Apache-2.0
 *
 * What the fuzz targets share: the entry, a check that stays in every build, input taken piece by piece.
 *
 * A target takes any bytes at all. It returns 0, or -1 for input that is not worth keeping; what must not be aborts.
 */
#ifndef TZ_FUZZ_TARGET_H
#define TZ_FUZZ_TARGET_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tz/common.h"

#define REQUIRE(cond)                                                                                                  \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                                                 \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The input that is left; past its end everything is zero. */
typedef struct input {
    const uint8_t *at;
    size_t left;
} input;

static inline uint64_t take(input *in, size_t bytes)
{
    uint64_t value = 0;

    for (size_t i = 0; i < bytes && in->left; i++, in->left--)
        value |= (uint64_t)*in->at++ << 8 * i;
    return value;
}

/* A file in memory with this content, or zeros when it is NULL. */
static inline int memory_file(const char *name, const void *content, uint64_t bytes)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    REQUIRE(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    if (content)
        REQUIRE(pwrite(fd, content, bytes, 0) == (ssize_t)bytes);
    return fd;
}

#endif
