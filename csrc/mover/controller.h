/* SPDX-License-Identifier: Apache-2.0
 *
 * How hard the mover may press, so that the application's latency stays within a target.
 *
 * The device is one queue, and what delays a request in it is the bytes of ours that are there with it (measured:
 * bench/intercept/README.md). So this is congestion control with the application's latency for a signal: what LEDBAT and
 * TCP Nice do to a network for transfers that nobody waits for. One number, the level, in powers of two of pressure:
 *
 *   0 ......... PACED ......... whole chunks ............ top
 *   pieces of 64K     one request in flight,   several       as many as there are
 *   at a rate         64K, 128K, 256K ...      chunks        room for: full speed
 *
 *   idle      nothing in flight and nothing came for IDLE_NS: one level up at each look, so that from the floor to the
 *             top takes half a second beyond that. What comes meanwhile puts it back at once, to where it was when the
 *             application was there last: within one look, for that needs no statistics.
 *   strained  the latency is above its limit in two windows in a row: one level down, half the pressure; two when it is
 *             above twice the limit. Where the level promises more than the device gives, down from what it gave.
 *   at ease   below nine tenths of the limit: a quarter of a level up. In between it stays.
 *
 * Down by halves and up by less: only so do several who share a queue come to rest (AIMD, Chiu and Jain). Not PID: its
 * gains would have to fit a device that nobody knows, whose answer to twice the pressure may be nothing or tenfold. No
 * model of the device either: it drifts by a third within minutes, and is not one device (stacks, caches, arrays).
 *
 * Latency that others cause. If it is above the limit though the mover is at its floor, being quieter does not help, and
 * staying there would help nobody and let the sidefile fill. So with a limit relative to what was usual, what the floor
 * shows (the least of several readings, for each is of few samples) counts as usual from then on, and is forgotten again:
 * every RELISTEN_NS the mover is quiet for a moment and looks what the application has without it. That covers an application that has become busier than it was before T0, neighbours
 * on the disk, and reads for before-images. An absolute target is the user's word: with that the floor is where it stays.
 *
 * Few requests: where latencies cannot be judged, the level goes to where one request in flight is of 256K.
 * The floor moves 4 MiB a second to the target. A filling sidefile raises it, from halfway between its marks in proportion
 * up to the top at the high mark, because a punctured session helps nobody.
 *
 * Threads  none of its own; one caller at a time. No clock, no I/O.
 */
#ifndef TZ_MOVER_CONTROLLER_H
#define TZ_MOVER_CONTROLLER_H

#include "meter.h"

/* Between two looks. Two of them, and a request of ours that is under way, are well within the 100 ms in which the
 * mover gives way. */
#define TZ_LOOK_NS UINT64_C(20000000)

typedef struct tz_controller_config {
    uint32_t full;       /* chunks in flight at full speed */
    uint32_t chunk_size; /* bytes */
    double factor;       /* of what is usual; 0: the target is absolute, and the readings are relative to it */
} tz_controller_config;

/* What is seen at one look: the worst of all volumes. */
typedef struct tz_sight {
    uint64_t now_ns;
    tz_reading reading;
    uint64_t moved;  /* bytes that the mover read and wrote, ever */
    double pressure; /* of sidefiles, from 0 halfway between the marks to 1 at the high one */
} tz_sight;

/* What the mover does with it. */
typedef struct tz_press {
    uint32_t depth; /* chunks in flight, over all workers */
    uint32_t piece; /* most bytes of one request; 0: no limit */
    uint64_t rate;  /* bytes a second, read and written; 0: no limit */
    bool quiet;     /* nobody is disturbed: the reading of the next look is of the application alone */
} tz_press;

typedef struct tz_controller {
    tz_controller_config config;
    int top, level;   /* in quarters of a power of two */
    int usable;       /* level for an application that comes back */
    double others;    /* strain that is not ours, as the floor has shown; at least 1 */
    uint64_t told_ns; /* when it did */
    uint32_t heard;   /* readings in a row at the floor, or while listening, */
    double least;     /* and the least of them */
    uint64_t busy_ns; /* when a request was last seen */
    uint64_t look_ns;
    bool resting; /* idle for long enough */
    bool listening;
    uint64_t listening_ns;
    uint64_t moved, moved_ns; /* at the last judgement */
} tz_controller;

/* idle: nothing has come for a while (or nobody would tell): begin at full speed. */
void tz_controller_init(tz_controller *c, const tz_controller_config *config, bool idle, uint64_t now_ns);
tz_press tz_controller_look(tz_controller *c, const tz_sight *sight);

#endif
