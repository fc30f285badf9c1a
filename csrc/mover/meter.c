/* SPDX-License-Identifier: Apache-2.0 */
#include "meter.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#define MS UINT64_C(1000000)

/* A sum is told when two of its requests may be late, or after this: what one gauge needs to end a window. */
#define ENOUGH 2.0
#define LONG   (500 * MS)

/* How often there is quiet, and for a gauge that was not listened to yet. As soon, too, when being as quiet as can be does not
 * help: then it is others, and staying there helps nobody. What the mover had in flight ends in the first SETTLE. */
#define RELISTEN      (5000 * MS)
#define RELISTEN_SOON (1000 * MS)
#define SETTLE        (150 * MS)

/* Standard deviations: about one in forty. */
#define CERTAIN 2.0

int tz_meter_init(tz_meter *meter, const tz_target *target, uint32_t volumes)
{
    tz_meter_volume *made = calloc(volumes ? volumes : 1, sizeof(*made));

    if (!made)
        return -ENOMEM;
    *meter = (tz_meter){.target = *target, .volumes = made, .most = volumes};
    return 0;
}

void tz_meter_fini(tz_meter *meter)
{
    free(meter->volumes);
    *meter = (tz_meter){0};
}

void tz_meter_add(tz_meter *meter, const tz_load *load, const tz_load *usual, uint64_t now)
{
    tz_meter_volume *volume = &meter->volumes[meter->count];

    assert(meter->count < meter->most);
    meter->count++;
    volume->load = load;
    volume->arrived = tz_load_get(&load->arrived);
    tz_gauge_init(&volume->gauges[0], TZ_LOAD_READS, &meter->target, load, usual, now);
    tz_gauge_init(&volume->gauges[1], TZ_LOAD_UPDATES, &meter->target, load, usual, now);
    meter->began_ns = now;
}

static void begin_sum(tz_meter *meter, uint64_t now)
{
    meter->sum = (tz_lateness){0};
    meter->began_ns = now;
}

/* Of somebody who is not there any more. */
static void forget(tz_meter *meter, uint64_t now)
{
    begin_sum(meter, now);
    meter->lately = (tz_lateness){0};
    meter->strain = 0;
    meter->told = false;
}

void tz_meter_leave(tz_meter *meter, uint32_t volume, uint64_t now)
{
    if (meter->volumes[volume].load)
        forget(meter, now);
    meter->volumes[volume].load = NULL;
}

static bool is_active(tz_meter_volume *volume)
{
    uint64_t arrived = tz_load_get(&volume->load->arrived);
    bool came = arrived != volume->arrived;

    volume->arrived = arrived;
    return came || atomic_load_explicit(&volume->load->reads_in_flight, memory_order_relaxed) != 0 ||
           atomic_load_explicit(&volume->load->updates_in_flight, memory_order_relaxed) != 0;
}

/* By itself, whatever all together do. */
static bool suffers(const tz_gauge *gauge)
{
    return gauge->stands_out && tz_lateness_strain(&gauge->window) > 1;
}

static bool wants_quiet(const tz_meter *meter, const tz_gauge *gauge, uint64_t now)
{
    bool strained = tz_gauge_tells(gauge, now) && (meter->strain > 1 || suffers(gauge));
    bool in_vain = meter->calm != TZ_CALM_NOT && strained;
    uint64_t soon = !gauge->tried_ns || in_vain ? RELISTEN_SOON : RELISTEN;

    if (meter->target.ns || !gauge->busy)
        return false;
    if (gauge->tried_ns && now - gauge->tried_ns < soon)
        return false;
    /* Not because of one after the other. */
    return meter->calm == TZ_CALM_QUIET || !meter->turned_ns || now - meter->turned_ns >= soon;
}

/* How well all together are known, weighed by the last windows. Who was misheard has nothing to do with who else was:
 * squares add up. */
static double heard_of_all(const tz_meter *meter, uint64_t now)
{
    double sum = 0, squares = 0;

    for (uint32_t i = 0; i < meter->count * TZ_METER_GAUGES; i++) {
        const tz_meter_volume *volume = &meter->volumes[i / TZ_METER_GAUGES];
        const tz_gauge *gauge = &volume->gauges[i % TZ_METER_GAUGES];
        double may_be = gauge->lately.may_be;

        if (!volume->load || !tz_gauge_tells(gauge, now))
            continue;
        sum += may_be;
        squares += may_be * may_be / tz_gauge_heard(gauge, &meter->target);
    }
    return squares > 0 ? sum * sum / squares : 1;
}

/* True when there is enough for something new to be told. */
static bool sum_up(tz_meter *meter, uint64_t now)
{
    if (meter->sum.may_be < ENOUGH && (meter->sum.may_be <= 0 || now - meter->began_ns < LONG))
        return false;
    meter->strain = tz_lateness_strain(&meter->sum);
    tz_lateness_pass(&meter->lately, &meter->sum);
    meter->certain = tz_lateness_is_beyond(&meter->lately, heard_of_all(meter, now), CERTAIN);
    meter->told = true;
    begin_sum(meter, now);
    return true;
}

static void tell(tz_reading *reading, double strain, bool fresh, bool certain)
{
    if (fresh && (!reading->fresh || strain > reading->now))
        reading->now = strain;
    reading->certain |= fresh && certain && strain > 1;
    reading->fresh |= fresh;
    reading->standing = strain > reading->standing ? strain : reading->standing;
}

static void look_at(tz_meter *meter, tz_gauge *gauge, const tz_load *load, uint64_t now, tz_reading *reading)
{
    bool quiet = meter->calm == TZ_CALM_QUIET, fresh = false;

    if (now == meter->turned_ns || (quiet && now - meter->turned_ns < SETTLE))
        tz_gauge_restart(gauge, load, now);
    else if (quiet && gauge->busy) /* all at once, so that not each of them needs a quiet of its own */
        tz_gauge_listen(gauge, &meter->target, load, now);
    else
        fresh = tz_gauge_look(gauge, &meter->target, load, now);
    if (fresh) {
        meter->sum.late += gauge->window.late;
        meter->sum.may_be += gauge->window.may_be;
    }
    if (tz_gauge_tells(gauge, now)) {
        reading->known = true;
        if (suffers(gauge))
            tell(reading, tz_lateness_strain(&gauge->window), fresh, true);
    }
    reading->wants_quiet |= wants_quiet(meter, gauge, now);
}

tz_reading tz_meter_look(tz_meter *meter, enum tz_calm calm, uint64_t now_ns)
{
    tz_reading reading = {0};
    bool fresh;

    if ((calm == TZ_CALM_QUIET) != (meter->calm == TZ_CALM_QUIET)) {
        meter->turned_ns = now_ns;
        begin_sum(meter, now_ns);
        meter->lately = (tz_lateness){0}; /* lines move */
    }
    meter->calm = calm;
    for (uint32_t i = 0; i < meter->count; i++) {
        tz_meter_volume *volume = &meter->volumes[i];

        if (!volume->load)
            continue;
        reading.active |= is_active(volume);
        for (uint32_t g = 0; g < TZ_METER_GAUGES; g++)
            look_at(meter, &volume->gauges[g], volume->load, now_ns, &reading);
    }
    fresh = reading.known && sum_up(meter, now_ns);
    if (!reading.known)
        forget(meter, now_ns);
    if (meter->told)
        tell(&reading, meter->strain, fresh, meter->certain);
    return reading;
}
