/* SPDX-License-Identifier: Apache-2.0
 *
 * The buffer space: the mover's preallocated memory, cut into chunk-sized frames; areas give a share of
 * the frames to one dataset each.
 *
 * One aligned, prefaulted mapping, huge pages where allowed. A dataset asks for an area; it is granted
 * when there is room for its minimum, else it waits in line, first come first served. Every granted
 * area has a quota: an equal share of the frames, cut to what the dataset can use, and redistributed
 * whenever an area starts or ends. An area over its quota keeps the frames it holds and gets no new ones until
 * it has given back the surplus. Frames are never shared between areas.
 *
 * Errors   -ENOMEM (mapping), -EINVAL (sizes).
 * Memory   all of it at create, none later but the area object; destroy asserts that every area
 *          was released.
 * Threads  all functions may be called by any thread (one mutex; take and give are a few ns inside).
 */
#ifndef TZ_BUFSPACE_H
#define TZ_BUFSPACE_H

#include "tz/common.h"

typedef struct tz_bufspace tz_bufspace;
typedef struct tz_area tz_area;

enum {
    TZ_BUFSPACE_HUGE = 1 << 0, /* ask for huge pages; falls back silently, see stats */
    TZ_BUFSPACE_LOCK = 1 << 1, /* mlock; a refusal is not an error, see stats */
};

typedef struct tz_bufspace_stats {
    uint64_t frame_size;     /* bytes */
    uint32_t frames;         /* in all */
    uint32_t frames_taken;   /* now */
    uint32_t frames_peak;    /* most ever taken at once */
    uint32_t areas;          /* granted now */
    uint32_t areas_waiting;  /* in line now */
    uint32_t areas_total;    /* ever granted */
    bool huge, locked;       /* what the kernel allowed */
} tz_bufspace_stats;

/* frame_size: a multiple of 4096; frames are aligned to 4096 at least. minimum: frames an area must be able to get before it is granted. */
int tz_bufspace_create(tz_bufspace **out, size_t frame_size, uint32_t frames, uint32_t minimum, unsigned flags);
void tz_bufspace_destroy(tz_bufspace *space);
void tz_bufspace_stats_get(tz_bufspace *space, tz_bufspace_stats *out);

/* The whole mapping, for io_uring buffer registration. */
void *tz_bufspace_base(const tz_bufspace *space, size_t *bytes);

/* Called by whichever thread's release or rebalance granted the area, or raised its quota after a
 * take that returned NULL: "there may be a frame now". Must not call back into the space. */
typedef void (*tz_area_notify)(void *user);

/* Join the line. `useful` is the most frames the dataset can use (its chunk count), at least 1. */
int tz_area_request(tz_area **out, tz_bufspace *space, uint32_t useful, tz_area_notify notify, void *user);
bool tz_area_granted(tz_area *area);
uint32_t tz_area_quota(tz_area *area);

/* A free frame of this area, or NULL when it is waiting in line or at its quota. */
void *tz_area_take(tz_area *area);
void tz_area_give(tz_area *area, void *frame);

/* Ends the area (or its wait) and lets the next in line in. All frames must have been given back. */
void tz_area_release(tz_area *area);

#endif
