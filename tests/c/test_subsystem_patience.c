/* SPDX-License-Identifier: Apache-2.0
 *
 * Disks that do not answer: how long a session waits for them, and who waits for the session (session_patience.c).
 */
#include "session_rig.h"

#include <pthread.h>

#define MS UINT64_C(1000000)

static int silent_fd;
static tz_io_opcode silent_opcode;

static bool is_silent(const tz_io_op *op)
{
    return op->opcode == silent_opcode && op->fd == silent_fd;
}

static void silence(int fd, tz_io_opcode opcode)
{
    silent_fd = fd;
    silent_opcode = opcode;
    rig.io->silent = is_silent;
}

static void answer(void)
{
    rig.io->silent = NULL;
}

static void step_for(uint64_t ns)
{
    for (uint64_t until = tz_now_ns() + ns; tz_now_ns() < until; usleep(100))
        for (int i = 0; i < 100; i++)
            fake_step(rig.io);
}

/* Until it is done, but no longer than for 20 s. */
static void wait_for(const bool *flag)
{
    for (int i = 0; i < 2000 && !*flag; i++)
        step_for(10 * MS);
    CHECK(*flag);
}

static uint32_t puncture(void)
{
    return atomic_load(&tz_session_header_of(rig.session)->puncture);
}

/* ---- patience ---- */

/* The update is held for as long as the volume may take, and then goes on; what the volume still owes keeps the session's
 * memory. */
static void a_volume_that_does_not_answer(void)
{
    tz_session_config c = usual();
    uint64_t began;
    tz_call call;
    update u;

    setup();
    c.volume_answer_ms = 60;
    c.tier_answer_ms = 100000;
    install(&c);
    silence(rig.volume->file.fd, TZ_IO_READ);
    began = tz_now_ns();
    submit(&u, TZ_REQUEST_WRITE, 7, 1);
    CHECK_EQ(rig.session->patience.length, 15 * MS);
    wait_for(&u.done);
    CHECK(tz_now_ns() - began >= 60 * MS);
    finish(&u);
    CHECK_EQ(state(), TZ_SESSION_PUNCTURED);
    CHECK_EQ(puncture(), TZ_PUNCTURE_STALLED);
    CHECK_EQ(rig.session->preserving, 1);

    tz_call_init(&call, NULL);
    tz_session_end_start(rig.session, false, &call);
    step_all();
    CHECK(!call.done);
    answer();
    step_until(&call.done);
    tz_session_destroy(rig.session);
    teardown();
}

/* The file tier has a patience of its own, from the write on. */
static void a_file_tier_that_does_not_answer(void)
{
    tz_session_config c = usual();
    uint32_t slots;
    update u;

    setup();
    c.memory_bytes = 96 * 1024;
    c.file_bytes = 1 << 20;
    c.max_delay_us = 10;
    c.file_fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    c.volume_answer_ms = 100000;
    c.tier_answer_ms = 60;
    install(&c);
    slots = tz_session_header_of(rig.session)->memory_slots;
    for (uint32_t i = 0; i < slots; i++)
        write_tracks(i, 1);
    silence(rig.session->file_tier.fd, TZ_IO_WRITE);
    submit(&u, TZ_REQUEST_WRITE, 50, 1);
    wait_for(&u.done);
    finish(&u);
    CHECK_EQ(puncture(), TZ_PUNCTURE_STALLED);
    answer();
    end(rig.session, false, TZ_SESSION_PUNCTURED, TZ_PUNCTURE_STALLED);
    teardown();
}

/* What was answered in time is late for nobody, whoever else is waited for. */
static void who_has_answered_is_not_late(void)
{
    tz_session_config c = usual();
    update u[2], last;

    setup();
    c.volume_answer_ms = 40;
    install(&c);
    silence(rig.volume->file.fd, TZ_IO_READ);
    submit(&u[0], TZ_REQUEST_WRITE, 1, 1);
    submit(&u[1], TZ_REQUEST_WRITE, 9, 1);
    CHECK_EQ(rig.session->preserving, 2);
    for (uint32_t i = 0; i < rig.session->preserves_count; i++)
        if (rig.session->preserves[i].until_ns)
            rig.session->preserves[i].until_ns += 10000 * MS; /* however slow this machine is */
    answer();
    finish(&u[0]);
    finish(&u[1]);
    for (uint32_t i = 0; i < rig.session->preserves_count; i++)
        CHECK_EQ(rig.session->preserves[i].until_ns, 0);

    silence(rig.volume->file.fd, TZ_IO_READ);
    submit(&last, TZ_REQUEST_WRITE, 20, 1);
    for (uint32_t i = 0; i < rig.session->preserves_count; i++)
        if (rig.session->preserves[i].until_ns)
            rig.session->preserves[i].until_ns += 10000 * MS;
    step_for(100 * MS);
    CHECK_EQ(state(), TZ_SESSION_ACTIVE);
    CHECK(!last.done && rig.session->waiting);
    answer();
    finish(&last);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

/* The timer runs while something is waited for, and again when something else is. */
static void the_timer_rests_with_the_session(void)
{
    tz_session_config c = usual();

    setup();
    c.volume_answer_ms = 3000; /* timers of less than a second fire at once here */
    install(&c);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK(!rig.session->waiting);
        write_tracks(10 * i, 1);
        step_all();
    }
    CHECK(!rig.session->waiting);
    CHECK_EQ(rig.io->count, 1); /* the poll for the mover's wake-ups */
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

/* An end does not wait for the timer's next look, which may be far away. */
static void an_end_does_not_wait_for_the_timer(void)
{
    tz_session_config c = usual();
    update u;

    setup();
    install(&c); /* a quarter of 5 s: does not fire here */
    submit(&u, TZ_REQUEST_WRITE, 3, 1);
    CHECK(rig.session->waiting);
    finish(&u);
    CHECK(rig.session->waiting);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

/* ---- from other threads ---- */

static _Atomic bool stopping;

static void *step_on(void *unused)
{
    (void)unused;
    while (!atomic_load(&stopping))
        step_for(MS);
    return NULL;
}

static pthread_t start_volume(void)
{
    pthread_t thread;

    atomic_store(&stopping, false);
    CHECK_EQ(pthread_create(&thread, NULL, step_on, NULL), 0);
    return thread;
}

static void stop_volume(pthread_t thread)
{
    atomic_store(&stopping, true);
    CHECK_EQ(pthread_join(thread, NULL), 0);
}

/* A session, an update that waits for a before-image that does not come, and the volume's thread. */
static pthread_t start_with_held(update *u)
{
    tz_session_config c = usual();

    setup();
    install(&c);
    silence(rig.volume->file.fd, TZ_IO_READ);
    submit(u, TZ_REQUEST_WRITE, 5, 1);
    return start_volume();
}

/* Who does not wait any longer gets the final report, and may end the session again. */
static void an_end_that_is_not_waited_for(void)
{
    tz_session_report report;
    update u;
    pthread_t thread = start_with_held(&u);

    for (int i = 0; i < 3; i++) {
        CHECK_EQ(tz_session_end_within(rig.session, false, 20 * MS, &report), -ETIMEDOUT);
        CHECK_EQ(report.state, TZ_SESSION_ENDED);
    }
    stop_volume(thread);
    CHECK(u.done); /* nobody needs its before-image any more */
    CHECK(!rig.session->ending);
    answer();
    thread = start_volume();
    CHECK_EQ(tz_session_end(rig.session, true, &report), 0);
    stop_volume(thread);
    CHECK_EQ(report.state, TZ_SESSION_ENDED);
    finish(&u);
    tz_session_destroy(rig.session);
    teardown();
}

static void giving_way_from_another_thread(void)
{
    tz_session_report report;
    update u;
    pthread_t thread = start_with_held(&u);

    tz_session_give_way(rig.session);
    tz_session_report_get(rig.session, &report);
    CHECK_EQ(report.puncture, TZ_PUNCTURE_ADMISSION);
    stop_volume(thread);
    wait_for(&u.done);
    finish(&u);
    answer();
    end(rig.session, false, TZ_SESSION_PUNCTURED, TZ_PUNCTURE_ADMISSION);
    teardown();
}

int main(void)
{
    RUN(a_volume_that_does_not_answer);
    RUN(a_file_tier_that_does_not_answer);
    RUN(who_has_answered_is_not_late);
    RUN(the_timer_rests_with_the_session);
    RUN(an_end_does_not_wait_for_the_timer);
    RUN(an_end_that_is_not_waited_for);
    RUN(giving_way_from_another_thread);
    return 0;
}
