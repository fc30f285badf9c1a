/* SPDX-License-Identifier: Apache-2.0
 *
 * Whose threads serve whom (workers.c): a file whose device does not answer keeps its own, and no more; other files have
 * theirs. A pipe that nobody writes to stands for such a device.
 */
#include <dirent.h>
#include <pthread.h>

#include "test_io_common.h"

#define LIMIT 2
#define OPS   10

typedef struct mute {
    int ends[2];
    probe p[OPS];
    char byte[OPS];
} mute;

static void mute_begin(tz_io *io, mute *m)
{
    memset(m, 0, sizeof(*m));
    CHECK_EQ(pipe2(m->ends, O_CLOEXEC), 0);
    for (int i = 0; i < OPS; i++)
        tz_io_read(io, &m->p[i].op, m->ends[0], &m->byte[i], 1, TZ_IO_AT_POSITION, probe_done);
}

static int done_of(const mute *m)
{
    int done = 0;

    for (int i = 0; i < OPS; i++)
        done += m->p[i].calls;
    return done;
}

static void mute_close(mute *m)
{
    close(m->ends[0]);
    close(m->ends[1]);
}

/* Threads of this process, this one left out. */
static int threads(void)
{
    DIR *dir = opendir("/proc/self/task");
    int count = 0;

    CHECK(dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count - 1;
}

static void run_until_called(tz_io *io, const probe *p)
{
    int64_t until = now_ns() + 20 * S;

    while (!p->calls) {
        CHECK(now_ns() < until);
        CHECK(tz_io_run(io, 10 * MS) >= 0);
    }
}

static void read_one(tz_io *io, int fd)
{
    probe p = {0};
    char byte;

    tz_io_read(io, &p.op, fd, &byte, 1, 7, probe_done);
    run_until_called(io, &p);
    CHECK_EQ(p.result, 1);
    CHECK_EQ((uint8_t)byte, pattern(7));
}

/* However many ops one file has, LIMIT threads work for it, and each that is answered lets the next one begin. */
static void a_file_has_so_many_and_no_more(void)
{
    int others = threads();
    tz_io *io = make_io(TZ_IO_THREADS, 0, LIMIT);
    mute m;

    mute_begin(io, &m);
    run_for(io, 50 * MS);
    CHECK_EQ(threads() - others, LIMIT);
    CHECK_EQ(done_of(&m), 0);
    for (int i = 1; i <= OPS; i++) {
        int64_t until = now_ns() + 20 * S;

        CHECK_EQ(write(m.ends[1], "x", 1), 1);
        while (done_of(&m) < i) {
            CHECK(now_ns() < until);
            CHECK(tz_io_run(io, 10 * MS) >= 0);
        }
    }
    CHECK_EQ(threads() - others, LIMIT);
    settle(io);
    mute_close(&m);
    tz_io_destroy(io);
}

/* A mute file does not keep another one waiting, nor do several; a cancel reaches what no thread has begun. */
static void files_do_not_wait_for_each_other(void)
{
    tz_io *io = make_io(TZ_IO_THREADS, 0, LIMIT);
    int file = make_file(4096, O_RDONLY);
    mute m[3];

    for (int i = 0; i < 3; i++) {
        mute_begin(io, &m[i]);
        run_for(io, 20 * MS);
        for (int j = 0; j < 20; j++)
            read_one(io, file);
    }
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(done_of(&m[i]), 0);
        for (int j = 0; j < OPS; j++)
            tz_io_cancel(io, &m[i].p[j].op);
        run_for(io, 20 * MS);
        CHECK_EQ(done_of(&m[i]), OPS - LIMIT);
        CHECK_EQ(write(m[i].ends[1], "xxxxxxxxxx", LIMIT), LIMIT);
    }
    settle(io);
    for (int i = 0; i < 3; i++)
        mute_close(&m[i]);
    close(file);
    tz_io_destroy(io);
}

static void *nothing(void *unused)
{
    return unused;
}

/* ThreadSanitizer makes a thread of its own beside the first. */
static void make_the_first_thread(void)
{
    pthread_t thread;

    CHECK_EQ(pthread_create(&thread, NULL, nothing, NULL), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
}

int main(void)
{
    make_the_first_thread();
    RUN(a_file_has_so_many_and_no_more);
    RUN(files_do_not_wait_for_each_other);
    return 0;
}
