/* SPDX-License-Identifier: Apache-2.0
 *
 * Mapping a session's memory, and what all sources over it do with it but loading (session_load.c).
 *
 * What the subsystem says is checked once, copied, and used from the copy.
 */
#include "session_view.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tz/crash.h"
#include "tz/marks.h"

/* Taking a slot out is a matter of some hundred nanoseconds, unless the gate's thread is not running. */
#define LOOKS_AWAKE   10000
#define LOOK_PAUSE_US 100

/* ---- in use ---- */

void tz_session_view_activity(tz_session_view *view, tz_activity *out)
{
    const tz_session_header *header = view->header;

    out->gate = header;
    out->load = &header->load;
    out->usual = &header->usual;
    out->used = atomic_load_explicit(&header->used_slots, memory_order_relaxed);
    out->low = view->plan.low_mark;
    out->high = view->plan.high_mark;
    out->past_low = tz_session_view_drains(view);
}

/* A gate that was stopped, or died, while it took a slot out leaves the look-up undecided: then the worker sleeps
 * between looks, and the end of the transfer ends it. */
uint32_t tz_session_view_find(const tz_session_view *view, const tz_chunk *chunk, uint64_t track)
{
    uint32_t found = TZ_SLOT_NONE, looks = 0;

    while (!tz_session_look(&view->plan, view->header, track, &found)) {
        if (++looks < LOOKS_AWAKE)
            continue;
        if (atomic_load(&chunk->transfer->stopping))
            return TZ_SLOT_NONE;
        usleep(LOOK_PAUSE_US);
    }
    return found;
}

bool tz_session_view_is_zero(const tz_session_view *view, uint64_t track)
{
    const _Atomic uint64_t *zeros = (const _Atomic uint64_t *)((uintptr_t)view->header + view->plan.zero_offset);

    return atomic_load(&zeros[track / 64]) >> (track % 64) & 1;
}

const uint8_t *tz_session_view_memory(const tz_session_view *view, uint32_t slot)
{
    return (const uint8_t *)view->header + view->plan.data_offset + ((uint64_t)slot << view->track_shift);
}

bool tz_session_view_drains(tz_session_view *view)
{
    uint32_t used = atomic_load_explicit(&view->header->used_slots, memory_order_relaxed);
    bool was = atomic_load_explicit(&view->drains, memory_order_relaxed);
    bool is = tz_mark_is_past(tz_mark_low(view->plan.low_mark, view->plan.high_mark), used, was);

    if (is != was)
        atomic_store_explicit(&view->drains, is, memory_order_relaxed);
    return is;
}

/* By bucket, not by slot: the slots in use lie together, those that are free too, and a scan would spend most of its
 * time among either; the buckets are a hash of the tracks. An entry that is freed on the way may lead into another
 * chain, which is as good. */
int tz_session_view_next_live(const tz_session_view *view, tz_live_scan *scan, uint32_t *left, uint64_t *track)
{
    const _Atomic uint32_t *buckets = (const _Atomic uint32_t *)((uintptr_t)view->header + view->plan.buckets_offset);
    const tz_slot *slots = view->slot_table;
    uint64_t found = 0;

    for (; *left > 0 && found == 0; (*left)--) {
        uint32_t at = scan->chain, next;

        if (at == 0) {
            at = atomic_load(&buckets[scan->bucket]);
            scan->bucket = (scan->bucket + 1) & (view->plan.buckets - 1);
        }
        scan->chain = 0;
        if (at == 0)
            continue;
        if (at > view->slots)
            return -EPROTO;
        next = atomic_load(&slots[at - 1].next);
        scan->chain = next == TZ_SLOT_NONE ? 0 : next + 1;
        found = atomic_load(&slots[at - 1].track); /* 0: freed meanwhile */
        if (found > view->tracks)
            return -EPROTO;
    }
    *track = found - 1;
    return found != 0;
}

void tz_session_view_push(tz_session_view *view, tz_chunk *chunk, uint32_t slot)
{
    pthread_mutex_lock(&view->drain_lock);
    tz_drain_push(&view->plan, view->ring, slot);
    pthread_mutex_unlock(&view->drain_lock);
    TZ_CRASH_POINT("slot.pushed");
    chunk->pushed++;
}

/* A full counter (EAGAIN) has woken the gate already; it finds the slots in the ring. */
int tz_session_view_announce(tz_session_view *view, tz_chunk *chunk)
{
    uint64_t one = 1;
    ssize_t n = 0;

    if (chunk->pushed)
        n = write(view->drain_fd, &one, sizeof(one));
    chunk->pushed = 0;
    if (n >= 0 || errno == EAGAIN)
        return 0;
    chunk->side = TZ_SIDE_SESSION;
    return -EPROTO;
}

/* What cannot be told is data: reading it says more. */
uint64_t tz_session_view_hole(tz_session_view *view, uint64_t physical)
{
    uint64_t length;
    bool data;

    if (!view->volume.tells_holes || tz_holes_look(&view->holes, physical, &length, &data) < 0 || data)
        return 0;
    return length;
}

int tz_session_view_count_begin(tz_session_view *view)
{
    pthread_mutex_lock(&view->lock);
    if (!atomic_load(&view->begun))
        return 0;
    pthread_mutex_unlock(&view->lock);
    return -EBUSY;
}

void tz_session_view_count_end(tz_session_view *view)
{
    pthread_mutex_unlock(&view->lock);
}

uint64_t tz_session_view_size(const tz_session_view *view)
{
    return view->volume_size;
}

uint64_t tz_session_view_track_size(const tz_session_view *view)
{
    return view->track_size;
}

/* ---- setting up ---- */

static void unmap(tz_session_view *view)
{
    if (view->header)
        munmap((void *)view->header, view->owned_bytes);
    if (view->shared)
        munmap(view->shared, view->shared_bytes);
}

tz_session_view *tz_session_view_hold(tz_session_view *view)
{
    atomic_fetch_add(&view->holders, 1);
    return view;
}

void tz_session_view_release(tz_session_view *view)
{
    if (!view || atomic_fetch_sub(&view->holders, 1) > 1)
        return;
    unmap(view);
    tz_file_close(&view->volume);
    if (view->tier.fd >= 0)
        tz_file_close(&view->tier);
    close(view->drain_fd);
    tz_session_uses_clear(&view->uses);
    pthread_mutex_destroy(&view->drain_lock);
    tz_holes_fini(&view->holes);
    pthread_mutex_destroy(&view->lock);
    free(view);
}

/* A file that could shrink under the mapping would kill us with SIGBUS: it has to be sealed. */
static int map_sealed(int fd, int protection, void **out, uint64_t *bytes)
{
    int seals = fcntl(fd, F_GET_SEALS);
    struct stat st;
    void *at;

    if (fstat(fd, &st) < 0)
        return -errno;
    if (seals < 0 || !(seals & F_SEAL_SHRINK) || st.st_size <= 0)
        return -EPROTO;
    at = mmap(NULL, (size_t)st.st_size, protection, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return -errno;
    *out = at;
    *bytes = (uint64_t)st.st_size;
    return 0;
}

static int map_session(tz_session_view *view, const tz_session_descriptors *fds)
{
    const tz_session_header *h = &view->plan;
    void *owned;
    int rc;

    rc = map_sealed(fds->owned_fd, PROT_READ, &owned, &view->owned_bytes);
    if (rc < 0)
        return rc;
    view->header = owned;
    rc = map_sealed(fds->shared_fd, PROT_READ | PROT_WRITE, &view->shared, &view->shared_bytes);
    if (rc < 0)
        return rc;
    if (view->owned_bytes < sizeof(*h))
        return -EPROTO;
    memcpy(&view->plan, owned, offsetof(tz_session_header, state));
    rc = tz_session_layout_check(h, view->owned_bytes, view->shared_bytes);
    if (rc < 0)
        return rc;
    view->slot_table = (const tz_slot *)((uint8_t *)owned + h->slots_offset);
    view->ring = (tz_drain_ring *)((uint8_t *)view->shared + h->ring_offset);
    view->words = (_Atomic uint64_t *)((uint8_t *)view->shared + h->words_offset);
    view->track_shift = h->track_shift;
    view->track_size = UINT64_C(1) << h->track_shift;
    view->tracks = h->tracks;
    view->slots = h->slots;
    view->memory_slots = h->memory_slots;
    view->volume_size = h->volume_size;
    return 0;
}

/* The descriptors are fresh opens of the subsystem's, in the mode that the gate reads in: flags stay as they are. */
static int adopt(tz_file *out, int fd, uint64_t track_size)
{
    int flags = fcntl(fd, F_GETFL), rc;

    if (flags < 0)
        return -errno;
    rc = tz_file_adopt(out, fd, flags & O_DIRECT ? 0 : TZ_FILE_BUFFERED);
    if (rc == 0 && (out->memory_align > TZ_FRAME_ALIGN || out->offset_align > track_size))
        return -EPROTO;
    return rc;
}

int tz_session_view_open(tz_session_view **out, const tz_session_descriptors *fds)
{
    tz_session_view *view = aligned_alloc(_Alignof(tz_session_view), sizeof(*view));
    int rc;

    if (!view)
        return -ENOMEM;
    memset(view, 0, sizeof(*view));
    view->tier.fd = -1;
    rc = map_session(view, fds);
    if (rc == 0)
        rc = adopt(&view->volume, fds->volume_fd, view->track_size);
    if (rc == 0 && view->volume.size < view->volume_size) /* it was made shorter behind the subsystem's back */
        rc = -ENODATA;
    if (rc == 0 && fds->file_fd >= 0)
        rc = adopt(&view->tier, fds->file_fd, view->track_size);
    if (rc < 0) {
        unmap(view);
        free(view);
        return rc;
    }
    atomic_init(&view->holders, 1);
    view->drain_fd = fds->drain_fd;
    pthread_mutex_init(&view->drain_lock, NULL);
    tz_holes_init(&view->holes, view->volume.fd, view->volume_size);
    pthread_mutex_init(&view->lock, NULL);
    tz_session_uses_init(&view->uses, view->tracks);
    /* The mappings hold the memory; the descriptors of it are no longer needed. */
    close(fds->owned_fd);
    close(fds->shared_fd);
    *out = view;
    return 0;
}
