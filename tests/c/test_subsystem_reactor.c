/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "tz/reactor.h"

static const tz_io_kind engines[] = {TZ_IO_THREADS, TZ_IO_URING};

/* How many of them this build and kernel have. */
static unsigned engine_count(void)
{
    return tz_io_probe_uring(NULL) == 0 ? 2 : 1;
}

static tz_reactor *make(tz_io_kind kind)
{
    tz_io_config config = {.kind = kind};
    tz_reactor *reactor;

    CHECK_EQ(tz_reactor_create(&reactor, &config), 0);
    CHECK_EQ(tz_io_engine(tz_reactor_io(reactor)), kind);
    return reactor;
}

static int add_one(void *arg)
{
    return ++*(int *)arg;
}

static void *call_often(void *arg)
{
    void **both = arg;

    for (int i = 0; i < 500; i++)
        CHECK(tz_reactor_call(both[0], add_one, both[1]) > 0);
    return NULL;
}

/* The counter is plain: that all calls run on one thread is what keeps it right, and TSan sees it. */
static void calls_from_many_threads_run_one_at_a_time(void)
{
    for (unsigned e = 0; e < engine_count(); e++) {
        tz_reactor *reactor = make(engines[e]);
        int count = 0;
        void *both[] = {reactor, &count};
        pthread_t threads[4];

        for (int i = 0; i < 4; i++)
            CHECK_EQ(pthread_create(&threads[i], NULL, call_often, both), 0);
        for (int i = 0; i < 4; i++)
            pthread_join(threads[i], NULL);
        CHECK_EQ(tz_reactor_call(reactor, add_one, &count), 2001);
        tz_reactor_destroy(reactor);
    }
}

static int look_at_thread(void *arg)
{
    sigset_t blocked;
    char name[16];

    (void)arg;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    CHECK(sigismember(&blocked, SIGTERM) && sigismember(&blocked, SIGINT) && sigismember(&blocked, SIGUSR1));
    CHECK_EQ(pthread_getname_np(pthread_self(), name, sizeof(name)), 0);
    CHECK(strcmp(name, "tz-reactor") == 0);
    return -ENOTTY;
}

static void its_thread_has_a_name_and_takes_no_signals(void)
{
    tz_reactor *reactor = make(TZ_IO_THREADS);
    sigset_t ours;

    CHECK_EQ(tz_reactor_call(reactor, look_at_thread, NULL), -ENOTTY);
    pthread_sigmask(SIG_SETMASK, NULL, &ours);
    CHECK(!sigismember(&ours, SIGTERM));
    tz_reactor_destroy(reactor);
}

typedef struct waiting {
    tz_io *io;
    tz_io_op op;
    int64_t result;
    bool done;
} waiting;

static void came(tz_io_op *op, int64_t result)
{
    waiting *w = op->user;

    w->result = result;
    w->done = true;
}

static int begin_waiting(void *arg)
{
    waiting *w = arg;

    tz_io_submit(w->io, &w->op);
    return 0;
}

static int look(void *arg)
{
    return ((waiting *)arg)->done;
}

static void it_sleeps_until_an_op_completes(void)
{
    for (unsigned e = 0; e < engine_count(); e++) {
        tz_reactor *reactor = make(engines[e]);
        int fd = eventfd(0, EFD_CLOEXEC);
        waiting w = {.io = tz_reactor_io(reactor),
                     .op = {.opcode = TZ_IO_POLL, .fd = fd, .arg = 1 /* POLLIN */, .done = came}};

        w.op.user = &w;
        CHECK_EQ(tz_reactor_call(reactor, begin_waiting, &w), 0);
        CHECK_EQ(tz_reactor_call(reactor, look, &w), 0);
        CHECK_EQ(eventfd_write(fd, 1), 0);
        while (!tz_reactor_call(reactor, look, &w))
            usleep(1000);
        CHECK(w.result & 1);
        tz_reactor_destroy(reactor);
        close(fd);
    }
}

int main(void)
{
    alarm(120);
    printf("%s\n", engine_count() == 2 ? "both engines" : "no io_uring here: threads only");
    RUN(calls_from_many_threads_run_one_at_a_time);
    RUN(its_thread_has_a_name_and_takes_no_signals);
    RUN(it_sleeps_until_an_op_completes);
    return 0;
}
