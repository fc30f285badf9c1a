/* SPDX-License-Identifier: Apache-2.0
 *
 * The meter and its gauges, told of requests by hand: who counts, by himself or with all others, and what is chance. (What
 * comes of it: test_mover_controller.c.)
 */
#include "simulated_device.h"

/* Reads of a disk are judged by reads: where updates are twenty times slower, more of them are no harm. */
static void a_change_of_the_mix_is_no_harm(void)
{
    sim *s = sim_disk(10);
    tz_reading reading = {.wants_quiet = true}; /* and gets it */

    for (int i = 0; i < 5000; i++) {
        tz_load_add(&s->usual[0].histograms[TZ_LOAD_READS], 100000 + sim_random(s) % 50000);
        tz_load_add(&s->usual[0].histograms[TZ_LOAD_UPDATES], 2000000 + sim_random(s) % 1000000);
    }
    CHECK_EQ(tz_meter_init(&s->meter, &(tz_target){.factor = FACTOR}, 1), 0);
    tz_meter_add(&s->meter, &s->loads[0], &s->usual[0], s->now);
    for (int look = 0; look < 30; look++) {
        for (int i = 0; i < 300; i++) {
            tz_load_add(&s->loads[0].histograms[TZ_LOAD_UPDATES], 2000000 + sim_random(s) % 1000000);
            if (i % 10 == 0)
                tz_load_add(&s->loads[0].histograms[TZ_LOAD_READS], 100000 + sim_random(s) % 50000);
        }
        s->now += 50 * SIM_MS;
        reading = tz_meter_look(&s->meter, reading.wants_quiet ? TZ_CALM_QUIET : TZ_CALM_NOT, s->now);
    }
    CHECK(reading.known && reading.standing < 0.5);
    /* And reads that become slow are harm, however few they are. */
    for (int look = 0; look < 40; look++) {
        for (int i = 0; i < 300; i++) {
            tz_load_add(&s->loads[0].histograms[TZ_LOAD_UPDATES], 2000000 + sim_random(s) % 1000000);
            if (i % 10 == 0)
                tz_load_add(&s->loads[0].histograms[TZ_LOAD_READS], 600000);
        }
        s->now += 50 * SIM_MS;
        reading = tz_meter_look(&s->meter, reading.wants_quiet ? TZ_CALM_QUIET : TZ_CALM_NOT, s->now);
    }
    CHECK(reading.standing > 3);
    sim_free(s);
}

/* So many updates of one volume take about so long. */
static void tell_of(sim *s, uint32_t volume, uint64_t ns, int requests)
{
    for (int i = 0; i < requests; i++)
        tz_load_add(&s->loads[volume].histograms[TZ_LOAD_UPDATES], ns / 2 + sim_random(s) % ns);
}

/* Two volumes, of which the first is busy and within its target. The second has a hundredth of its requests, and no past. */
typedef struct two {
    sim *s;
    tz_reading reading;
} two;

static void two_make(two *t, uint64_t seed)
{
    sim *s = t->s = sim_disk(seed);

    t->reading = (tz_reading){.wants_quiet = true};
    for (int i = 0; i < 5000; i++)
        tz_load_add(&s->usual[0].histograms[TZ_LOAD_UPDATES], 100000 + sim_random(s) % 100000);
    CHECK_EQ(tz_meter_init(&s->meter, &(tz_target){.factor = 1}, 2), 0);
    for (uint32_t v = 0; v < 2; v++)
        tz_meter_add(&s->meter, &s->loads[v], &s->usual[v], s->now);
}

/* It gets its quiet moments. In how many looks there was strain. */
static int two_look(two *t, int looks, uint64_t second_ns)
{
    int strained = 0;

    for (int look = 0; look < looks; look++) {
        tell_of(t->s, 0, 120000, 400); /* 60 to 180 us, of 200 that may be */
        tell_of(t->s, 1, second_ns, 4);
        t->s->now += 20 * SIM_MS;
        t->reading = tz_meter_look(&t->s->meter, t->reading.wants_quiet ? TZ_CALM_QUIET : TZ_CALM_NOT, t->s->now);
        strained += t->reading.standing > 3;
    }
    return strained;
}

/* Where it suffers it counts, though it is next to nothing in the sum; for as long as it has not been heard to be that slow. */
static void few_requests_that_suffer_are_not_outvoted(void)
{
    for (uint64_t seed = 1; seed < 20; seed++) {
        two t;

        two_make(&t, seed);
        CHECK(two_look(&t, 200, 150000) < 20);
        CHECK(two_look(&t, 60, 1500000) > 20);
        /* When it is through, nobody suffers. */
        tz_meter_leave(&t.s->meter, 1, t.s->now);
        CHECK(two_look(&t, 50, 1500000) == 0 && t.reading.known);
        sim_free(t.s);
    }
}

/* Where it was misheard, which the target of exactly what is usual makes of every second hearing, it does not. */
static void few_requests_that_were_misheard_do_not_count(void)
{
    int strained = 0;

    for (uint64_t seed = 1; seed < 100; seed++) {
        two t;

        two_make(&t, seed);
        strained += two_look(&t, 200, 150000);
        CHECK(t.reading.known);
        sim_free(t.s);
    }
    printf("    %d of 19800 looks\n", strained);
    CHECK(strained < 40);
}

/* That so many or more are late of which `may_be` are expected, where what is usual strays as a gamma distribution of shape k. */
static double chance_of(int counted, double may_be, int k)
{
    double p = 1, below = 0;

    for (int i = 0; i < k; i++)
        p *= k / (k + may_be);
    for (int n = 0; n < counted; n++) {
        below += p;
        p *= (n + k) / (n + 1.0) * may_be / (k + may_be);
    }
    return 1 - below;
}

/* Two standard deviations are 2.3 %, four 0.003 %: of counts that is as near as one count is to the next. */
static void beyond_chance_is_what_it_says(void)
{
    static const double may_be[] = {0.3, 1, 2.5, 8, 30};

    for (int k = 1; k <= 64; k *= 4)
        for (int i = 0; i < 5; i++)
            for (int deviations = 2; deviations <= 4; deviations += 2) {
                tz_lateness lateness = {.may_be = may_be[i]};
                double most = deviations == 2 ? 0.035 : 0.0002, least = deviations == 2 ? 0.012 : 0.000005;
                int counted = 1;

                do
                    lateness.late = ++counted;
                while (!tz_lateness_is_beyond(&lateness, k, deviations));
                CHECK(chance_of(counted, may_be[i], k) < most);
                CHECK(counted == 2 || chance_of(counted - 1, may_be[i], k) > least);
            }
    CHECK(!tz_lateness_is_beyond(&(tz_lateness){0}, 1, 2));
    /* An absolute target is known for certain: a count and its scatter are all there is (of 8, 14 or more once in 30, 15 or more once in 58). */
    CHECK(!tz_lateness_is_beyond(&(tz_lateness){.late = 13, .may_be = 8}, 1e12, 2));
    CHECK(tz_lateness_is_beyond(&(tz_lateness){.late = 15, .may_be = 8}, 1e12, 2));
    CHECK(!tz_lateness_is_beyond(&(tz_lateness){.late = 5, .may_be = 5}, 40, 2));
}

/* What is usual is heard of 125 requests: for one volume in three that is less than what is usual indeed, often by much.
 * That is chance, and hardly ever taken for anything else. */
static void who_was_misheard_does_not_stand_out(void)
{
    int windows = 0, out = 0;

    for (uint64_t seed = 1; seed <= 400; seed++) {
        sim *s = sim_disk(seed);
        tz_gauge gauge;

        tz_gauge_init(&gauge, TZ_LOAD_UPDATES, &(tz_target){.factor = 1}, &s->loads[0], &s->usual[0], s->now);
        for (int i = 0; i < 10; i++) {
            tell_of(s, 0, 150000, i ? 250 : 125);
            s->now += SIM_S;
            if (i == 0)
                tz_gauge_listen(&gauge, &(tz_target){.factor = 1}, &s->loads[0], s->now);
            else if (tz_gauge_look(&gauge, &(tz_target){.factor = 1}, &s->loads[0], s->now)) {
                windows++;
                out += gauge.stands_out;
            }
        }
        sim_free(s);
    }
    printf("    %d of %d windows\n", out, windows);
    CHECK(windows == 3600 && out < 3);
}

/* Evidence is of a line: when that moves, or whoever it was of has left, it says nothing any more. */
static void evidence_ends_with_what_it_was_of(void)
{
    two t;
    tz_gauge *gauge;

    two_make(&t, 7);
    gauge = &t.s->meter.volumes[1].gauges[1];
    two_look(&t, 200, 150000);
    two_look(&t, 60, 1500000);
    CHECK(gauge->stands_out && t.s->meter.lately.late > 0);
    t.s->now += SIM_S;
    tell_of(t.s, 1, 150000, 100);
    tz_gauge_listen(gauge, &t.s->meter.target, &t.s->loads[1], t.s->now);
    CHECK(!gauge->stands_out && gauge->lately.may_be == 0);
    tz_meter_look(&t.s->meter, TZ_CALM_QUIET, t.s->now += 20 * SIM_MS);
    CHECK(t.s->meter.lately.may_be == 0);
    tz_meter_look(&t.s->meter, TZ_CALM_NOT, t.s->now += 20 * SIM_MS);
    two_look(&t, 60, 150000);
    CHECK(t.s->meter.lately.may_be > 0);
    t.s->now += SIM_MS;
    tz_meter_leave(&t.s->meter, 1, t.s->now);
    CHECK(t.s->meter.lately.may_be == 0 && t.s->meter.sum.may_be == 0 && t.s->meter.began_ns == t.s->now);
    sim_free(t.s);
}

/* Ten at a time for an hour are no better known than four thousand at once. */
static void what_is_known_has_a_bound(void)
{
    sim *s = sim_disk(8);
    tz_target target = {.factor = 1};
    tz_gauge gauge;

    tz_gauge_init(&gauge, TZ_LOAD_UPDATES, &target, &s->loads[0], &s->usual[0], s->now);
    for (int i = 0; i < 2000; i++) {
        tell_of(s, 0, 150000, 10);
        tz_gauge_listen(&gauge, &target, &s->loads[0], s->now += SIM_S);
    }
    CHECK(gauge.share > 0.09 && gauge.share < 0.11 && tz_gauge_heard(&gauge, &target) <= 80);
    sim_free(s);
}

int main(void)
{
    RUN(a_change_of_the_mix_is_no_harm);
    RUN(few_requests_that_suffer_are_not_outvoted);
    RUN(few_requests_that_were_misheard_do_not_count);
    RUN(beyond_chance_is_what_it_says);
    RUN(who_was_misheard_does_not_stand_out);
    RUN(evidence_ends_with_what_it_was_of);
    RUN(what_is_known_has_a_bound);
    return 0;
}
