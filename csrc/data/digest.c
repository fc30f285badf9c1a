/* SPDX-License-Identifier: Apache-2.0 */
#define TZ_DIGEST_CHUNK   tz_digest_chunk_base
#define TZ_DIGEST_IS_ZERO tz_digest_is_zero_base
#include "digest_impl.h"

bool tz_digest_chunk(tz_digest *out, const void *data, size_t length)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return tz_digest_chunk_avx2(out, data, length);
#endif
    return tz_digest_chunk_base(out, data, length);
}

bool tz_is_zero(const void *data, size_t length)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return tz_digest_is_zero_avx2(data, length);
#endif
    return tz_digest_is_zero_base(data, length);
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
