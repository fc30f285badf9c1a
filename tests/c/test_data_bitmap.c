/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"
#include "tz/bitmap.h"

#include <pthread.h>
#include <string.h>

#define BITS 1000

/* The model: a byte a bit. */
static uint8_t model[BITS];
static uint64_t words[(BITS + 63) / 64];
static uint64_t seed;

static uint64_t below(uint64_t n)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (seed >> 33) % n;
}

static uint64_t model_next(uint64_t from, uint8_t wanted)
{
    while (from < BITS && model[from] != wanted)
        from++;
    return from < BITS ? from : TZ_BITMAP_NONE;
}

static void check_all(const tz_bitmap *map, uint64_t from, uint64_t count)
{
    uint64_t set = 0;

    for (uint64_t i = from; i < from + count; i++)
        set += model[i];
    CHECK_EQ(tz_bitmap_count(map, from, count), set);
    CHECK_EQ(tz_bitmap_any(map, from, count), set > 0);
    CHECK_EQ(tz_bitmap_all(map, from, count), set == count);
    CHECK(tz_bitmap_next_set(map, from) == model_next(from, 1));
    CHECK(tz_bitmap_next_clear(map, from) == model_next(from, 0));
}

static void test_agrees_with_bytes(void)
{
    tz_bitmap map;

    CHECK_EQ(tz_bitmap_bytes(0), 0);
    CHECK_EQ(tz_bitmap_bytes(1), 8);
    CHECK_EQ(tz_bitmap_bytes(64), 8);
    CHECK_EQ(tz_bitmap_bytes(BITS), sizeof(words));
    memset(words, 0xff, sizeof(words)); /* what lies past the last bit must never show */
    tz_bitmap_init(&map, words, BITS);
    CHECK_EQ(tz_bitmap_clear_range(&map, 0, BITS), BITS);
    for (int step = 0; step < 20000; step++) {
        uint64_t from = below(BITS + 1), count = below(3) ? below(tz_min_u64(70, BITS - from) + 1) : BITS - from;
        uint64_t changed = 0;

        switch (below(4)) {
        case 0:
            for (uint64_t i = from; i < from + count; i++)
                changed += !model[i], model[i] = 1;
            CHECK_EQ(tz_bitmap_set_range(&map, from, count), changed);
            break;
        case 1:
            for (uint64_t i = from; i < from + count; i++)
                changed += model[i], model[i] = 0;
            CHECK_EQ(tz_bitmap_clear_range(&map, from, count), changed);
            break;
        case 2:
            from = below(BITS);
            count = 1;
            CHECK_EQ(tz_bitmap_claim(&map, from), !model[from]);
            model[from] = 1;
            break;
        default:
            from = below(BITS);
            count = 1;
            CHECK_EQ(tz_bitmap_unclaim(&map, from), model[from]);
            model[from] = 0;
        }
        for (uint64_t i = from; i < from + count; i++)
            CHECK_EQ(tz_bitmap_test(&map, i), model[i]);
        check_all(&map, from, count);
        check_all(&map, below(BITS), 0);
    }
    CHECK(tz_bitmap_next_set(&map, BITS) == TZ_BITMAP_NONE);
    CHECK(tz_bitmap_next_clear(&map, UINT64_MAX) == TZ_BITMAP_NONE);
}

#define CLAIMERS 4
#define CLAIMS   20000

static uint64_t shared_words[(CLAIMS + 63) / 64];

static void *claim_all(void *won)
{
    tz_bitmap map;

    tz_bitmap_init(&map, shared_words, CLAIMS);
    for (uint64_t bit = 0; (bit = tz_bitmap_next_clear(&map, bit)) != TZ_BITMAP_NONE;)
        *(uint64_t *)won += tz_bitmap_claim(&map, bit);
    return NULL;
}

static void test_a_bit_is_claimed_once(void)
{
    pthread_t threads[CLAIMERS];
    uint64_t won[CLAIMERS] = {0}, sum = 0;

    for (int i = 0; i < CLAIMERS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, claim_all, &won[i]), 0);
    for (int i = 0; i < CLAIMERS; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
        sum += won[i];
    }
    CHECK_EQ(sum, CLAIMS);
}

int main(void)
{
    RUN(test_agrees_with_bytes);
    RUN(test_a_bit_is_claimed_once);
    return 0;
}
