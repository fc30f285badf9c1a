/* SPDX-License-Identifier: Apache-2.0
 *
 * Which chunks go ahead of order, by what it saves: a copy of a volume under updates, chunk by chunk and without I/O, with the
 * mover's choice and with others. Counted are before-images in all and at once; time plays no part.
 */
#include "../../csrc/mover/session_view.h"
#include "fake_gate.h"
#include "tz/marks.h"

#define SIM_CHUNK  (1 * TZ_MIB)
#define SIM_CHUNKS 512
#define SIM_TRACKS 256 /* a chunk */
#define SIM_SLOTS  32768
#define SIM_SCAN   4096 /* most slots looked at for a choice */
#define SIM_LOW    2000
#define SIM_HIGH   20000 /* no matter here */

enum choice {
    IN_ORDER,
    FIRST_SLOT, /* the next slot's chunk, whatever it gives back */
    OURS,
};

enum load {
    UNIFORM,
    HOT,  /* nine of ten updates to a tenth of the chunks, which lie all over the volume */
    RUNS, /* streams of updates that follow each other, each to another place */
    END,  /* the last tenth of the volume only */
};

typedef struct sim {
    scratch s;
    fake_gate gate;
    tz_source *source;
    tz_bitmap claimed;
    uint64_t seed, cursor, run, run_left, ahead, back;
    uint32_t scan, most;
} sim;

typedef struct outcome {
    uint64_t images, ahead, back; /* chunks ahead of order, and slots that they gave back */
    uint32_t most;                /* slots at once */
} outcome;

static void sim_make(sim *m, uint32_t slots, uint32_t low)
{
    int volume;

    memset(m, 0, sizeof(*m));
    m->seed = 4711;
    scratch_make(&m->s, "/dev/shm");
    volume = make_file(&m->s, "volume", 0, 1);
    CHECK_EQ(ftruncate(volume, (off_t)(SIM_CHUNKS * SIM_CHUNK)), 0);
    fake_gate_install(&m->gate, &m->s, volume, 12, slots, 0, low);
    close(volume);
    m->gate.h->high_mark = SIM_HIGH;
    memset(m->gate.before, 1, 4096);
    m->source = fake_gate_source(&m->gate);
    CHECK_EQ(m->source->ops->prepare(m->source, SIM_CHUNK), 0);
    tz_bitmap_init(&m->claimed, calloc(1, tz_bitmap_bytes(SIM_CHUNKS)), SIM_CHUNKS);
}

static void sim_remove(sim *m)
{
    free((void *)m->claimed.words);
    tz_source_destroy(m->source);
    fake_gate_remove(&m->gate);
    scratch_remove(&m->s);
}

static uint32_t used(const sim *m)
{
    return atomic_load(&m->gate.h->used_slots);
}

/* ---- the application ---- */

static uint64_t next_track(sim *m, enum load load)
{
    uint64_t any = next_random(&m->seed) % (SIM_CHUNKS * SIM_TRACKS);

    switch (load) {
    case UNIFORM:
        return any;
    case HOT:
        return next_random(&m->seed) % 10 ? any - any / SIM_TRACKS % 10 * SIM_TRACKS : any;
    case RUNS:
        if (m->run_left-- == 0) {
            m->run = any;
            m->run_left = 40;
        }
        return m->run++ % (SIM_CHUNKS * SIM_TRACKS);
    default:
        return SIM_CHUNKS * SIM_TRACKS - 1 - any / 10;
    }
}

static void update(sim *m, enum load load)
{
    uint64_t track = next_track(m, load), word = atomic_load(&m->gate.words[track / TZ_TRACKS_A_WORD]);

    if (!((word | word >> 32) >> track % TZ_TRACKS_A_WORD & 1))
        fake_gate_save(&m->gate, track, 4096, 4096);
    m->most = (uint32_t)tz_max_u64(m->most, used(m));
}

/* ---- the mover ---- */

static bool first_slot(sim *m, uint64_t *number)
{
    const tz_slot *slots = tz_session_slots(m->gate.h);

    for (uint32_t i = 0; i < SIM_SCAN; i++) {
        uint64_t track = atomic_load(&slots[m->scan].track);

        m->scan = (m->scan + 1) % SIM_SLOTS;
        *number = (track - 1) / SIM_TRACKS;
        if (track && tz_bitmap_claim(&m->claimed, *number))
            return true;
    }
    return false;
}

static bool choose_ahead(sim *m, enum choice choice, uint64_t *number)
{
    if (choice == OURS) {
        int rc = m->source->ops->ahead(m->source, &m->claimed, number);

        CHECK(rc >= 0);
        return rc > 0;
    }
    return choice == FIRST_SLOT && used(m) > SIM_LOW && first_slot(m, number);
}

static void take_chunk(sim *m, uint64_t number, bool ahead)
{
    const uint32_t before = used(m);

    for (uint64_t track = number * SIM_TRACKS; track < (number + 1) * SIM_TRACKS; track++) {
        uint32_t bit = UINT32_C(1) << track % TZ_TRACKS_A_WORD;

        if (tz_tracks_copied(&m->gate.words[track / TZ_TRACKS_A_WORD], bit))
            fake_gate_free(&m->gate, tz_session_find(m->gate.h, track));
    }
    m->ahead += ahead;
    m->back += ahead ? before - used(m) : 0;
}

static void copy_chunk(sim *m, enum choice choice)
{
    uint64_t number;
    bool ahead = choose_ahead(m, choice, &number);

    if (!ahead) {
        number = m->cursor = tz_bitmap_next_clear(&m->claimed, m->cursor);
        CHECK(tz_bitmap_claim(&m->claimed, number));
    }
    take_chunk(m, number, ahead);
}

/* A copy while `updates` come for each of its chunks. */
static outcome copy_under(enum load load, enum choice choice, uint32_t updates)
{
    outcome found;
    sim m;

    sim_make(&m, SIM_SLOTS, SIM_LOW);
    for (uint64_t n = 0; n < SIM_CHUNKS; n++) {
        for (uint32_t i = 0; i < updates; i++)
            update(&m, load);
        copy_chunk(&m, choice);
    }
    CHECK_EQ(tz_bitmap_count(&m.claimed, 0, SIM_CHUNKS), SIM_CHUNKS);
    CHECK_EQ(used(&m), 0);
    found = (outcome){m.gate.saved, m.ahead, m.back, m.most};
    printf("  %-8s %-10s %6llu images, %5u at once, %3llu ahead, %.1f slots each\n",
           (const char *[]){"uniform", "hot", "runs", "end"}[load],
           (const char *[]){"in order", "first slot", "ours"}[choice], (unsigned long long)found.images, found.most,
           (unsigned long long)found.ahead, found.ahead ? (double)found.back / (double)found.ahead : 0);
    sim_remove(&m);
    return found;
}

/* What goes ahead gives back more for each read, and the sidefile holds less, than in any other order. */
static void the_densest_chunks_give_back_the_most(void)
{
    for (enum load load = UNIFORM; load <= RUNS; load++) {
        outcome order = copy_under(load, IN_ORDER, 60), first = copy_under(load, FIRST_SLOT, 60);
        outcome ours = copy_under(load, OURS, 60);

        CHECK(ours.ahead > 0);
        CHECK(ours.most <= first.most && ours.most < order.most);
        CHECK(ours.back * first.ahead > first.back * ours.ahead);
    }
}

/* The part that is written is safe within some chunks, whatever its place in the order. */
static void what_is_written_goes_first(void)
{
    outcome order = copy_under(END, IN_ORDER, 60), ours = copy_under(END, OURS, 60);

    CHECK(4 * ours.most < order.most);
    CHECK(2 * ours.images < order.images);
}

/* Below the low mark the order is that of the numbers, and once past it the sidefile is drained to clearly below. */
static void the_order_changes_at_the_mark_and_clearly_below_it(void)
{
    tz_mark mark = tz_mark_low(SIM_LOW, SIM_HIGH);
    uint64_t number;
    sim m;

    sim_make(&m, SIM_SLOTS, SIM_LOW);
    while (used(&m) < SIM_LOW)
        update(&m, UNIFORM);
    CHECK_EQ(m.source->ops->ahead(m.source, &m.claimed, &number), 0);
    while (used(&m) <= SIM_LOW)
        update(&m, UNIFORM);
    while (m.source->ops->ahead(m.source, &m.claimed, &number))
        take_chunk(&m, number, true);
    CHECK(used(&m) <= mark.end && used(&m) > mark.end - SIM_TRACKS);
    while (used(&m) < SIM_LOW)
        update(&m, UNIFORM);
    CHECK_EQ(m.source->ops->ahead(m.source, &m.claimed, &number), 0);
    sim_remove(&m);
}

/* They take no slot, so a chunk full of them is not in need. */
static void zero_images_give_nothing_back(void)
{
    uint64_t number;
    sim m;

    sim_make(&m, 500, 0);
    for (uint64_t track = 0; track < SIM_TRACKS; track++) { /* zeros but for one */
        memset(m.gate.before, track == 5, 4096);
        fake_gate_save(&m.gate, track, 4096, 4096);
    }
    memset(m.gate.before, 1, 4096);
    for (uint64_t i = 0; i < 3; i++)
        fake_gate_save(&m.gate, 7 * SIM_TRACKS + i, 4096, 4096);
    CHECK_EQ(m.source->ops->ahead(m.source, &m.claimed, &number), 1);
    CHECK_EQ(number, 7);
    CHECK_EQ(m.source->ops->ahead(m.source, &m.claimed, &number), 1);
    CHECK_EQ(number, 0);
    CHECK_EQ(m.source->ops->ahead(m.source, &m.claimed, &number), 0);
    sim_remove(&m);
}

int main(void)
{
    RUN(the_densest_chunks_give_back_the_most);
    RUN(what_is_written_goes_first);
    RUN(the_order_changes_at_the_mark_and_clearly_below_it);
    RUN(zero_images_give_nothing_back);
    return 0;
}
