/* SPDX-License-Identifier: Apache-2.0
 *
 * The memory that gate and mover share: all that the storage subsystem and the data mover know of each
 * other. One session on one volume has two mappings:
 *
 *   owned   (memfd, sealed: the mover can only map it read-only)   header | buckets | slots | zero bitmap | memory tier
 *   shared  (memfd, sealed against resizing, both write)           ring of drained slots | track words
 *
 * Track words: 32 tracks a word. Low half `copied` (set by the mover once it holds valid T0 content of
 * the track in a frame, or is about to take it from the sidefile: see below), high half `preserved`
 * (set by the gate once the before-image is in the sidefile). Both sides use fetch_or, sequentially
 * consistent, and the value it returns decides who owns what:
 *
 *   gate, publishing a before-image     publish slot or zero bit, old = fetch_or(preserved)
 *     old has copied                    the mover held T0 already: the gate frees the slot itself
 *     else                              the mover will take the content, and then frees the slot
 *   mover, after its read completed     old = fetch_or(copied)
 *     old has preserved                 the frame may hold newer bytes: take the before-image, then free
 *     else                              no overwrite was issued before the read ended: the frame is T0
 *
 * The gate sets preserved before it issues the overwriting write, so a read that saw new bytes always
 * finds the bit. preserved and the place of a live slot never change until the session ends.
 *
 * A preserved track's content: zeros when its bit in the zero bitmap is set; else the one live slot
 * that names the track (tz_session_find): below memory_slots in the memory tier at data_offset + slot x
 * track size, else in the file tier at (slot - memory_slots) x track size. No such slot: the session is broken.
 *
 * Trust   the gate reads from `shared` only the copied bits and ring entries, checks the latter, and
 *         computes every offset from its own configuration. The mover checks header and bounds once.
 */
#ifndef TZ_SESSION_LAYOUT_H
#define TZ_SESSION_LAYOUT_H

#include <errno.h>
#include <stdatomic.h>

#include "tz/common.h"
#include "tz/load.h"

#define TZ_SESSION_MAGIC  UINT64_C(0x305a454d495420) /* " TIMEZ0" */
#define TZ_SESSION_LAYOUT 3

#define TZ_SLOT_NONE     UINT32_MAX
#define TZ_TRACKS_A_WORD 32

enum tz_session_state {
    TZ_SESSION_PREPARED = 0,  /* not yet installed: no T0 */
    TZ_SESSION_ACTIVE = 1,    /* installed; the gate intercepts */
    TZ_SESSION_PUNCTURED = 2, /* T0 is lost; set before the first unprotected update is issued */
    TZ_SESSION_ENDED = 3,     /* ended intact, on request */
};

enum tz_puncture_reason {
    TZ_PUNCTURE_NONE = 0,
    TZ_PUNCTURE_CAP = 1,      /* the sidefile is at its cap */
    TZ_PUNCTURE_READ = 2,     /* a before-image could not be read from the volume */
    TZ_PUNCTURE_SIDEFILE = 3, /* the file tier could not be written */
    TZ_PUNCTURE_PROTOCOL = 4, /* the mover wrote nonsense into shared memory */
    TZ_PUNCTURE_MOVER = 5,    /* the control connection went, or the session was cancelled */
    TZ_PUNCTURE_GATE = 6,     /* the gate had reopened before the session was installed everywhere */
    TZ_PUNCTURE_STALLED = 7,  /* a before-image was not read, or not saved in the file tier, in time */
    /* It gave way to a newer session, as the limits are set. */
    TZ_PUNCTURE_ADMISSION = 8,
};

/* One live before-image. Written by the gate alone. */
typedef struct tz_slot {
    _Atomic uint64_t track; /* track number + 1; 0: free */
    _Atomic uint32_t next;  /* next slot of the bucket, TZ_SLOT_NONE ends */
    uint32_t reserved;
} tz_slot;

typedef struct tz_session_header {
    /* Constant once prepared. */
    uint64_t magic;
    uint32_t layout;
    uint32_t track_shift;  /* log2 of the track size in bytes */
    uint64_t volume_size;  /* bytes */
    uint64_t tracks;       /* ceil(volume_size / track size) */
    uint32_t slots;        /* memory and file tier together */
    uint32_t memory_slots; /* the first of them, in the memory tier */
    uint32_t buckets;      /* power of two */
    uint32_t low_mark;     /* used slots from which the mover drains the sidefile ahead of order */
    uint32_t high_mark;    /* used slots from which writers are delayed */
    uint32_t reserved;
    uint64_t buckets_offset, slots_offset, zero_offset, data_offset; /* in `owned` */
    uint64_t owned_bytes;
    uint64_t ring_offset, words_offset; /* in `shared` */
    uint64_t ring_entries;              /* power of two, at least slots + 1 */
    uint64_t shared_bytes;

    /* Hot: written by the gate, read by the mover on every chunk. */
    _Alignas(TZ_CACHE_LINE) _Atomic uint32_t state; /* enum tz_session_state */
    _Atomic uint32_t puncture;                      /* enum tz_puncture_reason */
    _Atomic uint32_t used_slots;                    /* pressure */
    _Atomic uint32_t unlinks;                       /* odd while a slot is being taken out of its bucket */
    _Atomic uint64_t updates; /* updates issued on the volume since install: the application's activity */

    /* Cold: for reports. */
    _Alignas(TZ_CACHE_LINE) _Atomic uint64_t intercepted; /* updates that were held at least once */
    _Atomic uint64_t images;                              /* before-images saved in slots */
    _Atomic uint64_t zero_images;                         /* before-images that were all zero and took no slot */
    _Atomic uint64_t file_images;                         /* of images: those that went to the file tier */
    _Atomic uint64_t self_freed;                          /* slots the gate freed itself: the mover already held T0 */
    _Atomic uint64_t delayed;                             /* updates delayed past the high mark */
    _Atomic uint32_t high_water;                          /* most slots ever used at once */
    _Atomic uint64_t held_ns;                             /* sum and maximum of the time that updates were held */
    _Atomic uint64_t held_max_ns;

    /* Warm: written by the gate with every request of the volume, read by the mover fifty times a second. */
    _Alignas(TZ_CACHE_LINE) tz_load load; /* since install */

    /* Written once, at install: what is usual on the volume without a session, lately (volume_load.c). */
    _Alignas(TZ_CACHE_LINE) tz_load usual;
} tz_session_header;

/* Drained slots, mover to gate. Single producer, single consumer; an eventfd wakes the gate. A slot
 * is pushed once, after its content was taken, so the ring cannot run over for an honest mover. */
typedef struct tz_drain_ring {
    _Alignas(TZ_CACHE_LINE) _Atomic uint64_t head; /* next to be written: the mover's */
    _Alignas(TZ_CACHE_LINE) _Atomic uint32_t slots[];
} tz_drain_ring;

/* ---- sizes: both sides compute them from the same numbers ---- */

/* Fills the sizes and offsets of *h from track_shift, volume_size, slots, memory_slots. -EINVAL when
 * they make no sense or do not fit; then *h is unchanged. */
static inline int tz_session_layout_plan(tz_session_header *h)
{
    const uint64_t page = 4096;
    uint64_t track = UINT64_C(1) << (h->track_shift & 63), tracks, buckets = 1, ring = 1, at;

    if (h->track_shift < 12 || h->track_shift > 20 || h->volume_size == 0 || h->volume_size > (UINT64_C(1) << 56))
        return -EINVAL;
    if (h->slots == 0 || h->slots > (UINT32_C(1) << 30) || h->memory_slots > h->slots)
        return -EINVAL;
    tracks = (h->volume_size + track - 1) >> h->track_shift;
    while (buckets < h->slots)
        buckets <<= 1;
    while (ring < (uint64_t)h->slots + 1)
        ring <<= 1;
    h->tracks = tracks;
    h->buckets = (uint32_t)buckets;
    h->ring_entries = ring;
    at = tz_align_up(sizeof(*h), TZ_CACHE_LINE);
    h->buckets_offset = at;
    at = tz_align_up(at + buckets * sizeof(uint32_t), TZ_CACHE_LINE);
    h->slots_offset = at;
    at = tz_align_up(at + (uint64_t)h->slots * sizeof(tz_slot), page);
    h->zero_offset = at;
    at = tz_align_up(at + (tracks + 63) / 64 * 8, page);
    h->data_offset = at;
    h->owned_bytes = at + ((uint64_t)h->memory_slots << h->track_shift);
    h->ring_offset = 0;
    at = tz_align_up(sizeof(tz_drain_ring) + ring * sizeof(uint32_t), page);
    h->words_offset = at;
    h->shared_bytes = tz_align_up(at + (tracks + TZ_TRACKS_A_WORD - 1) / TZ_TRACKS_A_WORD * 8, page);
    return 0;
}

/* The mover's check of a header that it has mapped: the numbers agree with each other and with the sizes
 * of the two files. -EPROTO when they do not. */
static inline int tz_session_layout_check(const tz_session_header *h, uint64_t owned_bytes, uint64_t shared_bytes)
{
    tz_session_header plan;

    if (owned_bytes < sizeof(*h) || h->magic != TZ_SESSION_MAGIC || h->layout != TZ_SESSION_LAYOUT)
        return -EPROTO;
    plan.track_shift = h->track_shift;
    plan.volume_size = h->volume_size;
    plan.slots = h->slots;
    plan.memory_slots = h->memory_slots;
    if (tz_session_layout_plan(&plan) < 0 || plan.tracks != h->tracks || plan.buckets != h->buckets ||
        plan.ring_entries != h->ring_entries || plan.buckets_offset != h->buckets_offset ||
        plan.slots_offset != h->slots_offset || plan.zero_offset != h->zero_offset ||
        plan.data_offset != h->data_offset || plan.owned_bytes != h->owned_bytes ||
        plan.ring_offset != h->ring_offset || plan.words_offset != h->words_offset ||
        plan.shared_bytes != h->shared_bytes || plan.owned_bytes > owned_bytes || plan.shared_bytes > shared_bytes)
        return -EPROTO;
    return 0;
}

/* ---- places ---- */

static inline _Atomic uint32_t *tz_session_buckets(const tz_session_header *h)
{
    return (_Atomic uint32_t *)((uintptr_t)h + h->buckets_offset);
}

static inline tz_slot *tz_session_slots(const tz_session_header *h)
{
    return (tz_slot *)((uintptr_t)h + h->slots_offset);
}

static inline _Atomic uint64_t *tz_session_zero_words(const tz_session_header *h)
{
    return (_Atomic uint64_t *)((uintptr_t)h + h->zero_offset);
}

static inline void *tz_session_memory_slot(const tz_session_header *h, uint32_t slot)
{
    return (void *)((uintptr_t)h + h->data_offset + ((uint64_t)slot << h->track_shift));
}

static inline uint32_t tz_session_bucket(const tz_session_header *h, uint64_t track)
{
    return (uint32_t)((track * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (h->buckets - 1);
}

/* ---- track words ---- */

/* The bits of tracks [from, from + count) that lie in the word of `from`; *count_in_word says how many. */
static inline uint32_t tz_track_mask(uint64_t from, uint64_t count, uint32_t *count_in_word)
{
    uint32_t bit = (uint32_t)(from % TZ_TRACKS_A_WORD);
    uint32_t n = (uint32_t)tz_min_u64(count, TZ_TRACKS_A_WORD - bit);

    *count_in_word = n;
    return (uint32_t)(((UINT64_C(1) << n) - 1) << bit);
}

/* Mover: sets copied for the tracks of mask and returns those of them that are preserved. */
static inline uint32_t tz_tracks_copied(_Atomic uint64_t *word, uint32_t mask)
{
    return (uint32_t)(atomic_fetch_or(word, (uint64_t)mask) >> 32) & mask;
}

/* Gate: sets preserved for the tracks of mask and returns those of them that were copied before. */
static inline uint32_t tz_tracks_preserved(_Atomic uint64_t *word, uint32_t mask)
{
    return (uint32_t)atomic_fetch_or(word, (uint64_t)mask << 32) & mask;
}

/* ---- the mover's look-up ---- */

/* One look for the live slot of a track whose preserved bit the caller has seen and whose slot it has not freed: true,
 * and the slot, or TZ_SLOT_NONE when there is none. False: a slot of some track was being taken out meanwhile, and
 * nothing was found; look again. Safe beside the gate's insertions and removals of other tracks.
 *
 * `plan`: a header whose constants are checked and stay, the mover's copy; `h`: the mapped one, whose atomics alone are
 * looked at, for its constants may change under a mover's eyes. */
static inline bool tz_session_look(const tz_session_header *plan, const tz_session_header *h, uint64_t track,
                                   uint32_t *found)
{
    const tz_slot *slots = (const tz_slot *)((uintptr_t)h + plan->slots_offset);
    const _Atomic uint32_t *heads = (const _Atomic uint32_t *)((uintptr_t)h + plan->buckets_offset);
    uint32_t before = atomic_load(&h->unlinks), steps = 0;
    uint32_t slot = atomic_load(&heads[tz_session_bucket(plan, track)]);

    /* Bucket heads hold slot + 1, so that zero-filled memory is an empty table. */
    slot = slot ? slot - 1 : TZ_SLOT_NONE;
    while (slot < plan->slots && steps++ <= plan->slots) {
        if (atomic_load(&slots[slot].track) == track + 1) {
            *found = slot;
            return true;
        }
        slot = atomic_load(&slots[slot].next);
    }
    if (before & 1 || atomic_load(&h->unlinks) != before)
        return false;
    *found = TZ_SLOT_NONE;
    return true;
}

/* The same until it is told, for who trusts the header, and the gate to go on. */
static inline uint32_t tz_session_find(const tz_session_header *h, uint64_t track)
{
    uint32_t found;

    while (!tz_session_look(h, h, track, &found))
        ;
    return found;
}

static inline bool tz_session_is_zero_image(const tz_session_header *h, uint64_t track)
{
    return atomic_load(&tz_session_zero_words(h)[track / 64]) >> (track % 64) & 1;
}

/* Mover: give a slot back after its content was taken. One producer at a time. */
static inline void tz_drain_push(const tz_session_header *h, tz_drain_ring *ring, uint32_t slot)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);

    atomic_store_explicit(&ring->slots[head & (h->ring_entries - 1)], slot, memory_order_relaxed);
    atomic_store_explicit(&ring->head, head + 1, memory_order_release);
}

#endif
