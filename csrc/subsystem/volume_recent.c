/* SPDX-License-Identifier: Apache-2.0
 *
 * Recent writes: the ring, and the sketch.
 */
#include "volume_recent.h"

#include <string.h>

#define REGISTER_BITS 11

/* ---- the sketch ---- */

/* splitmix64's finalizer. */
static uint64_t hash(uint64_t n)
{
    n += UINT64_C(0x9e3779b97f4a7c15);
    n = (n ^ n >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    n = (n ^ n >> 27) * UINT64_C(0x94d049bb133111eb);
    return n ^ n >> 31;
}

static void add(uint8_t *ranks, uint64_t block)
{
    const uint64_t h = hash(block);
    const uint8_t rank = (uint8_t)(1 + __builtin_clzll(h << REGISTER_BITS | 1u << (REGISTER_BITS - 1)));
    uint8_t *place = &ranks[h >> (64 - REGISTER_BITS)];

    if (*place < rank)
        *place = rank;
}

/* Natural logarithm of x >= 1, to eight digits: no call for a library of mathematics. */
static double ln(double x)
{
    double sum = 0, y, term;
    int halvings = 0;

    for (; x > 1.5; x /= 2)
        halvings++;
    y = (x - 1) / (x + 1);
    term = y;
    for (int k = 1; k < 20; k += 2, term *= y * y)
        sum += term / k;
    return 2 * sum + halvings * 0.69314718055994531;
}

/* Below 2.5 for each register, counting those that are still empty is the better estimate. */
static uint64_t estimate(const uint8_t *ranks)
{
    const double m = TZ_RECENT_REGISTERS, alpha = 0.7213 / (1 + 1.079 / m);
    uint32_t empty = 0;
    double sum = 0, raw;

    for (uint32_t i = 0; i < TZ_RECENT_REGISTERS; i++) {
        sum += 1.0 / (double)(UINT64_C(1) << ranks[i]);
        empty += ranks[i] == 0;
    }
    raw = alpha * m * m / sum;
    return (uint64_t)((raw <= 2.5 * m && empty ? m * ln(m / empty) : raw) + 0.5);
}

static void merge(uint8_t *into, const uint8_t *ranks)
{
    for (uint32_t i = 0; i < TZ_RECENT_REGISTERS; i++)
        into[i] = ranks[i] > into[i] ? ranks[i] : into[i];
}

/* ---- the ring ---- */

static uint64_t number_at(const tz_recent *recent, uint64_t now_ns)
{
    return (now_ns - recent->began_ns) / TZ_RECENT_WINDOW_NS;
}

void tz_recent_init(tz_recent *recent, uint64_t now_ns)
{
    recent->began_ns = now_ns;
}

void tz_recent_note(tz_recent *recent, uint64_t now_ns, uint64_t offset, uint64_t length)
{
    const uint64_t number = number_at(recent, now_ns), first = offset >> TZ_RECENT_SHIFT;
    const uint64_t last = (offset + length - 1) >> TZ_RECENT_SHIFT;
    tz_recent_window *window = &recent->windows[number % TZ_RECENT_WINDOWS];

    if (window->number != number) {
        memset(window, 0, sizeof(*window));
        window->number = number;
    }
    window->updates++;
    window->bytes += length;
    for (uint64_t block = first; block <= last && block < first + TZ_RECENT_BLOCKS; block++)
        add(window->ranks, block);
}

/* Of windows `from` to `to`; ns from the beginning of the first of them. */
static uint64_t look_back(const tz_recent *recent, uint64_t from, uint64_t to, uint64_t now_ns, tz_recent_writes *sum,
                          uint64_t *blocks)
{
    uint8_t ranks[TZ_RECENT_REGISTERS] = {0};

    for (uint64_t number = from; number <= to; number++) {
        const tz_recent_window *window = &recent->windows[number % TZ_RECENT_WINDOWS];

        if (window->number != number)
            continue;
        merge(ranks, window->ranks);
        sum->updates += window->updates;
        sum->bytes += window->bytes;
    }
    *blocks = estimate(ranks);
    return now_ns - recent->began_ns - from * TZ_RECENT_WINDOW_NS;
}

void tz_recent_get(const tz_recent *recent, uint64_t now_ns, tz_recent_writes *out)
{
    const uint64_t to = number_at(recent, now_ns);
    const uint64_t whole = to < TZ_RECENT_WINDOWS ? 0 : to - TZ_RECENT_WINDOWS + 1;
    const uint64_t half = whole + (to - whole + 1) / 2;
    tz_recent_writes all = {0}, newer = {0};

    all.ns = look_back(recent, whole, to, now_ns, &all, &all.blocks);
    all.newer_ns = look_back(recent, half, to, now_ns, &newer, &all.newer_blocks);
    *out = all;
}
