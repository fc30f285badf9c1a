/* SPDX-License-Identifier: Apache-2.0
 *
 * What single calls of the bitmap cost from C: test, any and all over 1 to 64 bits, claim. Prints JSON, a list of
 * [topic, who, nanoseconds a call], medians. test_bits.py builds and runs it.
 *
 * A topic is a map and an order. The first row of each is a bare load of the same words: what the memory takes.
 *
 *   in cache    32 KiB, so that nothing but the call is timed
 *   at random   16 MiB, 8 TiB of tracks: cache misses, several under way at once where the call lets them
 *   waiting     the same, but each address depends on the answer before: one miss at a time. Of any and all, which
 *               answer by a branch, the CPU foresees the answer here, and does not wait
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "tz/bitmap.h"

#define CALLS  ((uint64_t)1 << 17)
#define ROUNDS 21

static double now(void)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec * 1e9 + (double)at.tv_nsec;
}

static uint64_t bare_load(const tz_bitmap *map, uint64_t bit)
{
    return atomic_load_explicit(&map->words[bit / 64], memory_order_relaxed);
}

/* `wait` is 0, which the compiler does not know: added to an address, it makes one call wait for the last. */
#define LOOP(name, call)                                                                                               \
    static uint64_t name(tz_bitmap *map, const uint64_t *at, uint64_t wait)                                            \
    {                                                                                                                  \
        uint64_t sum = 0;                                                                                              \
                                                                                                                       \
        (void)wait;                                                                                                    \
        for (uint64_t i = 0; i < CALLS; i++) {                                                                         \
            uint64_t from = at[i];                                                                                     \
                                                                                                                       \
            sum += (uint64_t)(call);                                                                                   \
        }                                                                                                              \
        return sum;                                                                                                    \
    }                                                                                                                  \
                                                                                                                       \
    static uint64_t name##_waiting(tz_bitmap *map, const uint64_t *at, uint64_t wait)                                  \
    {                                                                                                                  \
        uint64_t sum = 0;                                                                                              \
                                                                                                                       \
        for (uint64_t i = 0; i < CALLS; i++) {                                                                         \
            uint64_t from = at[i] + (sum & wait);                                                                      \
                                                                                                                       \
            sum += (uint64_t)(call);                                                                                   \
        }                                                                                                              \
        return sum;                                                                                                    \
    }

LOOP(loop_load, bare_load(map, from))
LOOP(loop_test, tz_bitmap_test(map, from))
LOOP(loop_any, tz_bitmap_any(map, from, 1 + from % 64))
LOOP(loop_all, tz_bitmap_all(map, from, 1 + from % 64))
LOOP(loop_claim, tz_bitmap_claim(map, from))

static const struct row {
    const char *who;
    uint64_t (*loop)(tz_bitmap *map, const uint64_t *at, uint64_t wait);
    uint64_t (*waiting)(tz_bitmap *map, const uint64_t *at, uint64_t wait);
} rows[] = {
    {"a bare load", loop_load, loop_load_waiting},
    {"tz_bitmap_test", loop_test, loop_test_waiting},
    {"tz_bitmap_any, 1 to 64 bits", loop_any, loop_any_waiting},
    {"tz_bitmap_all, 1 to 64 bits", loop_all, loop_all_waiting},
    {"tz_bitmap_claim", loop_claim, loop_claim_waiting},
};
#define ROWS (sizeof(rows) / sizeof(rows[0]))

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Rows take turns, so that all see the same machine. All is asked of set bits, the others of clear ones: no early no. */
static void measure(const char *topic, tz_bitmap *map, bool waiting, const char **separator)
{
    static double took[ROWS][ROUNDS];
    uint64_t *at = malloc(CALLS * sizeof(*at)), seed = 1;
    volatile uint64_t zero = 0, sink = 0;

    for (uint64_t i = 0; i < CALLS; i++) {
        seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        at[i] = (seed >> 30) % (map->bits - 64);
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (size_t row = 0; row < ROWS; row++) {
            double begin;

            memset((void *)map->words, rows[row].loop == loop_all ? 0xff : 0, tz_bitmap_bytes(map->bits));
            begin = now();
            sink += (waiting ? rows[row].waiting : rows[row].loop)(map, at, zero);
            took[row][round] = (now() - begin) / (double)CALLS;
        }
    }
    (void)sink;
    for (size_t row = 0; row < ROWS; row++) {
        qsort(took[row], ROUNDS, sizeof(double), by_value);
        printf("%s[\"%s\", \"%s\", %.3f]", *separator, topic, rows[row].who, took[row][ROUNDS / 2]);
        *separator = ",\n ";
    }
    free(at);
}

int main(void)
{
    const size_t large = 16 * TZ_MIB;
    void *memory = aligned_alloc(2 * TZ_MIB, large);
    const char *separator = "[";
    tz_bitmap map;

    if (!memory)
        return 1;
    (void)madvise(memory, large, MADV_HUGEPAGE);
    tz_bitmap_init(&map, memory, 32 * TZ_KIB * 8);
    measure("bitmap from C, 32 KiB in cache", &map, false, &separator);
    tz_bitmap_init(&map, memory, large * 8);
    measure("bitmap from C, 16 MiB at random", &map, false, &separator);
    measure("bitmap from C, 16 MiB at random, waiting", &map, true, &separator);
    printf("]\n");
    free(memory);
    return 0;
}
