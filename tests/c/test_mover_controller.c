/* SPDX-License-Identifier: Apache-2.0
 *
 * The controller on a simulated disk: what it is for (the application's latency, full speed when nobody is there, giving
 * way when somebody comes back), and the traps that it must not walk into.
 */
#include "simulated_device.h"

/* A quarter of what the disk can do, which is 58,000 requests of 4 KiB a second with eight in flight. */
static void moderate(sim *s)
{
    sim_application(s, 8, 530 * SIM_US, 0);
}

static void idle_is_full_speed_within_a_second(void)
{
    for (int from_floor = 0; from_floor < 2; from_floor++) {
        sim *s = sim_disk(1);
        uint64_t began;

        moderate(s);
        sim_run(s, SIM_S);
        sim_begin(s, FACTOR, 0, false);
        sim_run(s, 3 * SIM_S);
        CHECK(!sim_is_full(s));
        if (from_floor)
            s->controller.level = 0;
        sim_application(s, 0, 0, 0);
        for (began = s->now; !sim_is_full(s); sim_run(s, SIM_MS))
            CHECK(s->now - began <= SIM_S);
        sim_free(s);
    }
}

static void nobody_there_is_full_speed_at_once(void)
{
    sim *s = sim_disk(2);

    sim_begin(s, FACTOR, 0, true);
    sim_run(s, SIM_MS);
    CHECK(sim_is_full(s));
    sim_free(s);
}

static void an_application_that_comes_back_is_given_way_to_within_100_ms(void)
{
    for (uint64_t seed = 1; seed < 30; seed++) {
        sim *s = sim_disk(seed);
        uint64_t usual, load_began;

        moderate(s);
        usual = sim_p99(s, TZ_LOAD_UPDATES, 2 * SIM_S);
        sim_begin(s, FACTOR, 0, false);
        sim_run(s, 4 * SIM_S);
        sim_application(s, 0, 0, 0);
        sim_run(s, 2 * SIM_S + seed * SIM_MS);
        CHECK(sim_is_full(s));
        moderate(s);
        for (load_began = s->now; sim_is_full(s); sim_run(s, SIM_MS))
            CHECK(s->now - load_began <= 2 * TZ_LOOK_NS);
        CHECK(s->press.depth == 1 && s->press.piece > 0);
        /* What was under way is through as well, and the application has what it had. */
        sim_run(s, 100 * SIM_MS - (s->now - load_began));
        CHECK(sim_p99(s, TZ_LOAD_UPDATES, SIM_S) <= 2 * usual);
        sim_free(s);
    }
}

/* Large chunks on a slow disk: nothing that would take longer than that is under way when the application comes. */
static void chunks_of_16_mib_are_out_of_the_way_as_soon(void)
{
    for (uint64_t seed = 1; seed < 30; seed++) {
        double ns_a_byte = seed % 3 ? 5.0 : 0.6; /* 200 MB a second, or 1.7 GB */
        sim *s = sim_make(1, 14 * SIM_US, ns_a_byte, seed);
        uint64_t load_began, small;

        s->chunk = 16 * TZ_MIB;
        s->frames = 2 + 2 * (seed % 4);
        sim_application(s, 2, 2 * SIM_MS, 0);
        sim_run(s, SIM_S);
        sim_begin(s, FACTOR, 0, false);
        sim_run(s, 4 * SIM_S);
        sim_application(s, 0, 0, 0);
        sim_run(s, 2 * SIM_S + seed * 7 * SIM_MS);
        CHECK(sim_is_full(s));
        sim_application(s, 2, 2 * SIM_MS, 0);
        for (load_began = s->now; sim_is_full(s); sim_run(s, SIM_MS))
            CHECK(s->now - load_began <= 2 * TZ_LOOK_NS);
        CHECK(s->press.depth == 1 && s->press.piece > 0 && s->press.piece <= 256 * TZ_KIB);
        /* The disk is through with what was there; what is behind that is small: a piece of each chunk begun. */
        small = s->frames * ((uint64_t)(s->press.piece * ns_a_byte) + 14 * SIM_US);
        CHECK(s->free_ns[0] <= load_began + 100 * SIM_MS + small);
        sim_free(s);
    }
}

/* And full speed is what the disk gives, in whatever pieces. */
static void chunks_of_16_mib_are_copied_at_full_speed(void)
{
    for (uint32_t frames = 2; frames <= 8; frames *= 2) {
        sim *s = sim_disk(frames);

        s->chunk = 16 * TZ_MIB;
        s->frames = frames;
        sim_begin(s, FACTOR, 0, true);
        sim_run(s, 2 * SIM_S);
        CHECK(sim_is_full(s) && s->press.piece == (frames < 8 ? 0 : 8 * TZ_MIB)); /* 69 MB in 50 ms */
        CHECK(0.72e-9 * (double)sim_moved(s, 10 * SIM_S) > 9.7);
        sim_free(s);
    }
}

static void p99_stays_within_its_target_and_the_copy_advances(void)
{
    for (uint64_t seed = 1; seed < 12; seed++) {
        sim *s = seed % 2 ? sim_virtual_disk(seed) : sim_disk(seed);
        uint64_t usual, during, moved;

        moderate(s);
        usual = sim_p99(s, TZ_LOAD_UPDATES, 20 * SIM_S);
        sim_begin(s, FACTOR, 0, false);
        moved = s->moved;
        during = sim_p99(s, TZ_LOAD_UPDATES, 20 * SIM_S);
        moved = s->moved - moved;
        printf("    usual %.0f us, during %.0f us (x %.2f), %.0f MiB/s\n", usual / 1e3, during / 1e3,
               ratio(during, usual), moved / 20.0 / TZ_MIB);
        /* Where the disk is all there is, a single piece takes longer than the quarter that may be added: there the
         * floor is nearly all that can be had. */
        CHECK(ratio(during, usual) <= FACTOR * 1.2);
        CHECK(moved / 20 > (seed % 2 ? 400 : 8) * TZ_MIB);
        sim_free(s);
    }
}

/* The tests above can fail: without a limit worth the name the same application suffers. */
static void without_a_limit_it_would_not(void)
{
    sim *s = sim_disk(1);
    uint64_t usual;

    moderate(s);
    usual = sim_p99(s, TZ_LOAD_UPDATES, 2 * SIM_S);
    sim_begin(s, 1e6, 0, false);
    sim_run(s, 4 * SIM_S);
    CHECK(sim_p99(s, TZ_LOAD_UPDATES, 5 * SIM_S) > 3 * usual);
    sim_free(s);
}

static void an_absolute_target_is_kept(void)
{
    for (uint64_t target = 300 * SIM_US; target <= 3 * SIM_MS; target *= 3) {
        sim *s = sim_disk(3);
        uint64_t during;

        moderate(s);
        sim_begin(s, 0, target, false);
        sim_run(s, 6 * SIM_S);
        during = sim_p99(s, TZ_LOAD_UPDATES, 20 * SIM_S);
        printf("    target %.0f us, during %.0f us\n", target / 1e3, during / 1e3);
        CHECK(ratio(during, target) <= 1.2);
        CHECK(ratio(during, target) >= 0.5); /* it is made use of */
        sim_free(s);
    }
}

/* An application that never rests and keeps the disk full: the copy advances all the same. */
static void a_full_disk_stops_nobody(void)
{
    sim *s = sim_disk(4);

    sim_application(s, 4, 0, 0);
    sim_run(s, 2 * SIM_S);
    sim_begin(s, FACTOR, 0, false);
    sim_run(s, 5 * SIM_S);
    CHECK(sim_moved(s, 20 * SIM_S) >= 20 * 7 * TZ_MIB); /* the floor, but for moments of listening */
    sim_free(s);
}

/* Nobody can keep this target. The floor is where the mover stays, and at which it goes on. */
static void an_absolute_target_out_of_reach_leaves_the_floor(void)
{
    sim *s = sim_disk(5);
    uint64_t moved;

    moderate(s);
    sim_begin(s, 0, 10 * SIM_US, false);
    sim_run(s, 5 * SIM_S);
    CHECK(s->press.calm == TZ_CALM_FLOOR);
    moved = sim_moved(s, 10 * SIM_S);
    CHECK(moved > 70 * TZ_MIB && moved < 90 * TZ_MIB);
    sim_free(s);
}

/* ---- traps ---- */

/* The whole disk stops for 40 to 460 ms now and then: nobody's fault, and no reason to be much slower afterwards. */
static void stops_of_the_disk_are_nobodys_fault(void)
{
    for (uint64_t seed = 1; seed < 20; seed++) {
        sim *stopped = sim_disk(seed), *steady = sim_disk(seed);
        uint64_t stop = (40 + seed * 22) * SIM_MS, moved[2] = {0, 0};

        for (int i = 0; i < 2; i++) {
            sim *s = i ? steady : stopped;

            moderate(s);
            sim_run(s, 2 * SIM_S);
            sim_begin(s, 4.0, 0, false);
            sim_run(s, 3 * SIM_S);
            for (int second = 0; second < 10; second++) {
                if (s == stopped)
                    sim_stop(s, stop);
                moved[i] += sim_moved(s, SIM_S);
            }
            sim_free(s);
        }
        printf("    stops of %.0f ms: %.0f of %.0f MiB\n", stop / 1e6, moved[0] / (double)TZ_MIB,
               moved[1] / (double)TZ_MIB);
        CHECK(ratio(moved[0], moved[1]) > 0.55 * (1 - stop / 1e9));
    }
}

/* A neighbour takes half of the disk. With a relative target that becomes what is usual; the mover is not at its floor
 * for ever, and when the neighbour has gone, its latencies are forgotten. */
static void latency_of_others_is_not_ours(void)
{
    sim *s = sim_disk(6);
    uint64_t usual;
    int floors = 0;

    moderate(s);
    usual = sim_p99(s, TZ_LOAD_UPDATES, 2 * SIM_S);
    sim_begin(s, FACTOR, 0, false);
    sim_run(s, 3 * SIM_S);
    sim_neighbour(s, 32 * SIM_US);
    sim_run(s, 3 * SIM_S);
    for (int i = 0; i < 100; i++) {
        sim_run(s, 100 * SIM_MS);
        floors += s->press.calm != TZ_CALM_NOT;
    }
    CHECK(floors < 70);
    sim_neighbour(s, 0);
    sim_run(s, 12 * SIM_S);
    CHECK(ratio(sim_p99(s, TZ_LOAD_UPDATES, 10 * SIM_S), usual) <= FACTOR * 1.25);
    sim_free(s);
}

/* p99 while updates are intercepted and nothing is copied. */
static uint64_t sim_price(uint64_t seed)
{
    sim *s = sim_virtual_disk(seed);
    uint64_t p99;

    s->intercept_percent = 90;
    s->moves = true;
    s->looked_ns = SIM_NEVER / 2; /* nobody looks, nothing moves */
    s->into = s->loads;
    moderate(s);
    p99 = sim_p99(s, TZ_LOAD_UPDATES, 20 * SIM_S);
    sim_free(s);
    return p99;
}

/* From T0 on most updates come to the disk twice. That is not of copying, which slower copying makes last longer: what
 * copying adds is what counts: it goes on at a good part of its speed. */
static void interception_is_not_held_against_copying(void)
{
    for (uint64_t seed = 1; seed < 8; seed++) {
        uint64_t moved[2], price, during;

        for (int intercepted = 0; intercepted < 2; intercepted++) {
            sim *s = sim_virtual_disk(seed);

            s->intercept_percent = intercepted ? 90 : 0;
            moderate(s);
            sim_run(s, 5 * SIM_S);
            sim_begin(s, FACTOR, 0, false);
            sim_run(s, 8 * SIM_S);
            moved[intercepted] = s->moved;
            during = sim_p99(s, TZ_LOAD_UPDATES, 20 * SIM_S);
            moved[intercepted] = s->moved - moved[intercepted];
            sim_free(s);
        }
        price = sim_price(seed);
        printf("    %.0f MiB/s without, %.0f with; p99 %.0f us of %.0f (x %.2f)\n", moved[0] / 20.0 / TZ_MIB,
               moved[1] / 20.0 / TZ_MIB, during / 1e3, price / 1e3, ratio(during, price));
        CHECK(ratio(moved[1], moved[0]) > 0.2);
        CHECK(ratio(during, price) <= FACTOR * 1.2);
    }
}

/* Before its hours begin the application has the disk to itself, which is no leave to press it then. */
static void hours_begin_where_it_was_judged_last(void)
{
    for (int judged = 0; judged < 2; judged++) {
        sim *s = sim_disk(14);
        double level;

        moderate(s);
        sim_run(s, 2 * SIM_S);
        s->rests = !judged;
        sim_begin(s, FACTOR, 0, false);
        level = s->controller.level;
        if (judged) {
            sim_run(s, 10 * SIM_S);
            level = s->controller.level;
            s->rests = true;
        }
        for (int i = 0; i < 100; i++) {
            sim_run(s, 100 * SIM_MS);
            CHECK(s->controller.level == level);
        }
        s->rests = false;
        sim_run(s, 2 * TZ_LOOK_NS);
        CHECK(s->press.depth == 1 && s->press.piece > 0 && s->press.piece <= 256 * TZ_KIB);
        CHECK(sim_moved(s, 20 * SIM_S) > 100 * TZ_MIB);
        sim_free(s);
    }
}

/* Before T0 there was nothing, or a few slow requests of a disk that had to wake up: what is usual is learnt while the
 * mover is quiet. */
static void a_volume_without_a_past_is_listened_to(void)
{
    for (int few = 0; few < 2; few++) {
        sim *s = sim_disk(7), *quiet = sim_disk(8);
        uint64_t usual, during;

        moderate(quiet);
        usual = sim_p99(quiet, TZ_LOAD_UPDATES, 5 * SIM_S);
        for (int i = 0; few && i < 50; i++)
            tz_load_add(&s->usual[0].histograms[TZ_LOAD_UPDATES], 20 * SIM_MS);
        sim_begin(s, FACTOR, 0, false);
        sim_run(s, SIM_S / 2);
        moderate(s);
        sim_run(s, 5 * SIM_S);
        CHECK(s->meter.volumes[0].gauges[1].known > 0);
        CHECK(s->press.calm != TZ_CALM_QUIET);
        during = sim_p99(s, TZ_LOAD_UPDATES, 10 * SIM_S);
        CHECK(ratio(during, usual) <= FACTOR * 1.2);
        CHECK(sim_moved(s, 10 * SIM_S) > 100 * TZ_MIB);
        sim_free(quiet);
        sim_free(s);
    }
}

/* Five requests a second tell of no percentiles: one request of 256 KiB in flight, neither the floor nor full speed. */
static void few_requests_are_met_with_a_usual_level(void)
{
    sim *s = sim_disk(9);

    sim_application(s, 1, 200 * SIM_MS, 50);
    sim_run(s, 20 * SIM_S);
    sim_begin(s, FACTOR, 0, false);
    sim_run(s, SIM_S);
    for (int i = 0; i < 1000; i++) {
        sim_run(s, 20 * SIM_MS);
        CHECK(s->press.depth == 1 && s->press.piece >= 64 * TZ_KIB && s->press.piece <= 256 * TZ_KIB);
    }
    sim_free(s);
}

/* Twenty updates a second, after a busy past, and nearly all intercepted: what is usual now is heard of few, and not that
 * of before T0. */
static void few_updates_after_a_busy_past_are_no_strain(void)
{
    for (uint64_t seed = 1; seed < 10; seed++) {
        sim *s = sim_virtual_disk(seed);
        int floors = 0;

        s->intercept_percent = 95;
        moderate(s);
        sim_run(s, 2 * SIM_S);
        sim_application(s, 1, 50 * SIM_MS, 0);
        sim_run(s, SIM_S);
        sim_begin(s, FACTOR, 0, false);
        sim_run(s, 10 * SIM_S);
        for (int i = 0; i < 200; i++) {
            sim_run(s, 100 * SIM_MS);
            floors += s->press.calm == TZ_CALM_FLOOR;
        }
        printf("    at the floor %d %% of the time\n", floors / 2);
        CHECK(floors < 100);
        sim_free(s);
    }
}

/* A stop of the disk in the middle of listening is not what is usual from then on. */
static void a_stop_while_listening_is_not_usual(void)
{
    for (uint64_t seed = 1; seed < 10; seed++) {
        sim *s = sim_virtual_disk(seed);
        uint64_t usual;

        sim_application(s, 4, 4 * SIM_MS, 0); /* a thousand a second */
        usual = sim_p99(s, TZ_LOAD_UPDATES, 10 * SIM_S);
        sim_begin(s, FACTOR, 0, false);
        while (s->press.calm != TZ_CALM_QUIET)
            sim_run(s, 10 * SIM_MS);
        sim_run(s, 100 * SIM_MS);
        sim_stop(s, 200 * SIM_MS);
        while (s->press.calm == TZ_CALM_QUIET)
            sim_run(s, 10 * SIM_MS);
        CHECK(s->meter.volumes[0].gauges[1].late_ns < 5 * FACTOR * usual);
        sim_run(s, 30 * SIM_S);
        CHECK(s->meter.volumes[0].gauges[1].late_ns < 3 * usual);
        sim_free(s);
    }
}

/* A sidefile that fills ends a quiet time, and there is not another one at once. */
static void quiet_does_not_flap(void)
{
    sim *s = sim_disk(3);
    int turns = 0;

    moderate(s);
    sim_run(s, 2 * SIM_S);
    sim_begin(s, FACTOR, 0, false);
    for (int i = 0; i < 500; i++) {
        enum tz_calm before = s->press.calm;

        s->pressure = before == TZ_CALM_QUIET ? 0.6 : 0;
        sim_run(s, 20 * SIM_MS);
        turns += before != TZ_CALM_QUIET && s->press.calm == TZ_CALM_QUIET;
    }
    CHECK(turns >= 1 && turns <= 3); /* in ten seconds */
    sim_free(s);
}

/* A disk of a hundred requests a second gives nothing near the rates that the upper levels mean; the way down must not
 * lead through all of them. */
static void a_slow_disk_is_given_way_to_as_quickly(void)
{
    sim *s = sim_make(1, 8 * SIM_MS, 8, 11);
    int paced = 0;

    sim_application(s, 2, 60 * SIM_MS, 100);
    sim_run(s, 60 * SIM_S);
    sim_begin(s, FACTOR, 0, true);
    /* A moment of quiet, which tells of few, and windows of half a second. */
    sim_run(s, 3 * SIM_S);
    for (int i = 0; i < 200; i++) {
        sim_run(s, 100 * SIM_MS);
        CHECK(s->press.depth == 1 && s->press.piece > 0 && s->press.piece <= 128 * TZ_KIB);
        paced += s->press.rate > 0;
    }
    CHECK(paced > 100);
    sim_free(s);
}

static void a_filling_sidefile_counts_against_yielding(void)
{
    sim *s = sim_disk(12);
    uint64_t before = 0;

    moderate(s);
    sim_run(s, 2 * SIM_S);
    sim_begin(s, 0, 10 * SIM_US, false); /* at the floor by itself */
    sim_run(s, 5 * SIM_S);
    for (s->pressure = 0; s->pressure < 1.01; s->pressure += 0.25) {
        uint64_t moved;

        sim_run(s, 100 * SIM_MS);
        moved = sim_moved(s, 5 * SIM_S);
        CHECK(moved > before);
        before = moved;
    }
    CHECK(sim_is_full(s));
    s->pressure = 0;
    sim_run(s, 100 * SIM_MS);
    CHECK(s->press.calm == TZ_CALM_FLOOR);
    sim_free(s);
}

/* An array serves many at once: there is nothing to yield for, and the mover finds that out. */
static void an_array_is_made_use_of(void)
{
    sim *s = sim_make(16, 80 * SIM_US, 0.3, 13);

    sim_application(s, 4, 200 * SIM_US, 50);
    sim_run(s, 2 * SIM_S);
    sim_begin(s, FACTOR, 0, false);
    sim_run(s, 10 * SIM_S);
    CHECK(s->press.depth >= 2);
    sim_free(s);
}

/* One judgement, of an application that is there; what has become of a controller that was at level 40. */
static tz_controller judged(double now, double standing, bool certain, double pressure)
{
    tz_controller_config config = {.full = SIM_FULL, .frames = SIM_FULL, .chunk_size = SIM_CHUNK};
    tz_reading reading = {
        .active = true, .fresh = true, .known = true, .certain = certain, .now = now, .standing = standing};
    tz_sight sight = {.now_ns = SIM_S + TZ_LOOK_NS, .reading = {.active = true, .known = true}, .pressure = pressure};
    tz_controller c;

    tz_controller_init(&c, &config, false, SIM_S);
    c.level = 40;
    tz_controller_look(&c, &sight); /* pressure is known from now on */
    sight.reading = reading;
    sight.now_ns += TZ_LOOK_NS;
    tz_controller_look(&c, &sight);
    return c;
}

/* What may be chance is a small debt; what is not is all that it did not go. */
static void debts_are_of_good_reason(void)
{
    tz_controller chance = judged(25, 25, false, 0), certain = judged(25, 25, true, 0);

    CHECK(chance.level < 40 && chance.debt > 0 && chance.debt <= 4);
    CHECK(certain.level < 40 && certain.debt == 16);
}

/* A sidefile that fills asks for more than it is at. That stays when it is no strain, and somebody who suffers is one. */
static void what_a_sidefile_asked_for_stays_where_nobody_suffers(void)
{
    CHECK(judged(0.8, 0.8, false, 1).level > 45);
    CHECK(judged(0.8, 5, false, 1).level <= 40);
}

/* Whatever happens, in whatever order: what it says makes sense (checked at every look), nothing gets stuck, and half a
 * second of nobody after half a second of nobody is full speed. */
static void anything_may_happen(void)
{
    for (uint64_t seed = 1; seed < 40; seed++) {
        sim *s = sim_make(1 + seed % 3, (10 + seed * 7) * SIM_US, 0.3 + (double)(seed % 5), seed);

        if (seed % 2)
            sim_application(s, 1 + seed % 8, seed * 100 * SIM_US, seed % 101);
        sim_run(s, SIM_S);
        sim_begin(s, seed % 3 ? 1.0 + (double)(seed % 4) : 0, seed % 3 ? 0 : seed * 100 * SIM_US, seed % 2 == 0);
        for (int i = 0; i < 30; i++) {
            uint64_t what = sim_random(s) % 6, moved;

            if (what == 0)
                sim_stop(s, sim_random(s) % (500 * SIM_MS));
            else if (what == 1)
                sim_neighbour(s, sim_random(s) % 2 ? 3 * s->fixed_ns + sim_random(s) % SIM_MS : 0);
            else if (what == 2)
                s->pressure = (double)(sim_random(s) % 3) / 2;
            else
                sim_application(s, sim_random(s) % 12, sim_random(s) % (20 * SIM_MS), sim_random(s) % 101);
            moved = s->moved;
            sim_run(s, 2 * SIM_S);
            CHECK(s->moved > moved);
        }
        s->pressure = 0;
        sim_neighbour(s, 0);
        sim_application(s, 0, 0, 0);
        sim_run(s, 3 * SIM_S);
        CHECK(sim_is_full(s));
        sim_free(s);
    }
}

int main(void)
{
    RUN(idle_is_full_speed_within_a_second);
    RUN(nobody_there_is_full_speed_at_once);
    RUN(an_application_that_comes_back_is_given_way_to_within_100_ms);
    RUN(chunks_of_16_mib_are_out_of_the_way_as_soon);
    RUN(chunks_of_16_mib_are_copied_at_full_speed);
    RUN(p99_stays_within_its_target_and_the_copy_advances);
    RUN(without_a_limit_it_would_not);
    RUN(an_absolute_target_is_kept);
    RUN(a_full_disk_stops_nobody);
    RUN(an_absolute_target_out_of_reach_leaves_the_floor);
    RUN(stops_of_the_disk_are_nobodys_fault);
    RUN(latency_of_others_is_not_ours);
    RUN(interception_is_not_held_against_copying);
    RUN(hours_begin_where_it_was_judged_last);
    RUN(a_volume_without_a_past_is_listened_to);
    RUN(few_requests_are_met_with_a_usual_level);
    RUN(few_updates_after_a_busy_past_are_no_strain);
    RUN(a_stop_while_listening_is_not_usual);
    RUN(quiet_does_not_flap);
    RUN(a_slow_disk_is_given_way_to_as_quickly);
    RUN(a_filling_sidefile_counts_against_yielding);
    RUN(an_array_is_made_use_of);
    RUN(debts_are_of_good_reason);
    RUN(what_a_sidefile_asked_for_stays_where_nobody_suffers);
    RUN(anything_may_happen);
    return 0;
}
