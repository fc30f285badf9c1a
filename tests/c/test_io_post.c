/* SPDX-License-Identifier: Apache-2.0
 *
 * The engines and other threads: messages in order, no wake-up lost or repeated, the thread that runs is the owner.
 */
#include <pthread.h>

#include "test_io_common.h"

enum {
    POSTERS = 4,
    POSTS = 3000
};

typedef struct letter {
    tz_io_message message;
    struct mail *mail;
    int poster, number;
} letter;

typedef struct mail {
    tz_io *io;
    int last[POSTERS], ran;
    bool reposted;
    letter letters[POSTERS][POSTS];
} mail;

typedef struct poster {
    pthread_t thread;
    mail *mail;
    int number;
} poster;

static void letter_run(tz_io_message *message)
{
    letter *l = (letter *)message;

    CHECK_EQ(l->number, l->mail->last[l->poster] + 1); /* in the poster's order */
    l->mail->last[l->poster] = l->number;
    l->mail->ran++;
}

static void *post_many(void *argument)
{
    poster *p = argument;

    for (int i = 0; i < POSTS; i++) {
        letter *l = &p->mail->letters[p->number][i];

        *l = (letter){.message.run = letter_run, .mail = p->mail, .poster = p->number, .number = i};
        tz_io_post(p->mail->io, &l->message);
        if (i % 100 == 0)
            usleep(50); /* let the owner fall asleep now and then */
    }
    return NULL;
}

static void test_posts(tz_io_kind kind)
{
    mail *m = calloc(1, sizeof(*m));
    poster posters[POSTERS];
    int fd = make_file(4096, O_RDONLY);
    char data[4096];
    probe p = {0};

    m->io = make_io(kind, 0, 2);
    memset(m->last, -1, sizeof(m->last));
    for (int i = 0; i < POSTERS; i++) {
        posters[i] = (poster){.mail = m, .number = i};
        CHECK_EQ(pthread_create(&posters[i].thread, NULL, post_many, &posters[i]), 0);
    }
    while (m->ran < POSTERS * POSTS) {
        if (!tz_io_inflight(m->io))
            tz_io_read(m->io, &p.op, fd, data, sizeof(data), 0, probe_done);
        CHECK(tz_io_run(m->io, -1) >= 0); /* a lost wake-up would hang here */
    }
    for (int i = 0; i < POSTERS; i++)
        CHECK_EQ(pthread_join(posters[i].thread, NULL), 0);
    settle(m->io);
    close(fd);
    tz_io_destroy(m->io);
    free(m);
}

/* A message that posts itself again and submits an op. */
typedef struct echo {
    tz_io_message message;
    tz_io *io;
    int left;
    probe timer;
} echo;

static void echo_run(tz_io_message *message)
{
    echo *e = (echo *)message;

    if (e->left-- > 0) {
        tz_io_post(e->io, message);
        return;
    }
    e->timer.op = (tz_io_op){.opcode = TZ_IO_TIMEOUT, .length = 1000, .done = probe_done};
    tz_io_submit(e->io, &e->timer.op);
}

static void test_message_that_posts(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 0, 0);
    echo e = {.message.run = echo_run, .io = io, .left = 10};

    tz_io_post(io, &e.message);
    while (!e.timer.calls)
        CHECK(tz_io_run(io, 10 * S) >= 0);
    CHECK_EQ(e.left, -1);
    tz_io_destroy(io);
}

static void *post_one(void *argument)
{
    echo *e = argument;

    usleep(2000);
    tz_io_post(e->io, &e->message);
    return NULL;
}

/* A wake-up wakes once: afterwards the engine sleeps as long as it was told. */
static void test_wake_once(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 0, 0);
    echo e = {.message.run = echo_run, .io = io};
    pthread_t thread;
    int64_t began = 0, took = 0;

    for (int i = 0; i < 3; i++) {
        e.left = 0;
        e.timer.calls = 0;
        CHECK_EQ(pthread_create(&thread, NULL, post_one, &e), 0);
        while (!e.timer.calls)
            CHECK(tz_io_run(io, -1) >= 0);
        CHECK_EQ(pthread_join(thread, NULL), 0);
    }
    for (int i = 0; i < 3; i++) {
        began = now_ns();
        CHECK_EQ(tz_io_run(io, 5 * MS), 0);
        took = now_ns() - began;
    }
    CHECK(took >= 4 * MS);
    tz_io_destroy(io);
}

/* create on one thread, run on another, destroy on the first again. */
static void *own(void *argument)
{
    tz_io *io = argument;
    int fd = make_file(10, O_RDONLY);
    char data[10];
    probe p = {0};

    tz_io_read(io, &p.op, fd, data, 10, 0, probe_done);
    settle(io);
    CHECK_EQ(p.result, 10);
    close(fd);
    return NULL;
}

static void test_owner_thread(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 0, 0);
    probe p = {.op = {.opcode = TZ_IO_TIMEOUT, .length = 1000, .done = probe_done}};
    pthread_t thread;

    tz_io_submit(io, &p.op); /* before there is an owner */
    CHECK_EQ(pthread_create(&thread, NULL, own, io), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(p.calls, 1);
    tz_io_destroy(io);
}

int main(void)
{
    RUN_BOTH(test_posts);
    RUN_BOTH(test_message_that_posts);
    RUN_BOTH(test_wake_once);
    RUN_BOTH(test_owner_thread);
    return 0;
}
