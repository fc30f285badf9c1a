/* SPDX-License-Identifier: Apache-2.0 */
#define TZ_LOOKUP tz_direction_lookup_base
#include "extents_batch_impl.h"

void tz_direction_lookup(const tz_direction *direction, const uint64_t *from, uint64_t *to, uint64_t count)
{
    if (direction->count == 0) {
        for (uint64_t i = 0; i < count; i++)
            to[i] = TZ_EXTENT_NONE;
        return;
    }
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        tz_direction_lookup_avx512(direction, from, to, count);
        return;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt")) {
        tz_direction_lookup_avx2(direction, from, to, count);
        return;
    }
#endif
    tz_direction_lookup_base(direction, from, to, count);
}
