/* SPDX-License-Identifier: Apache-2.0
 *
 * Giving way: how many chunks are in flight, and in what pieces, for an application that rests, has few updates, or
 * keeps the device full; for a sidefile that fills. And that chunks in pieces are T0 all the same.
 */
#include "../../csrc/mover/internal.h"
#include "fake_gate.h"

#define DEPTH     8
#define BIG_CHUNK (1024 * TZ_KIB)
#define VOLUME    (7 * TZ_MIB + 5 * 4096)

/* A mover of numbers: one transfer whose gate says what `now` holds. */
typedef struct rig {
    tz_mover mover;
    tz_transfer transfer, *transfers[2];
    tz_source source;
    tz_activity now;
} rig;

static void tell_activity(const tz_source *source, tz_activity *out)
{
    *out = tz_container_of(source, rig, source)->now;
}

static const tz_source_ops rig_ops = {.activity = tell_activity};

static void rig_make(rig *r)
{
    *r = (rig){.now = {.gate = r, .low = 100, .high = 300}};
    r->source.ops = &rig_ops;
    r->transfer.source = &r->source;
    r->transfers[0] = r->transfers[1] = &r->transfer; /* two files of one volume, where both count */
    r->mover.transfers = r->transfers;
    r->mover.count = 1;
    r->mover.config = (tz_mover_config){.workers = 1, .depth = DEPTH, .opportunistic = true};
    tz_pace_create(&r->mover.pace, &r->mover.config);
}

/* A look's time passes in which so much happens; the depth then. */
static uint32_t pass(rig *r, uint32_t updates, uint32_t requests)
{
    r->now.updates += updates;
    for (uint32_t i = 0; i < requests; i++)
        tz_pace_requested(&r->mover.pace);
    usleep((useconds_t)(tz_pace_interval() / 1000 + 1000));
    return tz_pace_depth(&r->mover, 0);
}

static uint32_t piece(rig *r)
{
    uint32_t bytes = tz_pace_piece(&r->mover.pace);

    CHECK_EQ(bytes % TZ_FRAME_ALIGN, 0);
    return bytes;
}

static void an_application_that_rests_gets_nothing_held_back(void)
{
    rig r;

    rig_make(&r);
    CHECK_EQ(pass(&r, 10, 1), 1);
    CHECK(piece(&r) > 0);
    CHECK_EQ(pass(&r, 0, 1), 2);
    CHECK_EQ(pass(&r, 0, 1), 4);
    CHECK_EQ(pass(&r, 0, 1), DEPTH);
    CHECK_EQ(piece(&r), 0);
    CHECK_EQ(pass(&r, 1, 1), 1);
    CHECK(piece(&r) > 0);
    tz_pace_destroy(&r.mover.pace);
}

static void pieces_follow_the_updates_for_each_of_our_requests(void)
{
    uint32_t narrow;
    rig r;

    rig_make(&r);
    CHECK_EQ(pass(&r, 10, 100), 1);
    narrow = piece(&r);
    CHECK_EQ(pass(&r, 200, 100), 1);
    CHECK(piece(&r) > narrow);
    /* In between: as before, on the way down as on the way up. */
    pass(&r, 50, 100);
    CHECK(piece(&r) > narrow);
    pass(&r, 10, 100);
    CHECK_EQ(piece(&r), narrow);
    pass(&r, 50, 100);
    CHECK_EQ(piece(&r), narrow);
    /* Few requests because of a rate. */
    r.mover.pace.rate = TZ_MIB;
    pass(&r, 200, 100);
    CHECK_EQ(piece(&r), narrow);
    tz_pace_destroy(&r.mover.pace);
}

/* Their gate tells each of them of the same updates. */
static void updates_count_once_however_many_files_are_behind_a_gate(void)
{
    uint32_t narrow;
    rig r;

    rig_make(&r);
    r.mover.count = 2;
    CHECK_EQ(pass(&r, 10, 100), 1);
    narrow = piece(&r);
    pass(&r, 80, 100);
    CHECK_EQ(piece(&r), narrow);
    tz_pace_destroy(&r.mover.pace);
}

static void a_sidefile_that_fills_counts_against_giving_way(void)
{
    rig r;

    rig_make(&r);
    r.now.used = 200; /* halfway between the marks */
    CHECK_EQ(pass(&r, 10, 1), 1);
    r.now.used = 250;
    CHECK_EQ(pass(&r, 10, 1), 1 + DEPTH / 2);
    r.now.used = 300;
    CHECK_EQ(pass(&r, 10, 1), DEPTH);
    CHECK_EQ(piece(&r), 0);
    /* Marks of nonsense divide nothing by zero. */
    r.now.low = r.now.high = 0;
    CHECK_EQ(pass(&r, 10, 1), DEPTH);
    r.now.low = UINT32_MAX;
    CHECK_EQ(pass(&r, 10, 1), 1);
    tz_pace_destroy(&r.mover.pace);
}

static void fixed_speed_knows_no_pieces(void)
{
    rig r;

    rig_make(&r);
    r.mover.config.opportunistic = false;
    tz_pace_destroy(&r.mover.pace);
    tz_pace_create(&r.mover.pace, &r.mover.config);
    CHECK_EQ(pass(&r, 10, 1), DEPTH);
    CHECK_EQ(piece(&r), 0);
    tz_pace_destroy(&r.mover.pace);
}

/* ---- chunks in pieces ---- */

typedef struct world {
    scratch s;
    int volume, t0, target;
    fake_gate gate;
} world;

static void world_make(world *w, uint32_t memory_slots, uint32_t tier_slots)
{
    uint64_t size;
    uint8_t *data;

    scratch_make(&w->s, "/var/tmp");
    w->volume = make_file(&w->s, "volume", VOLUME, 42);
    w->t0 = make_file(&w->s, "t0", 0, 1);
    w->target = make_file(&w->s, "target", 0, 1);
    data = read_all(w->volume, &size);
    CHECK_EQ(pwrite(w->t0, data, size, 0), size);
    free(data);
    CHECK_EQ(fsync(w->volume), 0);
    fake_gate_install(&w->gate, &w->s, w->volume, 12, memory_slots, tier_slots, 3000);
}

static void world_remove(world *w)
{
    fake_gate_remove(&w->gate);
    close(w->volume);
    close(w->t0);
    close(w->target);
    scratch_remove(&w->s);
}

static const tz_mover_config yielding = {
    .workers = 2, .depth = 4, .chunk_size = BIG_CHUNK, .opportunistic = true, .rate = 40 * TZ_MIB};

static void an_image_in_pieces_is_t0(void)
{
    tz_transfer_report report;
    world w;

    for (int fresh = 0; fresh < 2; fresh++) {
        world_make(&w, 1000, 3000);
        fake_gate_start_writer(&w.gate, 5 + (uint64_t)fresh);
        run_one(&yielding, fake_gate_source(&w.gate), image_sink_of(w.target, VOLUME, fresh, 0), NULL, &report);
        fake_gate_stop_writer(&w.gate);
        CHECK_EQ(report.error, 0);
        CHECK(report.tracks_from_sidefile > 0);
        CHECK(same_content(w.t0, w.target));
        world_remove(&w);
    }
}

static void packs_in_pieces_are_t0(void)
{
    tz_index_entry index[VOLUME / BIG_CHUNK + 1] = {0};
    tz_mover_config config = {.chunk_size = BIG_CHUNK};
    uint32_t packs, number = 0;
    tz_transfer_report report;
    tz_pack_writer *writer;
    tz_source *source;
    uint64_t bytes;
    tz_sink *sink;
    world w;
    int fd;

    world_make(&w, 1000, 3000);
    CHECK_EQ(tz_pack_writer_create(&writer, w.s.fd, "point", 0), 0);
    CHECK_EQ(tz_sink_packs(&sink, writer), 0);
    fake_gate_start_writer(&w.gate, 9);
    run_one(&yielding, fake_gate_source(&w.gate), sink, index, &report);
    fake_gate_stop_writer(&w.gate);
    CHECK_EQ(report.error, 0);
    CHECK_EQ(tz_pack_writer_finish(writer, &packs, &bytes), 0);
    CHECK_EQ(packs, 1);
    CHECK_EQ(report.bytes_written, bytes);
    tz_pack_writer_destroy(writer);

    fd = openat(w.s.fd, "point-0000.pack", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(tz_source_index(&source, index, LENGTH_OF(index), VOLUME, BIG_CHUNK, &number, &fd, 1), 0);
    run_one(&config, source, image_sink_of(w.target, VOLUME, true, 0), NULL, &report);
    CHECK_EQ(report.error, 0);
    CHECK(same_content(w.t0, w.target));
    close(fd);
    world_remove(&w);
}

/* Requests that the mover makes for a volume whose every track is in the file tier. */
static uint64_t requests_for_tier(bool shuffled)
{
    const tz_mover_config config = {.workers = 1, .depth = 4, .chunk_size = BIG_CHUNK, .opportunistic = true};
    uint64_t tracks = VOLUME >> 12, step = shuffled ? 101 : 1, requests;
    tz_transfer_report report;
    tz_bufspace *space;
    tz_mover *mover;
    world w;

    world_make(&w, 0, 3000);
    for (uint64_t i = 0; i < tracks; i++)
        fake_gate_update(&w.gate, i * step % tracks, i);
    CHECK_EQ(tz_bufspace_create(&space, BIG_CHUNK, 6, 2, 0), 0);
    CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
    CHECK_EQ(tz_mover_add(mover, fake_gate_source(&w.gate), image_sink_of(w.target, VOLUME, true, 0), NULL), 0);
    CHECK_EQ(tz_mover_start(mover), 0);
    CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
    tz_mover_report_get(mover, 0, &report);
    requests = atomic_load(&mover->pace.requests);
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
    CHECK_EQ(report.error, 0);
    CHECK_EQ(report.chunks_sidefile, report.chunks);
    CHECK(same_content(w.t0, w.target));
    fake_gate_drain(&w.gate);
    CHECK_EQ(atomic_load(&w.gate.h->used_slots), 0);
    world_remove(&w);
    return requests;
}

/* Slots in a row are read at once, others one by one. */
static void runs_of_the_file_tier_are_read_at_once(void)
{
    CHECK(requests_for_tier(false) < 150); /* zeros lie between the runs */
    CHECK(requests_for_tier(true) > 500);
}

int main(void)
{
    RUN(an_application_that_rests_gets_nothing_held_back);
    RUN(pieces_follow_the_updates_for_each_of_our_requests);
    RUN(updates_count_once_however_many_files_are_behind_a_gate);
    RUN(a_sidefile_that_fills_counts_against_giving_way);
    RUN(fixed_speed_knows_no_pieces);
    RUN(an_image_in_pieces_is_t0);
    RUN(packs_in_pieces_are_t0);
    RUN(runs_of_the_file_tier_are_read_at_once);
    return 0;
}
