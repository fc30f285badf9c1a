/* SPDX-License-Identifier: Apache-2.0
 *
 * What the tests of csrc/io share: a run of each test for each engine, ops that remember their end.
 */
#ifndef TZ_TEST_IO_COMMON_H
#define TZ_TEST_IO_COMMON_H

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "tz/io.h"

#define MS 1000000ll
#define S  (1000 * MS)

/* An op, and what became of it. */
typedef struct probe {
    tz_io_op op;
    int64_t result;
    int calls;
} probe;

static inline void probe_done(tz_io_op *op, int64_t result)
{
    probe *p = (probe *)op;

    p->result = result;
    p->calls++;
}

static inline int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * S + t.tv_nsec;
}

/* Runs the engine until nothing is in flight; fails after 30 s. */
static inline void settle(tz_io *io)
{
    int64_t until = now_ns() + 30 * S;

    while (tz_io_inflight(io)) {
        CHECK(tz_io_run(io, S) >= 0);
        CHECK(now_ns() < until);
    }
}

static inline void run_for(tz_io *io, int64_t ns)
{
    int64_t until = now_ns() + ns;

    while (now_ns() < until)
        CHECK(tz_io_run(io, until > now_ns() ? until - now_ns() : 0) >= 0);
}

/* Submits one op, waits for its end. */
static inline int64_t finish(tz_io *io, tz_io_op op)
{
    probe p = {.op = op};

    p.op.done = probe_done;
    tz_io_submit(io, &p.op);
    CHECK_EQ(p.calls, 0); /* never from inside submit */
    settle(io);
    CHECK_EQ(p.calls, 1);
    return p.result;
}

static inline tz_io *make_io(tz_io_kind kind, uint32_t depth, uint32_t threads)
{
    tz_io *io;

    CHECK_EQ(tz_io_create(&io, &(tz_io_config){.kind = kind, .depth = depth, .threads = threads}), 0);
    CHECK_EQ(tz_io_engine(io), kind);
    return io;
}

/* Runs test(kind) with each engine that this build and kernel have, and says which. */
#define RUN_BOTH(test)                                                                                                 \
    do {                                                                                                               \
        test(TZ_IO_THREADS);                                                                                           \
        printf("ok %s threads\n", #test);                                                                              \
        if (tz_io_probe_uring(NULL) == 0) {                                                                            \
            test(TZ_IO_URING);                                                                                         \
            printf("ok %s uring\n", #test);                                                                            \
        } else {                                                                                                       \
            printf("no io_uring here: %s for threads only\n", #test);                                                  \
        }                                                                                                              \
        fflush(stdout);                                                                                                \
    } while (0)

/* A file of that size in TMPDIR (or /tmp), already unlinked, filled with byte i = pattern(i). */
static inline uint8_t pattern(uint64_t i)
{
    return (uint8_t)(i * 131 + (i >> 8) * 7 + (i >> 16));
}

static inline int make_file(size_t size, int flags)
{
    const char *dir = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    uint8_t *data = malloc(size + 1);
    char path[256];
    int fd, again;

    snprintf(path, sizeof(path), "%s/tz-test-XXXXXX", dir);
    fd = mkostemp(path, O_CLOEXEC);
    CHECK(fd >= 0);
    for (size_t i = 0; i < size; i++)
        data[i] = pattern(i);
    CHECK_EQ(pwrite(fd, data, size, 0), (ssize_t)size);
    CHECK_EQ(fsync(fd), 0);
    free(data);
    again = open(path, flags | O_CLOEXEC);
    CHECK(again >= 0);
    unlink(path);
    close(fd);
    return again;
}

static inline void *aligned(size_t size)
{
    void *memory;

    CHECK_EQ(posix_memalign(&memory, 4096, size), 0);
    memset(memory, 0xee, size);
    return memory;
}

#endif
