/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a file has holes, as SEEK_DATA and SEEK_HOLE tell: in grains, because of smaller holes the kernel fills in the zeros
 * faster than a read is split. The stretch that was found last is kept: chunks come in order, so most looks end there.
 *
 * Errors   -ENODATA the file has become shorter than `size`: what is missing is no hole; what lseek says.
 * Memory   none; the descriptor stays the caller's.
 * Threads  any.
 */
#ifndef TZ_MOVER_HOLES_H
#define TZ_MOVER_HOLES_H

#include <pthread.h>

#include "tz/common.h"

#define TZ_HOLE_GRAIN (64 * TZ_KIB)

typedef struct tz_holes {
    int fd;
    uint64_t size; /* bytes */

    pthread_mutex_t lock;
    uint64_t from, to; /* the stretch found last */
    bool data;
} tz_holes;

void tz_holes_init(tz_holes *holes, int fd, uint64_t size);
void tz_holes_fini(tz_holes *holes);

/* How many bytes from `at`, below the size, on are of one kind, and which. A stretch ends on a grain or at the size. */
int tz_holes_look(tz_holes *holes, uint64_t at, uint64_t *length, bool *data);

#endif
