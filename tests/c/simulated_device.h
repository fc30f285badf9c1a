/* SPDX-License-Identifier: Apache-2.0
 *
 * A disk, an application on it and a mover that does what a controller says, in simulated time: the same seed, the same
 * run, to the nanosecond. The disk serves its queue in order, each of its servers one request after the other, in a fixed
 * time and a time a byte (measured on a real one: bench/intercept/README.md). It may stop for a while, and have neighbours.
 */
#ifndef TZ_TESTS_SIMULATED_DEVICE_H
#define TZ_TESTS_SIMULATED_DEVICE_H

#include "../../csrc/mover/controller.h"
#include "check.h"

#define SIM_US      UINT64_C(1000)
#define SIM_MS      UINT64_C(1000000)
#define SIM_S       UINT64_C(1000000000)
#define SIM_NEVER   UINT64_MAX
#define SIM_SLOTS   64
#define SIM_CHUNK   (1024 * TZ_KIB)
#define SIM_FULL    8
#define SIM_SERVER  16
#define SIM_VOLUMES 16

#define FACTOR 1.25 /* the target that is usual */

typedef struct sim {
    /* The disk. */
    uint32_t servers;
    uint64_t fixed_ns;
    double ns_a_byte;
    uint64_t wake_ns; /* mean of what a request of the application takes beside the disk */
    uint64_t free_ns[SIM_SERVER];
    uint64_t neighbour_ns; /* mean between two requests of 4 KiB of somebody else's; 0: none */
    uint64_t neighbour_next;

    /* The application: so many of 4 KiB in flight, dealt out to the volumes in turn, each again after a pause of about
     * this. 0: rests. */
    uint32_t depth;
    uint64_t think_ns;
    uint32_t read_percent;
    uint64_t next[SIM_SLOTS], began[SIM_SLOTS]; /* began: 0 while it thinks */
    bool is_read[SIM_SLOTS];

    /* The gate: of the updates so many percent wait for the read of a before-image, from T0 on. */
    uint32_t intercept_percent;
    bool held[SIM_SLOTS];

    /* The mover: reads and writes in turns, in pieces, the writes on the same disk. */
    uint64_t move_next[SIM_FULL];
    uint32_t left[SIM_FULL]; /* bytes of the chunk under way */
    bool writes[SIM_FULL];
    uint64_t paced_ns, moved;
    uint32_t chunk, frames; /* bytes of one, and chunks that there is memory for */
    double pressure;
    bool rests; /* outside of its hours: begins nothing */

    uint64_t now, random;
    uint32_t volumes;
    tz_load loads[SIM_VOLUMES], usual[SIM_VOLUMES];
    tz_meter meter;
    tz_controller controller;
    tz_press press;
    bool moves;
    uint64_t looked_ns;
    tz_load *into; /* one of the two */
} sim;

static inline uint64_t sim_random(sim *s)
{
    s->random ^= s->random << 13;
    s->random ^= s->random >> 7;
    s->random ^= s->random << 17;
    return s->random;
}

/* From nothing to twice the mean, evenly. */
static inline uint64_t sim_about(sim *s, uint64_t mean)
{
    return mean ? sim_random(s) % (2 * mean) : 0;
}

/* When a request that is submitted now will be done. */
static inline uint64_t sim_submit(sim *s, uint64_t bytes)
{
    uint64_t *first = &s->free_ns[0];

    for (uint32_t i = 1; i < s->servers; i++)
        if (s->free_ns[i] < *first)
            first = &s->free_ns[i];
    *first = tz_max_u64(*first, s->now) + s->fixed_ns + (uint64_t)(s->ns_a_byte * (double)bytes);
    return *first;
}

static inline void sim_stop(sim *s, uint64_t ns)
{
    for (uint32_t i = 0; i < s->servers; i++)
        s->free_ns[i] = tz_max_u64(s->free_ns[i], s->now) + ns;
}

static inline void sim_free(sim *s)
{
    tz_meter_fini(&s->meter);
    free(s);
}

static inline sim *sim_make(uint32_t servers, uint64_t fixed_ns, double ns_a_byte, uint64_t seed)
{
    sim *s = calloc(1, sizeof(*s));

    CHECK(s);
    s->servers = servers;
    s->fixed_ns = fixed_ns;
    s->ns_a_byte = ns_a_byte;
    s->random = seed * 2 + 1;
    s->now = SIM_S;
    s->volumes = 1;
    s->into = s->usual;
    s->neighbour_next = SIM_NEVER;
    s->chunk = SIM_CHUNK;
    s->frames = SIM_FULL;
    for (int i = 0; i < SIM_SLOTS; i++)
        s->next[i] = SIM_NEVER;
    return s;
}

/* 4 KiB in 20 us, 256 KiB in some 200: one request after the other. */
static inline sim *sim_disk(uint64_t seed)
{
    return sim_make(1, 14 * SIM_US, 0.72, seed);
}

static inline void sim_application(sim *s, uint32_t depth, uint64_t think_ns, uint32_t read_percent)
{
    s->depth = depth;
    s->think_ns = think_ns;
    s->read_percent = read_percent;
    for (uint32_t i = 0; i < depth; i++)
        if (s->next[i] == SIM_NEVER)
            s->next[i] = s->now + sim_about(s, think_ns);
}

static inline void sim_neighbour(sim *s, uint64_t mean_ns)
{
    s->neighbour_ns = mean_ns;
    s->neighbour_next = mean_ns ? s->now : SIM_NEVER;
}

/* The same, seen through interrupts, wake-ups and a virtual machine's host: p50 of some 70 us, p99 of 250. */
static inline sim *sim_virtual_disk(uint64_t seed)
{
    sim *s = sim_disk(seed);

    s->wake_ns = 50 * SIM_US;
    return s;
}

/* T0: the mover begins. factor 0: target_ns is absolute. */
static inline void sim_begin(sim *s, double factor, uint64_t target_ns, bool idle)
{
    tz_controller_config config = {.full = SIM_FULL, .frames = s->frames, .chunk_size = s->chunk};
    tz_target target = {.ns = target_ns, .factor = factor};

    s->into = s->loads;
    s->moves = true;
    CHECK_EQ(tz_meter_init(&s->meter, &target, s->volumes), 0);
    for (uint32_t v = 0; v < s->volumes; v++)
        tz_meter_add(&s->meter, &s->loads[v], &s->usual[v], s->now);
    tz_controller_init(&s->controller, &config, idle, s->now);
    s->looked_ns = s->now - TZ_LOOK_NS;
}

/* ---- what happens ---- */

static inline void sim_issue(sim *s, uint32_t slot)
{
    s->held[slot] = false;
    s->next[slot] = sim_submit(s, 4096) + sim_about(s, s->wake_ns);
    if (s->wake_ns && sim_random(s) % 64 == 0)
        s->next[slot] += sim_about(s, 4 * s->wake_ns);
}

static inline void sim_application_step(sim *s, uint32_t slot)
{
    tz_load *load = &s->loads[slot % s->volumes];
    _Atomic uint32_t *in_flight = s->is_read[slot] ? &load->reads_in_flight : &load->updates_in_flight;
    enum tz_load_measure measure = s->is_read[slot] ? TZ_LOAD_READS : TZ_LOAD_UPDATES;

    if (s->held[slot]) {
        sim_issue(s, slot);
        return;
    }
    if (s->began[slot]) {
        tz_load_add(&s->into[slot % s->volumes].histograms[measure], s->now - s->began[slot]);
        s->began[slot] = 0;
        atomic_fetch_sub(in_flight, 1);
        s->next[slot] = slot < s->depth ? s->now + sim_about(s, s->think_ns) : SIM_NEVER;
        return;
    }
    if (slot >= s->depth) {
        s->next[slot] = SIM_NEVER;
        return;
    }
    s->is_read[slot] = sim_random(s) % 100 < s->read_percent;
    atomic_fetch_add(s->is_read[slot] ? &load->reads_in_flight : &load->updates_in_flight, 1);
    tz_load_bump(&load->arrived, 1);
    s->began[slot] = s->now;
    s->held[slot] = s->moves && !s->is_read[slot] && s->intercept_percent > sim_random(s) % 100;
    if (s->held[slot])
        s->next[slot] = sim_submit(s, 4096) + sim_about(s, s->wake_ns);
    else
        sim_issue(s, slot);
}

static inline void sim_move(sim *s, uint32_t place)
{
    uint32_t piece = s->press.piece ? s->press.piece : s->chunk;

    if (s->left[place] == 0) {
        s->writes[place] = !s->writes[place];
        /* A chunk begins with its read, and only where there is room for one. */
        if (!s->writes[place] && (place >= s->press.depth || s->rests)) {
            s->writes[place] = true;
            s->move_next[place] = SIM_NEVER;
            return;
        }
        s->left[place] = s->chunk;
    }
    if (s->press.rate && s->paced_ns > s->now) {
        s->move_next[place] = s->paced_ns;
        return;
    }
    piece = (uint32_t)tz_min_u64(piece, s->left[place]);
    if (s->press.rate)
        s->paced_ns = s->now + piece * SIM_S / s->press.rate;
    s->left[place] -= piece;
    s->moved += piece;
    s->move_next[place] = sim_submit(s, piece);
}

static inline void sim_look(sim *s)
{
    tz_sight sight = {.now_ns = s->now, .moved = s->moved, .pressure = s->pressure, .rests = s->rests};
    uint64_t piece, places;

    sight.reading = tz_meter_look(&s->meter, s->press.calm, s->now);
    s->press = tz_controller_look(&s->controller, &sight);
    s->looked_ns = s->now;
    CHECK(s->press.depth >= 1 && s->press.depth <= SIM_FULL);
    CHECK(s->press.piece == 0 || (s->press.piece >= 64 * TZ_KIB && s->press.piece < s->chunk));
    CHECK(s->press.piece == 0 || s->press.piece >= SIM_CHUNK || s->press.depth == 1);
    CHECK(s->press.yields != (s->press.depth == SIM_FULL));
    piece = s->press.piece ? s->press.piece : s->chunk;
    places = tz_min_u64(s->press.depth, s->frames);
    /* What is in flight takes the disk 60 ms, unless it is 8 MiB. */
    CHECK(piece * places <= tz_max_u64(8 * TZ_MIB, (uint64_t)(60e6 * s->servers / s->ns_a_byte)));
    CHECK(s->press.rate == 0 || s->press.rate >= 8 * TZ_MIB || s->press.calm == TZ_CALM_QUIET);
    for (uint32_t i = 0; i < places && !s->rests; i++)
        if (s->move_next[i] == SIM_NEVER || s->move_next[i] == 0) {
            s->writes[i] = true;
            s->left[i] = 0;
            s->move_next[i] = s->now;
        }
}

static inline uint64_t sim_next(const sim *s, int *what, uint32_t *which)
{
    uint64_t at = s->moves ? s->looked_ns + TZ_LOOK_NS : SIM_NEVER;

    *what = 0;
    if (s->neighbour_next < at) {
        at = s->neighbour_next;
        *what = 1;
    }
    for (uint32_t i = 0; i < SIM_SLOTS; i++)
        if (s->next[i] < at) {
            at = s->next[i];
            *what = 2;
            *which = i;
        }
    for (uint32_t i = 0; i < SIM_FULL && s->moves; i++)
        if (s->move_next[i] && s->move_next[i] < at) {
            at = s->move_next[i];
            *what = 3;
            *which = i;
        }
    return at;
}

static inline void sim_run(sim *s, uint64_t ns)
{
    uint64_t until = s->now + ns, at;
    uint32_t which = 0;
    int what;

    while ((at = sim_next(s, &what, &which)) <= until) {
        s->now = tz_max_u64(at, s->now);
        if (what == 0)
            sim_look(s);
        else if (what == 1)
            s->neighbour_next = (sim_submit(s, 4096), s->now + sim_about(s, s->neighbour_ns));
        else if (what == 2)
            sim_application_step(s, which);
        else
            sim_move(s, which);
    }
    s->now = until;
}

/* ---- what came of it ---- */

static inline double ratio(uint64_t a, uint64_t b)
{
    return (double)a / (double)b;
}

/* p99 of what ended on the first volume in the next `ns`, in ns. */
static inline uint64_t sim_p99(sim *s, enum tz_load_measure measure, uint64_t ns)
{
    uint64_t before[TZ_LOAD_BUCKETS], total = 0;
    tz_load_histogram *h = &s->into->histograms[measure];

    for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++)
        before[i] = tz_load_get(&h->buckets[i]);
    sim_run(s, ns);
    for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++)
        total += before[i] = tz_load_get(&h->buckets[i]) - before[i];
    CHECK(total > 0);
    return tz_load_quantile_of(before, total, 0.99);
}

static inline bool sim_is_full(const sim *s)
{
    return s->press.depth == SIM_FULL && !s->press.yields;
}

/* Bytes that the mover got done in the next `ns`. */
static inline uint64_t sim_moved(sim *s, uint64_t ns)
{
    uint64_t before = s->moved;

    sim_run(s, ns);
    return s->moved - before;
}

#endif
