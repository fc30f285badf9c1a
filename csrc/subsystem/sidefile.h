/* SPDX-License-Identifier: Apache-2.0
 *
 * The sidefile's books: slots, where they are found, who frees them. Content is the caller's business, and so is I/O.
 *
 *   free ──take──▶ taken (being filled) ──publish──▶ live ──drain: the mover took it──▶ free
 *                    └──give── free                    └── the mover held T0 already: freed at once
 *
 * Errors   tz_sidefile_drain: -EPROTO when the mover wrote nonsense into the ring.
 * Memory   all given at init.
 * Threads  the volume's; a mover reads beside it (see tz/session_layout.h).
 */
#ifndef TZ_SIDEFILE_H
#define TZ_SIDEFILE_H

#include "tz/faults.h"
#include "tz/session_layout.h"

typedef struct tz_slot_stack {
    uint32_t *slots;
    uint32_t count;
} tz_slot_stack;

typedef struct tz_sidefile {
    tz_session_header *header;
    tz_drain_ring *ring;
    _Atomic uint64_t *words;
    tz_slot_stack memory, file; /* free slots */
    uint64_t tail;              /* of the ring */
    uint32_t used;
    uint32_t faults;
} tz_sidefile;

/* header: planned. free_slots: room for header->slots numbers. */
void tz_sidefile_init(tz_sidefile *sidefile, tz_session_header *header, void *shared, uint32_t *free_slots,
                      uint32_t faults);

/* A free slot of the memory tier, or TZ_SLOT_NONE. */
uint32_t tz_sidefile_take_memory(tz_sidefile *sidefile);

/* The first of up to `most` consecutive free slots of the file tier, or TZ_SLOT_NONE. */
uint32_t tz_sidefile_take_file(tz_sidefile *sidefile, uint32_t most, uint32_t *taken);

void tz_sidefile_give(tz_sidefile *sidefile, uint32_t slot); /* taken, not published */

/* The slot holds the track's before-image: makes it live, then tells that the track is preserved. */
void tz_sidefile_publish(tz_sidefile *sidefile, uint64_t track, uint32_t slot);
void tz_sidefile_publish_zero(tz_sidefile *sidefile, uint64_t track);

static inline bool tz_sidefile_is_copied(const tz_sidefile *sidefile, uint64_t track)
{
    return atomic_load(&sidefile->words[track / TZ_TRACKS_A_WORD]) >> (track % TZ_TRACKS_A_WORD) & 1;
}

/* Frees what the mover has pushed; how many, or -EPROTO. */
int64_t tz_sidefile_drain(tz_sidefile *sidefile);

#endif
