/* SPDX-License-Identifier: Apache-2.0
 *
 * How sessions end: at the cap, by failing disks, by a mover that writes nonsense, in time; and that no update is harmed by it.
 */
#include "session_rig.h"

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

/* A session that gives way: as at the cap, but for the reason. */
static void giving_way(void)
{
    tz_session_config c = usual();
    update u;

    setup();
    install(&c);
    write_tracks(1, 2);
    submit(&u, TZ_REQUEST_WRITE, 9, 3);
    CHECK(rig.session->preserving > 0);
    tz_session_puncture(rig.session, TZ_PUNCTURE_ADMISSION);
    CHECK_EQ(state(), TZ_SESSION_PUNCTURED);
    finish(&u);
    end(rig.session, false, TZ_SESSION_PUNCTURED, TZ_PUNCTURE_ADMISSION);
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
    RUN(cap);
    RUN(room_is_looked_for_before_the_cap);
    RUN(giving_way);
    RUN(an_unreadable_image);
    RUN(a_failing_file_tier);
    RUN(nonsense_from_the_mover);
    RUN(ends_with_updates_held);
    RUN(sessions_have_a_limit);
    return 0;
}
