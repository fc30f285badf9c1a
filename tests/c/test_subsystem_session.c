/* SPDX-License-Identifier: Apache-2.0
 *
 * Sessions one event at a time: what prepare refuses and seals, who is held and who waits for whom.
 */
#include "session_rig.h"

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
    CHECK_EQ(tz_session_check(rig.volume, &c), -ENOSPC);
    CHECK_EQ(prepare_with(c), -ENOSPC);
    c.memory_bytes = 20000; /* holds the tables, but no slot */
    CHECK_EQ(prepare_with(c), -ENOSPC);
    c = usual();
    CHECK_EQ(tz_session_check(rig.volume, &c), 0);
    c.file_bytes = 65536; /* and no file */
    CHECK_EQ(tz_session_check(rig.volume, &c), 0);
    CHECK_EQ(prepare_with(c), -EINVAL);
    c = usual();
    c.high_percent = 101;
    CHECK_EQ(prepare_with(c), -EINVAL);
    c.high_percent = c.low_percent = 50; /* the mover drains before writers are delayed */
    CHECK_EQ(prepare_with(c), -EINVAL);
    c.high_percent = 20; /* below the usual low mark */
    c.low_percent = 0;
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
    return 0;
}
