/* SPDX-License-Identifier: Apache-2.0
 *
 * Rule 4, one T0 a group: what a gate that opened by itself does to its own session and to those of the other gates.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "../../csrc/subsystem/clock.h"
#include "../../csrc/subsystem/session_private.h"
#include "check.h"
#include "tz/reactor.h"

#define VOLUMES 2
#define SECOND  UINT64_C(1000000000)

static struct group {
    tz_reactor *reactors[VOLUMES];
    tz_volume *volumes[VOLUMES];
    tz_session *sessions[VOLUMES];
    char paths[VOLUMES][32];
    uint64_t deadline_ns;
    tz_suspension *suspension;
} group;

static void create(void)
{
    tz_io_config io = {0};
    tz_session_config config = {.track_size = 4096, .memory_bytes = 1 << 20, .file_fd = -1};

    for (int i = 0; i < VOLUMES; i++) {
        tz_volume_config volume = {.path = group.paths[i]};
        int fd;

        strcpy(group.paths[i], "./group-XXXXXX");
        fd = mkstemp(group.paths[i]);
        CHECK(fd >= 0 && ftruncate(fd, 64 * 4096) == 0);
        close(fd);
        CHECK_EQ(tz_reactor_create(&group.reactors[i], &io), 0);
        CHECK_EQ(tz_volume_open(&group.volumes[i], tz_reactor_io(group.reactors[i]), &volume), 0);
        CHECK_EQ(tz_session_prepare(&group.sessions[i], group.volumes[i], &config), 0);
    }
    CHECK_EQ(tz_suspension_create(&group.suspension, group.sessions, VOLUMES), 0);
    group.deadline_ns = tz_now_ns() + SECOND;
    CHECK_EQ(tz_suspension_close(group.suspension, SECOND), 0);
    CHECK_EQ(tz_suspension_install(group.suspension), 0);
}

static int close_volume(void *volume)
{
    tz_volume_close(volume);
    return 0;
}

/* Nobody has a T0. */
static void destroy(void)
{
    tz_suspension_destroy(group.suspension);
    for (int i = 0; i < VOLUMES; i++) {
        tz_session_report report;

        CHECK_EQ(tz_session_end(group.sessions[i], false, &report), 0);
        CHECK_EQ(report.state, TZ_SESSION_PUNCTURED);
        CHECK_EQ(report.puncture, TZ_PUNCTURE_GATE);
        tz_session_destroy(group.sessions[i]);
        CHECK_EQ(tz_reactor_call(group.reactors[i], close_volume, group.volumes[i]), 0);
        tz_reactor_destroy(group.reactors[i]);
        unlink(group.paths[i]);
    }
}

static void wait_past_deadline(void)
{
    while (tz_now_ns() < group.deadline_ns + SECOND / 5)
        usleep(1000);
}

static _Atomic bool occupied;

static int keep_busy(void *unused)
{
    (void)unused;
    atomic_store(&occupied, true);
    wait_past_deadline();
    return 0;
}

static void *occupy(void *reactor)
{
    tz_reactor_call(reactor, keep_busy, NULL);
    return NULL;
}

/* One gate opens on the order, the other one's deadline comes before the order does. */
static void one_gate_too_late_is_all_too_late(void)
{
    pthread_t thread;

    create();
    CHECK_EQ(pthread_create(&thread, NULL, occupy, group.reactors[1]), 0);
    while (!atomic_load(&occupied))
        usleep(1000);
    CHECK_EQ(tz_suspension_open(group.suspension), -ETIMEDOUT);
    pthread_join(thread, NULL);
    destroy();
}

/* A mover sees at once that a gate opened by itself, whatever becomes of the coordinator. */
static void a_gate_that_opens_by_itself_punctures(void)
{
    create();
    wait_past_deadline();
    for (int i = 0; i < VOLUMES; i++)
        CHECK_EQ(tz_session_state_of(group.sessions[i]), TZ_SESSION_PUNCTURED);
    CHECK_EQ(tz_suspension_open(group.suspension), -ETIMEDOUT);
    destroy();
}

int main(void)
{
    RUN(one_gate_too_late_is_all_too_late);
    RUN(a_gate_that_opens_by_itself_punctures);
    return 0;
}
