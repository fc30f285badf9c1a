/* SPDX-License-Identifier: Apache-2.0
 *
 * The buffer space: the mover's preallocated memory, cut into chunk-sized frames; areas give a share of
 * the frames to one dataset each.
 *
 * One aligned mapping, prefaulted (all of it, or what is going to be used), huge pages where allowed; not inherited by a fork, not in core dumps. A dataset
 * asks for an area; it is granted when there is room for its minimum, else it waits in line, first come first
 * served. Every granted area has a quota: an equal share of the frames, cut to what the dataset can use, what it leaves
 * going to the others; redistributed whenever an area starts or ends. An area over its quota keeps the frames it
 * holds and gets no new ones until it has given back the surplus. Frames are never shared between areas.
 *
 *   request ─▶ waiting in line ─▶ granted ─▶ released        take, give: granted only
 *
 * Invariants
 *   1. sum of quotas = min(frames, sum of useful) over the granted areas; a waiting area has quota 0.
 *   2. quota >= need = min(minimum, useful) for every granted area; sum of needs <= frames (that is the
 *      rule of admission). So the minimum of one never depends on another's end.
 *   3. take succeeds exactly when held < quota and a frame is free. When no area is over its quota, a frame is
 *      free for everyone below his: the others hold no more than their quotas. While some area
 *      holds a surplus, each of its frames that comes back can be had only by areas below their quotas. So
 *      everyone reaches his quota once the surplus is back, and nobody starves as long as holders go on.
 *   4. A take that returned NULL is followed by a notify as soon as a take would succeed again, or, for
 *      one in line, when it is granted. All who may now take are told, not one: who loses the race takes NULL
 *      again, and is told again. So no wake-up is lost. Nobody is told twice without a refusal in between.
 *   5. A frame has one owner, from take to give by the same area.
 *
 * Errors   -ENOMEM (mapping), -EINVAL (sizes).
 * Memory   all of it at create, none later but the area object; destroy asserts that every area
 *          was released. Under AddressSanitizer frames that no one holds are poisoned.
 * Threads  all functions may be called by any thread (one mutex; take and give are a few ns inside).
 */
#ifndef TZ_BUFSPACE_H
#define TZ_BUFSPACE_H

#include "tz/common.h"

typedef struct tz_bufspace tz_bufspace;
typedef struct tz_area tz_area;

enum {
    TZ_BUFSPACE_HUGE = 1 << 0,  /* ask for huge pages; falls back silently, see stats */
    TZ_BUFSPACE_LOCK = 1 << 1,  /* mlock; a refusal is not an error, see stats */
    TZ_BUFSPACE_LATER = 1 << 2, /* frames are touched by tz_bufspace_ready, or else when they are first used */
};

typedef struct tz_bufspace_stats {
    uint64_t frame_size;    /* bytes */
    uint32_t frames;        /* in all */
    uint32_t frames_taken;  /* now */
    uint32_t frames_peak;   /* most ever taken at once */
    uint32_t areas;         /* granted now */
    uint32_t areas_waiting; /* in line now */
    uint32_t areas_total;   /* ever granted */
    bool huge;              /* huge pages back all that is touched (as the kernel says, not as it was asked) */
    bool locked;            /* in memory */
} tz_bufspace_stats;

/* frame_size: a multiple of 4096; frames are aligned to 4096 at least. minimum: frames an area must be able to get
 * before it is granted. */
int tz_bufspace_create(tz_bufspace **out, size_t frame_size, uint32_t frames, uint32_t minimum, unsigned flags);

/* Touches the first `frames` frames of a space made with LATER: they are the ones that are taken first. Where memory has
 * never been touched before, that takes up to 2 ms a MiB (measured in a virtual machine), so what is not going to be
 * used is better left alone. */
void tz_bufspace_ready(tz_bufspace *space, uint32_t frames);
void tz_bufspace_destroy(tz_bufspace *space);
void tz_bufspace_stats_get(tz_bufspace *space, tz_bufspace_stats *out);

/* The whole mapping, for io_uring buffer registration. */
void *tz_bufspace_base(const tz_bufspace *space, size_t *bytes);

/* "Look again": the area was granted after it waited in line, or there may be a frame after a take that returned
 * NULL. Called under the space's mutex, by whichever thread's give or release (its own too) made it so, until
 * tz_area_release has returned: it must be quick (an eventfd) and must not call back into the space. */
typedef void (*tz_area_notify)(void *user);

/* Join the line. `useful` is the most frames the dataset can use (its chunk count), at least 1. May be granted at
 * once; that is not notified. `notify` may be NULL. */
int tz_area_request(tz_area **out, tz_bufspace *space, uint32_t useful, tz_area_notify notify, void *user);
bool tz_area_granted(tz_area *area);
uint32_t tz_area_quota(tz_area *area);

/* A free frame of this area, or NULL when it is waiting in line or at its quota. */
void *tz_area_take(tz_area *area);
void tz_area_give(tz_area *area, void *frame);

/* Ends the area (or its wait) and lets the next in line in. All frames must have been given back. */
void tz_area_release(tz_area *area);

#endif
