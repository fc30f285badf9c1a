/* SPDX-License-Identifier: Apache-2.0 */
#include "meter.h"

#include <string.h>

#define MS UINT64_C(1000000)

/* A window ends with SAMPLES after SHORT, with what there is after LONG, and is forgotten after LONGEST. SHORT twice is
 * less than the 100 ms in which the mover has to give way. */
#define SAMPLES 200
#define SHORT   (40 * MS)
#define LONG    (500 * MS)
#define LONGEST (2000 * MS)
#define LEAST   8

/* What is usual before T0 counts when it is of so many. */
#define KNOWN 200

/* Listening ends with forty beyond the 99th percentile, or when it has cost enough of the copy's time; where nothing is known,
 * or next to nothing comes, more may be spent on it. What the mover had in flight ends in the first SETTLE. */
#define HEARD  4000
#define LISTEN (250 * MS)
#define LEARN  (1000 * MS)
#define SETTLE (150 * MS)

/* How often. Sooner when being as quiet as can be does not help: then it is others, and staying there helps nobody. */
#define RELISTEN         (5000 * MS)
#define RELISTEN_IN_VAIN (1000 * MS)

/* Of what was known, so many requests count beside those that were heard. */
#define REMEMBERED UINT64_C(4000)

/* What is heard is at most so many times what was known; interception may do that much at first. A stop of the whole machine
 * while listening would else pass for usual, for minutes. */
#define JUMP       2.0
#define JUMP_AT_T0 3.0

#define MAY_BE_LATE 0.01
#define HEAVY       50.0 /* strain of one window, at most: one stop of a slow disk is not to count for ever */

/* What was told longer ago tells nothing of now. */
#define STALE (3000 * MS)

static uint64_t requests_in(uint64_t *counts, const tz_gauge *gauge, const tz_load *load)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++)
        total += counts[i] = tz_load_get(&load->histograms[gauge->measure].buckets[i]) - gauge->seen[i];
    return total;
}

static void begin_window(tz_gauge *gauge, const tz_load *load, uint64_t now)
{
    for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++)
        gauge->seen[i] = tz_load_get(&load->histograms[gauge->measure].buckets[i]);
    gauge->began_ns = now;
}

/* ---- what is usual ---- */

/* How many took longer; those of its bucket in proportion. */
static double later_than(const uint64_t *counts, uint64_t ns)
{
    uint32_t bucket = tz_load_bucket(ns);
    uint64_t from = tz_load_bucket_from(bucket), to = tz_load_bucket_from(bucket + 1);
    double late = (double)counts[bucket] * (double)(to - tz_min_u64(ns, to)) / (double)(to - from);

    for (uint32_t i = bucket + 1; i < TZ_LOAD_BUCKETS; i++)
        late += (double)counts[i];
    return late;
}

static double heard_of(const tz_gauge *gauge, const uint64_t *counts, uint64_t total)
{
    double heard = (double)tz_load_quantile_of(counts, total, 1 - gauge->share);
    double most = gauge->usual_ns * (gauge->since ? JUMP : JUMP_AT_T0);

    return gauge->usual_ns > 0 && heard > most ? most : heard;
}

/* What is heard counts by how much it is, beside what was heard before; the first of it replaces what was before T0. Where
 * that is of few, more may be late, until more was heard. */
static void learn(tz_gauge *gauge, const tz_target *target, const uint64_t *counts, uint64_t total)
{
    double before, now = (double)total;

    if (!gauge->since)
        gauge->known = 0;
    before = (double)tz_min_u64(gauge->known, REMEMBERED);
    gauge->known += total;
    gauge->share = gauge->known < 1 / MAY_BE_LATE ? 1 / (double)gauge->known : MAY_BE_LATE;
    gauge->usual_ns = (gauge->usual_ns * before + heard_of(gauge, counts, total) * now) / (before + now);
    gauge->late_ns = tz_max_u64((uint64_t)(gauge->usual_ns * target->factor), tz_max_u64(gauge->least_ns, 1));
    gauge->since = true;
}

static void begin_gauge(tz_gauge *gauge, enum tz_load_measure measure, const tz_target *target, const tz_load *load,
                        const tz_load *usual, uint64_t now)
{
    uint64_t counts[TZ_LOAD_BUCKETS], total = 0;

    memset(gauge, 0, sizeof(*gauge));
    gauge->measure = measure;
    gauge->late_ns = target->ns;
    gauge->share = MAY_BE_LATE;
    begin_window(gauge, load, now);
    for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++)
        total += counts[i] = tz_load_get(&usual->histograms[measure].buckets[i]);
    if (target->ns || total < KNOWN)
        return;
    learn(gauge, target, counts, total);
    gauge->least_ns = gauge->late_ns;
    gauge->since = false;
    gauge->busy = true; /* and is listened to first of all */
}

void tz_meter_init(tz_meter *meter, const tz_target *target, const tz_load *load, const tz_load *usual, uint64_t now_ns)
{
    meter->target = *target;
    meter->arrived = tz_load_get(&load->arrived);
    meter->calm = TZ_CALM_NOT;
    meter->turned_ns = 0;
    begin_gauge(&meter->gauges[0], TZ_LOAD_READS, target, load, usual, now_ns);
    begin_gauge(&meter->gauges[1], TZ_LOAD_UPDATES, target, load, usual, now_ns);
}

static bool wants_quiet(const tz_meter *meter, const tz_gauge *gauge, uint64_t now)
{
    bool in_vain = meter->calm != TZ_CALM_NOT && gauge->told_ns && gauge->strain > 1;

    if (meter->target.ns || !gauge->busy)
        return false;
    return !gauge->tried_ns || now - gauge->tried_ns >= (in_vain ? RELISTEN_IN_VAIN : RELISTEN);
}

/* A window of a quiet time. */
static void listen_to(tz_meter *meter, tz_gauge *gauge, const tz_load *load, uint64_t now)
{
    uint64_t counts[TZ_LOAD_BUCKETS], total = requests_in(counts, gauge, load), age = now - gauge->began_ns;

    if (total < HEARD && age < (gauge->known && total >= LEAST ? LISTEN : LEARN))
        return;
    gauge->busy = total >= LEAST;
    gauge->tried_ns = now;
    if (gauge->busy)
        learn(gauge, &meter->target, counts, total);
    begin_window(gauge, load, now);
}

/* ---- strain ---- */

static void judge(tz_gauge *gauge, const uint64_t *counts, uint64_t total, uint64_t now)
{
    double strain = later_than(counts, gauge->late_ns) / ((double)total * gauge->share);

    gauge->strain = strain < HEAVY ? strain : HEAVY;
    gauge->told_ns = now;
}

static bool has_ended(const tz_gauge *gauge, uint64_t total, uint64_t now)
{
    uint64_t age = now - gauge->began_ns;

    return (total >= SAMPLES && age >= SHORT) || (total >= LEAST && age >= LONG) || age >= LONGEST;
}

/* True when the gauge has something new to tell. */
static bool look_at(const tz_meter *meter, tz_gauge *gauge, const tz_load *load, uint64_t now)
{
    uint64_t counts[TZ_LOAD_BUCKETS], total = requests_in(counts, gauge, load);

    if (!has_ended(gauge, total, now))
        return false;
    gauge->busy = total >= LEAST;
    if (gauge->busy && gauge->late_ns && (meter->target.ns || gauge->since))
        judge(gauge, counts, total, now);
    else
        gauge->told_ns = 0;
    begin_window(gauge, load, now);
    return gauge->told_ns != 0;
}

static void tell(const tz_gauge *gauge, bool fresh, tz_reading *reading)
{
    if (fresh) {
        reading->now = gauge->strain > reading->now ? gauge->strain : reading->now;
        reading->fresh = true;
    }
    reading->known = true;
    reading->standing = gauge->strain > reading->standing ? gauge->strain : reading->standing;
}

tz_reading tz_meter_look(tz_meter *meter, const tz_load *load, enum tz_calm calm, uint64_t now_ns)
{
    uint64_t arrived = tz_load_get(&load->arrived);
    tz_reading reading = {.active = arrived != meter->arrived};
    bool quiet = calm == TZ_CALM_QUIET, turns = quiet != (meter->calm == TZ_CALM_QUIET);

    reading.active |= atomic_load_explicit(&load->reads_in_flight, memory_order_relaxed) != 0;
    reading.active |= atomic_load_explicit(&load->updates_in_flight, memory_order_relaxed) != 0;
    meter->arrived = arrived;
    meter->calm = calm;
    if (turns)
        meter->turned_ns = now_ns;
    for (uint32_t i = 0; i < TZ_METER_GAUGES; i++) {
        tz_gauge *gauge = &meter->gauges[i];
        bool fresh = false;

        if (turns || (quiet && now_ns - meter->turned_ns < SETTLE))
            begin_window(gauge, load, now_ns);
        else if (quiet && gauge->busy) /* all at once, so that not each of them needs a quiet of its own */
            listen_to(meter, gauge, load, now_ns);
        else
            fresh = look_at(meter, gauge, load, now_ns);
        if (gauge->told_ns && now_ns - gauge->told_ns < STALE)
            tell(gauge, fresh, &reading);
        reading.wants_quiet |= wants_quiet(meter, gauge, now_ns);
    }
    return reading;
}
