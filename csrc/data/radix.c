/* SPDX-License-Identifier: Apache-2.0 */
#include "radix.h"

#include <string.h>

/* 2048 counters, and as many cache lines being filled at once, fit the first two levels of cache; wider digits save
 * a pass and lose more than it costs. */
#define DIGIT_BITS 11
#define DIGITS     (1 << DIGIT_BITS)

/* Moves pairs to their places by one digit; false when all have the same and nothing was moved. */
static bool sort_pass(const tz_pair *from, tz_pair *to, uint64_t count, unsigned shift)
{
    uint64_t next[DIGITS] = {0}, sum = 0;

    for (uint64_t i = 0; i < count; i++)
        next[from[i].key >> shift & (DIGITS - 1)]++;
    if (next[from[0].key >> shift & (DIGITS - 1)] == count)
        return false;
    for (unsigned digit = 0; digit < DIGITS; digit++) {
        uint64_t here = next[digit];

        next[digit] = sum;
        sum += here;
    }
    for (uint64_t i = 0; i < count; i++)
        to[next[from[i].key >> shift & (DIGITS - 1)]++] = from[i];
    return true;
}

tz_pair *tz_radix_sort(tz_pair *pairs, tz_pair *spare, uint64_t count)
{
    uint64_t differ = 0;
    bool sorted = true;

    for (uint64_t i = 1; i < count; i++) {
        differ |= pairs[i].key ^ pairs[0].key;
        sorted &= pairs[i - 1].key <= pairs[i].key;
    }
    if (sorted) /* what a file system tells is in order already */
        return pairs;
    for (unsigned shift = (unsigned)__builtin_ctzll(differ); shift < 64 && differ >> shift; shift += DIGIT_BITS) {
        if (sort_pass(pairs, spare, count, shift)) {
            tz_pair *sorted_now = spare;

            spare = pairs;
            pairs = sorted_now;
        }
    }
    return pairs;
}
