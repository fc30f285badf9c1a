/* SPDX-License-Identifier: Apache-2.0
 *
 * The marks of a sidefile, with hysteresis: what begins past a mark goes on until usage has fallen clearly below it.
 *
 *   used slots   0 ......... low release . low ................ high release . high .......... slots
 *   the mover       by number     │ as before │  drains first
 *   writers         pass                                        │ as before  │ delayed       │ puncture
 *
 * How clearly: an eighth of the way between the marks. The mover gives slots back in chunks, up to 256 of them for a
 * chunk of 1 MiB in tracks of 4 KiB, and has up to eight chunks in flight on a disk: 2,000 slots may come back within
 * a moment, and usage is a saw of that depth even when writers and mover are in balance. By default a session has
 * about 28,000 slots and marks at 25 and 80 %, so an eighth of the way is 1,900: the saw of a sidefile that neither
 * grows nor shrinks stays on one side. Wider would delay writers, and scatter the order of copying, when the sidefile
 * is far from being in danger.
 */
#ifndef TZ_MARKS_H
#define TZ_MARKS_H

#include "tz/common.h"

typedef struct tz_mark {
    uint32_t begin; /* above this many slots it begins, */
    uint32_t end;   /* and at no more than this many it ends */
} tz_mark;

static inline uint32_t tz_mark_width(uint32_t low, uint32_t high)
{
    return (uint32_t)tz_max_u64((high > low ? high - low : 0) / 8, 1);
}

static inline tz_mark tz_mark_make(uint32_t at, uint32_t width)
{
    return (tz_mark){at, at > width ? at - width : 0};
}

static inline tz_mark tz_mark_low(uint32_t low, uint32_t high)
{
    /* Not all the way down: a low mark near nothing would never be left. */
    return tz_mark_make(low, (uint32_t)tz_min_u64(tz_mark_width(low, high), low / 2));
}

static inline tz_mark tz_mark_high(uint32_t low, uint32_t high)
{
    return tz_mark_make(high, tz_mark_width(low, high));
}

/* Is usage past the mark now? `was`: what this said last. */
static inline bool tz_mark_is_past(tz_mark mark, uint32_t used, bool was)
{
    return used > (was ? mark.end : mark.begin);
}

#endif
