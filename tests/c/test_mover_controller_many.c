/* SPDX-License-Identifier: Apache-2.0
 *
 * The controller on a simulated disk, beside many volumes and beside few requests: what is chance in small counts is no
 * reason to be slow. (One volume: test_mover_controller.c.)
 */
#include "simulated_device.h"

/* p99 of what ended in the next `ns` on each volume: the worst of them. */
static uint64_t worst_p99(sim *s, uint64_t ns)
{
    static uint64_t before[SIM_VOLUMES][TZ_LOAD_BUCKETS];
    uint64_t worst = 0;

    for (uint32_t v = 0; v < s->volumes; v++)
        for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++)
            before[v][i] = tz_load_get(&s->into[v].histograms[TZ_LOAD_UPDATES].buckets[i]);
    sim_run(s, ns);
    for (uint32_t v = 0; v < s->volumes; v++) {
        uint64_t counts[TZ_LOAD_BUCKETS], total = 0;

        for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++)
            total += counts[i] = tz_load_get(&s->into[v].histograms[TZ_LOAD_UPDATES].buckets[i]) - before[v][i];
        worst = tz_max_u64(worst, tz_load_quantile_of(counts, total, 0.99));
    }
    return worst;
}

/* Sixteen volumes are as many counts that stray, and sixteen chances of having misheard: each is within its target, and
 * the copy gets on as it does beside one volume of as many requests. */
static void many_volumes_are_judged_together(void)
{
    uint64_t sums[2] = {0, 0};

    for (uint64_t seed = 1; seed < 9; seed++) {
        uint32_t reads = seed % 2 ? 50 : 0;
        uint64_t moved[2], usual, during = 0;

        for (int many = 0; many < 2; many++) {
            sim *s = sim_virtual_disk(seed);

            s->volumes = many ? SIM_VOLUMES : 1;
            sim_application(s, 16, 6 * SIM_MS, reads); /* 2,700 a second */
            usual = worst_p99(s, 20 * SIM_S);
            sim_begin(s, FACTOR, 0, false);
            sim_run(s, 5 * SIM_S);
            moved[many] = s->moved;
            during = worst_p99(s, 20 * SIM_S);
            moved[many] = s->moved - moved[many];
            sim_free(s);
        }
        printf("    %.0f MiB/s beside one volume, %.0f beside sixteen (p99 of the worst %.0f us, x %.2f)\n",
               moved[0] / 20.0 / TZ_MIB, moved[1] / 20.0 / TZ_MIB, during / 1e3, ratio(during, usual));
        CHECK(ratio(moved[1], moved[0]) > 0.25); /* and in the mean: */
        sums[0] += moved[0];
        sums[1] += moved[1];
        CHECK(ratio(during, usual) <= FACTOR * 1.2);
    }
    CHECK(ratio(sums[1], sums[0]) > 0.6);
}

/* Where interception comes near the target by itself, slower copying helps little: chance alone, in counts or in what was
 * heard of few, does not lead to where it takes ten times as long. */
static void chance_does_not_lead_below_what_is_kind(void)
{
    uint64_t sum = 0, least = UINT64_MAX;

    for (uint64_t seed = 1; seed < 13; seed++) {
        sim *s = sim_virtual_disk(seed);
        uint64_t moved;

        sim_application(s, 4, 1900 * SIM_US, 0);
        sim_run(s, 20 * SIM_S);
        s->intercept_percent = 95;
        sim_begin(s, FACTOR, 0, false);
        moved = sim_moved(s, 20 * SIM_S) / 20;
        sum += moved;
        least = tz_min_u64(least, moved);
        sim_free(s);
    }
    printf("    %.0f MiB/s, at least %.0f\n", (double)sum / 12 / TZ_MIB, (double)least / TZ_MIB);
    CHECK(sum / 12 > 560 * TZ_MIB && least > 150 * TZ_MIB); /* 494 and 77 where a single window's strain is believed */
}

/* Forty requests a second of each of many volumes are ten in a quiet moment, of which the slowest is all that can be told of.
 * The mean of many such is as far off as one, and one in ten may be late: that does not get stricter with the minutes. */
static void few_requests_are_no_more_strain_after_minutes(void)
{
    uint64_t sum = 0;

    for (uint64_t seed = 1; seed < 5; seed++) {
        sim *s = sim_virtual_disk(seed);

        s->volumes = SIM_VOLUMES;
        sim_application(s, SIM_VOLUMES, 24900 * SIM_US, 0);
        sim_run(s, 20 * SIM_S);
        s->intercept_percent = 50;
        sim_begin(s, FACTOR, 0, false);
        sim_run(s, 100 * SIM_S);
        sum += sim_moved(s, 20 * SIM_S) / 20;
        sim_free(s);
    }
    printf("    %.0f MiB/s\n", (double)sum / 4 / TZ_MIB);
    CHECK(sum / 4 > 500 * TZ_MIB);
}

int main(void)
{
    RUN(many_volumes_are_judged_together);
    RUN(chance_does_not_lead_below_what_is_kind);
    RUN(few_requests_are_no_more_strain_after_minutes);
    return 0;
}
