/* SPDX-License-Identifier: Apache-2.0
 *
 * What was written to a volume lately, and how much of it to places that were not written lately: what an estimate of
 * before-images is made of, since a track that is written a thousand times needs one.
 *
 *   a ring of 8 windows of 8 s:   [w-7] ... [w-3] ... [w: being filled]        the newer half: four of them
 *
 * Distinct places are estimated, not remembered: a window has a HyperLogLog sketch (Flajolet et al. 2007) of the
 * blocks of 4 KiB that were written, 2048 registers of a byte, so an error of about 1.04 / sqrt(2048) = 2.3 %, whatever
 * the size of the volume. Sketches of several windows are merged by the larger of each register. An update costs a
 * hash and a comparison a block; one of 4 KiB about 5 ns.
 *
 * Errors   none.
 * Memory   17 KiB, in the volume.
 * Threads  the volume's.
 */
#ifndef TZ_VOLUME_RECENT_H
#define TZ_VOLUME_RECENT_H

#include "tz/volume.h"

#define TZ_RECENT_WINDOWS   8
#define TZ_RECENT_WINDOW_NS (UINT64_C(8) * 1000000000)
#define TZ_RECENT_SHIFT     12 /* blocks of 4 KiB */
#define TZ_RECENT_REGISTERS 2048

/* A write is at most 32 MiB. Of a trim or zero that is larger only so much is looked at: a reactor serves others too. */
#define TZ_RECENT_BLOCKS 8192

typedef struct tz_recent_window {
    uint64_t number; /* windows since the beginning */
    uint64_t updates, bytes;
    uint8_t ranks[TZ_RECENT_REGISTERS];
} tz_recent_window;

typedef struct tz_recent {
    uint64_t began_ns;
    tz_recent_window windows[TZ_RECENT_WINDOWS];
} tz_recent;

/* All zero before. Instants are CLOCK_MONOTONIC and never go back. */
void tz_recent_init(tz_recent *recent, uint64_t now_ns);
void tz_recent_note(tz_recent *recent, uint64_t now_ns, uint64_t offset, uint64_t length);
void tz_recent_get(const tz_recent *recent, uint64_t now_ns, tz_recent_writes *out);

#endif
