/* SPDX-License-Identifier: Apache-2.0 */
#include "meter.h"

#include <string.h>

#define MS UINT64_C(1000000)

/* A window ends with SAMPLES after SHORT, with what there is after LONG, and is forgotten after LONGEST. Two hundred
 * samples are two beyond the 99th percentile; SHORT twice is less than the 100 ms in which the mover has to give way. */
#define SAMPLES 200
#define SHORT   (40 * MS)
#define LONG    (500 * MS)
#define LONGEST (2000 * MS)
#define LEAST   8

/* A reference is good when it is of so many, or was learnt for so long. */
#define KNOWN UINT64_C(200)
#define LEARN (1000 * MS)

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

static void begin_gauge(tz_gauge *gauge, enum tz_load_measure measure, const tz_load *load, const tz_load *usual,
                        uint64_t now)
{
    memset(gauge, 0, sizeof(*gauge));
    gauge->measure = measure;
    begin_window(gauge, load, now);
    for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++)
        gauge->known += gauge->reference[i] = tz_load_get(&usual->histograms[measure].buckets[i]);
    gauge->learnt = gauge->known >= KNOWN;
    if (gauge->learnt)
        return;
    memset(gauge->reference, 0, sizeof(gauge->reference));
    gauge->known = 0;
}

void tz_meter_init(tz_meter *meter, uint64_t target_ns, const tz_load *load, const tz_load *usual, uint64_t now_ns)
{
    meter->target_ns = target_ns;
    meter->arrived = tz_load_get(&load->arrived);
    meter->quiet = false;
    begin_gauge(&meter->gauges[0], TZ_LOAD_READS, load, usual, now_ns);
    begin_gauge(&meter->gauges[1], target_ns ? TZ_LOAD_UPDATES : TZ_LOAD_ISSUED, load, usual, now_ns);
}

/* ---- a window that has ended ---- */

static void learn(tz_gauge *gauge, const uint64_t *counts, uint64_t total)
{
    if (gauge->known == 0)
        gauge->learning_ns = gauge->began_ns;
    for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++)
        gauge->reference[i] += counts[i];
    gauge->known += total;
    gauge->learnt = gauge->known >= KNOWN;
}

static double strain_of(const tz_gauge *gauge, const uint64_t *counts, uint64_t total, uint64_t target_ns)
{
    double q = total < 100 ? 1.0 - 1.0 / (double)total : 0.99;
    uint64_t found = tz_load_quantile_of(counts, total, q);

    if (target_ns)
        return (double)found / (double)target_ns;
    return (double)found / (double)tz_max_u64(tz_load_quantile_of(gauge->reference, gauge->known, q), 1);
}

/* True when the gauge has something to tell. */
static bool judge(tz_gauge *gauge, const uint64_t *counts, uint64_t total, uint64_t target_ns, uint64_t now)
{
    double strain = strain_of(gauge, counts, total, target_ns), before = gauge->before;

    gauge->before = strain;
    if (before == 0) /* half a pair */
        return false;
    gauge->least = before < strain ? before : strain;
    gauge->most = before < strain ? strain : before;
    gauge->told_ns = now;
    return true;
}

static bool has_ended(const tz_gauge *gauge, uint64_t total, uint64_t now)
{
    uint64_t age = now - gauge->began_ns;

    return (total >= SAMPLES && age >= SHORT) || (total >= LEAST && age >= LONG) || age >= LONGEST;
}

static void look_at(tz_meter *meter, tz_gauge *gauge, const tz_load *load, uint64_t now, tz_reading *reading)
{
    uint64_t counts[TZ_LOAD_BUCKETS], total = requests_in(counts, gauge, load);

    if (!has_ended(gauge, total, now))
        return;
    if (total < LEAST) {
        gauge->before = 0;
        gauge->lacks = false;
    } else if (meter->target_ns || gauge->learnt) {
        if (judge(gauge, counts, total, meter->target_ns, now)) {
            reading->now = reading->fresh && reading->now > gauge->least ? reading->now : gauge->least;
            reading->fresh = true;
        }
    } else if (meter->quiet) {
        learn(gauge, counts, total);
    } else {
        gauge->lacks = true;
    }
    begin_window(gauge, load, now);
}

static void begin_quiet(tz_meter *meter, const tz_load *load, uint64_t now)
{
    for (uint32_t i = 0; i < TZ_METER_GAUGES; i++) {
        begin_window(&meter->gauges[i], load, now);
        meter->gauges[i].before = 0;
    }
}

tz_reading tz_meter_look(tz_meter *meter, const tz_load *load, bool quiet, uint64_t now_ns)
{
    uint64_t arrived = tz_load_get(&load->arrived);
    tz_reading reading = {.active = arrived != meter->arrived};

    reading.active |= atomic_load_explicit(&load->reads_in_flight, memory_order_relaxed) != 0;
    reading.active |= atomic_load_explicit(&load->updates_in_flight, memory_order_relaxed) != 0;
    meter->arrived = arrived;
    if (quiet && !meter->quiet)
        begin_quiet(meter, load, now_ns);
    meter->quiet = quiet;
    for (uint32_t i = 0; i < TZ_METER_GAUGES; i++) {
        tz_gauge *gauge = &meter->gauges[i];

        look_at(meter, gauge, load, now_ns, &reading);
        gauge->learnt |= gauge->known > 0 && now_ns - gauge->learning_ns >= LEARN;
        gauge->lacks &= !gauge->learnt;
        reading.needs_quiet |= gauge->lacks;
        if (gauge->most > reading.standing && now_ns - gauge->told_ns < STALE)
            reading.standing = gauge->most;
    }
    return reading;
}
