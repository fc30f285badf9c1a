/* SPDX-License-Identifier: Apache-2.0
 *
 * When polling begins and ends: an engine that is none says what is found, and counts who looks.
 */
#include <unistd.h>

#include "../../csrc/io/engine.h"
#include "check.h"

#define BEGIN 16 /* short waits that start it */

typedef struct fake {
    tz_io io;
    tz_io_op op;
    int peeks, sleeps;
    bool found;   /* what a look sees */
    bool slow;    /* sleeps last longer than polling could cover */
    bool nothing; /* and end with nothing */
} fake;

static int fake_turn(tz_io *io, int64_t timeout_ns)
{
    fake *f = tz_container_of(io, fake, io);

    f->sleeps += timeout_ns != 0;
    if (timeout_ns != 0 && f->slow)
        usleep(3000);
    io->ready.head = timeout_ns != 0 && !f->nothing ? &f->op : NULL;
    return 0;
}

static bool fake_peek(tz_io *io)
{
    fake *f = tz_container_of(io, fake, io);

    f->peeks++;
    return f->found;
}

static const tz_engine fake_engine = {.turn = fake_turn, .peek = fake_peek};

static fake make(uint32_t poll_us)
{
    fake f = {.io.engine = &fake_engine};

    tz_polling_init(&f.io.polling, poll_us);
    return f;
}

static void wait_often(fake *f, int times)
{
    for (int i = 0; i < times; i++) {
        f->io.ready.head = NULL;
        CHECK_EQ(tz_polling_turn(&f->io, -1), 0);
    }
}

static bool looks(fake *f)
{
    int before = f->peeks;

    wait_often(f, 1);
    return f->peeks > before;
}

static void test_short_waits_begin_it(void)
{
    fake f = make(1000);

    f.found = true;
    wait_often(&f, BEGIN);
    CHECK_EQ(f.peeks, 0);
    CHECK_EQ(f.sleeps, BEGIN);
    wait_often(&f, 100); /* what a look finds needs no sleep */
    CHECK_EQ(f.peeks, 100);
    CHECK_EQ(f.sleeps, BEGIN);
}

static void test_long_waits_never_do(void)
{
    fake f = make(1000);

    f.slow = true;
    wait_often(&f, 3 * BEGIN);
    f.slow = false;
    wait_often(&f, BEGIN - 1);
    f.slow = true;
    wait_often(&f, 1); /* the count begins again */
    f.slow = false;
    wait_often(&f, BEGIN);
    CHECK_EQ(f.peeks, 0);
}

static void test_waits_in_vain_never_do(void)
{
    fake f = make(1000);

    f.nothing = true;
    wait_often(&f, 3 * BEGIN);
    CHECK_EQ(f.peeks, 0);
}

static void test_files_are_not_polled_for(void)
{
    fake f = make(1000);

    f.found = true;
    for (int i = 0; i < 10 * BEGIN; i++) { /* file, client, file, client ...: all of them short */
        f.io.files = i % 2;
        wait_often(&f, 1);
    }
    CHECK_EQ(f.peeks, 0);
    f.io.files = 0;
    wait_often(&f, BEGIN);
    CHECK(looks(&f));
    f.io.files = 1; /* ends it, too */
    wait_often(&f, 1);
    f.io.files = 0;
    CHECK(!looks(&f));
}

static void test_looking_in_vain_ends_it(void)
{
    fake f = make(20);
    int before;

    wait_often(&f, BEGIN);
    for (int i = 0; f.io.polling.score; i++) {
        CHECK(i < 100);
        CHECK(looks(&f));
    }
    before = f.peeks;
    wait_often(&f, 2 * BEGIN); /* and it takes twice as many to begin again */
    CHECK_EQ(f.peeks, before);
    CHECK(looks(&f));
}

static void test_an_idle_engine_sleeps(void)
{
    fake f = make(100);
    int before;

    wait_often(&f, BEGIN);
    f.slow = f.nothing = true;
    wait_often(&f, 50);
    before = f.peeks;
    wait_often(&f, 20);
    CHECK_EQ(f.peeks, before);
}

static void test_never(void)
{
    fake f = make(0);

    f.found = true;
    wait_often(&f, 100 * BEGIN);
    CHECK_EQ(f.peeks, 0);
}

int main(void)
{
    RUN(test_short_waits_begin_it);
    RUN(test_long_waits_never_do);
    RUN(test_waits_in_vain_never_do);
    RUN(test_files_are_not_polled_for);
    RUN(test_looking_in_vain_ends_it);
    RUN(test_an_idle_engine_sleeps);
    RUN(test_never);
    return 0;
}
