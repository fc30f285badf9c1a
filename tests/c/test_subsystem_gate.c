/* SPDX-License-Identifier: Apache-2.0
 *
 * The gate under the T0 oracle: random histories of updates, sessions and movers on an engine that reorders all it may;
 * and each rule dropped in turn, which the oracle must notice.
 */
#include "gate_rig.h"

#define SEEDS 12

static const rig_config USUAL = {.track_size = 4096,
                                 .size = 90 * 4096 + 512,
                                 .memory_bytes = 1024 * 1024,
                                 .steps = 6000,
                                 .sessions = 1,
                                 .update_one_in = 6,
                                 .mover_one_in = 8};

/* Runs SEEDS histories; the sums over all of them. */
static rig run_seeds(rig_config config)
{
    rig sum = {0};

    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        rig r;

        config.seed = seed;
        rig_run(&r, &config);
        sum.breaches += r.breaches;
        sum.intact += r.intact;
        sum.punctured += r.punctured;
        sum.errors += r.errors;
        sum.leaks += r.leaks;
        sum.sum.updates += r.sum.updates;
        sum.sum.intercepted += r.sum.intercepted;
        sum.sum.images += r.sum.images;
        sum.sum.zero_images += r.sum.zero_images;
        sum.sum.file_images += r.sum.file_images;
        sum.sum.self_freed += r.sum.self_freed;
        sum.sum.delayed += r.sum.delayed;
    }
    if (getenv("RIG_VERBOSE"))
        fprintf(stderr,
                "breaches %lu intact %lu punctured %lu errors %lu leaks %lu | updates %lu held %lu images %lu zero %lu "
                "file %lu self %lu delayed %lu\n",
                sum.breaches, sum.intact, sum.punctured, sum.errors, sum.leaks, sum.sum.updates, sum.sum.intercepted,
                sum.sum.images, sum.sum.zero_images, sum.sum.file_images, sum.sum.self_freed, sum.sum.delayed);
    return sum;
}

static rig check_sound(rig_config config)
{
    rig sum = run_seeds(config);

    CHECK_EQ(sum.breaches, 0);
    CHECK_EQ(sum.errors, 0);
    CHECK_EQ(sum.leaks, 0);
    CHECK(sum.intact > 0);
    CHECK(sum.sum.intercepted > 0 && sum.sum.images > 0 && sum.sum.zero_images > 0);
    return sum;
}

static void tracks_of_4k(void)
{
    rig sum = check_sound(USUAL);

    CHECK_EQ(sum.punctured, 0);
    CHECK(sum.sum.self_freed > 0);
}

static void tracks_of_64k(void)
{
    rig_config config = USUAL;

    config.track_size = 65536;
    config.size = 14 * 65536 + 8192;
    config.memory_bytes = 4 << 20;
    CHECK_EQ(check_sound(config).punctured, 0);
}

static void buffered(void)
{
    rig_config config = USUAL;

    config.buffered = true;
    config.size += 77;
    check_sound(config);
}

static void unaligned(void)
{
    rig_config config = USUAL;

    config.unaligned = true;
    config.size = 90 * 4096;
    check_sound(config);
    config.buffered = true;
    check_sound(config);
}

static void designated_tracks_only(void)
{
    rig_config config = USUAL;

    config.domain = true;
    check_sound(config);
}

static void two_sessions(void)
{
    rig_config config = USUAL;

    config.sessions = 2;
    config.steps *= 2;
    CHECK_EQ(check_sound(config).punctured, 0);
}

static void file_tier(void)
{
    rig_config config = USUAL;

    config.memory_bytes = 96 * 1024;
    config.file_bytes = 1 << 20;
    config.sessions = 2;
    CHECK(check_sound(config).sum.file_images > 0);
}

/* The mover is slow and the sidefile small: sessions are punctured, updates never fail, nothing unsound looks sound. */
static void the_cap(void)
{
    rig_config config = USUAL;
    rig sum;

    config.memory_bytes = 96 * 1024;
    config.mover_one_in = 20;
    sum = run_seeds(config);
    CHECK(sum.punctured > 0 && sum.sum.delayed > 0);
    CHECK_EQ(sum.errors, 0);
    CHECK_EQ(sum.breaches, 0);
}

/* ---- each rule dropped: the oracle must notice ---- */

static rig run_with(rig_config config, uint32_t volume_faults, uint32_t session_faults)
{
    config.volume_faults = volume_faults;
    config.session_faults = session_faults;
    return run_seeds(config);
}

static void rule_gate(void)
{
    CHECK(run_with(USUAL, 0, TZ_FAULT_PASS_ALL).breaches > 0);
    CHECK(run_with(USUAL, 0, TZ_FAULT_ISSUE_EARLY).breaches > 0);
}

static void rule_1_puncture_before_damage(void)
{
    rig_config config = USUAL;

    config.memory_bytes = 96 * 1024;
    config.mover_one_in = 20;
    CHECK(run_with(config, 0, TZ_FAULT_LATE_PUNCTURE).breaches > 0);
}

static void rule_2_need_is_computed_last(void)
{
    CHECK(run_with(USUAL, TZ_FAULT_STALE_NEED, 0).breaches > 0);
    CHECK(run_with(USUAL, TZ_FAULT_NO_DRAIN, 0).breaches > 0);
}

static void rule_3_one_owner_frees_a_slot(void)
{
    CHECK(run_with(USUAL, 0, TZ_FAULT_DOUBLE_FREE).breaches > 0);
}

static void rule_8_blocks_are_locked(void)
{
    rig_config config = USUAL;

    config.unaligned = true;
    config.size = 12 * 4096;
    config.sessions = 0;
    CHECK_EQ(run_with(config, 0, 0).breaches, 0);
    CHECK(run_with(config, TZ_FAULT_NO_BLOCK_LOCK, 0).breaches > 0);
}

int main(void)
{
    RUN(tracks_of_4k);
    RUN(tracks_of_64k);
    RUN(buffered);
    RUN(unaligned);
    RUN(designated_tracks_only);
    RUN(two_sessions);
    RUN(file_tier);
    RUN(the_cap);
    RUN(rule_gate);
    RUN(rule_1_puncture_before_damage);
    RUN(rule_2_need_is_computed_last);
    RUN(rule_3_one_owner_frees_a_slot);
    RUN(rule_8_blocks_are_locked);
    return 0;
}
