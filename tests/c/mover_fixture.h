/* SPDX-License-Identifier: Apache-2.0
 *
 * What the mover's tests share: scratch directories, files with data, zeros and holes, one transfer from
 * start to end with the invariant of the buffer space checked afterwards.
 */
#ifndef TZ_TESTS_MOVER_FIXTURE_H
#define TZ_TESTS_MOVER_FIXTURE_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "tz/mover.h"

#define CHUNK        (256 * TZ_KIB)
#define WAIT_NS      (60 * INT64_C(1000000000))
#define LENGTH_OF(a) (sizeof(a) / sizeof((a)[0]))

typedef struct scratch {
    char path[200];
    int fd;
} scratch;

/* Loop devices and mounts are root's; said aloud when left out. */
#define RUN_AS_ROOT(test)                                                                                              \
    do {                                                                                                               \
        if (geteuid() == 0)                                                                                            \
            RUN(test);                                                                                                 \
        else                                                                                                           \
            printf("LEFT OUT %s: needs root\n", #test);                                                                \
    } while (0)

/* On disk, where direct I/O works, or in memory, where it may not. */
static inline void scratch_make(scratch *s, const char *base)
{
    snprintf(s->path, sizeof(s->path), "%s/tz-mover-XXXXXX", base);
    CHECK(mkdtemp(s->path));
    s->fd = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(s->fd >= 0);
}

static inline void scratch_remove(scratch *s)
{
    DIR *dir = opendir(s->path);
    struct dirent *entry;

    CHECK(dir);
    while ((entry = readdir(dir)))
        if (entry->d_name[0] != '.')
            CHECK_EQ(unlinkat(s->fd, entry->d_name, 0), 0);
    closedir(dir);
    close(s->fd);
    CHECK_EQ(rmdir(s->path), 0);
}

static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* A file of `size` bytes: stretches of random data, of written zeros and of holes. Returns its descriptor. */
static inline int make_file(scratch *s, const char *name, uint64_t size, uint64_t seed)
{
    int fd = openat(s->fd, name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    uint64_t state = seed * 2 + 1, at = 0;

    CHECK(fd >= 0);
    while (at < size) {
        uint64_t length = tz_min_u64(1 + next_random(&state) % (400 * TZ_KIB), size - at);
        uint64_t *data = calloc(1, length + 8);
        uint64_t kind = next_random(&state) % 4;

        CHECK(data);
        if (kind < 2)
            for (uint64_t i = 0; i < length / 8 + 1; i++)
                data[i] = next_random(&state);
        if (kind < 3)
            CHECK_EQ(pwrite(fd, data, length, (off_t)at), length);
        free(data);
        at += length;
    }
    CHECK_EQ(ftruncate(fd, (off_t)size), 0);
    return fd;
}

static inline uint8_t *read_all(int fd, uint64_t *size)
{
    struct stat st;
    uint8_t *data;

    CHECK_EQ(fstat(fd, &st), 0);
    *size = (uint64_t)st.st_size;
    data = malloc(*size + 1);
    CHECK(data);
    for (uint64_t at = 0; at < *size;) {
        ssize_t n = pread(fd, data + at, *size - at, (off_t)at);

        CHECK(n > 0);
        at += (uint64_t)n;
    }
    return data;
}

static inline bool same_content(int a, int b)
{
    uint64_t a_size, b_size;
    uint8_t *a_data = read_all(a, &a_size), *b_data = read_all(b, &b_size);
    bool same = a_size == b_size && memcmp(a_data, b_data, a_size) == 0;

    free(a_data);
    free(b_data);
    return same;
}

static inline void open_again(tz_file *file, int fd, unsigned flags)
{
    char path[40];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    CHECK_EQ(tz_file_open(file, path, flags), 0);
}

static inline tz_source *file_source_of(int fd, unsigned flags)
{
    tz_source *source;
    tz_file file;

    open_again(&file, fd, flags);
    CHECK_EQ(tz_source_file(&source, &file, file.size), 0);
    return source;
}

static inline tz_sink *image_sink_of(int fd, uint64_t size, bool fresh, unsigned flags)
{
    tz_sink *sink;
    tz_file file;

    open_again(&file, fd, TZ_FILE_WRITE | flags);
    CHECK_EQ(tz_sink_image(&sink, &file, size, fresh), 0);
    return sink;
}

static inline void check_space_empty(tz_bufspace *space)
{
    tz_bufspace_stats stats;

    tz_bufspace_stats_get(space, &stats);
    CHECK_EQ(stats.frames_taken, 0);
    CHECK_EQ(stats.areas, 0);
    CHECK_EQ(stats.areas_waiting, 0);
}

/* One transfer, to its end; every frame and area has come back when it has ended. */
static inline void run_one(const tz_mover_config *config, tz_source *source, tz_sink *sink, tz_index_entry *index,
                           tz_transfer_report *report)
{
    tz_bufspace *space;
    tz_mover *mover;

    CHECK_EQ(tz_bufspace_create(&space, config->chunk_size, 6, 2, 0), 0);
    CHECK_EQ(tz_mover_create(&mover, space, config), 0);
    CHECK_EQ(tz_mover_add(mover, source, sink, index), 0);
    CHECK_EQ(tz_mover_start(mover), 0);
    CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
    check_space_empty(space);
    tz_mover_report_get(mover, 0, report);
    CHECK(report->done);
    if (report->error == 0)
        CHECK_EQ(tz_mover_sync(mover, 0), 0);
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
}

static const tz_io_kind engines[] = {TZ_IO_THREADS, TZ_IO_URING};
static const uint32_t worker_counts[] = {1, 3};

#endif
