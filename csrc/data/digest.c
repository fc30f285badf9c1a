/* SPDX-License-Identifier: Apache-2.0 */
#define TZ_DIGEST(name) tz_digest_##name##_base
#include "digest_impl.h"

#if defined(__x86_64__)
#define BEST(name) (__builtin_cpu_supports("avx2") ? tz_digest_##name##_avx2 : tz_digest_##name##_base)
#else
#define BEST(name) tz_digest_##name##_base
#endif

bool tz_digest_chunk(tz_digest *out, const void *data, size_t length)
{
    return BEST(chunk)(out, data, length);
}

void tz_digest_plain(tz_digest *out, const void *data, size_t length)
{
    BEST(plain)(out, data, length);
}

bool tz_is_zero(const void *data, size_t length)
{
    return BEST(is_zero)(data, length);
}

void tz_digest_zeros(tz_digest *out, size_t length)
{
    static const uint8_t zeros[4096];
    XXH3_state_t state;

    XXH3_128bits_reset(&state);
    for (size_t piece; length > 0; length -= piece) {
        piece = tz_min_u64(length, sizeof(zeros));
        XXH3_128bits_update(&state, zeros, piece);
    }
    XXH128_canonicalFromHash((XXH128_canonical_t *)out->bytes, XXH3_128bits_digest(&state));
}
