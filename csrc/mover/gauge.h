/* SPDX-License-Identifier: Apache-2.0
 *
 * How late the application's requests are, of one measure on one volume (the meter's part: meter.h says what for).
 *
 *   late      longer than an absolute target, or than a factor of what is usual at the 99th percentile
 *   may be    one in a hundred, for that is what a 99th percentile means (one of as many as were heard at a time, where
 *             those are fewer)
 *
 * What is usual. Before T0 it is what the gate saw then. From T0 on updates are intercepted: they wait for the read of their
 * before-image, which is the price of T0 and not of copying. Slower copying does not lower it but makes it last longer, and
 * with it what a busy application loses. Neighbours come and go, too, and applications get busier. So what is heard in quiet
 * moments counts, by how many requests that was: the factor is of what the application has without copying. Never less
 * than before T0, which the user was content with. Until it has heard something a gauge does not judge.
 *
 * What is heard of few says little. Where k of n requests took longer than some latency, the share of all others that do is
 * k/n only in the mean: it strays as a gamma distribution of shape k does, by its own size where k is 1. So strain alone
 * (meter.h) does not tell who suffers from who was misheard. Whoever stands out has ten times as many late as may be, and more
 * than that and the scatter of a count explain.
 *
 * Memory   the caller's.
 * Threads  none of its own; one caller at a time. No clock, no I/O.
 */
#ifndef TZ_MOVER_GAUGE_H
#define TZ_MOVER_GAUGE_H

#include "tz/load.h"

typedef struct tz_target {
    uint64_t ns;   /* 0: relative to what is usual */
    double factor; /* of that */
} tz_target;

/* Late requests, and how many may be: of a window, or of some. */
typedef struct tz_lateness {
    double late, may_be;
} tz_lateness;

typedef struct tz_gauge {
    enum tz_load_measure measure;
    uint64_t seen[TZ_LOAD_BUCKETS]; /* counts at the window's beginning */
    uint64_t began_ns;
    double usual_ns;            /* latency that all but `share` are within */
    uint64_t known;             /* requests that it is of; 0: nothing is */
    uint64_t tried_ns;          /* when it was last listened to; 0: not yet */
    uint64_t late_ns, least_ns; /* from where a request is late; what that was before T0. 0: not known */
    double least_heard;         /* the shape of that (above) */
    double share;               /* that may be late */
    tz_lateness window;         /* the last one */
    tz_lateness lately;         /* some windows, the older the less */
    uint64_t told_ns;           /* when there last was one that can be judged; 0: none */
    bool since;                 /* something was heard since T0, and `known` is of that */
    bool busy;                  /* the last window had enough to listen to */
    bool stands_out;
} tz_gauge;

/* `usual`, of before T0, counts where it says enough. A window begins now. */
void tz_gauge_init(tz_gauge *gauge, enum tz_load_measure measure, const tz_target *target, const tz_load *load,
                   const tz_load *usual, uint64_t now_ns);

/* What came before is forgotten: quiet begins or ends. */
void tz_gauge_restart(tz_gauge *gauge, const tz_load *load, uint64_t now_ns);

/* While the mover is quiet, and the gauge busy. */
void tz_gauge_listen(tz_gauge *gauge, const tz_target *target, const tz_load *load, uint64_t now_ns);

/* At other times. True when a window has ended that can be judged. */
bool tz_gauge_look(tz_gauge *gauge, const tz_target *target, const tz_load *load, uint64_t now_ns);

/* Whether the last window says something of now. */
bool tz_gauge_tells(const tz_gauge *gauge, uint64_t now_ns);

/* Shape of the distribution by which what is usual strays (above): 1 to 80, and next to infinite for an absolute target. */
double tz_gauge_heard(const tz_gauge *gauge, const tz_target *target);

/* How many are late over how many may be, at most HEAVY: one stop of a slow disk is not to count for ever. */
double tz_lateness_strain(const tz_lateness *lateness);

/* Adds a window; what was there before counts less. */
void tz_lateness_pass(tz_lateness *lately, const tz_lateness *window);

/* Whether that is more than chance explains. heard: the shape of what is usual; deviations: standard ones. */
bool tz_lateness_is_beyond(const tz_lateness *lateness, double heard, double deviations);

#endif
