/* SPDX-License-Identifier: Apache-2.0
 *
 * The sidefile's books.
 */
#include "sidefile.h"

#include <errno.h>

#include "tz/crash.h"

static void add(_Atomic uint64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

void tz_sidefile_init(tz_sidefile *sidefile, tz_session_header *header, void *shared, uint32_t *free_slots,
                      uint32_t faults)
{
    const uint32_t memory = header->memory_slots, slots = header->slots;

    *sidefile = (tz_sidefile){
        .header = header,
        .ring = (tz_drain_ring *)((char *)shared + header->ring_offset),
        .words = (_Atomic uint64_t *)((char *)shared + header->words_offset),
        .memory = {.slots = free_slots, .count = memory},
        .file = {.slots = free_slots + memory, .count = slots - memory},
        .faults = faults,
    };
    /* Lowest numbers on top: the first slots of the file tier come in a row. */
    for (uint32_t i = 0; i < memory; i++)
        free_slots[i] = memory - 1 - i;
    for (uint32_t i = memory; i < slots; i++)
        free_slots[i] = slots - 1 - (i - memory);
}

/* ---- taking and giving ---- */

static void set_used(tz_sidefile *sidefile, uint32_t used)
{
    tz_session_header *h = sidefile->header;

    sidefile->used = used;
    atomic_store_explicit(&h->used_slots, used, memory_order_relaxed);
    if (used > atomic_load_explicit(&h->high_water, memory_order_relaxed))
        atomic_store_explicit(&h->high_water, used, memory_order_relaxed);
}

uint32_t tz_sidefile_take_memory(tz_sidefile *sidefile)
{
    if (sidefile->memory.count == 0)
        return TZ_SLOT_NONE;
    set_used(sidefile, sidefile->used + 1);
    return sidefile->memory.slots[--sidefile->memory.count];
}

uint32_t tz_sidefile_take_file(tz_sidefile *sidefile, uint32_t most, uint32_t *taken)
{
    tz_slot_stack *stack = &sidefile->file;
    uint32_t first, n = 1;

    if (stack->count == 0)
        return TZ_SLOT_NONE;
    first = stack->slots[--stack->count];
    while (n < most && stack->count && stack->slots[stack->count - 1] == first + n) {
        stack->count--;
        n++;
    }
    set_used(sidefile, sidefile->used + n);
    *taken = n;
    return first;
}

void tz_sidefile_give(tz_sidefile *sidefile, uint32_t slot)
{
    tz_slot_stack *stack = slot < sidefile->header->memory_slots ? &sidefile->memory : &sidefile->file;

    stack->slots[stack->count++] = slot;
    set_used(sidefile, sidefile->used - 1);
}

/* ---- live slots ---- */

static void link_slot(tz_sidefile *sidefile, uint64_t track, uint32_t slot)
{
    tz_session_header *h = sidefile->header;
    tz_slot *entry = &tz_session_slots(h)[slot];
    _Atomic uint32_t *head = &tz_session_buckets(h)[tz_session_bucket(h, track)];
    uint32_t next = atomic_load(head);

    atomic_store(&entry->next, next ? next - 1 : TZ_SLOT_NONE);
    atomic_store(&entry->track, track + 1);
    atomic_store(head, slot + 1);
}

static void unlink_slot(tz_sidefile *sidefile, uint32_t slot)
{
    tz_session_header *h = sidefile->header;
    tz_slot *slots = tz_session_slots(h);
    uint64_t track = atomic_load(&slots[slot].track) - 1;
    _Atomic uint32_t *head = &tz_session_buckets(h)[tz_session_bucket(h, track)];
    uint32_t next = atomic_load(&slots[slot].next), at = atomic_load(head) - 1;

    atomic_fetch_add(&h->unlinks, 1);
    if (at == slot) {
        atomic_store(head, next == TZ_SLOT_NONE ? 0 : next + 1);
    } else {
        while (atomic_load(&slots[at].next) != slot)
            at = atomic_load(&slots[at].next);
        atomic_store(&slots[at].next, next);
    }
    atomic_store(&slots[slot].track, 0);
    atomic_fetch_add(&h->unlinks, 1);
    tz_sidefile_give(sidefile, slot);
}

/* Tells that the track is preserved; true when the mover held T0 before that. */
static bool tell(tz_sidefile *sidefile, uint64_t track)
{
    uint32_t in_word, mask = tz_track_mask(track, 1, &in_word);

    return tz_tracks_preserved(&sidefile->words[track / TZ_TRACKS_A_WORD], mask) != 0;
}

void tz_sidefile_publish(tz_sidefile *sidefile, uint64_t track, uint32_t slot)
{
    tz_session_header *h = sidefile->header;
    bool copied;

    link_slot(sidefile, track, slot);
    copied = tell(sidefile, track);
    TZ_CRASH_POINT("image.published");
    add(&h->images);
    if (slot >= h->memory_slots)
        add(&h->file_images);
    if (copied)
        add(&h->self_freed);
    if (copied || sidefile->faults & TZ_FAULT_DOUBLE_FREE)
        unlink_slot(sidefile, slot);
}

void tz_sidefile_publish_zero(tz_sidefile *sidefile, uint64_t track)
{
    atomic_fetch_or(&tz_session_zero_words(sidefile->header)[track / 64], UINT64_C(1) << (track % 64));
    tell(sidefile, track);
    add(&sidefile->header->zero_images);
}

/* ---- what the mover gives back ---- */

/* Only a live slot of a track that the mover has marked as copied can be the mover's to give. */
static bool may_free(const tz_sidefile *sidefile, uint32_t slot)
{
    uint64_t track;

    if (slot >= sidefile->header->slots)
        return false;
    track = atomic_load(&tz_session_slots(sidefile->header)[slot].track);
    return track != 0 && tz_sidefile_is_copied(sidefile, track - 1);
}

int64_t tz_sidefile_drain(tz_sidefile *sidefile)
{
    const uint64_t entries = sidefile->header->ring_entries;
    uint64_t head = atomic_load_explicit(&sidefile->ring->head, memory_order_acquire);
    int64_t freed = 0;

    if (head - sidefile->tail > entries)
        return -EPROTO;
    for (; sidefile->tail != head; sidefile->tail++, freed++) {
        uint32_t slot =
            atomic_load_explicit(&sidefile->ring->slots[sidefile->tail & (entries - 1)], memory_order_relaxed);

        if (!may_free(sidefile, slot))
            return -EPROTO;
        unlink_slot(sidefile, slot);
        TZ_CRASH_POINT("slot.freed");
    }
    return freed;
}
