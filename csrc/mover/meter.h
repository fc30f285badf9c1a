/* SPDX-License-Identifier: Apache-2.0
 *
 * How strained the application is on one volume: of its requests, the share that is late, over the share that may be.
 *
 *   late      longer than an absolute target, or than a factor of what is usual at the 99th percentile
 *   may be    one in a hundred, for that is what a 99th percentile means (one of all there are, where what is usual is
 *             known of fewer than a hundred)
 *   strain    1: the target is just kept
 *
 * taken of each measure (tz/load.h) by itself, in windows of its own, and the worst of them told. Counted, and not the
 * percentile of a window over that of another: those are of a few samples beyond the 99th, so that they stray by a fifth to
 * both sides, and whoever acts on them keeps much farther from the target than told. A count strays as much, but its
 * mean is exact, and so is the mean of what is done in proportion to it. It also takes stops of the whole machine (40 to
 * 460 ms, now and then) for what they are: a few late requests, those that were in flight.
 *
 * What is usual. Before T0 it is what the gate saw then. From T0 on updates are intercepted: they wait for the read of their
 * before-image, which is the price of T0 and not of copying. Slower copying does not lower it but makes it last longer, and
 * with it what a busy application loses. Neighbours come and go, too, and applications get busier. So at once, and then every
 * RELISTEN_NS, the meter wants quiet, and what it hears counts by how many requests that was: the factor is of what the
 * application has without copying. Never less than before T0, which the user was content with. Until it has heard
 * something it does not judge.
 *
 * An absolute target is the user's word: with that nothing is listened to.
 *
 * Threads  none of its own; one caller at a time. No clock, no I/O.
 */
#ifndef TZ_MOVER_METER_H
#define TZ_MOVER_METER_H

#include "tz/load.h"

#define TZ_METER_GAUGES 2 /* reads, updates */

/* What the mover has done since the last look. */
enum tz_calm {
    TZ_CALM_NOT = 0,
    TZ_CALM_FLOOR, /* as little as it may: if that is too much, it is others */
    TZ_CALM_QUIET, /* next to nothing, so that what is heard is the application alone */
};

typedef struct tz_target {
    uint64_t ns;   /* 0: relative to what is usual */
    double factor; /* of that */
} tz_target;

/* One measure. */
typedef struct tz_gauge {
    enum tz_load_measure measure;
    uint64_t seen[TZ_LOAD_BUCKETS]; /* counts at the window's beginning */
    uint64_t began_ns;
    double usual_ns;            /* latency that all but `share` are within */
    uint64_t known;             /* requests that it is of; 0: nothing is */
    uint64_t tried_ns;          /* when it was last listened to; 0: not yet */
    uint64_t late_ns, least_ns; /* from where a request is late; what that was before T0. 0: not known */
    double share;               /* that may be late */
    double strain;              /* of the last window */
    uint64_t told_ns;           /* when there last was one; 0: none that can be judged */
    bool since;                 /* something was heard since T0, and `known` is of that */
    bool busy;                  /* the last window had enough to listen to */
} tz_gauge;

typedef struct tz_meter {
    tz_gauge gauges[TZ_METER_GAUGES];
    tz_target target;
    uint64_t arrived; /* requests, at the last look */
    enum tz_calm calm;
    uint64_t turned_ns; /* when quiet last began or ended */
} tz_meter;

typedef struct tz_reading {
    bool active;      /* a request is in flight, or came since the last look */
    bool fresh;       /* a window has ended at this look, and `now` is the worst of those that did */
    bool known;       /* `standing` says something */
    bool wants_quiet; /* to hear what is usual */
    double now;
    double standing; /* the worst that is latest of all measures */
} tz_reading;

/* `usual`, of before T0, counts where it says enough. Windows begin now. */
void tz_meter_init(tz_meter *meter, const tz_target *target, const tz_load *load, const tz_load *usual,
                   uint64_t now_ns);

/* Windows begin anew when quiet begins and when it ends. */
tz_reading tz_meter_look(tz_meter *meter, const tz_load *load, enum tz_calm calm, uint64_t now_ns);

#endif
