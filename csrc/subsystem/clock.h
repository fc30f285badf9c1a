/* SPDX-License-Identifier: Apache-2.0
 *
 * Nanoseconds of CLOCK_MONOTONIC; to within a tick of the kernel (1 to 10 ms), at a quarter of the cost.
 */
#ifndef TZ_SUBSYSTEM_CLOCK_H
#define TZ_SUBSYSTEM_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t tz_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t tz_now_coarse_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
