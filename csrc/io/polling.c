/* SPDX-License-Identifier: Apache-2.0
 *
 * Looking for work for a while before going to sleep, where it pays.
 *
 * A sleeping virtual CPU takes 20 to 45 us to wake, more than all the rest of a request to a volume in memory. Whether
 * spinning pays depends on what is waited for, so the engine looks at what its waits were like:
 *
 *               `needed` short waits in a row
 *   sleeping ───────────────────────────────────▶ spinning     a look that finds something: score + 1
 *       ▲   (a long one, or one for a file,           │        one that does not: score - SCORE_MISS, then sleep
 *       │    starts the count again)                  │
 *       └──────── score 0: `needed` doubles ──────────┘
 *
 * Files are never spun for: a disk takes longer than a CPU needs to wake, and its interrupt ends the sleep. An engine
 * whose waits alternate between file and client does not get as far as spinning either: there a spin would save a
 * quarter of a request's time for twice its CPU.
 * Short waits that no spin would have covered (the peer needs the very CPU that spins) are met by the doubling.
 *
 * bench/serve/README.md has the figures.
 */
#include "engine.h"

#define SCORE_START 16
#define SCORE_MAX   32
#define SCORE_MISS  2
#define NEEDED_MIN  16
#define NEEDED_MAX  1024

void tz_polling_init(tz_polling *polling, uint32_t poll_us)
{
    *polling = (tz_polling){.window_ns = (uint64_t)poll_us * 1000, .needed = NEEDED_MIN};
}

/* Something to collect within the window? */
static bool spin(tz_io *io, uint64_t window_ns)
{
    uint64_t until = tz_now_ns() + window_ns;

    do {
        for (int i = 0; i < 16; i++) {
            if (tz_io_anything_due(io) || io->engine->peek(io))
                return true;
            tz_cpu_relax();
        }
    } while (tz_now_ns() < until);
    return false;
}

static void found(tz_polling *polling)
{
    polling->score += polling->score < SCORE_MAX;
    polling->needed -= polling->needed > NEEDED_MIN;
}

static void missed(tz_polling *polling)
{
    polling->score -= polling->score < SCORE_MISS ? polling->score : SCORE_MISS;
    if (polling->score == 0) {
        polling->streak = 0;
        polling->needed = polling->needed > NEEDED_MAX / 2 ? NEEDED_MAX : polling->needed * 2;
    }
}

/* Short: something came, and within what a spin and the waking of this thread explain. */
static void slept(tz_polling *polling, uint64_t took_ns, bool something)
{
    if (!something || took_ns > 2 * polling->window_ns)
        polling->streak = 0;
    else if (++polling->streak >= polling->needed)
        polling->score = SCORE_START;
}

int tz_polling_turn(tz_io *io, int64_t timeout_ns)
{
    tz_polling *polling = &io->polling;
    uint64_t began, window = polling->window_ns;
    int rc;

    if (window == 0)
        return io->engine->turn(io, timeout_ns);
    if (io->files) {
        polling->streak = polling->score = 0;
        return io->engine->turn(io, timeout_ns);
    }
    if (polling->score) {
        rc = io->engine->turn(io, 0); /* start what is queued */
        if (rc < 0 || tz_io_anything_due(io))
            return rc;
        if (timeout_ns > 0)
            window = tz_min_u64(window, (uint64_t)timeout_ns);
        if (spin(io, window)) {
            found(polling);
            return io->engine->turn(io, 0);
        }
        missed(polling);
        return io->engine->turn(io, timeout_ns);
    }
    began = tz_now_ns();
    rc = io->engine->turn(io, timeout_ns);
    slept(polling, tz_now_ns() - began, tz_io_anything_due(io));
    return rc;
}
