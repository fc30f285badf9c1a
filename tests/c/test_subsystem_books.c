/* SPDX-License-Identifier: Apache-2.0
 *
 * The sidefile's books between gate and mover, step by step: between any two atomic operations of the one the other may
 * act as a whole, as a seed decides. So every order of publishing, finding, taking back and reusing comes up, and
 * repeats, on any machine. (test_subsystem_rules.c does the same with threads, for the sanitizer's eyes.)
 */
#include <stdatomic.h>

static void point(void);

/* Every atomic operation of layout and sidefile that both sides meet at becomes a point. */
#undef atomic_load
#undef atomic_store
#undef atomic_fetch_or
#undef atomic_fetch_add
#define atomic_load(at)             (point(), atomic_load_explicit(at, memory_order_seq_cst))
#define atomic_store(at, value)     (point(), atomic_store_explicit(at, value, memory_order_seq_cst))
#define atomic_fetch_or(at, value)  (point(), atomic_fetch_or_explicit(at, value, memory_order_seq_cst))
#define atomic_fetch_add(at, value) (point(), atomic_fetch_add_explicit(at, value, memory_order_seq_cst))

#include "../../csrc/subsystem/sidefile.c"
#include <string.h>

#include "check.h"

#define TRACK  4096
#define SLOTS  6
#define TRACKS 48 /* all in two buckets: chains are long */
#define AHEAD  4  /* the mover takes tracks that far before they are saved */
#define SEEDS  3000

static struct books {
    tz_sidefile sidefile;
    tz_session_header *h;
    void *shared;
    uint32_t free_slots[SLOTS];
    uint64_t tracks[TRACKS];
    bool taken[TRACKS];
    uint32_t saved, takings;
    uint64_t seed;
    uint64_t lost, wrong, refused; /* not found, of other content, given back although free */
    void (*other)(void);           /* who may act at a point; NULL: nobody */
} books;

static uint64_t draw(uint64_t below)
{
    books.seed ^= books.seed << 13;
    books.seed ^= books.seed >> 7;
    books.seed ^= books.seed << 17;
    return books.seed % below;
}

static void point(void)
{
    void (*other)(void) = books.other;

    if (!other)
        return;
    books.other = NULL;
    for (uint64_t acts = draw(3); acts > 0; acts--)
        other();
    books.other = other;
}

static bool is_zero_track(uint64_t track)
{
    return track % 5 == 0;
}

/* ---- the two ---- */

static void gate_acts(void)
{
    uint64_t track;
    uint32_t slot;

    if (books.saved == TRACKS || draw(3) == 0) {
        books.refused += tz_sidefile_drain(&books.sidefile) < 0;
        return;
    }
    track = books.tracks[books.saved];
    if (is_zero_track(track)) {
        books.saved++;
        tz_sidefile_publish_zero(&books.sidefile, track);
        return;
    }
    slot = tz_sidefile_take_memory(&books.sidefile);
    if (slot == TZ_SLOT_NONE)
        return;
    books.saved++;
    *(uint64_t *)tz_session_memory_slot(books.h, slot) = ~track;
    tz_sidefile_publish(&books.sidefile, track, slot);
}

static void take(uint64_t track)
{
    uint32_t n, mask = tz_track_mask(track, 1, &n), slot;

    if (!tz_tracks_copied(&books.sidefile.words[track / TZ_TRACKS_A_WORD], mask))
        return;
    if (tz_session_is_zero_image(books.h, track)) {
        books.wrong += !is_zero_track(track);
        return;
    }
    slot = tz_session_find(books.h, track);
    if (slot == TZ_SLOT_NONE) {
        books.lost++;
        return;
    }
    books.wrong += *(uint64_t *)tz_session_memory_slot(books.h, slot) != ~track;
    tz_drain_push(books.h, books.sidefile.ring, slot);
}

static void mover_acts(void)
{
    uint64_t i = draw(tz_min_u64(TRACKS, books.saved + AHEAD));

    if (books.taken[i])
        return;
    books.taken[i] = true;
    books.takings++;
    take(books.tracks[i]);
}

/* ---- histories ---- */

static void create(uint64_t seed, uint32_t faults)
{
    tz_session_header plan = {.track_shift = 12, .slots = SLOTS, .memory_slots = SLOTS};
    uint32_t count = 0;

    plan.volume_size = 40 * TRACKS * TRACK;
    CHECK_EQ(tz_session_layout_plan(&plan), 0);
    books = (struct books){.h = calloc(1, plan.owned_bytes), .shared = calloc(1, plan.shared_bytes)};
    books.seed = seed * 0x9e3779b97f4a7c15u + 1;
    CHECK(books.h && books.shared);
    memcpy(books.h, &plan, sizeof(plan));
    tz_sidefile_init(&books.sidefile, books.h, books.shared, books.free_slots, faults);
    for (uint64_t t = 0; count < TRACKS; t++) {
        CHECK(t < plan.tracks);
        if (tz_session_bucket(books.h, t) < 2)
            books.tracks[count++] = t;
    }
}

/* One of them in steps, the other whole, to the last track. */
static void run(uint64_t seed, uint32_t faults)
{
    void (*stepped)(void) = seed % 2 ? gate_acts : mover_acts, (*whole)(void) = seed % 2 ? mover_acts : gate_acts;

    create(seed, faults);
    for (uint32_t acts = 0; books.saved < TRACKS || books.takings < TRACKS; acts++) {
        CHECK(acts < 1000000); /* else something is stuck */
        books.other = whole;
        stepped();
        books.other = NULL;
        if (draw(4) == 0)
            whole();
        if (books.lost || books.refused)
            return; /* room that is lost for good */
    }
    books.refused += tz_sidefile_drain(&books.sidefile) < 0;
}

static void destroy(void)
{
    free(books.h);
    free(books.shared);
}

static void every_slot_is_found_and_freed_once(void)
{
    uint64_t images = 0, self_freed = 0;

    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        run(seed, 0);
        CHECK_EQ(books.lost, 0);
        CHECK_EQ(books.wrong, 0);
        CHECK_EQ(books.refused, 0);
        CHECK_EQ(books.sidefile.used, 0);
        CHECK_EQ(books.sidefile.memory.count, SLOTS);
        CHECK_EQ(atomic_load(&books.h->unlinks), 2 * atomic_load(&books.h->images));
        images += atomic_load(&books.h->images);
        self_freed += atomic_load(&books.h->self_freed);
        destroy();
    }
    CHECK(self_freed > images / 10 && self_freed < images * 9 / 10); /* both owners had their turns */
}

/* Rule 3 dropped: the gate frees a slot that the mover is going to take. The mover is the one in steps (even seeds):
 * its search for what is not there ends only when no slot is being taken out. */
static void with_two_owners_slots_are_lost(void)
{
    uint64_t lost = 0;

    for (uint64_t seed = 2; seed <= 100; seed += 2) {
        run(seed, TZ_FAULT_DOUBLE_FREE);
        lost += books.lost;
        destroy();
    }
    CHECK(lost > 0);
}

int main(void)
{
    RUN(every_slot_is_found_and_freed_once);
    RUN(with_two_owners_slots_are_lost);
    return 0;
}
