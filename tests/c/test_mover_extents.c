/* SPDX-License-Identifier: Apache-2.0
 *
 * Files on a volume under a session: tracks that several runs share, at every moment that an update may come; holes,
 * tails, order, alignment; what fails beside what does not; files and their whole volume.
 */
#include "extents_fixture.h"

#define BLOCK       4096
#define TRACKS      24
#define VOLUME_SIZE (TRACKS * TRACK)

/* ---- every moment ---- */

/* The update of `victim` comes before step number `when` of all loading; from then on, before each step some other track
 * is updated, so that a slot that was given back too early is taken by another before-image. */
static struct moment {
    uint32_t steps, when;
    uint64_t victim, other;
} moment;

static void update_at_moment(laid_world *w, tz_chunk *chunk)
{
    (void)chunk;
    if (moment.steps == moment.when)
        fake_gate_update(&w->gate, moment.victim, UINT64_C(0x1111111111111111));
    else if (moment.steps > moment.when && moment.other < TRACKS)
        fake_gate_update(&w->gate, moment.other++, UINT64_C(0x2222222222222222));
    moment.steps++;
}

typedef void (*layout)(laid_world *w);

/* Three files in track 5; one of them twice, and with a run that goes on into track 6. */
static void files_in_one_track(laid_world *w)
{
    laid_file *f = add_file(w, 2 * BLOCK);

    add_extent(f, 0, 5 * TRACK, BLOCK);
    add_extent(f, BLOCK, 5 * TRACK + 3 * BLOCK, BLOCK);
    f = add_file(w, BLOCK - 100);
    add_extent(f, 0, 5 * TRACK + BLOCK, BLOCK);
    f = add_file(w, 6 * BLOCK + 5);
    add_extent(f, BLOCK, 5 * TRACK + 2 * BLOCK, 2 * BLOCK);
    add_extent(f, 3 * BLOCK, 6 * TRACK, BLOCK);
    add_extent(f, 6 * BLOCK, 8 * TRACK, BLOCK);
}

/* The last comes first; the chunk boundary falls inside a track. */
static void runs_in_reverse(laid_world *w)
{
    laid_file *f = add_file(w, SMALL_CHUNK + 6 * BLOCK);

    for (uint64_t i = 0; i < 22; i++)
        add_extent(f, i * BLOCK, 3 * TRACK + (21 - i) * BLOCK, BLOCK);
    f = add_file(w, 3 * BLOCK);
    add_extent(f, 0, 5 * TRACK + 2 * BLOCK, 3 * BLOCK); /* somebody else's blocks, too */
}

/* One extent that begins inside a track, longer than a chunk: chunks share tracks. */
static void chunks_in_one_track(laid_world *w)
{
    laid_file *f = add_file(w, 3 * SMALL_CHUNK - 1000);

    add_extent(f, 0, TRACK + BLOCK, 3 * SMALL_CHUNK);
    f = add_file(w, 10 * BLOCK);
    add_extent(f, 5 * BLOCK, 9 * TRACK, 3 * BLOCK);
}

/* The extents of a file with holes that were never allocated: one read. */
static void holes_between(laid_world *w)
{
    laid_file *f = add_file(w, SMALL_CHUNK);

    for (uint64_t i = 0; i < 8; i++)
        add_extent(f, 2 * i * BLOCK, 3 * TRACK + i * BLOCK, BLOCK);
}

/* Nothing is on a sector's boundary. */
static void lies_badly(laid_world *w)
{
    laid_file *f = add_file(w, 2 * SMALL_CHUNK);

    add_extent(f, 0, 5 * TRACK + 100, TRACK + 999);
    add_extent(f, TRACK + 999, 9 * TRACK - 5, 2 * SMALL_CHUNK);
    f = add_file(w, 777);
    add_extent(f, 100, 5 * TRACK + 1, 99);
    add_extent(f, 199, 6 * TRACK + 5000, 1);
    add_extent(f, 500, 5 * TRACK + 300, 277);
}

static const struct {
    layout lay;
    uint64_t victims[3];
} layouts[] = {
    {files_in_one_track, {5, 6, 8}}, {runs_in_reverse, {5, 7, 3}}, {chunks_in_one_track, {5, 9, 1}},
    {holes_between, {3, 4, 2}},      {lies_badly, {5, 6, 9}},
};

/* One run of all files with the update at one moment. True: every file is T0 and every slot came back. */
static bool is_sound_at(layout lay, uint64_t victim, uint32_t when, bool tier, uint32_t depth, uint32_t faults)
{
    tz_mover_config config = {.io = TZ_IO_THREADS, .workers = 1, .depth = depth, .faults = faults};
    tz_transfer_report reports[MOST_FILES];
    laid_world w;
    bool sound;

    laid_make(&w, "/dev/shm", VOLUME_SIZE);
    lay(&w);
    laid_install(&w, tier ? 0 : 2 * TRACKS, tier ? 2 * TRACKS : 0, 2 * TRACKS);
    w.gate.forgiving = faults;
    moment = (struct moment){.when = when, .victim = victim};
    hook = update_at_moment;
    sound = back_up_files(&w, config, reports) == w.count;
    hook = NULL;
    sound = sound && slots_kept(&w) == 0;
    laid_remove(&w);
    return sound;
}

static void t0_whenever_the_update_comes(void)
{
    for (size_t i = 0; i < LENGTH_OF(layouts); i++)
        for (size_t v = 0; v < 3; v++)
            for (int tier = 0; tier < 2; tier++)
                for (uint32_t depth = 1; depth < 6; depth += 4) {
                    uint32_t when = 0;

                    do
                        CHECK(is_sound_at(layouts[i].lay, layouts[i].victims[v], when, tier, depth, 0));
                    while (when++ < moment.steps);
                }
}

static uint32_t moments_lost(layout lay, uint64_t victim, bool tier, uint32_t faults)
{
    uint32_t when = 0, lost = 0;

    do
        lost += !is_sound_at(lay, victim, when, tier, 1, faults);
    while (when++ < moment.steps);
    return lost;
}

/* The oracle can fail: when the first who needs a track lets go of it, others get what was written since. */
static void without_counting_uses_t0_is_lost(void)
{
    for (int tier = 0; tier < 2; tier++) {
        CHECK(moments_lost(files_in_one_track, 5, tier, TZ_FAULT_NO_USES) > 0);
        CHECK(moments_lost(chunks_in_one_track, 5, tier, TZ_FAULT_NO_USES) > 0);
        CHECK(moments_lost(files_in_one_track, 5, tier, TZ_FAULT_NO_VALIDATION) > 0);
    }
}

/* ---- random files, writers, workers ---- */

/* Deals the blocks of the volume out, in runs of random length, to random files, at random places of theirs. */
static void deal(laid_world *w, uint32_t files, uint64_t block, uint64_t shift, uint64_t seed)
{
    uint64_t at = shift, state = seed * 2 + 1, ends[MOST_FILES] = {0};

    for (uint32_t i = 0; i < files; i++)
        add_file(w, 0);
    while (at + block <= w->volume_size) {
        uint64_t length = tz_min_u64((1 + next_random(&state) % 9) * block, tz_align_down(w->volume_size - at, block));
        uint32_t to = (uint32_t)(next_random(&state) % (files + 1));

        if (to < files && w->files[to].count < MOST_RUNS) {
            laid_file *f = &w->files[to];
            uint64_t hole = next_random(&state) % 3 == 0 ? (next_random(&state) % 20) * block : 0;

            add_extent(f, ends[to] + hole, at, length);
            ends[to] += hole + length;
        }
        at += length;
    }
    for (uint32_t i = 0; i < files; i++) {
        laid_file *f = &w->files[i];

        /* Physical order is not logical order: swap some places of equal length. */
        for (uint64_t a = 0; a + 1 < f->count; a++) {
            uint64_t b = next_random(&state) % f->count;

            if (f->length[a] == f->length[b]) {
                uint64_t physical = f->physical[a];

                f->physical[a] = f->physical[b];
                f->physical[b] = physical;
            }
        }
        f->size = ends[i] - tz_min_u64(ends[i], next_random(&state) % block);
        f->size += next_random(&state) % 4 == 0 ? 100000 : 0;
    }
}

static void under_updates(const char *base, uint64_t block, uint64_t shift, tz_mover_config config, uint64_t seed)
{
    const uint64_t size = 8 * TZ_MIB + 3 * 4096;
    tz_transfer_report reports[MOST_FILES];
    uint64_t taken = 0;
    laid_world w;

    laid_make(&w, base, size);
    deal(&w, 12, block, shift, seed);
    laid_install(&w, 200, 1000, 100);
    fake_gate_start_writer(&w.gate, seed);
    usleep(3000);
    config.rate = 100 * TZ_MIB;
    CHECK_EQ(back_up_files(&w, config, reports), w.count);
    fake_gate_stop_writer(&w.gate);
    for (uint32_t i = 0; i < w.count; i++)
        taken += reports[i].tracks_from_sidefile;
    CHECK(taken > 0);
    CHECK_EQ(slots_kept(&w), 0);
    laid_remove(&w);
}

static void t0_under_updates(void)
{
    for (size_t e = 0; e < LENGTH_OF(engines); e++)
        for (size_t n = 0; n < LENGTH_OF(worker_counts); n++) {
            tz_mover_config config = {.io = engines[e], .workers = worker_counts[n], .depth = 4};

            under_updates("/var/tmp", 4096, 0, config, 5 + n);
            under_updates("/dev/shm", 1024, 0, config, 7 + n);
            under_updates("/var/tmp", 512, 100, config, 9 + n);
            config.opportunistic = true;
            under_updates("/var/tmp", 4096, 512, config, 11 + n);
        }
}

/* ---- reads ---- */

static uint32_t loads;

static void count_loads(laid_world *w, tz_chunk *chunk)
{
    (void)w;
    (void)chunk;
    loads++;
}

static uint32_t reads_of(layout lay, uint64_t *bytes)
{
    tz_mover_config config = {.workers = 1, .depth = 1};
    tz_transfer_report report;
    laid_world w;

    laid_make(&w, "/var/tmp", VOLUME_SIZE);
    lay(&w);
    laid_install(&w, 10, 0, 10);
    loads = 0;
    hook = count_loads;
    CHECK_EQ(back_up_files(&w, config, &report), 1);
    hook = NULL;
    *bytes = report.bytes_read;
    laid_remove(&w);
    return loads - (uint32_t)report.chunks; /* a chunk's first load comes before its first read */
}

static void in_reverse(laid_world *w)
{
    laid_file *f = add_file(w, 8 * BLOCK);

    for (uint64_t i = 0; i < 8; i++)
        add_extent(f, i * BLOCK, 3 * TRACK + (7 - i) * BLOCK, BLOCK);
}

static void in_one_piece(laid_world *w)
{
    add_extent(add_file(w, 3 * SMALL_CHUNK - 5000), 0, TRACK + BLOCK, 3 * SMALL_CHUNK - BLOCK);
}

static void what_lies_together_is_one_read(void)
{
    uint64_t bytes;

    CHECK_EQ(reads_of(in_one_piece, &bytes), 3);
    CHECK_EQ(reads_of(holes_between, &bytes), 1);
    CHECK_EQ(bytes, 8 * BLOCK);
    CHECK_EQ(reads_of(in_reverse, &bytes), 8);
}

static void holes_and_empty_files(void)
{
    tz_mover_config config = {.workers = 1};
    tz_transfer_report reports[3];
    laid_world w;

    laid_make(&w, "/var/tmp", VOLUME_SIZE);
    add_file(&w, 0);
    add_file(&w, 5 * SMALL_CHUNK + 1);
    add_extent(add_file(&w, 3 * SMALL_CHUNK), 2 * SMALL_CHUNK - BLOCK, 0, 2 * BLOCK);
    laid_install(&w, 10, 0, 10);
    CHECK_EQ(back_up_files(&w, config, reports), 3);
    CHECK_EQ(reports[0].chunks, 0);
    CHECK_EQ(reports[1].chunks_zero, 6);
    CHECK_EQ(reports[1].bytes_read, 0);
    CHECK_EQ(reports[2].chunks_zero, 1);
    CHECK_EQ(reports[2].bytes_read, 2 * BLOCK);
    laid_remove(&w);
}

/* ---- ahead of order ---- */

static void the_sidefile_goes_ahead_of_order(void)
{
    tz_mover_config config = {.workers = 1, .depth = 1};
    tz_transfer_report reports[2];
    laid_world w;

    laid_make(&w, "/var/tmp", 80 * TRACK);
    /* The file's chunks lie backwards, and begin inside tracks. */
    add_file(&w, 16 * SMALL_CHUNK);
    for (uint64_t i = 0; i < 16; i++)
        add_extent(&w.files[0], i * SMALL_CHUNK, 3 * TRACK / 4 + (15 - i) * SMALL_CHUNK, SMALL_CHUNK);
    laid_install(&w, 80, 0, 3);
    for (uint64_t track = 1; track < 5; track++) /* chunks 15 and 14 */
        fake_gate_update(&w.gate, track, 1);
    for (uint64_t track = 70; track < 75; track++) /* nobody's */
        fake_gate_update(&w.gate, track, 1);
    CHECK_EQ(back_up_files(&w, config, reports), 1);
    /* Slots of nobody keep the sidefile past its mark: that is no reason to claim anything. */
    CHECK_EQ(reports[0].chunks_ahead, 2);
    CHECK_EQ(slots_kept(&w), 0);
    laid_remove(&w);
}

/* ---- failures ---- */

/* The volume is cut short under the first file's first run, so it never comes to its part of track 5. The other file in
 * that track is T0; the slot is kept, for nobody can say that the first does not need it. */
static void a_file_that_fails_holds_up_no_other(void)
{
    for (uint32_t when = 0; when < 6; when++) {
        tz_mover_config config = {.workers = 1, .depth = 1};
        tz_transfer_report reports[2];
        laid_world w;

        laid_make(&w, "/dev/shm", VOLUME_SIZE);
        add_file(&w, 2 * BLOCK);
        add_extent(&w.files[0], 0, 20 * TRACK, BLOCK);
        add_extent(&w.files[0], BLOCK, 5 * TRACK, BLOCK);
        add_file(&w, 2 * BLOCK);
        add_extent(&w.files[1], 0, 5 * TRACK + BLOCK, BLOCK);
        add_extent(&w.files[1], BLOCK, 4 * TRACK + BLOCK, BLOCK);
        laid_install(&w, 40, 0, 40);
        CHECK_EQ(ftruncate(w.volume, 20 * TRACK), 0);
        moment = (struct moment){.when = when, .victim = 5};
        hook = update_at_moment;
        CHECK_EQ(back_up_files(&w, config, reports), 1);
        hook = NULL;
        CHECK_EQ(reports[0].error, -ENODATA);
        CHECK_EQ(reports[0].side, TZ_SIDE_SOURCE);
        CHECK_EQ(reports[1].error, 0);
        CHECK_EQ(tz_session_find(w.gate.h, 5) != TZ_SLOT_NONE, when < moment.steps);
        laid_remove(&w);
    }
}

/* Runs whose one read fails are read again one by one; what is lost is in the sidefile, or lost. */
static void unreadable_runs_come_from_the_sidefile(void)
{
    for (int miss = 0; miss < 2; miss++) {
        tz_mover_config config = {.workers = 1};
        tz_transfer_report reports[2];
        laid_world w;

        laid_make(&w, "/dev/shm", VOLUME_SIZE);
        add_file(&w, 12 * BLOCK);
        for (uint64_t i = 0; i < 6; i++) /* tracks 17 to 22, half of each */
            add_extent(&w.files[0], 2 * i * BLOCK, (17 + i) * TRACK + 2 * BLOCK, i == 5 ? BLOCK : 2 * BLOCK);
        add_file(&w, 6 * BLOCK); /* one read of two runs, the second from track 18 into track 19 */
        add_extent(&w.files[1], 0, 19 * TRACK - 3 * BLOCK, BLOCK);
        add_extent(&w.files[1], 2 * BLOCK, 19 * TRACK - 2 * BLOCK, 4 * BLOCK);
        laid_install(&w, 40, 0, 40);
        for (uint64_t track = 19 + (uint64_t)miss; track < TRACKS; track++)
            fake_gate_update(&w.gate, track, 3);
        CHECK_EQ(ftruncate(w.volume, 19 * TRACK), 0);
        CHECK_EQ(back_up_files(&w, config, reports), miss ? 0 : 2);
        for (int i = 0; i < 2 && miss; i++) {
            CHECK_EQ(reports[i].error, -ENODATA);
            CHECK_EQ(reports[i].error_offset, 4 * BLOCK);
        }
        laid_remove(&w);
    }
}

static void impossible_extents_are_refused(void)
{
    const uint64_t logical[] = {0, 4096}, physical[] = {0, 65536}, length[] = {8192, 4096};
    uint64_t beyond[] = {VOLUME_SIZE - 4096}, far[] = {UINT64_MAX - 4095};
    tz_source *source;
    laid_world w;

    laid_make(&w, "/dev/shm", VOLUME_SIZE);
    laid_install(&w, 10, 0, 10);
    CHECK_EQ(tz_source_extents(&source, w.view, 10000, logical, physical, length, 2), -EINVAL);
    CHECK_EQ(tz_source_extents(&source, w.view, 10000, logical, beyond, length, 1), -ERANGE);
    CHECK_EQ(tz_source_extents(&source, w.view, 10000, logical, far, length, 1), -EOVERFLOW);
    laid_remove(&w);
}

/* Who comes when tracks are copied already is refused: they may be gone. */
static void nobody_is_counted_after_the_first_read(void)
{
    tz_mover_config config = {.workers = 1, .chunk_size = SMALL_CHUNK};
    tz_transfer_report report;
    tz_bufspace *space;
    tz_source *source;
    tz_mover *mover;
    tz_sink *sink;
    laid_world w;

    laid_make(&w, "/dev/shm", VOLUME_SIZE);
    files_in_one_track(&w);
    laid_install(&w, 10, 0, 10);
    CHECK_EQ(tz_bufspace_create(&space, SMALL_CHUNK, 4, 2, 0), 0);
    CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
    CHECK_EQ(tz_sink_null(&sink), 0);
    CHECK_EQ(tz_mover_add(mover, source_of(&w, &w.files[0]), sink, NULL), 0);
    CHECK_EQ(tz_mover_start(mover), 0);
    CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
    tz_mover_report_get(mover, 0, &report);
    CHECK_EQ(report.error, 0);
    tz_mover_destroy(mover);
    CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
    CHECK_EQ(tz_sink_null(&sink), 0);
    source = source_of(&w, &w.files[1]);
    CHECK_EQ(tz_mover_add(mover, source, sink, NULL), -EBUSY);
    tz_source_destroy(source);
    CHECK_EQ(tz_source_session(&source, w.view), 0);
    CHECK_EQ(tz_mover_add(mover, source, sink, NULL), -EBUSY);
    tz_source_destroy(source);
    tz_sink_destroy(sink);
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
    laid_remove(&w);
}

/* ---- a volume and files on it ---- */

/* The whole volume is one more who needs every track, whether it was added before the files or after. */
static void volume_and_files(bool image_first, uint64_t victim)
{
    uint32_t when = 0;

    do {
        tz_mover_config config = {.workers = 1, .depth = 2};
        tz_transfer_report reports[MOST_FILES + 1];
        laid_world w;

        laid_make(&w, "/dev/shm", VOLUME_SIZE);
        files_in_one_track(&w);
        w.image = make_file(&w.s, "image", 0, 1);
        w.image_first = image_first;
        laid_install(&w, 2 * TRACKS, 0, 2 * TRACKS);
        moment = (struct moment){.when = when, .victim = victim};
        hook = update_at_moment;
        CHECK_EQ(back_up_files(&w, config, reports), w.count);
        hook = NULL;
        CHECK_EQ(reports[image_first ? 0 : w.count].error, 0);
        CHECK(image_is_t0(&w));
        fake_gate_drain(&w.gate);
        CHECK_EQ(atomic_load(&w.gate.h->used_slots), 0);
        laid_remove(&w);
    } while (when++ < moment.steps);
}

static void a_volume_and_its_files(void)
{
    for (int image_first = 0; image_first < 2; image_first++) {
        volume_and_files(image_first, 5);
        volume_and_files(image_first, 8);
    }
}

/* Files of one chunk are not found ahead of order, and most of these wait for an area: still a mover that waits for its
 * hours makes room before the sidefile is full. */
static void small_files_are_drained_outside_of_its_hours(void)
{
    const tz_mover_config config = {.workers = 1, .depth = 2, .chunk_size = SMALL_CHUNK};
    const uint64_t files = 14, tracks = SMALL_CHUNK / TRACK;
    const uint32_t slots = 64, low = 10, half = low + (slots - low) / 2;
    tz_bufspace *space;
    tz_mover *mover;
    laid_world w;

    laid_make(&w, "/dev/shm", files * SMALL_CHUNK);
    for (uint64_t i = 0; i < files; i++)
        add_extent(add_file(&w, SMALL_CHUNK), 0, i * SMALL_CHUNK, SMALL_CHUNK);
    laid_install(&w, slots, 0, low);
    CHECK_EQ(tz_bufspace_create(&space, SMALL_CHUNK, 4, 1, 0), 0);
    CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
    add_transfers(&w, mover);
    tz_mover_rest(mover, true);
    CHECK_EQ(tz_mover_start(mover), 0);
    CHECK_EQ(tz_mover_wait(mover, 100000000), 0);
    CHECK_EQ(tz_mover_bytes_done(mover), 0);
    for (uint64_t track = 0; track < files * tracks; track++)
        fake_gate_update(&w.gate, track, track | 1);
    for (int i = 0; i < 10000 && atomic_load(&w.gate.h->used_slots) > half; i++) {
        usleep(1000);
        pthread_mutex_lock(&w.gate.lock);
        fake_gate_drain(&w.gate);
        pthread_mutex_unlock(&w.gate.lock);
    }
    CHECK(atomic_load(&w.gate.h->used_slots) <= half);
    tz_mover_rest(mover, false);
    CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
    for (uint32_t i = 0; i < w.count; i++)
        CHECK(file_is_t0(&w, &w.files[i]));
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
    laid_remove(&w);
}

int main(void)
{
    RUN(t0_whenever_the_update_comes);
    RUN(without_counting_uses_t0_is_lost);
    RUN(t0_under_updates);
    RUN(what_lies_together_is_one_read);
    RUN(holes_and_empty_files);
    RUN(the_sidefile_goes_ahead_of_order);
    RUN(a_file_that_fails_holds_up_no_other);
    RUN(unreadable_runs_come_from_the_sidefile);
    RUN(impossible_extents_are_refused);
    RUN(nobody_is_counted_after_the_first_read);
    RUN(a_volume_and_its_files);
    RUN(small_files_are_drained_outside_of_its_hours);
    return 0;
}
