/* SPDX-License-Identifier: Apache-2.0
 *
 * A volume of 64 tracks with one session on the fake engine; application and mover are played by hand, one event at a time.
 */
#ifndef TZ_TESTS_SESSION_RIG_H
#define TZ_TESTS_SESSION_RIG_H

#include <sys/mman.h>

#include "../../csrc/subsystem/clock.h"
#include "../../csrc/subsystem/session_private.h"
#include "fake_io.h"

#define TRACK 4096
#define SIZE  (64 * TRACK)
#define UNTIL (tz_now_ns() + UINT64_C(3600000000000))

static struct session_rig {
    tz_io *io;
    tz_volume *volume;
    tz_session *session;
    tz_gate_closer closer;
    bool drained, broken, settled;
    char path[32];
} rig;

typedef struct update {
    tz_request request;
    int64_t result;
    bool done;
    char *buffer;
} update;

/* ---- the rig ---- */

static inline void on_drained(tz_gate_closer *closer)
{
    (void)closer;
    rig.drained = true;
}

static inline void on_broken(tz_gate_closer *closer)
{
    (void)closer;
    rig.broken = true;
}

static inline void on_settled(tz_gate_closer *closer)
{
    (void)closer;
    rig.settled = true;
}

static inline void step_until(const bool *flag)
{
    for (int steps = 0; !*flag; steps++) {
        CHECK(steps < 1000000);
        fake_step(rig.io);
    }
}

static inline void step_all(void)
{
    for (int i = 0; i < 20000; i++)
        fake_step(rig.io);
}

static inline void close_gate(void)
{
    rig.closer = (tz_gate_closer){on_drained, on_broken, on_settled, 0};
    rig.drained = rig.broken = rig.settled = false;
    CHECK_EQ(tz_gate_close(rig.volume, &rig.closer, UNTIL), 0);
}

static inline void open_gate(void)
{
    tz_gate_open(rig.volume, &rig.closer);
    step_until(&rig.settled);
}

static inline void setup(void)
{
    tz_volume_config config = {.path = rig.path};
    char block[TRACK];
    int fd;

    memset(&rig, 0, sizeof(rig));
    strcpy(rig.path, "./session-XXXXXX");
    fd = mkstemp(rig.path);
    CHECK(fd >= 0);
    for (int i = 0; i < SIZE / TRACK; i++) {
        memset(block, i + 1, TRACK);
        CHECK_EQ(write(fd, block, TRACK), TRACK);
    }
    close(fd);
    CHECK_EQ(tz_io_create(&rig.io, NULL), 0);
    CHECK_EQ(tz_volume_open(&rig.volume, rig.io, &config), 0);
}

static inline tz_session_config usual(void)
{
    return (tz_session_config){.track_size = TRACK, .memory_bytes = 512 * 1024, .file_fd = -1};
}

static inline void install(const tz_session_config *config)
{
    CHECK_EQ(tz_session_prepare(&rig.session, rig.volume, config), 0);
    close_gate();
    step_until(&rig.drained);
    CHECK_EQ(tz_gate_install(rig.volume, rig.session), 0);
    open_gate();
}

static inline void end(tz_session *session, bool cancel, enum tz_session_state state, enum tz_puncture_reason reason)
{
    tz_session_report report;
    tz_call call;

    tz_call_init(&call, NULL);
    tz_session_end_start(session, cancel, &call);
    step_until(&call.done);
    tz_session_report_get(session, &report);
    CHECK_EQ(report.state, state);
    CHECK_EQ(report.puncture, reason);
    tz_session_destroy(session);
}

static inline void teardown(void)
{
    step_all();
    CHECK(tz_volume_is_idle(rig.volume));
    tz_volume_close(rig.volume);
    tz_io_destroy(rig.io);
    unlink(rig.path);
}

static inline void on_updated(tz_request *request, int64_t result)
{
    update *u = request->user;

    u->result = result;
    u->done = true;
}

static inline void submit(update *u, tz_request_kind kind, uint64_t track, uint64_t tracks)
{
    memset(u, 0, sizeof(*u));
    u->buffer = aligned_alloc(4096, tracks * TRACK);
    CHECK(u->buffer);
    memset(u->buffer, 0xee, tracks * TRACK);
    u->request = (tz_request){.kind = kind,
                              .offset = track * TRACK,
                              .length = tracks * TRACK,
                              .buffer = u->buffer,
                              .done = on_updated,
                              .user = u};
    tz_volume_submit(rig.volume, &u->request);
}

static inline void finish(update *u)
{
    step_until(&u->done);
    CHECK_EQ(u->result, 0);
    free(u->buffer);
}

static inline void write_tracks(uint64_t track, uint64_t tracks)
{
    update u;

    submit(&u, TZ_REQUEST_WRITE, track, tracks);
    finish(&u);
}

/* ---- the mover's part ---- */

static inline uint32_t mark_copied(uint64_t track)
{
    uint32_t n, mask = tz_track_mask(track, 1, &n);

    return tz_tracks_copied(&rig.session->sidefile.words[track / 32], mask);
}

static inline void push(uint32_t slot)
{
    uint64_t one = 1;

    tz_drain_push(tz_session_header_of(rig.session), rig.session->sidefile.ring, slot);
    CHECK_EQ(write(rig.session->drain_fd, &one, 8), 8);
    step_all();
}

static inline bool is_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, 0) > 0;
}

static inline enum tz_session_state state(void)
{
    return tz_session_state_of(rig.session);
}

#endif
