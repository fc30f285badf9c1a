/* SPDX-License-Identifier: Apache-2.0 */
#include "../../csrc/data/digest_kernels.h"
#include "check.h"

#include <string.h>
#include <xxhash.h>

/* Lengths around every boundary of the algorithm and of our pieces. */
static const size_t lengths[] = {0,    1,    3,    16,   17,   64,   128,  240,  241,  255,   256,   257,
                                 1023, 1024, 1025, 4095, 4096, 4097, 4352, 8192, 8193, 65536, 65537, 1 << 20};
#define LENGTHS (sizeof(lengths) / sizeof(lengths[0]))

static void reference(tz_digest *out, const void *data, size_t length)
{
    XXH128_canonicalFromHash((XXH128_canonical_t *)out->bytes, XXH3_128bits(data, length));
}

/* Every instruction set this CPU has gives the same. */
static void check_kernels(const tz_digest *expected, const uint8_t *data, size_t length, bool zero)
{
    tz_digest digest;

    memset(&digest, 0x5a, sizeof(digest));
    CHECK_EQ(tz_digest_chunk_base(&digest, data, length), zero);
    CHECK(memcmp(&digest, expected, sizeof(digest)) == 0);
    CHECK_EQ(tz_digest_is_zero_base(data, length), zero);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        memset(&digest, 0x5a, sizeof(digest));
        CHECK_EQ(tz_digest_chunk_avx2(&digest, data, length), zero);
        CHECK(memcmp(&digest, expected, sizeof(digest)) == 0);
        CHECK_EQ(tz_digest_is_zero_avx2(data, length), zero);
    }
#endif
}

static void check_chunk(const uint8_t *data, size_t length, bool zero)
{
    tz_digest digest, expected;

    reference(&expected, data, length);
    memset(&digest, 0x5a, sizeof(digest));
    CHECK_EQ(tz_digest_chunk(&digest, data, length), zero);
    CHECK(memcmp(&digest, &expected, sizeof(digest)) == 0);
    memset(&digest, 0x5a, sizeof(digest));
    tz_digest_plain(&digest, data, length);
    CHECK(memcmp(&digest, &expected, sizeof(digest)) == 0);
    CHECK_EQ(tz_is_zero(data, length), zero);
    check_kernels(&expected, data, length, zero);
}

static void test_known_vectors(void)
{
    /* XXH3-128 of nothing and of one zero byte, canonical, from the algorithm's own test vectors (seed 0). */
    static const uint8_t empty[] = {0x99, 0xaa, 0x06, 0xd3, 0x01, 0x47, 0x98, 0xd8,
                                    0x60, 0x01, 0xc3, 0x24, 0x46, 0x8d, 0x49, 0x7f};
    static const uint8_t zero[] = {0xa6, 0xcd, 0x5e, 0x93, 0x92, 0x00, 0x0f, 0x6a,
                                   0xc4, 0x4b, 0xdf, 0xf4, 0x07, 0x4e, 0xec, 0xdb};
    tz_digest digest;

    CHECK(tz_digest_chunk(&digest, NULL, 0));
    CHECK(memcmp(digest.bytes, empty, sizeof(empty)) == 0);
    CHECK(tz_digest_chunk(&digest, "", 1));
    CHECK(memcmp(digest.bytes, zero, sizeof(zero)) == 0);
}

static void test_zeros(void)
{
    uint8_t *data = calloc(1, 1 << 20);
    tz_digest zeros, expected;

    for (size_t i = 0; i < LENGTHS; i++) {
        check_chunk(data, lengths[i], true);
        reference(&expected, data, lengths[i]);
        tz_digest_zeros(&zeros, lengths[i]);
        CHECK(memcmp(&zeros, &expected, sizeof(zeros)) == 0);
    }
    free(data);
}

/* Every length that has a digest of zeros in the table, and its neighbours, which have none. */
static void test_known_zeros(void)
{
    uint8_t *data = calloc(1, TZ_CHUNK_MAX * 2);
    tz_digest known, expected;

    for (size_t length = 1; length <= TZ_CHUNK_MAX * 2; length *= 2) {
        bool usual = length >= TZ_TRACK_MIN && length <= TZ_CHUNK_MAX;

        CHECK_EQ(tz_digest_known_zeros(&known, length), usual);
        CHECK(!tz_digest_known_zeros(&known, length - 1) || tz_is_pow2(length - 1));
        reference(&expected, data, length);
        CHECK(!usual || memcmp(&known, &expected, sizeof(known)) == 0);
    }
    CHECK(!tz_digest_known_zeros(&known, 3 * TZ_TRACK_MIN));
    CHECK(!tz_digest_known_zeros(&known, (size_t)1 << 63));
    free(data);
}

/* One byte that is not zero, anywhere: it is seen, and the digest is right. Odd addresses too. */
static void test_one_byte(void)
{
    uint8_t *memory = calloc(1, (1 << 20) + 7);

    for (size_t i = 0; i < LENGTHS; i++) {
        size_t length = lengths[i], step = length / 97 + 1;

        for (size_t at = 0; at < length; at += step) {
            uint8_t *data = memory + at % 8;

            data[at] = (uint8_t)(1 << at % 8);
            check_chunk(data, length, false);
            data[at] = 0;
        }
        if (length) {
            memory[length - 1] = 0x80;
            check_chunk(memory, length, false);
            memory[length - 1] = 0;
        }
    }
    free(memory);
}

static void test_data(void)
{
    uint8_t *data = malloc(1 << 20);

    for (size_t i = 0; i < 1 << 20; i++)
        data[i] = (uint8_t)(i * 0x9e3779b1u >> 13 | 1);
    for (size_t i = 1; i < LENGTHS; i++)
        check_chunk(data, lengths[i], false);
    free(data);
}

int main(void)
{
    RUN(test_known_vectors);
    RUN(test_zeros);
    RUN(test_known_zeros);
    RUN(test_one_byte);
    RUN(test_data);
    return 0;
}
