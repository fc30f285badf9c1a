/* SPDX-License-Identifier: Apache-2.0 */
#include "tz/bufspace.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/queue.h>

#define PAGE_BYTES ((size_t)4096)
#define HUGE_BYTES ((size_t)2 << 20)

#ifndef MADV_POPULATE_WRITE /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif

/* Under AddressSanitizer a frame that nobody has taken must not be touched. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define FRAME_CLOSE(at, bytes) ASAN_POISON_MEMORY_REGION(at, bytes)
#define FRAME_OPEN(at, bytes)  ASAN_UNPOISON_MEMORY_REGION(at, bytes)
#else
#define FRAME_CLOSE(at, bytes) ((void)(at), (void)(bytes))
#define FRAME_OPEN(at, bytes)  ((void)(at), (void)(bytes))
#endif

struct tz_area {
    /* Constant. */
    tz_bufspace *space;
    tz_area_notify notify;
    void *user;
    uint32_t useful; /* most frames it can use */
    uint32_t need;   /* frames it must be able to get before it is granted */

    /* Under the mutex of the space. */
    TAILQ_ENTRY(tz_area) link; /* in `granted` or `waiting` */
    uint32_t quota;            /* 0 while waiting in line */
    uint32_t held;
    bool granted;
    bool hungry; /* a take returned NULL since the last notify */
};

TAILQ_HEAD(area_list, tz_area);

struct tz_bufspace {
    /* Constant. */
    void *mapping;
    size_t mapping_bytes;
    uint8_t *base;
    size_t frame_size;
    uint32_t frames, minimum;
    bool wants_huge, huge, locked;

    /* Under the mutex. */
    pthread_mutex_t mutex;
    struct area_list granted, waiting; /* each in order of arrival */
    uint32_t areas, areas_waiting, areas_total;
    uint32_t needed; /* sum of `need` of the granted areas, at most `frames` */
    uint32_t peak;
    uint32_t free_count;
    uint32_t *free_frames; /* a stack: the frame given back last is the warmest in cache */
    tz_area **owner;       /* by frame; NULL: free */
};

/* ---- the mapping ---- */

static void prefault(uint8_t *base, size_t bytes)
{
    if (madvise(base, bytes, MADV_POPULATE_WRITE) == 0)
        return;
    for (size_t at = 0; at < bytes; at += PAGE_BYTES)
        ((volatile uint8_t *)base)[at] = 0;
}

/* madvise agrees to huge pages even where the system hands out none, so the truth is asked for: do they back
 * all of [base, base + bytes)? */
static bool huge_backed(const uint8_t *base, size_t bytes)
{
    uintptr_t first = (uintptr_t)base, last = first + bytes;
    unsigned long from, to, kib, backed = 0;
    bool inside = false;
    char line[512];
    FILE *maps = fopen("/proc/self/smaps", "re");

    if (!maps)
        return false;
    while (fgets(line, sizeof(line), maps)) {
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            inside = from < last && to > first;
        else if (inside && sscanf(line, "AnonHugePages: %lu kB", &kib) == 1)
            backed += kib * 1024;
    }
    fclose(maps);
    return backed >= bytes;
}

static void touch(tz_bufspace *space, size_t bytes)
{
    prefault(space->base, bytes);
    space->huge = space->wants_huge && huge_backed(space->base, bytes);
}

static int map_frames(tz_bufspace *space, unsigned flags)
{
    size_t bytes = space->frame_size * space->frames, align = PAGE_BYTES;

    if (flags & TZ_BUFSPACE_HUGE) {
        bytes = tz_align_up(bytes, HUGE_BYTES);
        align = HUGE_BYTES;
    }
    space->mapping_bytes = bytes + align - PAGE_BYTES;
    space->mapping = mmap(NULL, space->mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (space->mapping == MAP_FAILED)
        return -ENOMEM;
    space->base = (uint8_t *)tz_align_up((uintptr_t)space->mapping, align);
    if (flags & TZ_BUFSPACE_HUGE)
        (void)madvise(space->base, bytes, MADV_HUGEPAGE);
    /* A fork while a device writes into a frame would leave one of the two processes without the data; and
     * the application's data does not belong into a core dump. */
    (void)madvise(space->base, bytes, MADV_DONTFORK);
    (void)madvise(space->base, bytes, MADV_DONTDUMP);
    space->wants_huge = flags & TZ_BUFSPACE_HUGE;
    if (!(flags & TZ_BUFSPACE_LATER))
        touch(space, bytes);
    space->locked = flags & TZ_BUFSPACE_LOCK && mlock(space->base, bytes) == 0;
    return 0;
}

static void unmap_frames(tz_bufspace *space)
{
    FRAME_OPEN(space->base, space->frame_size * space->frames);
    munmap(space->mapping, space->mapping_bytes);
}

static uint8_t *frame_at(const tz_bufspace *space, uint32_t frame)
{
    return space->base + (size_t)frame * space->frame_size;
}

int tz_bufspace_create(tz_bufspace **out, size_t frame_size, uint32_t frames, uint32_t minimum, unsigned flags)
{
    tz_bufspace *space;
    size_t bytes;
    int error = -ENOMEM;

    if (frame_size == 0 || frame_size % PAGE_BYTES || frames == 0 || minimum == 0 || minimum > frames ||
        flags & ~(unsigned)(TZ_BUFSPACE_HUGE | TZ_BUFSPACE_LOCK | TZ_BUFSPACE_LATER))
        return -EINVAL;
    if (__builtin_mul_overflow(frame_size, (size_t)frames, &bytes) || bytes > PTRDIFF_MAX - 2 * HUGE_BYTES)
        return -ENOMEM;
    space = calloc(1, sizeof(*space));
    if (!space)
        return -ENOMEM;
    space->frame_size = frame_size;
    space->frames = space->free_count = frames;
    space->minimum = minimum;
    TAILQ_INIT(&space->granted);
    TAILQ_INIT(&space->waiting);
    space->free_frames = malloc(frames * sizeof(*space->free_frames));
    space->owner = calloc(frames, sizeof(*space->owner));
    if (!space->free_frames || !space->owner)
        goto fail;
    error = map_frames(space, flags);
    if (error < 0)
        goto fail;
    error = -pthread_mutex_init(&space->mutex, NULL);
    if (error < 0) {
        unmap_frames(space);
        goto fail;
    }
    for (uint32_t i = 0; i < frames; i++)
        space->free_frames[i] = frames - 1 - i; /* the first frame is taken first */
    FRAME_CLOSE(space->base, bytes);
    *out = space;
    return 0;
fail:
    free(space->owner);
    free(space->free_frames);
    free(space);
    return error;
}

void tz_bufspace_destroy(tz_bufspace *space)
{
    if (!space)
        return;
    assert(TAILQ_EMPTY(&space->granted) && TAILQ_EMPTY(&space->waiting));
    assert(space->free_count == space->frames && space->needed == 0);
    unmap_frames(space);
    pthread_mutex_destroy(&space->mutex);
    free(space->owner);
    free(space->free_frames);
    free(space);
}

void tz_bufspace_ready(tz_bufspace *space, uint32_t frames)
{
    size_t bytes = space->frame_size * tz_min_u64(frames, space->frames);

    /* The mapping of huge pages ends on one. */
    touch(space, space->wants_huge ? tz_align_up(bytes, HUGE_BYTES) : bytes);
}

void *tz_bufspace_base(const tz_bufspace *space, size_t *bytes)
{
    *bytes = space->frame_size * space->frames;
    return space->base;
}

void tz_bufspace_stats_get(tz_bufspace *space, tz_bufspace_stats *out)
{
    pthread_mutex_lock(&space->mutex);
    *out = (tz_bufspace_stats){
        .frame_size = space->frame_size,
        .frames = space->frames,
        .frames_taken = space->frames - space->free_count,
        .frames_peak = space->peak,
        .areas = space->areas,
        .areas_waiting = space->areas_waiting,
        .areas_total = space->areas_total,
        .huge = space->huge,
        .locked = space->locked,
    };
    pthread_mutex_unlock(&space->mutex);
}

/* ---- shares: everything below up to the next heading runs under the mutex ---- */

static bool may_take(const tz_area *area)
{
    return area->granted && area->held < area->quota && area->space->free_count > 0;
}

static void tell(tz_area *area)
{
    area->hungry = false;
    if (area->notify)
        area->notify(area->user);
}

/* Everyone who was refused and would not be refused now is told. All of them, for one free frame too: the one
 * told may no longer want it, and then the others would wait for ever. */
static void tell_hungry(tz_bufspace *space)
{
    tz_area *area;

    if (space->free_count == 0)
        return;
    TAILQ_FOREACH(area, &space->granted, link)
    {
        if (area->hungry && may_take(area))
            tell(area);
    }
}

/* Frames that all granted areas take together when each takes what it can use, but `level` at most. */
static uint64_t filled(const tz_bufspace *space, uint32_t level)
{
    uint64_t sum = 0;
    const tz_area *area;

    TAILQ_FOREACH(area, &space->granted, link)
    sum += tz_min_u64(area->useful, level);
    return sum;
}

/* Water-filling: the highest level at which everyone's share fits, found by bisection; what is left over (less
 * than a frame for each that could use it) goes to the earliest. The level is never below what any area
 * needs, because the needs together fit. */
static void share_out(tz_bufspace *space)
{
    uint32_t low = 0, high = space->frames;
    uint64_t left;
    tz_area *area;

    while (low < high) {
        uint32_t level = low + (high - low + 1) / 2;

        if (filled(space, level) <= space->frames)
            low = level;
        else
            high = level - 1;
    }
    left = space->frames - filled(space, low);
    TAILQ_FOREACH(area, &space->granted, link)
    {
        area->quota = (uint32_t)tz_min_u64(area->useful, low);
        if (area->useful > low && left > 0) {
            area->quota++;
            left--;
        }
        assert(area->quota >= area->need);
    }
}

/* Lets in who fits, in order: nobody overtakes the first in line, or a large one might wait for ever. */
static void admit(tz_bufspace *space)
{
    tz_area *area;

    while ((area = TAILQ_FIRST(&space->waiting)) && area->need <= space->frames - space->needed) {
        TAILQ_REMOVE(&space->waiting, area, link);
        TAILQ_INSERT_TAIL(&space->granted, area, link);
        space->areas_waiting--;
        space->areas++;
        space->areas_total++;
        space->needed += area->need;
        area->granted = true;
    }
    share_out(space);
}

/* ---- areas ---- */

int tz_area_request(tz_area **out, tz_bufspace *space, uint32_t useful, tz_area_notify notify, void *user)
{
    tz_area *area;

    if (useful == 0)
        return -EINVAL;
    area = calloc(1, sizeof(*area));
    if (!area)
        return -ENOMEM;
    area->space = space;
    area->notify = notify;
    area->user = user;
    area->useful = useful;
    area->need = (uint32_t)tz_min_u64(useful, space->minimum);
    pthread_mutex_lock(&space->mutex);
    TAILQ_INSERT_TAIL(&space->waiting, area, link);
    space->areas_waiting++;
    admit(space);
    /* One more area lowers quotas, so nobody can take more than before: there is no one to tell. */
    *out = area;
    pthread_mutex_unlock(&space->mutex);
    return 0;
}

bool tz_area_granted(tz_area *area)
{
    bool granted;

    pthread_mutex_lock(&area->space->mutex);
    granted = area->granted;
    pthread_mutex_unlock(&area->space->mutex);
    return granted;
}

uint32_t tz_area_quota(tz_area *area)
{
    uint32_t quota;

    pthread_mutex_lock(&area->space->mutex);
    quota = area->quota;
    pthread_mutex_unlock(&area->space->mutex);
    return quota;
}

void *tz_area_take(tz_area *area)
{
    tz_bufspace *space = area->space;
    void *taken = NULL;

    pthread_mutex_lock(&space->mutex);
    if (may_take(area)) {
        uint32_t frame = space->free_frames[--space->free_count];

        assert(!space->owner[frame]);
        space->owner[frame] = area;
        area->held++;
        if (space->peak < space->frames - space->free_count)
            space->peak = space->frames - space->free_count;
        taken = frame_at(space, frame);
        FRAME_OPEN(taken, space->frame_size);
    } else {
        area->hungry = true;
    }
    pthread_mutex_unlock(&space->mutex);
    return taken;
}

void tz_area_give(tz_area *area, void *frame)
{
    tz_bufspace *space = area->space;
    size_t at = (size_t)((uint8_t *)frame - space->base), number = at / space->frame_size;

    assert((uint8_t *)frame >= space->base && at % space->frame_size == 0 && number < space->frames);
    pthread_mutex_lock(&space->mutex);
    assert(space->owner[number] == area && area->held > 0);
    FRAME_CLOSE(frame, space->frame_size);
    space->owner[number] = NULL;
    space->free_frames[space->free_count++] = (uint32_t)number;
    area->held--;
    tell_hungry(space);
    pthread_mutex_unlock(&space->mutex);
}

void tz_area_release(tz_area *area)
{
    tz_bufspace *space;
    tz_area *other;

    if (!area)
        return;
    space = area->space;
    pthread_mutex_lock(&space->mutex);
    assert(area->held == 0);
    if (area->granted) {
        TAILQ_REMOVE(&space->granted, area, link);
        space->areas--;
        space->needed -= area->need;
    } else {
        TAILQ_REMOVE(&space->waiting, area, link);
        space->areas_waiting--;
    }
    other = TAILQ_FIRST(&space->waiting);
    admit(space);
    for (; other && other->granted; other = TAILQ_NEXT(other, link))
        tell(other); /* from the first one let in to the end of the list of the granted */
    tell_hungry(space);
    pthread_mutex_unlock(&space->mutex);
    free(area);
}
