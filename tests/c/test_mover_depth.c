/* SPDX-License-Identifier: Apache-2.0
 *
 * How many chunks in flight pay, on devices made of numbers: what is slow by serving one after the other keeps the
 * depth it has, what is slow by latency gets more.
 */
#include "../../csrc/mover/internal.h"
#include "check.h"

#define LEAST 8
#define MOST  32
#define MIB   (UINT32_C(1) << 20)

/* A device that takes `serial_ns` for each chunk, one after the other, and `latency_ns` for each, all at once. */
typedef struct device {
    uint64_t serial_ns, latency_ns;
    uint64_t now_ns, free_ns;
    uint64_t done_ns[MOST]; /* chunks in flight, oldest first */
    uint32_t in_flight;
    uint32_t noise_percent;
    uint32_t random;
} device;

static uint64_t noisy(device *d, uint64_t ns)
{
    d->random = d->random * 1664525 + 1013904223;
    return ns * (100 + d->random % (2 * d->noise_percent + 1)) / (100 + d->noise_percent);
}

static void start_chunks(device *d, uint32_t depth)
{
    while (d->in_flight < depth) {
        d->free_ns = tz_max_u64(d->free_ns, d->now_ns) + noisy(d, d->serial_ns);
        d->done_ns[d->in_flight++] = d->free_ns + noisy(d, d->latency_ns);
    }
}

static void end_chunk(device *d)
{
    uint32_t first = 0;

    for (uint32_t i = 1; i < d->in_flight; i++)
        if (d->done_ns[i] < d->done_ns[first])
            first = i;
    d->now_ns = d->done_ns[first];
    d->done_ns[first] = d->done_ns[--d->in_flight];
}

/* The depth that has settled after so many chunks; `most_ever`: the deepest it went on the way. */
static uint32_t settle(device *d, uint32_t chunks, uint32_t *most_ever)
{
    uint32_t settled;
    tz_depth depth;

    tz_depth_init(&depth, LEAST, MOST, 1);
    *most_ever = 0;
    for (uint32_t i = 0; i < chunks; i++) {
        *most_ever = (uint32_t)tz_max_u64(*most_ever, atomic_load(&depth.limit));
        start_chunks(d, atomic_load(&depth.limit));
        end_chunk(d);
        tz_depth_observe(&depth, 2 * MIB, d->now_ns);
    }
    settled = depth.settled;
    tz_depth_fini(&depth);
    return settled;
}

static void a_disk_keeps_its_depth(void)
{
    uint32_t most;

    for (uint32_t noise = 0; noise <= 50; noise += 10) {
        device d = {.serial_ns = 800000, .latency_ns = 100000, .noise_percent = noise, .random = noise};

        CHECK_EQ(settle(&d, 8192, &most), LEAST);
        CHECK_EQ(most, 2 * LEAST); /* it was tried */
    }
}

static void latency_is_answered_with_depth(void)
{
    uint32_t most;

    for (uint32_t noise = 0; noise <= 50; noise += 10) {
        device far = {.serial_ns = 100000, .latency_ns = 10000000, .noise_percent = noise, .random = noise};
        device near = {.serial_ns = 300000, .latency_ns = 3300000, .noise_percent = noise, .random = noise};

        CHECK_EQ(settle(&far, 2048, &most), MOST);
        CHECK_EQ(settle(&near, 2048, &most), 2 * LEAST); /* 16 fill it: 32 bring nothing */
    }
}

/* Trials become rare: what they cost may not add up. */
static void trials_become_rare(void)
{
    device d = {.serial_ns = 1000000};
    uint32_t deep = 0;
    tz_depth depth;

    tz_depth_init(&depth, LEAST, MOST, 1);
    for (uint32_t i = 0; i < 100000; i++) {
        start_chunks(&d, atomic_load(&depth.limit));
        end_chunk(&d);
        tz_depth_observe(&depth, MIB, d.now_ns);
        deep += atomic_load(&depth.limit) > LEAST;
    }
    CHECK(deep > 0 && deep < 2000);
    tz_depth_fini(&depth);
}

/* Somebody else sets the pace in the middle of a trial: what was measured says nothing. */
static void a_disturbed_trial_is_broken_off(void)
{
    device d = {.serial_ns = 1000, .latency_ns = 10000000};
    tz_depth depth;
    uint32_t trials = 0;

    tz_depth_init(&depth, LEAST, MOST, 1);
    for (uint32_t i = 0; i < 4096; i++) {
        start_chunks(&d, atomic_load(&depth.limit));
        end_chunk(&d);
        tz_depth_observe(&depth, MIB, d.now_ns);
        if (depth.trial == 2) {
            trials++;
            tz_depth_disturbed(&depth);
            CHECK_EQ(atomic_load(&depth.limit), LEAST);
        }
    }
    CHECK(trials > 1);
    CHECK_EQ(depth.settled, LEAST);
    tz_depth_fini(&depth);
}

static void a_given_depth_stays(void)
{
    device d = {.serial_ns = 1000, .latency_ns = 10000000};
    tz_depth depth;

    tz_depth_init(&depth, 5, 5, 1);
    for (uint32_t i = 0; i < 4096; i++) {
        start_chunks(&d, atomic_load(&depth.limit));
        end_chunk(&d);
        tz_depth_observe(&depth, MIB, d.now_ns);
        CHECK_EQ(atomic_load(&depth.limit), 5);
    }
    tz_depth_fini(&depth);
}

int main(void)
{
    RUN(a_disk_keeps_its_depth);
    RUN(latency_is_answered_with_depth);
    RUN(trials_become_rare);
    RUN(a_disturbed_trial_is_broken_off);
    RUN(a_given_depth_stays);
    return 0;
}
