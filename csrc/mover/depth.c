/* SPDX-License-Identifier: Apache-2.0
 *
 * How many chunks in flight pay, found by trying.
 *
 * No constant fits both ends: a local disk is served as fast by 2 requests as by 32, and more only makes its users
 * wait; a source with a millisecond or ten of latency a request goes as fast as it has requests in flight. So a mover
 * begins with what the disk needs, and compares now and then its rate with that of twice as many:
 *
 *   steady, settled ──▶ trial: settled │ twice │ settled │ twice ──▶ twice was better both times: settled doubles, and
 *      ▲                                                               the next trial follows at once
 *      └── after a pause of PAUSE chunks, doubled each time ◀────── else
 *
 * A window is measured after the chunks that were begun at the other depth are through. Pairs make drift and sparse
 * stretches harmless: both depths meet them. While something else than depth sets the pace (a rate, an application that
 * is given way to), nothing can be learnt: the trial is broken off.
 *
 * Measured (bench/copy/README.md): no difference on the disk; a source with 1 ms a request gains a tenth.
 */
#include "internal.h"

#define WINDOW  64  /* chunks of one measurement */
#define PAUSE   256 /* chunks to the second trial, when the first brought nothing */
#define FIRST   16  /* chunks to the first */
#define WINDOWS 4

/* Twice the depth has to bring this much; less is noise, or not worth its memory. */
#define GAIN_PERCENT 108

void tz_depth_init(tz_depth *depth, uint32_t least, uint32_t most, uint32_t workers)
{
    pthread_mutex_init(&depth->lock, NULL);
    depth->most = most;
    depth->workers = workers;
    depth->settled = least;
    depth->trial = 0;
    depth->wait = FIRST;
    depth->pause = PAUSE;
    atomic_init(&depth->limit, least);
}

void tz_depth_fini(tz_depth *depth)
{
    pthread_mutex_destroy(&depth->lock);
}

/* Window `number` of a trial, from 1: even ones at twice the depth. */
static void begin_window(tz_depth *depth, uint32_t number)
{
    uint32_t now = atomic_load(&depth->limit);
    uint32_t next = number % 2 ? depth->settled : tz_min_u64(2 * (uint64_t)depth->settled, depth->most);

    depth->trial = number;
    depth->skip = (now > next ? now : next) * depth->workers;
    depth->left = WINDOW;
    depth->bytes = 0;
    atomic_store(&depth->limit, next);
}

static void end_trial(tz_depth *depth, bool better)
{
    if (better) {
        depth->settled = (uint32_t)tz_min_u64(2 * (uint64_t)depth->settled, depth->most);
        depth->wait = 0;
    } else {
        depth->wait = depth->pause;
        depth->pause *= 2;
    }
    depth->trial = 0;
    atomic_store(&depth->limit, depth->settled);
}

/* Bytes a second; a clock that stood still tells of no rate. */
static uint64_t rate(const tz_depth *depth, uint64_t now_ns)
{
    return (uint64_t)((double)depth->bytes * 1e9 / (double)tz_max_u64(now_ns - depth->began_ns, 1));
}

static void end_window(tz_depth *depth, uint64_t now_ns)
{
    uint64_t found = rate(depth, now_ns);

    if (depth->trial % 2) {
        depth->before = found;
    } else if (found * 100.0 < depth->before * (double)GAIN_PERCENT) {
        end_trial(depth, false);
        return;
    }
    if (depth->trial == WINDOWS)
        end_trial(depth, true);
    else
        begin_window(depth, depth->trial + 1);
}

static void observe(tz_depth *depth, uint32_t bytes, uint64_t now_ns)
{
    if (depth->trial == 0) {
        if (depth->wait > 0)
            depth->wait--;
        else
            begin_window(depth, 1);
        return;
    }
    if (depth->skip > 0) {
        depth->skip--;
        depth->began_ns = now_ns;
        return;
    }
    depth->bytes += bytes;
    if (--depth->left == 0)
        end_window(depth, now_ns);
}

void tz_depth_observe(tz_depth *depth, uint32_t bytes, uint64_t now_ns)
{
    pthread_mutex_lock(&depth->lock);
    if (depth->settled < depth->most)
        observe(depth, bytes, now_ns);
    pthread_mutex_unlock(&depth->lock);
}

void tz_depth_disturbed(tz_depth *depth)
{
    pthread_mutex_lock(&depth->lock);
    if (depth->trial) {
        depth->trial = 0;
        depth->wait = depth->pause;
        atomic_store(&depth->limit, depth->settled);
    }
    pthread_mutex_unlock(&depth->lock);
}
