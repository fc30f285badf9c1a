/* SPDX-License-Identifier: Apache-2.0
 *
 * The mover under a session: T0 byte for byte while another thread updates the volume through a gate; the same
 * test without validation has to fail; the sidefile ahead of order; punctures, nonsense, unreadable tracks.
 */
#include "fake_gate.h"
#include "tz/faults.h"

#define VOLUME (6 * TZ_MIB + 3 * 4096)

typedef struct world {
    scratch s;
    int volume, t0, target;
    fake_gate gate;
} world;

static void copy_bytes(int from, int to)
{
    uint64_t size;
    uint8_t *data = read_all(from, &size);

    CHECK_EQ(pwrite(to, data, size, 0), size);
    CHECK_EQ(ftruncate(to, (off_t)size), 0);
    CHECK_EQ(fsync(from), 0);
    free(data);
}

static void world_make(world *w, const char *base, uint64_t size, uint32_t track_shift, uint32_t memory_slots,
                       uint32_t tier_slots, uint32_t low_mark)
{
    scratch_make(&w->s, base);
    w->volume = make_file(&w->s, "volume", size, 42);
    w->t0 = make_file(&w->s, "t0", 0, 1);
    w->target = make_file(&w->s, "target", 0, 1);
    copy_bytes(w->volume, w->t0);
    fake_gate_install(&w->gate, &w->s, w->volume, track_shift, memory_slots, tier_slots, low_mark);
}

static void world_remove(world *w)
{
    fake_gate_remove(&w->gate);
    close(w->volume);
    close(w->t0);
    close(w->target);
    scratch_remove(&w->s);
}

static void back_up(world *w, tz_mover_config *config, tz_transfer_report *report)
{
    config->chunk_size = CHUNK;
    run_one(config, fake_gate_source(&w->gate), image_sink_of(w->target, w->gate.h->volume_size, true, 0), NULL,
            report);
}

static uint64_t used(world *w)
{
    return atomic_load(&w->gate.h->used_slots);
}

/* Updates while the mover runs, at a rate at which both get somewhere. */
static void under_updates(const char *base, uint32_t track_shift, tz_mover_config config)
{
    uint64_t tracks = (VOLUME >> track_shift) + 1;
    tz_transfer_report report;
    world w;

    /* A third of the slots in memory; room for every track. */
    world_make(&w, base, VOLUME, track_shift, (uint32_t)(tracks / 3), (uint32_t)tracks, (uint32_t)(tracks / 8));
    for (uint64_t track = 1; track < tracks; track += 3)
        fake_gate_update(&w.gate, track, track);
    fake_gate_start_writer(&w.gate, config.workers + track_shift);
    config.rate = 40 * TZ_MIB;
    back_up(&w, &config, &report);
    fake_gate_stop_writer(&w.gate);
    CHECK_EQ(report.error, 0);
    CHECK(same_content(w.t0, w.target));
    CHECK(!same_content(w.t0, w.volume));
    CHECK(report.tracks_from_sidefile >= tracks / 3 - 1);
    CHECK_EQ(report.chunks_direct + report.chunks_sidefile + report.chunks_mixed, report.chunks);
    CHECK(report.chunks_mixed > 0);
    /* Every slot has one owner that frees it. */
    CHECK_EQ(used(&w), 0);
    world_remove(&w);
}

static void t0_under_updates(void)
{
    for (size_t e = 0; e < LENGTH_OF(engines); e++)
        for (size_t n = 0; n < LENGTH_OF(worker_counts); n++) {
            tz_mover_config config = {.io = engines[e], .workers = worker_counts[n], .depth = 4};

            under_updates("/var/tmp", 12, config);
            under_updates("/dev/shm", 16, config);
        }
}

static void t0_while_yielding(void)
{
    tz_mover_config config = {.workers = 3, .depth = 4, .opportunistic = true};

    under_updates("/var/tmp", 12, config);
}

/* The oracle can fail: without validation the image is not T0. */
static void without_validation_t0_is_lost(void)
{
    tz_mover_config config = {.workers = 1, .faults = TZ_FAULT_NO_VALIDATION};
    tz_transfer_report report;
    world w;

    world_make(&w, "/var/tmp", VOLUME, 12, 2000, 0, 2000);
    for (uint64_t track = 0; track < 64; track++)
        fake_gate_update(&w.gate, track * 7, track);
    back_up(&w, &config, &report);
    CHECK_EQ(report.error, 0);
    CHECK(!same_content(w.t0, w.target));
    world_remove(&w);
}

static void the_sidefile_goes_ahead_of_order(void)
{
    tz_mover_config config = {.workers = 1, .depth = 1};
    tz_transfer_report report;
    tz_index_entry *index;
    world w;

    world_make(&w, "/var/tmp", VOLUME, 12, 300, 0, 10);
    /* Two chunks near the end, 40 slots each (fewer where the before-image is zero). */
    for (uint64_t i = 0; i < 40; i++) {
        fake_gate_update(&w.gate, 20 * (CHUNK >> 12) + i, 1);
        fake_gate_update(&w.gate, 22 * (CHUNK >> 12) + i, 1);
    }
    CHECK(used(&w) > 10);
    index = calloc(64, sizeof(*index));
    config.chunk_size = CHUNK;
    run_one(&config, fake_gate_source(&w.gate), image_sink_of(w.target, VOLUME, true, 0), index, &report);
    CHECK_EQ(report.error, 0);
    CHECK(report.chunks_ahead >= 1 && report.chunks_ahead <= 2);
    CHECK(index[20].origin == TZ_ORIGIN_MIXED && index[22].origin == TZ_ORIGIN_MIXED);
    CHECK_EQ(index[0].origin, TZ_ORIGIN_DIRECT);
    CHECK_EQ(report.tracks_from_sidefile, 80);
    CHECK(same_content(w.t0, w.target));
    fake_gate_drain(&w.gate);
    CHECK_EQ(used(&w), 0);
    CHECK_EQ(w.gate.freed_by_mover, w.gate.saved);
    free(index);
    world_remove(&w);
}

/* A chunk whose every track is preserved is not read from the volume at all. */
static void what_the_sidefile_holds_is_not_read(void)
{
    tz_mover_config config = {.workers = 1};
    tz_transfer_report report;
    world w;

    world_make(&w, "/var/tmp", CHUNK, 12, 200, 0, 200);
    for (uint64_t i = 0; i < CHUNK >> 12; i++)
        fake_gate_update(&w.gate, i, 1);
    back_up(&w, &config, &report);
    CHECK_EQ(report.error, 0);
    CHECK_EQ(report.bytes_read, 0);
    CHECK_EQ(report.chunks_sidefile, 1);
    CHECK(same_content(w.t0, w.target));
    world_remove(&w);
}

static void *puncture_soon(void *arg)
{
    usleep(30000);
    atomic_store(&((fake_gate *)arg)->h->state, TZ_SESSION_PUNCTURED);
    return NULL;
}

static void a_puncture_ends_the_transfer(void)
{
    tz_mover_config config = {.workers = 2, .rate = 4 * TZ_MIB};
    tz_transfer_report report;
    pthread_t thread;
    world w;

    world_make(&w, "/var/tmp", VOLUME, 16, 20, 0, 20);
    CHECK_EQ(pthread_create(&thread, NULL, puncture_soon, &w.gate), 0);
    back_up(&w, &config, &report);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(report.error, -ESTALE);
    CHECK_EQ(report.side, TZ_SIDE_SESSION);
    CHECK(report.bytes_done < report.size);

    /* No T0 yet is no T0; and the switch for the tests works. */
    atomic_store(&w.gate.h->state, TZ_SESSION_PREPARED);
    back_up(&w, &config, &report);
    CHECK_EQ(report.error, -ESTALE);
    config.rate = 0;
    config.faults = TZ_FAULT_IGNORE_PUNCTURE;
    back_up(&w, &config, &report);
    CHECK_EQ(report.error, 0);
    world_remove(&w);
}

static void nonsense_is_refused(void)
{
    tz_mover_config config = {.workers = 1};
    tz_transfer_report report;
    tz_session_descriptors fds;
    tz_session_view *view;
    world w;

    world_make(&w, "/var/tmp", VOLUME, 16, 20, 0, 20);
    /* Preserved, and no slot says where. */
    tz_tracks_preserved(&w.gate.words[0], 1u << 9);
    back_up(&w, &config, &report);
    CHECK_EQ(report.error, -EPROTO);
    CHECK_EQ(report.side, TZ_SIDE_SESSION);

    /* A live slot beyond the volume. */
    atomic_store(&w.gate.h->used_slots, 30);
    atomic_store(&tz_session_slots(w.gate.h)[3].track, UINT64_C(1) << 40);
    atomic_store(&tz_session_buckets(w.gate.h)[7], 4);
    back_up(&w, &config, &report);
    CHECK_EQ(report.error, -EPROTO);
    /* A bucket that names no slot. */
    atomic_store(&tz_session_buckets(w.gate.h)[7], 1000);
    back_up(&w, &config, &report);
    CHECK_EQ(report.error, -EPROTO);

    fds = (tz_session_descriptors){w.gate.owned_fd, w.gate.shared_fd, w.gate.drain_fd, w.gate.volume.fd, -1};
    w.gate.h->slots += 1000;
    CHECK_EQ(tz_session_view_open(&view, &fds), -EPROTO);
    w.gate.h->slots -= 1000;
    w.gate.h->magic++;
    CHECK_EQ(tz_session_view_open(&view, &fds), -EPROTO);
    w.gate.h->magic--;
    /* Memory that could shrink under us. */
    fds.owned_fd = w.volume;
    CHECK_EQ(tz_session_view_open(&view, &fds), -EPROTO);
    fds.owned_fd = w.gate.owned_fd;
    /* A volume shorter than the session says. */
    CHECK_EQ(ftruncate(w.volume, 4096), 0);
    fds.volume_fd = w.volume;
    CHECK_EQ(tz_session_view_open(&view, &fds), -ENODATA);
    world_remove(&w);
}

/* A hole is not read, and says of T0 no more than a read would: what lay there before the application punched it is in
 * the sidefile; what was a hole at T0 and is written later needs no slot for long. */
static void holes_are_validated_like_reads(void)
{
    const uint64_t track = 65536, from = 16 * track, length = 32 * track;
    tz_mover_config config = {.workers = 2, .chunk_size = CHUNK};
    tz_transfer_report report;
    world w;

    world_make(&w, "/var/tmp", VOLUME, 16, 20, 40, 60);
    for (uint64_t at = from; at < from + length; at += track)
        fake_gate_update(&w.gate, at / track, 99);
    CHECK_EQ(fallocate(w.volume, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)length), 0);
    CHECK(used(&w) > 0);
    back_up(&w, &config, &report);
    CHECK_EQ(report.error, 0);
    CHECK(same_content(w.t0, w.target));
    CHECK(report.bytes_read < VOLUME);
    fake_gate_update(&w.gate, 20, 5); /* its lock, and what was given back */
    CHECK_EQ(used(&w), 0);
    for (uint64_t i = 0; i < w.gate.h->tracks; i++)
        CHECK(atomic_load(&w.gate.words[i / 32]) >> i % 32 & 1);
    world_remove(&w);
}

/* What is checked once must not be read again: a subsystem that changes it later misleads nobody. */
static void constants_change_under_the_mover(void)
{
    tz_mover_config config = {.workers = 2, .chunk_size = CHUNK};
    tz_session_header kept;
    tz_transfer_report report;
    tz_source *source;
    world w;

    world_make(&w, "/var/tmp", VOLUME, 16, 20, 20, 5);
    for (uint64_t track = 0; track < 30; track++)
        fake_gate_update(&w.gate, track, 99);
    source = fake_gate_source(&w.gate);
    memcpy(&kept, w.gate.h, offsetof(tz_session_header, state));
    memset(w.gate.h, 0x77, offsetof(tz_session_header, state));
    run_one(&config, source, image_sink_of(w.target, VOLUME, true, 0), NULL, &report);
    memcpy(w.gate.h, &kept, offsetof(tz_session_header, state));
    CHECK_EQ(report.error, 0);
    CHECK(same_content(w.t0, w.target));
    world_remove(&w);
}

/* A subsystem that dies while it takes a slot out leaves a look-up undecided for ever. */
static void a_dead_gate_stops_nobody(void)
{
    tz_mover_config config = {.workers = 1, .chunk_size = CHUNK};
    tz_transfer_report report;
    tz_bufspace *space;
    tz_mover *mover;
    world w;

    world_make(&w, "/var/tmp", VOLUME, 16, 20, 0, 20);
    tz_tracks_preserved(&w.gate.words[0], 1u << 9);
    atomic_store(&w.gate.h->unlinks, 1);
    CHECK_EQ(tz_bufspace_create(&space, CHUNK, 6, 2, 0), 0);
    CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
    CHECK_EQ(tz_mover_add(mover, fake_gate_source(&w.gate), image_sink_of(w.target, VOLUME, true, 0), NULL), 0);
    CHECK_EQ(tz_mover_start(mover), 0);
    CHECK_EQ(tz_mover_wait(mover, INT64_C(300000000)), 0);
    tz_mover_cancel(mover);
    CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
    tz_mover_report_get(mover, 0, &report);
    CHECK_EQ(report.error, -ECANCELED);
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
    world_remove(&w);
}

/* Tracks that the volume cannot give any more (it was cut short: reads end early) are lost only
 * when they are not preserved. */
static void unreadable_tracks_come_from_the_sidefile(void)
{
    uint64_t tracks = VOLUME >> 12, cut = tracks - 70;
    tz_mover_config config = {.workers = 2};

    for (int miss = 0; miss < 2; miss++) {
        tz_transfer_report report;
        tz_bufspace *space;
        tz_mover *mover;
        world w;

        world_make(&w, "/var/tmp", VOLUME, 12, 200, 100, 300);
        for (uint64_t track = cut; track < tracks; track++)
            if (!miss || track != cut + 5)
                fake_gate_update(&w.gate, track, 77);
        config.chunk_size = CHUNK;
        CHECK_EQ(tz_bufspace_create(&space, CHUNK, 6, 2, 0), 0);
        CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
        CHECK_EQ(tz_mover_add(mover, fake_gate_source(&w.gate), image_sink_of(w.target, VOLUME, true, 0), NULL), 0);
        CHECK_EQ(ftruncate(w.volume, (off_t)(cut << 12)), 0);
        CHECK_EQ(tz_mover_start(mover), 0);
        CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
        tz_mover_report_get(mover, 0, &report);
        tz_mover_destroy(mover);
        tz_bufspace_destroy(space);
        if (miss) {
            CHECK_EQ(report.error, -ENODATA);
            CHECK_EQ(report.side, TZ_SIDE_SOURCE);
            CHECK_EQ(report.error_offset, (cut + 5) << 12);
        } else {
            CHECK_EQ(report.error, 0);
            CHECK(same_content(w.t0, w.target));
        }
        world_remove(&w);
    }
}

int main(void)
{
    RUN(t0_under_updates);
    RUN(t0_while_yielding);
    RUN(without_validation_t0_is_lost);
    RUN(the_sidefile_goes_ahead_of_order);
    RUN(what_the_sidefile_holds_is_not_read);
    RUN(a_puncture_ends_the_transfer);
    RUN(nonsense_is_refused);
    RUN(holes_are_validated_like_reads);
    RUN(constants_change_under_the_mover);
    RUN(a_dead_gate_stops_nobody);
    RUN(unreadable_tracks_come_from_the_sidefile);
    return 0;
}
