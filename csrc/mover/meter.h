/* SPDX-License-Identifier: Apache-2.0
 *
 * How strained the application is: of its requests on all volumes, the share that is late, over the share that may be
 * (gauge.h). 1: the target is just kept.
 *
 * Counted, and not the percentile of a window over that of another: those are of a few samples beyond the 99th, so that they
 * stray by a fifth to both sides, and whoever acts on them keeps much farther from the target than told. A count strays as
 * much, but its mean is exact, and so is the mean of what is done in proportion to it. It also takes stops of the whole
 * machine (40 to 460 ms, now and then) for what they are: a few late requests, those that were in flight.
 *
 * Of all together, and not the worst: reads and updates of each volume have a window each, and the worst of many counts
 * that stray is nearly always too much. Sixteen volumes of which each is within its target kept the mover at its floor so,
 * at 0.9 times what was usual. But a volume that suffers is not to be outvoted by others that are many times as busy, or
 * that lie on a faster disk: one that stands out (one in ten late, and more than chance explains) counts by itself, as long
 * as it is strained. (Of which fewer than some twenty requests are heard at a time, nobody does.) Of all together it is
 * told, too, whether strain is more than chance explains.
 *
 * The meter wants quiet at once, and then every RELISTEN, so that its gauges hear what is usual; all of them at once.
 * An absolute target is the user's word: with that nothing is listened to.
 *
 * Errors   init: -ENOMEM.
 * Memory   a pair of gauges a volume, from init to fini.
 * Threads  none of its own; one caller at a time. No clock, no I/O.
 */
#ifndef TZ_MOVER_METER_H
#define TZ_MOVER_METER_H

#include "gauge.h"

#define TZ_METER_GAUGES 2 /* of a volume: reads, updates */

/* What the mover has done since the last look. */
enum tz_calm {
    TZ_CALM_NOT = 0,
    TZ_CALM_FLOOR, /* as little as it may: if that is too much, it is others */
    TZ_CALM_QUIET, /* next to nothing, so that what is heard is the application alone */
};

typedef struct tz_meter_volume {
    const tz_load *load; /* NULL: it has left */
    uint64_t arrived;    /* requests, at the last look */
    tz_gauge gauges[TZ_METER_GAUGES];
} tz_meter_volume;

typedef struct tz_meter {
    tz_target target;
    tz_meter_volume *volumes;
    uint32_t count, most;
    tz_lateness sum, lately; /* of windows that have ended since it was told last; and of some sums */
    uint64_t began_ns;       /* the sum */
    double strain;           /* of all together, when it was told last */
    bool certain;            /* and more than chance explains */
    bool told;
    enum tz_calm calm;
    uint64_t turned_ns; /* when quiet last began or ended; 0: never */
} tz_meter;

typedef struct tz_reading {
    bool active;      /* a request is in flight, or came since the last look */
    bool fresh;       /* at this look there is something new, and `now` is the worst of that */
    bool known;       /* somebody tells something of now */
    bool wants_quiet; /* to hear what is usual */
    bool certain;     /* what is fresh has too much that is more than chance explains */
    double now;
    double standing; /* the worst of what was told last */
} tz_reading;

/* For so many volumes, none of which is added yet. */
int tz_meter_init(tz_meter *meter, const tz_target *target, uint32_t volumes);
void tz_meter_fini(tz_meter *meter);

/* The next volume: what its gate tells from now on, in memory that stays until it leaves, and what that told before T0. */
void tz_meter_add(tz_meter *meter, const tz_load *load, const tz_load *usual, uint64_t now_ns);

/* That volume, in the order in which they were added, is not looked at any more. */
void tz_meter_leave(tz_meter *meter, uint32_t volume, uint64_t now_ns);

/* Windows begin anew when quiet begins and when it ends. */
tz_reading tz_meter_look(tz_meter *meter, enum tz_calm calm, uint64_t now_ns);

#endif
