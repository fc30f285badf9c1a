/* SPDX-License-Identifier: Apache-2.0
 *
 * How hard the mover may press, so that the application's latency stays within a target.
 *
 * The device is one queue, and what delays a request in it is the bytes of ours that are there with it (measured:
 * bench/intercept/README.md). So this is congestion control with the application's latency for a signal: what LEDBAT and
 * TCP Nice do to a network for transfers that nobody waits for. One number, the level, in powers of two of pressure:
 *
 *   0 ......... PACED ......... largest ............ top
 *   pieces of 64K     one request in flight,   several of     as many as there are
 *   at a rate         64K, 128K, 256K ...      the largest    room for: full speed
 *
 *   idle      nothing in flight and nothing came for IDLE_NS: one level up at each look, so that from the floor to the
 *             top takes half a second beyond that. What comes meanwhile puts it back at once, to where it was when the
 *             application was there last: within one look, for that needs no statistics. What is in flight then is ahead of
 *             it all the same, so there is a bound to it at full speed, too (below).
 *   active    of the application's requests some are late, and some may be (gauge.h); strain is the one over the other.
 *             Up by a quarter of a level times what strain lacks to 1, down by a quarter times what it is beyond; down by
 *             two levels at most, and what is beyond that is a debt, paid before it goes up again. Where so much is beyond,
 *             and the level promises more than the device gives, down from what it gave. Below one request of 256K in
 *             flight, which is nearly always kind, only where strain is more than chance explains (meter.h).
 *
 * In proportion to the strain, because that is a mean of counts: where up and down cancel out, exactly as many requests are
 * late as may be, however few there are in a window, and the target is made use of (stochastic approximation of a
 * quantile, Robbins and Monro). A controller that compares percentiles of windows with a limit has to be careful with each of
 * them, and ends up far below the limit. Up slowly and down steeply: only so do several who share a queue come to rest
 * (AIMD, Chiu and Jain). Not PID: its gains would have to fit a device that nobody knows, whose answer to twice the
 * pressure may be nothing or tenfold. No model of the device either: it drifts by a third within minutes, and is not one
 * device (stacks, caches, arrays).
 *
 * The largest request. An application that comes back waits for what is in flight, and two looks and that are to be done
 * within 100 ms: 60 ms are left for it. Chunks of 1 MiB, eight in flight, are 8 MiB and 40 ms of a disk of 200 MB/s; two of
 * 16 MiB would be 160. So larger chunks go in pieces even at full speed, of an equal part of 8 MiB, but never of less than
 * 1 MiB: what chunks of 1 MiB get. Where the mover has moved more than that in 50 ms, as much as it did: on a fast disk
 * larger requests save a processor that is busy, too (measured: chunks of 16 MiB take a third longer in pieces of 1 MiB).
 * Never less, for what is slow for its latency (a target far away) would be slower for that, and get less again. So a disk
 * of less than 140 MB/s takes longer than 100 ms, and so does more in flight that was asked for (depth, workers). More that
 * was not, goes to where it pays (depth.c): where requests wait for something else than bytes.
 *
 * Latency that others cause. The meter wants quiet now and then, to hear what is usual without the mover; then it all but
 * pauses, unless a sidefile fills. An absolute target is the user's word: where nobody can keep it, the floor is where
 * the mover stays.
 *
 * Outside of its hours nothing of the mover's is in flight. How well the application fares then says nothing of what it
 * would bear: the level stays where it was judged last.
 *
 * Few requests: where latencies cannot be judged, the level goes to where one request in flight is of 256K.
 * The floor moves 4 MiB a second to the target. A filling sidefile raises it, from halfway between its marks in proportion
 * up to the top at the high mark, because a punctured session helps nobody; what proves to be no strain then, stays.
 *
 * Memory   the caller's.
 * Threads  none of its own; one caller at a time. No clock, no I/O.
 */
#ifndef TZ_MOVER_CONTROLLER_H
#define TZ_MOVER_CONTROLLER_H

#include "meter.h"

/* Between two looks. Two of them, and a request of ours that is under way, are well within the 100 ms in which the
 * mover gives way. */
#define TZ_LOOK_NS UINT64_C(20000000)

typedef struct tz_controller_config {
    uint32_t full;       /* chunks in flight at full speed, */
    uint32_t frames;     /* unless there is not memory for so many */
    uint32_t chunk_size; /* bytes */
} tz_controller_config;

/* What is seen at one look, of all volumes. */
typedef struct tz_sight {
    uint64_t now_ns;
    tz_reading reading;
    uint64_t moved;  /* bytes that the mover read and wrote, ever */
    double pressure; /* of sidefiles, from 0 halfway between the marks to 1 at the high one */
    bool rests;      /* outside of its hours, and nothing of the mover's is begun */
} tz_sight;

/* What the mover does with it. */
typedef struct tz_press {
    uint32_t depth; /* chunks in flight, over all workers */
    uint32_t piece; /* most bytes of one request; 0: no limit */
    uint64_t rate;  /* bytes a second, read and written; 0: no limit */
    bool yields;    /* there is more that it could do */
    enum tz_calm calm;
} tz_press;

typedef struct tz_controller {
    tz_controller_config config;
    double top, level; /* in quarters of a power of two */
    double asked;      /* by a filling sidefile */
    double debt;       /* levels that it did not go down, for steepness or doubt: paid before going up */
    double usable;     /* level for an application that comes back */
    uint64_t busy_ns;  /* when a request was last seen */
    uint64_t look_ns;
    uint64_t in_flight;           /* bytes, at full speed */
    uint64_t full_ns, full_moved; /* since when that is measured; 0: it is not */
    bool resting;                 /* idle for long enough */
    bool listening;
    uint64_t unquiet_ns;      /* not again before */
    uint64_t moved, moved_ns; /* at the last judgement */
} tz_controller;

/* idle: nothing has come for a while (or nobody would tell): begin at full speed. */
void tz_controller_init(tz_controller *c, const tz_controller_config *config, bool idle, uint64_t now_ns);
tz_press tz_controller_look(tz_controller *c, const tz_sight *sight);

#endif
