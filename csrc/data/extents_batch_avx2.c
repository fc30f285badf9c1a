/* SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__)
#include <assert.h>
#include <immintrin.h>

#include "tz/bitmap.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,popcnt")
#endif

#define TZ_SEARCH_AVX2
#define TZ_LOOKUP tz_direction_lookup_avx2
#include "extents_batch_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
