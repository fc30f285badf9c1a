/* SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#include "digest_kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif

#define XXH_VECTOR      XXH_AVX2
#define TZ_DIGEST(name) tz_digest_##name##_avx2
#include "digest_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
