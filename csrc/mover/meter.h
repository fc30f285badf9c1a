/* SPDX-License-Identifier: Apache-2.0
 *
 * How strained the application is on one volume: latencies of a window of time over what they should be.
 *
 *   strain = latency of the window / (what was usual before T0, at the same quantile | an absolute target)
 *
 * taken of each measure (tz/load.h) by itself, in windows of its own, and the worst of them told. What it is careful about:
 *
 *   few samples     a window lasts until it has SAMPLES, and tells of fewer only after a while, and of less than 8 never.
 *                   Its quantile is the 99th percentile, or, of n < 100 samples, the one that leaves the worst of them
 *                   out; and it is compared with the same quantile of the reference, never with its p99.
 *   stops           machines stop for 40 to 460 ms now and then, and all requests in flight then end in one window. So too
 *                   much is what two windows in a row say: `now` is the lesser of the two. And well is what both say, or
 *                   noise alone would lead upwards: `standing` is the greater.
 *   no reference    a volume on which little happened before T0 has none. Then what is measured while the mover is quiet
 *                   becomes the reference; until there is one, the meter says that it needs quiet.
 *   held updates    relative to what was usual, updates are measured from their issue: being held for a before-image is
 *                   the price of T0 and not of copying, and copying slower makes it last longer. An absolute target is
 *                   about what the application waits, whatever for.
 *
 * Threads  none of its own; one caller at a time. No clock, no I/O.
 */
#ifndef TZ_MOVER_METER_H
#define TZ_MOVER_METER_H

#include "tz/load.h"

#define TZ_METER_GAUGES 2 /* reads, updates */

/* One measure. */
typedef struct tz_gauge {
    enum tz_load_measure measure;
    uint64_t seen[TZ_LOAD_BUCKETS]; /* counts at the window's beginning */
    uint64_t began_ns;
    uint64_t reference[TZ_LOAD_BUCKETS], known; /* what is usual, and of how many */
    uint64_t learning_ns;                       /* since when it is being learnt */
    bool learnt;                                /* the reference may be used */
    bool lacks;                                 /* there was a window, and nothing to compare it with */
    double before, least, most;                 /* strain of the last window; of the last two; 0: none */
    uint64_t told_ns;                           /* when the two were */
} tz_gauge;

typedef struct tz_meter {
    tz_gauge gauges[TZ_METER_GAUGES];
    uint64_t target_ns; /* 0: relative to what is usual */
    uint64_t arrived;   /* requests, at the last look */
    bool quiet;
} tz_meter;

typedef struct tz_reading {
    bool active;      /* a request is in flight, or came since the last look */
    bool fresh;       /* a window has ended at this look, and `now` is the worst of those that did */
    bool needs_quiet; /* there are windows that nothing can be compared with */
    double now;
    double standing; /* the worst that is latest of all measures; 0: nothing is known */
} tz_reading;

/* `usual`, of before T0, is the reference where it says enough. Windows begin now. */
void tz_meter_init(tz_meter *meter, uint64_t target_ns, const tz_load *load, const tz_load *usual, uint64_t now_ns);

/* quiet: the mover has not disturbed anybody since the last look. Windows begin anew when that begins. */
tz_reading tz_meter_look(tz_meter *meter, const tz_load *load, bool quiet, uint64_t now_ns);

#endif
