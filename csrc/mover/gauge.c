/* SPDX-License-Identifier: Apache-2.0 */
#include "gauge.h"

#include <string.h>

#define MS UINT64_C(1000000)

/* A window ends with SAMPLES after SHORT, with what there is after LONG, and is forgotten after LONGEST. SHORT
 * twice is less than the 100 ms in which the mover has to give way. */
#define SAMPLES 200
#define SHORT   (40 * MS)
#define LONG    (500 * MS)
#define LONGEST (2000 * MS)
#define LEAST   8

/* What is usual before T0 counts when it is of so many. */
#define KNOWN 200

/* Listening ends with forty beyond the 99th percentile, or when it has cost enough of the copy's time; where nothing is known,
 * or next to nothing comes, more may be spent on it. */
#define HEARD  4000
#define LISTEN (250 * MS)
#define LEARN  (1000 * MS)

/* Of what was known, so many requests count beside those that were heard. */
#define REMEMBERED UINT64_C(4000)

/* What is heard is at most so many times what was known; interception may do that much at first. A stop of the whole machine
 * while listening would else pass for usual, for minutes. */
#define JUMP       2.0
#define JUMP_AT_T0 3.0

#define MAY_BE_LATE 0.01
#define HEAVY       50.0

/* Of what was late lately, what is left after a window. */
#define FADES 0.75

/* Of an absolute target. */
#define EXACT 1e12

/* Who stands out has so many times as many late as may be, and chance is so many standard deviations away. That alone would
 * not do: latencies crowd just beyond a line that was heard too low, and with a little more in the queue many times as many
 * pass it (simulated: sixteen volumes at a third of their speed). */
#define FAR_BEYOND 10.0
#define STANDS_OUT 4.0

/* Fewer tell nothing. */
#define COUNTED 2.0

/* What was told longer ago tells nothing of now. */
#define STALE (3000 * MS)

static uint64_t requests_in(uint64_t *counts, const tz_gauge *gauge, const tz_load *load)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++)
        total += counts[i] = tz_load_get(&load->histograms[gauge->measure].buckets[i]) - gauge->seen[i];
    return total;
}

void tz_gauge_restart(tz_gauge *gauge, const tz_load *load, uint64_t now)
{
    for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++)
        gauge->seen[i] = tz_load_get(&load->histograms[gauge->measure].buckets[i]);
    gauge->began_ns = now;
}

/* ---- what is usual ---- */

static double heard_of(const tz_gauge *gauge, const uint64_t *counts, uint64_t total, double share)
{
    double heard = (double)tz_load_quantile_of(counts, total, 1 - share);
    double most = gauge->usual_ns * (gauge->since ? JUMP : JUMP_AT_T0);

    return gauge->usual_ns > 0 && heard > most ? most : heard;
}

static double average(double before, double weight, double now, uint64_t total)
{
    return (before * weight + now * (double)total) / (weight + (double)total);
}

/* What is heard counts by how much it is, beside what was heard before; the first of it replaces what was before T0. Of few
 * requests the slowest is all that can be told, and one of so many may be late: line and share are the mean of what was
 * heard. */
static void learn(tz_gauge *gauge, const tz_target *target, const uint64_t *counts, uint64_t total)
{
    double share = (double)total < 1 / MAY_BE_LATE ? 1 / (double)total : MAY_BE_LATE;
    double weight = gauge->since ? (double)tz_min_u64(gauge->known, REMEMBERED) : 0;

    gauge->usual_ns = average(gauge->usual_ns, weight, heard_of(gauge, counts, total, share), total);
    gauge->share = average(gauge->share, weight, share, total);
    gauge->known = tz_min_u64((gauge->since ? gauge->known : 0) + total, 2 * REMEMBERED);
    gauge->late_ns = tz_max_u64((uint64_t)(gauge->usual_ns * target->factor), tz_max_u64(gauge->least_ns, 1));
    gauge->since = true;
    gauge->lately = (tz_lateness){0};
    gauge->stands_out = false;
}

/* Reads are not held: what was heard of them before T0 holds as long as the line is of then. */
static bool is_of_before(const tz_gauge *gauge)
{
    return gauge->measure == TZ_LOAD_READS && gauge->late_ns == gauge->least_ns;
}

/* Where few are heard at a time, many times over: not better known than the busiest. */
static double shape_of(const tz_gauge *gauge)
{
    double shape = (double)gauge->known * gauge->share, most = 2 * REMEMBERED * MAY_BE_LATE;

    return shape < most ? shape : most;
}

double tz_gauge_heard(const tz_gauge *gauge, const tz_target *target)
{
    if (target->ns)
        return EXACT;
    return is_of_before(gauge) ? gauge->least_heard : shape_of(gauge);
}

void tz_gauge_init(tz_gauge *gauge, enum tz_load_measure measure, const tz_target *target, const tz_load *load,
                   const tz_load *usual, uint64_t now)
{
    uint64_t counts[TZ_LOAD_BUCKETS], total = 0;

    memset(gauge, 0, sizeof(*gauge));
    gauge->measure = measure;
    gauge->late_ns = target->ns;
    gauge->share = MAY_BE_LATE;
    tz_gauge_restart(gauge, load, now);
    for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++)
        total += counts[i] = tz_load_get(&usual->histograms[measure].buckets[i]);
    if (target->ns || total < KNOWN)
        return;
    learn(gauge, target, counts, total);
    gauge->least_heard = shape_of(gauge);
    gauge->least_ns = gauge->late_ns;
    gauge->since = false;
    gauge->busy = true; /* and is listened to first of all */
}

void tz_gauge_listen(tz_gauge *gauge, const tz_target *target, const tz_load *load, uint64_t now)
{
    uint64_t counts[TZ_LOAD_BUCKETS], total = requests_in(counts, gauge, load), age = now - gauge->began_ns;

    if (total < HEARD && age < (gauge->known && total >= LEAST ? LISTEN : LEARN))
        return;
    gauge->busy = total >= LEAST;
    gauge->tried_ns = now;
    if (gauge->busy)
        learn(gauge, target, counts, total);
    tz_gauge_restart(gauge, load, now);
}

/* ---- how many are late ---- */

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

double tz_lateness_strain(const tz_lateness *lateness)
{
    double strain = lateness->may_be > 0 ? lateness->late / lateness->may_be : 0;

    return strain < HEAVY ? strain : HEAVY;
}

void tz_lateness_pass(tz_lateness *lately, const tz_lateness *window)
{
    lately->late = lately->late * FADES + window->late;
    lately->may_be = lately->may_be * FADES + window->may_be;
}

/* Of 1 and more, by Newton: libm would be needed for nothing else. */
static double cube_root(double value)
{
    double root = value;

    for (double next = (2 * root + value / (root * root)) / 3; next < root;
         next = (2 * root + value / (root * root)) / 3)
        root = next;
    return root;
}

/* The chance that so many come late where as many as may be are expected is one of an F distribution: of a count, over a
 * gamma distribution of what is usual (Paulson's approximation: in standard deviations, as near as one count is to the
 * next). */
bool tz_lateness_is_beyond(const tz_lateness *lateness, double heard, double deviations)
{
    double counted = lateness->late, root, above;

    if (counted < COUNTED || counted <= lateness->may_be)
        return false;
    root = cube_root(counted / lateness->may_be);
    above = (1 - 1 / (9 * counted)) * root - (1 - 1 / (9 * heard));
    return above > 0 && above * above > deviations * deviations * (root * root / counted + 1 / heard) / 9;
}

static void judge(tz_gauge *gauge, const tz_target *target, const uint64_t *counts, uint64_t total, uint64_t now)
{
    gauge->window = (tz_lateness){later_than(counts, gauge->late_ns),
                                  (double)total * (is_of_before(gauge) ? MAY_BE_LATE : gauge->share)};
    if (!gauge->told_ns)
        gauge->lately = (tz_lateness){0};
    tz_lateness_pass(&gauge->lately, &gauge->window);
    gauge->stands_out = gauge->lately.late > FAR_BEYOND * gauge->lately.may_be &&
                        tz_lateness_is_beyond(&gauge->lately, tz_gauge_heard(gauge, target), STANDS_OUT);
    gauge->told_ns = now;
}

static bool has_ended(const tz_gauge *gauge, uint64_t total, uint64_t now)
{
    uint64_t age = now - gauge->began_ns;

    return (total >= SAMPLES && age >= SHORT) || (total >= LEAST && age >= LONG) || age >= LONGEST;
}

bool tz_gauge_look(tz_gauge *gauge, const tz_target *target, const tz_load *load, uint64_t now)
{
    uint64_t counts[TZ_LOAD_BUCKETS], total = requests_in(counts, gauge, load);

    if (!has_ended(gauge, total, now))
        return false;
    gauge->busy = total >= LEAST;
    if (gauge->busy && gauge->late_ns && (target->ns || gauge->since))
        judge(gauge, target, counts, total, now);
    else
        gauge->told_ns = 0;
    tz_gauge_restart(gauge, load, now);
    return gauge->told_ns != 0;
}

bool tz_gauge_tells(const tz_gauge *gauge, uint64_t now)
{
    return gauge->told_ns && now - gauge->told_ns < STALE;
}
