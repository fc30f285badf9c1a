/* SPDX-License-Identifier: Apache-2.0
 *
 * Sessions one event at a time on the fake engine: what prepare refuses and seals, what punctures, who frees, who waits
 * for whom. The mover's part is played by hand.
 */
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

static void on_drained(tz_gate_closer *closer)
{
    (void)closer;
    rig.drained = true;
}

static void on_broken(tz_gate_closer *closer)
{
    (void)closer;
    rig.broken = true;
}

static void on_settled(tz_gate_closer *closer)
{
    (void)closer;
    rig.settled = true;
}

static void step_until(const bool *flag)
{
    for (int steps = 0; !*flag; steps++) {
        CHECK(steps < 1000000);
        fake_step(rig.io);
    }
}

static void step_all(void)
{
    for (int i = 0; i < 20000; i++)
        fake_step(rig.io);
}

static void close_gate(void)
{
    rig.closer = (tz_gate_closer){on_drained, on_broken, on_settled, 0};
    rig.drained = rig.broken = rig.settled = false;
    CHECK_EQ(tz_gate_close(rig.volume, &rig.closer, UNTIL), 0);
}

static void open_gate(void)
{
    tz_gate_open(rig.volume, &rig.closer);
    step_until(&rig.settled);
}

static void setup(void)
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

static tz_session_config usual(void)
{
    return (tz_session_config){.track_size = TRACK, .memory_bytes = 512 * 1024, .file_fd = -1};
}

static void install(const tz_session_config *config)
{
    CHECK_EQ(tz_session_prepare(&rig.session, rig.volume, config), 0);
    close_gate();
    step_until(&rig.drained);
    CHECK_EQ(tz_gate_install(rig.volume, rig.session), 0);
    open_gate();
}

static void end(tz_session *session, bool cancel, enum tz_session_state state, enum tz_puncture_reason reason)
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

static void teardown(void)
{
    step_all();
    CHECK(tz_volume_is_idle(rig.volume));
    tz_volume_close(rig.volume);
    tz_io_destroy(rig.io);
    unlink(rig.path);
}

static void on_updated(tz_request *request, int64_t result)
{
    update *u = request->user;

    u->result = result;
    u->done = true;
}

static void submit(update *u, tz_request_kind kind, uint64_t track, uint64_t tracks)
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

static void finish(update *u)
{
    step_until(&u->done);
    CHECK_EQ(u->result, 0);
    free(u->buffer);
}

static void write_tracks(uint64_t track, uint64_t tracks)
{
    update u;

    submit(&u, TZ_REQUEST_WRITE, track, tracks);
    finish(&u);
}

/* ---- the mover's part ---- */

static uint32_t mark_copied(uint64_t track)
{
    uint32_t n, mask = tz_track_mask(track, 1, &n);

    return tz_tracks_copied(&rig.session->sidefile.words[track / 32], mask);
}

static void push(uint32_t slot)
{
    uint64_t one = 1;

    tz_drain_push(tz_session_header_of(rig.session), rig.session->sidefile.ring, slot);
    CHECK_EQ(write(rig.session->drain_fd, &one, 8), 8);
    step_all();
}

static bool is_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, 0) > 0;
}

static enum tz_session_state state(void)
{
    return tz_session_state_of(rig.session);
}

/* ---- prepare ---- */

static int prepare_with(tz_session_config config)
{
    return tz_session_prepare(&rig.session, rig.volume, &config);
}

static void prepare_refuses(void)
{
    tz_session_config c = usual();

    setup();
    c.track_size = 5000;
    CHECK_EQ(prepare_with(c), -EINVAL);
    c.track_size = 2048;
    CHECK_EQ(prepare_with(c), -EINVAL);
    c.track_size = 2 * TZ_TRACK_MAX;
    CHECK_EQ(prepare_with(c), -EINVAL);
    c = usual();
    c.memory_bytes = 0;
    CHECK_EQ(prepare_with(c), -ENOSPC);
    c.memory_bytes = 20000; /* holds the tables, but no slot */
    CHECK_EQ(prepare_with(c), -ENOSPC);
    c = usual();
    c.file_bytes = 65536; /* and no file */
    CHECK_EQ(prepare_with(c), -EINVAL);
    c = usual();
    c.high_percent = 101;
    CHECK_EQ(prepare_with(c), -EINVAL);
    teardown();
}

/* The caps count everything, and use what they are given. */
static void caps_are_kept(void)
{
    setup();
    for (uint64_t memory = 64 * 1024; memory <= 64 << 20; memory = memory * 3 / 2 + 100) {
        for (uint64_t track = 4096; track <= 65536; track *= 16) {
            tz_session_config c = usual();
            tz_session_header *h;
            uint64_t taken;

            c.memory_bytes = memory;
            c.track_size = track;
            if (prepare_with(c) == -ENOSPC)
                continue;
            h = tz_session_header_of(rig.session);
            taken = h->owned_bytes + h->shared_bytes + rig.session->private_bytes;
            CHECK(taken <= memory);
            CHECK(memory - taken < track + 16384); /* not even one more slot and its tables' next pages */
            CHECK(h->memory_slots == h->slots && h->slots > 0);
            tz_session_destroy(rig.session);
        }
    }
    teardown();
}

static void mover_cannot_touch_what_the_gate_owns(void)
{
    tz_session_handles h;
    tz_session_config c = usual();
    void *map;

    setup();
    c.file_bytes = 100000; /* not a multiple of the track */
    c.file_fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    CHECK_EQ(prepare_with(c), 0);
    tz_session_handles_get(rig.session, &h);
    CHECK(mmap(NULL, h.owned_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, h.owned_fd, 0) == MAP_FAILED);
    CHECK(write(h.owned_fd, "x", 1) < 0);
    CHECK(ftruncate(h.owned_fd, 0) < 0 && ftruncate(h.owned_fd, 1 << 30) < 0);
    CHECK(ftruncate(h.shared_fd, 0) < 0 && ftruncate(h.shared_fd, 1 << 30) < 0);
    CHECK(fcntl(h.owned_fd, F_ADD_SEALS, F_SEAL_WRITE) < 0 && fcntl(h.shared_fd, F_ADD_SEALS, F_SEAL_WRITE) < 0);
    map = mmap(NULL, h.owned_bytes, PROT_READ, MAP_SHARED, h.owned_fd, 0);
    CHECK(map != MAP_FAILED);
    CHECK_EQ(tz_session_layout_check(map, h.owned_bytes, h.shared_bytes), 0);
    CHECK_EQ(mprotect(map, h.owned_bytes, PROT_READ | PROT_WRITE), -1);
    munmap(map, h.owned_bytes);
    CHECK(write(h.volume_fd, "x", 1) < 0 && write(h.file_fd, "x", 1) < 0);
    CHECK_EQ(fcntl(h.volume_fd, F_GETFL) & O_DIRECT, fcntl(rig.volume->file.fd, F_GETFL) & O_DIRECT);
    {
        const int fds[] = {h.owned_fd, h.shared_fd, h.drain_fd, h.volume_fd, h.file_fd};

        for (int i = 0; i < 5; i++)
            CHECK_EQ(fcntl(fds[i], F_GETFD), FD_CLOEXEC);
    }
    CHECK_EQ(rig.session->file_tier.size, 24 * TRACK);
    end(rig.session, false, TZ_SESSION_PREPARED, TZ_PUNCTURE_NONE);
    teardown();
}

static void a_failed_prepare_leaves_the_file_tier_to_its_owner(void)
{
    tz_session_config c = usual();

    setup();
    c.memory_bytes = 1024;
    c.file_bytes = 65536;
    c.file_fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    CHECK_EQ(prepare_with(c), -ENOSPC);
    c.memory_bytes = 1 << 20;
    c.file_bytes = UINT64_C(1) << 33; /* its tables are larger than the memory */
    CHECK_EQ(prepare_with(c), -ENOSPC);
    CHECK_EQ(close(c.file_fd), 0);
    teardown();
}

/* ---- intercepting ---- */

static void one_read_serves_all_who_wait_for_it(void)
{
    tz_session_config c = usual();
    update u[3];

    setup();
    install(&c);
    for (int i = 0; i < 3; i++)
        submit(&u[i], TZ_REQUEST_WRITE, 5, 1);
    CHECK_EQ(rig.session->preserving, 1);
    CHECK_EQ(rig.volume->gate.held.count, 3);
    for (int i = 0; i < 3; i++)
        finish(&u[i]);
    CHECK_EQ(atomic_load(&tz_session_header_of(rig.session)->images), 1);
    CHECK_EQ(atomic_load(&tz_session_header_of(rig.session)->intercepted), 3);
    write_tracks(5, 1); /* preserved: passes at once */
    CHECK_EQ(atomic_load(&tz_session_header_of(rig.session)->intercepted), 3);
    CHECK_EQ(mark_copied(9), 0);
    write_tracks(9, 1); /* copied: passes at once */
    CHECK_EQ(atomic_load(&tz_session_header_of(rig.session)->images), 1);
    CHECK(mark_copied(5) != 0);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

static void a_straddling_write_is_read_in_one_go(void)
{
    tz_session_config c = usual();
    update u;

    setup();
    c.memory_bytes = 8 << 20;
    install(&c);
    submit(&u, TZ_REQUEST_WRITE, 30, 20);
    CHECK_EQ(rig.session->preserving, 1);
    finish(&u);
    CHECK_EQ(atomic_load(&tz_session_header_of(rig.session)->images), 20);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

/* More runs at once than a session has preservations for: the others wait their turn. */
static void preservations_are_shared(void)
{
    tz_session_config c = usual();
    update u[30];

    setup();
    install(&c);
    for (int i = 0; i < 30; i++)
        submit(&u[i], TZ_REQUEST_WRITE, (uint64_t)i * 2, 1);
    CHECK(rig.session->starved && !rig.session->free_preserves);
    for (int i = 0; i < 30; i++)
        finish(&u[i]);
    CHECK_EQ(atomic_load(&tz_session_header_of(rig.session)->images), 30);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

static void reads_are_never_held(void)
{
    update w, r;

    setup();
    close_gate();
    submit(&w, TZ_REQUEST_WRITE, 3, 1);
    submit(&r, TZ_REQUEST_READ, 3, 1);
    finish(&r);
    CHECK(!w.done && rig.volume->gate.held.count == 1);
    open_gate();
    finish(&w);
    teardown();
}

/* A closed gate is drained only when what was issued before has completed. */
static void drained_means_completed(void)
{
    update before, after;

    setup();
    submit(&before, TZ_REQUEST_WRITE, 3, 4);
    close_gate();
    submit(&after, TZ_REQUEST_WRITE, 3, 4);
    CHECK(!rig.drained);
    step_until(&rig.drained);
    CHECK(before.done || rig.volume->gate.in_flight == 0);
    CHECK(!after.done);
    open_gate();
    finish(&before);
    finish(&after);
    teardown();
}

static void deadline_opens(void)
{
    update u;

    setup();
    close_gate();
    submit(&u, TZ_REQUEST_WRITE, 3, 4);
    fake_fire_deadlines(rig.io);
    finish(&u);
    CHECK(rig.broken && rig.settled && !rig.volume->gate.closed);
    tz_gate_open(rig.volume, &rig.closer); /* too late, and harmless */
    close_gate();
    open_gate();
    teardown();
}

static uint64_t longest_piece;

static int measure(tz_io *io, const tz_io_op *op)
{
    (void)io;
    if (op->opcode == TZ_IO_FALLOCATE)
        longest_piece = tz_max_u64(longest_piece, op->length);
    return 0;
}

/* Rule 9: also a trim that was under way, in one piece, before the session was installed. */
static void large_trims_are_split(void)
{
    tz_session_config c = usual();
    tz_volume_config volume = {.path = rig.path};
    const uint64_t size = 64 << 20;
    update u = {0};

    setup();
    tz_volume_close(rig.volume);
    CHECK_EQ(truncate(rig.path, (off_t)size), 0);
    CHECK_EQ(tz_volume_open(&rig.volume, rig.io, &volume), 0);
    rig.io->fault = measure;
    longest_piece = 0;
    CHECK_EQ(tz_session_prepare(&rig.session, rig.volume, &c), 0);
    close_gate();
    u.request = (tz_request){.kind = TZ_REQUEST_TRIM, .length = size, .done = on_updated, .user = &u};
    tz_volume_submit(rig.volume, &u.request);
    CHECK_EQ(u.request.volume.end, size);
    step_until(&rig.drained);
    CHECK_EQ(tz_gate_install(rig.volume, rig.session), 0);
    open_gate();
    finish(&u);
    CHECK_EQ(longest_piece, TZ_PIECE_GATED);
    CHECK_EQ(state(), TZ_SESSION_ACTIVE); /* 64 slots did, and 16320 tracks were zeros */
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

/* ---- puncture ---- */

/* At the cap, with an update in every stage: all of them complete, and the state is seen before any passes unprotected.
 */
static void cap(void)
{
    tz_session_config c = usual();
    update u[60];
    uint32_t slots;

    setup();
    c.memory_bytes = 96 * 1024;
    c.max_delay_us = 10;
    install(&c);
    slots = tz_session_header_of(rig.session)->slots;
    CHECK(slots < 40);
    for (uint32_t i = 0; i < slots; i++)
        write_tracks(i, 1);
    CHECK_EQ(state(), TZ_SESSION_ACTIVE);
    CHECK_EQ(rig.session->sidefile.used, slots);
    CHECK(atomic_load(&tz_session_header_of(rig.session)->delayed) > 0);
    for (uint32_t i = slots; i < 60; i++)
        submit(&u[i], TZ_REQUEST_WRITE, i, 1);
    CHECK_EQ(state(), TZ_SESSION_ACTIVE);
    CHECK_EQ(rig.volume->gate.in_flight, 0);
    while (state() == TZ_SESSION_ACTIVE) {
        CHECK_EQ(rig.volume->gate.in_flight, 0);
        fake_step(rig.io);
    }
    for (uint32_t i = slots; i < 60; i++)
        finish(&u[i]);
    end(rig.session, false, TZ_SESSION_PUNCTURED, TZ_PUNCTURE_CAP);
    teardown();
}

/* Slots that lie in the ring unseen, and tracks that the mover holds, are room. */
static void room_is_looked_for_before_the_cap(void)
{
    tz_session_config c = usual();
    uint32_t slots;

    setup();
    c.memory_bytes = 96 * 1024;
    c.max_delay_us = 10;
    install(&c);
    slots = tz_session_header_of(rig.session)->slots;
    for (uint32_t i = 0; i < slots; i++)
        write_tracks(i, 1);
    CHECK(mark_copied(0) != 0);
    tz_drain_push(tz_session_header_of(rig.session), rig.session->sidefile.ring,
                  tz_session_find(tz_session_header_of(rig.session), 0)); /* without a wake-up */
    write_tracks(slots, 1);
    CHECK_EQ(state(), TZ_SESSION_ACTIVE);
    {
        update u;

        submit(&u, TZ_REQUEST_WRITE, slots + 1, 1);
        CHECK_EQ(mark_copied(slots + 1), 0); /* while its image is being read */
        finish(&u);
    }
    CHECK_EQ(state(), TZ_SESSION_ACTIVE);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

static int failing_fd;
static tz_io_opcode failing_opcode;

static int fail(tz_io *io, const tz_io_op *op)
{
    (void)io;
    return op->opcode == failing_opcode && op->fd == failing_fd ? -EIO : 0;
}

static void an_unreadable_image(void)
{
    tz_session_config c = usual();

    setup();
    install(&c);
    failing_fd = rig.volume->file.fd;
    failing_opcode = TZ_IO_READ;
    rig.io->fault = fail;
    write_tracks(7, 2); /* the application's write succeeds all the same */
    end(rig.session, false, TZ_SESSION_PUNCTURED, TZ_PUNCTURE_READ);
    teardown();
}

static void a_failing_file_tier(void)
{
    tz_session_config c = usual();
    uint32_t memory_slots;

    setup();
    c.memory_bytes = 96 * 1024;
    c.file_bytes = 1 << 20;
    c.max_delay_us = 10;
    c.file_fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    install(&c);
    memory_slots = tz_session_header_of(rig.session)->memory_slots;
    for (uint32_t i = 0; i < memory_slots + 3; i++)
        write_tracks(i, 1);
    CHECK_EQ(atomic_load(&tz_session_header_of(rig.session)->file_images), 3);
    failing_fd = rig.session->file_tier.fd;
    failing_opcode = TZ_IO_WRITE;
    rig.io->fault = fail;
    write_tracks(50, 2);
    end(rig.session, false, TZ_SESSION_PUNCTURED, TZ_PUNCTURE_SIDEFILE);
    teardown();
}

/* Nonsense in the ring: a slot that does not exist, one that is free, one whose track is not copied, one given twice, a
 * head that ran away. */
static void nonsense_from_the_mover(void)
{
    for (int kind = 0; kind < 5; kind++) {
        tz_session_config c = usual();
        uint32_t slot;

        setup();
        install(&c);
        write_tracks(3, 1);
        slot = tz_session_find(tz_session_header_of(rig.session), 3);
        CHECK(slot != TZ_SLOT_NONE);
        switch (kind) {
        case 0:
            push(UINT32_MAX);
            break;
        case 1:
            push(slot + 1);
            break;
        case 2:
            push(slot);
            break;
        case 3:
            CHECK(mark_copied(3) != 0);
            push(slot);
            CHECK_EQ(state(), TZ_SESSION_ACTIVE);
            CHECK_EQ(rig.session->sidefile.used, 0);
            CHECK(!is_readable(rig.session->drain_fd)); /* else its watch would spin */
            push(slot);
            break;
        case 4:
            atomic_store(&rig.session->sidefile.ring->head, UINT64_C(1) << 40);
            push(slot);
            break;
        }
        CHECK_EQ(state(), TZ_SESSION_PUNCTURED);
        write_tracks(3, 1);
        end(rig.session, false, TZ_SESSION_PUNCTURED, TZ_PUNCTURE_PROTOCOL);
        teardown();
    }
}

/* ---- the end ---- */

/* A session that ends or is cancelled with images under way and updates held: they go on at once. */
static void ends_with_updates_held(void)
{
    for (int cancel = 0; cancel < 2; cancel++) {
        tz_session_config c = usual();
        update u[10];

        setup();
        install(&c);
        for (uint64_t i = 0; i < 10; i++)
            submit(&u[i], TZ_REQUEST_WRITE, 4 * i, 3);
        CHECK(rig.session->preserving > 0);
        end(rig.session, cancel, cancel ? TZ_SESSION_PUNCTURED : TZ_SESSION_ENDED,
            cancel ? TZ_PUNCTURE_MOVER : TZ_PUNCTURE_NONE);
        for (int i = 0; i < 10; i++)
            finish(&u[i]);
        teardown();
    }
}

static void sessions_have_a_limit(void)
{
    static tz_session *sessions[TZ_GATE_SESSIONS + 1];
    tz_session_config c = usual();

    setup();
    c.memory_bytes = 128 * 1024;
    close_gate();
    for (int i = 0; i <= TZ_GATE_SESSIONS; i++) {
        CHECK_EQ(tz_session_prepare(&sessions[i], rig.volume, &c), 0);
        CHECK_EQ(tz_gate_install(rig.volume, sessions[i]), i < TZ_GATE_SESSIONS ? 0 : -EBUSY);
    }
    open_gate();
    write_tracks(0, 8);
    for (int i = 0; i < TZ_GATE_SESSIONS; i++)
        end(sessions[i], false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    end(sessions[TZ_GATE_SESSIONS], true, TZ_SESSION_PUNCTURED, TZ_PUNCTURE_MOVER);
    teardown();
}

int main(void)
{
    RUN(prepare_refuses);
    RUN(caps_are_kept);
    RUN(mover_cannot_touch_what_the_gate_owns);
    RUN(a_failed_prepare_leaves_the_file_tier_to_its_owner);
    RUN(one_read_serves_all_who_wait_for_it);
    RUN(a_straddling_write_is_read_in_one_go);
    RUN(preservations_are_shared);
    RUN(reads_are_never_held);
    RUN(drained_means_completed);
    RUN(deadline_opens);
    RUN(large_trims_are_split);
    RUN(cap);
    RUN(room_is_looked_for_before_the_cap);
    RUN(an_unreadable_image);
    RUN(a_failing_file_tier);
    RUN(nonsense_from_the_mover);
    RUN(ends_with_updates_held);
    RUN(sessions_have_a_limit);
    return 0;
}
