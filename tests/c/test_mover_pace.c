/* SPDX-License-Identifier: Apache-2.0
 *
 * Giving way: how many chunks are in flight, and in what pieces, for an application that rests or comes back, for a
 * sidefile that fills, and outside of the mover's hours. And that chunks in pieces are T0 all the same. (What an
 * application's latencies do: test_mover_controller.c.)
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
    tz_load load, usual;
} rig;

static void tell_activity(const tz_source *source, tz_activity *out)
{
    *out = tz_container_of(source, rig, source)->now;
}

static const tz_source_ops rig_ops = {.activity = tell_activity};

static void rig_make(rig *r, bool opportunistic)
{
    memset(r, 0, sizeof(*r));
    r->now = (tz_activity){.gate = r, .load = &r->load, .usual = &r->usual, .low = 100, .high = 300};
    r->source.ops = &rig_ops;
    r->transfer.source = &r->source;
    r->transfers[0] = r->transfers[1] = &r->transfer; /* two files of one volume, where both count */
    r->mover.transfers = r->transfers;
    r->mover.count = 2;
    r->mover.config =
        (tz_mover_config){.workers = 1, .depth = DEPTH, .chunk_size = BIG_CHUNK, .opportunistic = opportunistic};
    tz_pace_create(&r->mover.pace, &r->mover.config, DEPTH);
    CHECK_EQ(tz_pace_prepare(&r->mover), 0);
}

/* So many looks pass, with a request before each; the depth then. */
static uint32_t pass(rig *r, uint32_t looks, bool active)
{
    uint32_t depth = 0;

    for (uint32_t i = 0; i < looks; i++) {
        if (active)
            tz_load_bump(&r->load.arrived, 1);
        usleep((useconds_t)(TZ_LOOK_NS / 1000 + 1000));
        depth = tz_pace_depth(&r->mover, 0);
    }
    return depth;
}

static uint32_t piece(rig *r)
{
    uint32_t bytes = tz_pace_piece(&r->mover.pace);

    CHECK_EQ(bytes % TZ_FRAME_ALIGN, 0);
    return bytes;
}

static void an_application_that_rests_gets_nothing_held_back(void)
{
    tz_mover_speed speed;
    rig r;

    rig_make(&r, true);
    CHECK_EQ(r.mover.pace.gates, 1);
    CHECK_EQ(pass(&r, 2, true), 1);
    CHECK(piece(&r) > 0);
    tz_mover_speed_get(&r.mover, &speed);
    CHECK(speed.yields && speed.depth == 1);
    /* 21 ms a look, and more on a busy machine. */
    CHECK_EQ(pass(&r, 45, false), DEPTH);
    CHECK_EQ(piece(&r), 0);
    tz_mover_speed_get(&r.mover, &speed);
    CHECK(!speed.yields);
    CHECK_EQ(pass(&r, 1, true), 1);
    CHECK(piece(&r) > 0);
    /* A request that does not end is an application, too. */
    atomic_store(&r.load.updates_in_flight, 1);
    CHECK_EQ(pass(&r, 45, false), 1);
    tz_pace_destroy(&r.mover.pace);
}

/* Reads of a volume that is not written to count. */
static void reads_count(void)
{
    rig r;

    rig_make(&r, true);
    CHECK_EQ(pass(&r, 45, false), DEPTH);
    atomic_store(&r.load.reads_in_flight, 1);
    CHECK_EQ(pass(&r, 1, false), 1);
    tz_pace_destroy(&r.mover.pace);
}

static void nobody_is_given_way_to_when_all_is_copied(void)
{
    rig r;

    rig_make(&r, true);
    CHECK_EQ(pass(&r, 1, true), 1);
    atomic_store(&r.transfer.ended, true);
    CHECK_EQ(pass(&r, 45, true), DEPTH);
    tz_pace_destroy(&r.mover.pace);
}

static void an_application_that_rested_before_gets_no_grace(void)
{
    rig r;

    rig_make(&r, true);
    tz_pace_destroy(&r.mover.pace);
    atomic_store(&r.load.last_ns, tz_mover_now() - UINT64_C(2000000000));
    tz_pace_create(&r.mover.pace, &r.mover.config, DEPTH);
    CHECK_EQ(tz_pace_prepare(&r.mover), 0);
    CHECK_EQ(tz_pace_depth(&r.mover, 0), DEPTH);
    tz_pace_destroy(&r.mover.pace);
}

static void a_sidefile_that_fills_counts_against_giving_way(void)
{
    rig r;

    rig_make(&r, true);
    r.now.used = 200; /* halfway between the marks */
    CHECK_EQ(pass(&r, 1, true), 1);
    r.now.used = 299;
    CHECK(pass(&r, 1, true) > 1);
    r.now.used = 300;
    CHECK_EQ(pass(&r, 1, true), DEPTH);
    CHECK_EQ(piece(&r), 0);
    /* Marks of nonsense divide nothing by zero. */
    r.now.low = r.now.high = 0;
    CHECK_EQ(pass(&r, 1, true), DEPTH);
    r.now.low = UINT32_MAX;
    CHECK_EQ(pass(&r, 1, true), 1);
    tz_pace_destroy(&r.mover.pace);
}

static void the_target_is_the_users(void)
{
    static const struct {
        uint64_t ns;
        uint32_t percent;
        double factor;
    } asked[] = {{2000000, 0, 1.25}, {0, 300, 3}, {0, 0, 1.25}};

    for (uint32_t i = 0; i < LENGTH_OF(asked); i++) {
        const tz_target *target;
        rig r;

        rig_make(&r, true);
        tz_pace_destroy(&r.mover.pace);
        r.mover.config.latency_ns = asked[i].ns;
        r.mover.config.latency_percent = asked[i].percent;
        tz_pace_create(&r.mover.pace, &r.mover.config, DEPTH);
        CHECK_EQ(tz_pace_prepare(&r.mover), 0);
        target = &r.mover.pace.meter.target;
        CHECK_EQ(target->ns, asked[i].ns);
        CHECK(target->factor > asked[i].factor - 0.001 && target->factor < asked[i].factor + 0.001);
        tz_pace_destroy(&r.mover.pace);
    }
}

static void full_speed_knows_no_pieces(void)
{
    rig r;

    rig_make(&r, false);
    CHECK_EQ(pass(&r, 1, true), DEPTH);
    CHECK_EQ(piece(&r), 0);
    CHECK_EQ(tz_pace_take(&r.mover.pace, BIG_CHUNK), 0);
    tz_pace_destroy(&r.mover.pace);
}

/* At a rate of the controller's pieces are told to wait for each other, for no longer than a moment. */
static void pieces_are_paced(void)
{
    uint64_t first, second;
    rig r;

    rig_make(&r, true);
    atomic_store(&r.mover.pace.piece_rate, 64 * TZ_MIB);
    first = tz_pace_take(&r.mover.pace, TZ_MIB);
    second = tz_pace_take(&r.mover.pace, TZ_MIB);
    CHECK_EQ(first, 0);
    CHECK(second > 10000000 && second <= 15625000);
    for (int i = 0; i < 100; i++)
        CHECK(tz_pace_take(&r.mover.pace, 16 * TZ_MIB) <= 100000000);
    tz_pace_destroy(&r.mover.pace);
}

/* ---- outside of its hours ---- */

static void a_mover_that_rests_begins_nothing(void)
{
    for (int opportunistic = 0; opportunistic < 2; opportunistic++) {
        rig r;

        rig_make(&r, opportunistic);
        atomic_store(&r.mover.pace.waiting, true);
        CHECK_EQ(tz_pace_depth(&r.mover, 0), 0);
        r.now.past_low = true; /* what a sidefile needs copied */
        CHECK(tz_pace_depth(&r.mover, 0) > 0);
        atomic_store(&r.transfer.ended, true);
        CHECK_EQ(tz_pace_depth(&r.mover, 0), 0);
        tz_pace_destroy(&r.mover.pace);
    }
}

/* Meanwhile the application is alone on its disk: that is no leave to press it. */
static void what_is_heard_while_it_rests_raises_nothing(void)
{
    uint32_t first;
    rig r;

    rig_make(&r, true);
    CHECK_EQ(pass(&r, 1, true), 1);
    first = piece(&r);
    for (int rests = 1; rests >= 0; rests--) {
        atomic_store(&r.mover.pace.waiting, rests);
        pass(&r, 20, true);
        CHECK_EQ(piece(&r) > first, !rests);
    }
    /* What is copied for a sidefile's sake counts. */
    atomic_store(&r.mover.pace.waiting, true);
    first = piece(&r);
    r.now.past_low = true;
    pass(&r, 20, true);
    CHECK(piece(&r) > first);
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

/* Past the low mark is past it until usage has fallen an eighth of the way between the marks. */
static void the_low_mark_is_left_clearly(void)
{
    static const struct {
        uint32_t used;
        bool past;
    } steps[] = {{0, false}, {200, false}, {201, true}, {150, true}, {101, true}, {100, false}, {150, false}};
    tz_source *source;
    tz_activity now;
    world w;

    world_make(&w, 1000, 0);
    w.gate.h->low_mark = 200;
    w.gate.h->high_mark = 1000;
    source = fake_gate_source(&w.gate);
    for (uint32_t i = 0; i < LENGTH_OF(steps); i++) {
        atomic_store(&w.gate.h->used_slots, steps[i].used);
        source->ops->activity(source, &now);
        CHECK_EQ(now.past_low, steps[i].past);
    }
    atomic_store(&w.gate.h->used_slots, 0);
    tz_source_destroy(source);
    world_remove(&w);
}

/* What only a mover that goes on copies, and what a sidefile that fills makes it copy all the same. */
static void a_sidefile_is_drained_outside_of_its_hours(void)
{
    for (int mode = 0; mode < 2; mode++) {
        tz_mover_config config = {.workers = 1, .depth = 2, .chunk_size = BIG_CHUNK, .opportunistic = mode};
        tz_transfer_report report;
        tz_bufspace *space;
        tz_mover *mover;
        world w;

        world_make(&w, 1000, 0);
        w.gate.h->low_mark = 20;
        w.gate.h->high_mark = 800;
        CHECK_EQ(tz_bufspace_create(&space, BIG_CHUNK, 6, 2, 0), 0);
        CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
        CHECK_EQ(tz_mover_add(mover, fake_gate_source(&w.gate), image_sink_of(w.target, VOLUME, true, 0), NULL), 0);
        tz_mover_rest(mover, true);
        CHECK_EQ(tz_mover_start(mover), 0);
        CHECK_EQ(tz_mover_wait(mover, 200000000), 0);
        CHECK_EQ(tz_mover_bytes_done(mover), 0);
        for (uint64_t track = 0; track < 256; track++) /* the first chunk */
            fake_gate_update(&w.gate, track, track | 1);
        for (int i = 0; i < 200 && tz_mover_bytes_done(mover) == 0; i++)
            CHECK_EQ(tz_mover_wait(mover, 50000000), 0);
        CHECK_EQ(tz_mover_wait(mover, 200000000), 0);
        tz_mover_report_get(mover, 0, &report);
        CHECK_EQ(report.bytes_done, BIG_CHUNK);
        CHECK_EQ(report.chunks_ahead, 1);
        tz_mover_rest(mover, false);
        CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
        tz_mover_report_get(mover, 0, &report);
        CHECK_EQ(report.error, 0);
        CHECK(same_content(w.t0, w.target));
        tz_mover_destroy(mover);
        tz_bufspace_destroy(space);
        world_remove(&w);
    }
}

/* Cancelling ends pauses between pieces, and what waits for its hours. */
static void what_waits_can_be_cancelled(void)
{
    const tz_mover_config config = {.workers = 1, .depth = 2, .chunk_size = BIG_CHUNK, .opportunistic = true};
    tz_bufspace *space;
    tz_mover *mover;
    world w;

    for (int rests = 0; rests < 2; rests++) {
        world_make(&w, 1000, 0);
        CHECK_EQ(tz_bufspace_create(&space, BIG_CHUNK, 6, 2, 0), 0);
        CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
        CHECK_EQ(tz_mover_add(mover, fake_gate_source(&w.gate), image_sink_of(w.target, VOLUME, true, 0), NULL), 0);
        tz_mover_rest(mover, rests);
        CHECK_EQ(tz_mover_start(mover), 0);
        atomic_store(&mover->pace.piece_rate, 1); /* until the next look: pauses of 100 ms */
        CHECK_EQ(tz_mover_wait(mover, 5000000), 0);
        tz_mover_cancel(mover);
        CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
        check_space_empty(space);
        tz_mover_destroy(mover);
        tz_bufspace_destroy(space);
        world_remove(&w);
    }
}

/* ---- somebody comes back in mid-copy ---- */

#define HUGE_CHUNK (16 * TZ_MIB)
#define HUGE_SIZE  (4 * HUGE_CHUNK)
#define FRAMES     2
#define LARGEST    (4 * TZ_MIB) /* 8 MiB in flight, shared by the frames */

/* Stores nowhere. At the first chunk the application comes back, and the mover's thread is kept until it is time to look. */
typedef struct returning {
    tz_sink sink;
    tz_load *load;
    tz_mover *mover;
    uint64_t moved, requests; /* by then */
    uint32_t gave_way;        /* chunks that ended after that, while the mover did */
} returning;

static int come_back(tz_sink *sink, tz_chunk *chunk)
{
    returning *r = tz_container_of(sink, returning, sink);
    tz_mover_speed speed;

    (void)chunk;
    if (r->requests == 0) {
        tz_mover_speed_get(r->mover, &speed);
        CHECK(!speed.yields);
        r->moved = atomic_load(&r->mover->pace.moved);
        r->requests = atomic_load(&r->mover->pace.requests);
        atomic_store(&r->load->reads_in_flight, 1);
        usleep((useconds_t)(TZ_LOOK_NS / 1000 + 1000));
        return TZ_STEP_DONE;
    }
    tz_mover_speed_get(r->mover, &speed);
    r->gave_way += speed.yields && speed.depth == 1;
    return TZ_STEP_DONE;
}

static void stay(tz_sink *sink)
{
    (void)sink;
}

static const tz_sink_ops returning_ops = {.store = come_back, .destroy = stay};

static int make_huge(scratch *s)
{
    int fd = openat(s->fd, "huge", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    uint8_t *data = malloc(HUGE_CHUNK);

    CHECK(fd >= 0 && data);
    memset(data, 'x', HUGE_CHUNK);
    for (uint32_t i = 0; i < HUGE_SIZE / HUGE_CHUNK; i++)
        CHECK_EQ(pwrite(fd, data, HUGE_CHUNK, (off_t)i * HUGE_CHUNK), HUGE_CHUNK);
    CHECK_EQ(fsync(fd), 0);
    free(data);
    return fd;
}

/* Told by the mover's requests: what it begins from then on is small, and before that nothing of it was too large. */
static void who_comes_back_meets_nothing_large(void)
{
    const tz_mover_config config = {.workers = 1, .chunk_size = HUGE_CHUNK, .opportunistic = true};
    returning r = {.sink = {.ops = &returning_ops}};
    uint64_t moved, requests;
    tz_transfer_report report;
    tz_bufspace *space;
    fake_gate gate;
    scratch s;
    int volume;

    scratch_make(&s, "/var/tmp");
    volume = make_huge(&s);
    fake_gate_install(&gate, &s, volume, 16, 100, 0, 50);
    r.load = &gate.h->load;
    CHECK_EQ(tz_bufspace_create(&space, HUGE_CHUNK, FRAMES, 2, 0), 0);
    CHECK_EQ(tz_mover_create(&r.mover, space, &config), 0);
    CHECK_EQ(tz_mover_add(r.mover, fake_gate_source(&gate), &r.sink, NULL), 0);
    CHECK_EQ(tz_mover_start(r.mover), 0);
    CHECK_EQ(tz_mover_wait(r.mover, WAIT_NS), 1);
    tz_mover_report_get(r.mover, 0, &report);
    CHECK_EQ(report.error, 0);
    moved = atomic_load(&r.mover->pace.moved);
    requests = atomic_load(&r.mover->pace.requests);
    CHECK_EQ(moved, HUGE_SIZE);
    CHECK(r.moved <= r.requests * LARGEST);
    /* Other chunks' requests may have been begun between the two moments, each of them once. */
    CHECK(moved - r.moved <= FRAMES * LARGEST + (requests - r.requests) * 256 * TZ_KIB);
    CHECK(r.gave_way >= 2);
    tz_mover_destroy(r.mover);
    tz_bufspace_destroy(space);
    fake_gate_remove(&gate);
    close(volume);
    scratch_remove(&s);
}

int main(void)
{
    RUN(an_application_that_rests_gets_nothing_held_back);
    RUN(reads_count);
    RUN(nobody_is_given_way_to_when_all_is_copied);
    RUN(an_application_that_rested_before_gets_no_grace);
    RUN(a_sidefile_that_fills_counts_against_giving_way);
    RUN(the_target_is_the_users);
    RUN(full_speed_knows_no_pieces);
    RUN(pieces_are_paced);
    RUN(a_mover_that_rests_begins_nothing);
    RUN(what_is_heard_while_it_rests_raises_nothing);
    RUN(an_image_in_pieces_is_t0);
    RUN(packs_in_pieces_are_t0);
    RUN(runs_of_the_file_tier_are_read_at_once);
    RUN(the_low_mark_is_left_clearly);
    RUN(a_sidefile_is_drained_outside_of_its_hours);
    RUN(what_waits_can_be_cancelled);
    RUN(who_comes_back_meets_nothing_large);
    return 0;
}
