/* SPDX-License-Identifier: Apache-2.0
 *
 * Recent writes: distinct blocks within a few percent, however often and in whatever order they are written; what is
 * old is forgotten.
 */
#include "../../csrc/subsystem/volume_recent.h"
#include "check.h"

#define S     UINT64_C(1000000000)
#define BEGAN (77 * S)

static tz_recent recent;

static void begin(void)
{
    recent = (tz_recent){0};
    tz_recent_init(&recent, BEGAN);
}

static tz_recent_writes look(uint64_t seconds)
{
    tz_recent_writes found;

    tz_recent_get(&recent, BEGAN + seconds * S, &found);
    return found;
}

static void write_block(uint64_t seconds, uint64_t block)
{
    tz_recent_note(&recent, BEGAN + seconds * S, block * 4096, 4096);
}

/* The error has a deviation of 2.3 %. */
static bool is_about(uint64_t found, uint64_t expected)
{
    return found >= expected - expected / 10 && found <= expected + expected / 10;
}

static void nothing_is_nothing(void)
{
    tz_recent_writes found;

    begin();
    found = look(5);
    CHECK_EQ(found.ns, 5 * S);
    CHECK(found.updates == 0 && found.bytes == 0 && found.blocks == 0 && found.newer_blocks == 0);
    CHECK_EQ(look(1000).blocks, 0);
}

static void distinct_blocks_are_counted_once(void)
{
    const uint64_t numbers[] = {1, 2, 10, 100, 1000, 4000, 5120, 6000, 10000, 100000, 3000000};

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        for (uint64_t stride = 1; stride < 100000; stride *= 97) {
            tz_recent_writes found;

            begin();
            for (uint64_t round = 0; round < 2; round++)
                for (uint64_t n = 0; n < numbers[i]; n++)
                    write_block(1, (n + 12345) * stride);
            found = look(2);
            CHECK(is_about(found.blocks, numbers[i]));
            CHECK_EQ(found.newer_blocks, found.blocks);
            CHECK_EQ(found.updates, 2 * numbers[i]);
            CHECK_EQ(found.bytes, 2 * numbers[i] * 4096);
        }
}

static void what_is_old_is_forgotten(void)
{
    tz_recent_writes found;

    begin();
    for (uint64_t second = 0; second < 200; second++)
        for (uint64_t n = 0; n < 500; n++)
            write_block(second, second * 500 + n);
    found = look(199);
    CHECK(found.ns > 56 * S && found.ns <= 64 * S);
    CHECK(found.newer_ns > 24 * S && found.newer_ns <= 32 * S);
    CHECK_EQ(found.updates, found.ns / S * 500 + 500);
    CHECK(is_about(found.blocks, found.updates));
    CHECK(is_about(found.newer_blocks, found.newer_ns / S * 500 + 500));
    found = look(255); /* a window is left */
    CHECK(found.updates > 0 && found.updates <= 8 * 500 && found.newer_blocks == 0);
    CHECK_EQ(look(400).updates, 0);
    CHECK_EQ(look(400).blocks, 0);
}

/* A set that is written over and over is told from one that grows. */
static void a_set_that_does_not_grow(void)
{
    tz_recent_writes found;

    begin();
    for (uint64_t second = 0; second < 64; second++)
        for (uint64_t n = 0; n < 2000; n++)
            write_block(second, n % 700);
    found = look(63);
    CHECK(is_about(found.blocks, 700) && is_about(found.newer_blocks, 700));
    CHECK(found.newer_ns < found.ns);
}

static void updates_of_any_shape(void)
{
    tz_recent_writes found;

    begin();
    tz_recent_note(&recent, BEGAN, 4095, 2); /* two blocks */
    CHECK_EQ(look(1).blocks, 2);
    tz_recent_note(&recent, BEGAN, 0, 1);
    CHECK_EQ(look(1).blocks, 2);
    /* A trim of 16 TiB takes no longer than a write of 32 MiB. */
    tz_recent_note(&recent, BEGAN, 0, UINT64_C(1) << 44);
    found = look(1);
    CHECK(is_about(found.blocks, TZ_RECENT_BLOCKS));
    CHECK_EQ(found.updates, 3);
}

int main(void)
{
    RUN(nothing_is_nothing);
    RUN(distinct_blocks_are_counted_once);
    RUN(what_is_old_is_forgotten);
    RUN(a_set_that_does_not_grow);
    RUN(updates_of_any_shape);
    return 0;
}
