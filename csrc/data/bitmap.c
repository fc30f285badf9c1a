/* SPDX-License-Identifier: Apache-2.0 */
#include "tz/bitmap.h"

#define WORD_BITS 64

/* Calls `step` (an expression over `word` and `mask`) for every word of [from, from + count). */
#define FOR_EACH_WORD(from, count, word, mask, ...)                                                                    \
    do {                                                                                                               \
        uint64_t at_ = (from), end_ = at_ + (count);                                                                   \
        while (at_ < end_) {                                                                                           \
            uint64_t word = at_ / WORD_BITS, mask = range_mask(at_, end_);                                             \
            __VA_ARGS__                                                                                                \
            at_ = (word + 1) * WORD_BITS;                                                                              \
        }                                                                                                              \
    } while (0)

/* The bits of [at, end) that lie in the word of `at`. */
static inline uint64_t range_mask(uint64_t at, uint64_t end)
{
    uint64_t bit = at % WORD_BITS, n = tz_min_u64(end - at, WORD_BITS - bit);

    return (UINT64_MAX >> (WORD_BITS - n)) << bit;
}

static inline void assert_range(const tz_bitmap *map, uint64_t from, uint64_t count)
{
    assert(from <= map->bits && count <= map->bits - from);
    (void)map, (void)from, (void)count;
}

size_t tz_bitmap_bytes(uint64_t bits)
{
    return (bits / WORD_BITS + (bits % WORD_BITS != 0)) * sizeof(uint64_t);
}

void tz_bitmap_init(tz_bitmap *map, void *memory, uint64_t bits)
{
    assert((uintptr_t)memory % _Alignof(_Atomic uint64_t) == 0);
    map->words = memory;
    map->bits = bits;
}

bool tz_bitmap_test(const tz_bitmap *map, uint64_t bit)
{
    assert(bit < map->bits);
    return atomic_load(&map->words[bit / WORD_BITS]) >> (bit % WORD_BITS) & 1;
}

bool tz_bitmap_claim(tz_bitmap *map, uint64_t bit)
{
    uint64_t mask = UINT64_C(1) << (bit % WORD_BITS);

    assert(bit < map->bits);
    return !(atomic_fetch_or(&map->words[bit / WORD_BITS], mask) & mask);
}

bool tz_bitmap_unclaim(tz_bitmap *map, uint64_t bit)
{
    uint64_t mask = UINT64_C(1) << (bit % WORD_BITS);

    assert(bit < map->bits);
    return atomic_fetch_and(&map->words[bit / WORD_BITS], ~mask) & mask;
}

uint64_t tz_bitmap_set_range(tz_bitmap *map, uint64_t from, uint64_t count)
{
    uint64_t changed = 0;

    assert_range(map, from, count);
    FOR_EACH_WORD(from, count, word, mask, {
        uint64_t old = atomic_fetch_or(&map->words[word], mask);
        changed += (uint64_t)__builtin_popcountll(~old & mask);
    });
    return changed;
}

uint64_t tz_bitmap_clear_range(tz_bitmap *map, uint64_t from, uint64_t count)
{
    uint64_t changed = 0;

    assert_range(map, from, count);
    FOR_EACH_WORD(from, count, word, mask, {
        uint64_t old = atomic_fetch_and(&map->words[word], ~mask);
        changed += (uint64_t)__builtin_popcountll(old & mask);
    });
    return changed;
}

bool tz_bitmap_any(const tz_bitmap *map, uint64_t from, uint64_t count)
{
    assert_range(map, from, count);
    FOR_EACH_WORD(from, count, word, mask, {
        if (atomic_load(&map->words[word]) & mask)
            return true;
    });
    return false;
}

bool tz_bitmap_all(const tz_bitmap *map, uint64_t from, uint64_t count)
{
    assert_range(map, from, count);
    FOR_EACH_WORD(from, count, word, mask, {
        if (~atomic_load(&map->words[word]) & mask)
            return false;
    });
    return true;
}

static inline __attribute__((always_inline)) uint64_t count_words(const tz_bitmap *map, uint64_t from, uint64_t count)
{
    uint64_t bits = 0;

    FOR_EACH_WORD(from, count, word, mask,
                  { bits += (uint64_t)__builtin_popcountll(atomic_load(&map->words[word]) & mask); });
    return bits;
}

#if defined(__x86_64__) && !defined(__POPCNT__)
/* Baseline x86-64 has no population count: without this a word costs a call into libgcc. */
__attribute__((target("popcnt"))) static uint64_t count_words_popcnt(const tz_bitmap *map, uint64_t from,
                                                                     uint64_t count)
{
    return count_words(map, from, count);
}

uint64_t tz_bitmap_count(const tz_bitmap *map, uint64_t from, uint64_t count)
{
    assert_range(map, from, count);
    return __builtin_cpu_supports("popcnt") ? count_words_popcnt(map, from, count) : count_words(map, from, count);
}
#else
uint64_t tz_bitmap_count(const tz_bitmap *map, uint64_t from, uint64_t count)
{
    assert_range(map, from, count);
    return count_words(map, from, count);
}
#endif

/* The first bit at or after `from` that is 1 after its word was xored with `flip`. */
static inline uint64_t next_bit(const tz_bitmap *map, uint64_t from, uint64_t flip)
{
    uint64_t words = tz_bitmap_bytes(map->bits) / sizeof(uint64_t), word = from / WORD_BITS, found, bit;

    if (from >= map->bits)
        return TZ_BITMAP_NONE;
    found = (atomic_load(&map->words[word]) ^ flip) & (UINT64_MAX << (from % WORD_BITS));
    while (!found) {
        if (++word == words)
            return TZ_BITMAP_NONE;
        found = atomic_load(&map->words[word]) ^ flip;
    }
    bit = word * WORD_BITS + (uint64_t)__builtin_ctzll(found);
    return bit < map->bits ? bit : TZ_BITMAP_NONE; /* what lies past the last bit is not ours */
}

uint64_t tz_bitmap_next_set(const tz_bitmap *map, uint64_t from)
{
    return next_bit(map, from, 0);
}

uint64_t tz_bitmap_next_clear(const tz_bitmap *map, uint64_t from)
{
    return next_bit(map, from, UINT64_MAX);
}
