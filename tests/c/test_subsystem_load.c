/* SPDX-License-Identifier: Apache-2.0
 *
 * The load that a volume measures and its sessions publish: what counts, from when to when, and where.
 */
#include "session_rig.h"

static tz_session_header *header(void)
{
    return tz_session_header_of(rig.session);
}

static uint64_t usual_count(enum tz_load_measure measure)
{
    return tz_load_get(&rig.volume->load.histograms[measure].count);
}

static uint64_t count(enum tz_load_measure measure)
{
    return tz_load_get(&header()->load.histograms[measure].count);
}

static void read_track(uint64_t track)
{
    update u;

    submit(&u, TZ_REQUEST_READ, track, 1);
    finish(&u);
}

static void without_a_session_it_is_what_is_usual(void)
{
    tz_volume_stats stats;
    update u;

    setup();
    write_tracks(0, 1);
    write_tracks(1, 2);
    read_track(5);
    submit(&u, TZ_REQUEST_FLUSH, 0, 0);
    finish(&u);
    submit(&u, TZ_REQUEST_TRIM, 8, 1); /* an update, whose time tells of other things */
    CHECK_EQ(atomic_load(&rig.volume->load.updates_in_flight), 1);
    finish(&u);
    CHECK_EQ(usual_count(TZ_LOAD_READS), 1);
    CHECK_EQ(usual_count(TZ_LOAD_UPDATES), 2);
    CHECK_EQ(tz_load_get(&rig.volume->load.arrived), 4);
    CHECK_EQ(tz_load_get(&rig.volume->load.read_bytes), TRACK);
    CHECK_EQ(tz_load_get(&rig.volume->load.written_bytes), 3 * TRACK);
    CHECK_EQ(atomic_load(&rig.volume->load.updates_in_flight), 0);
    tz_volume_stats_get(rig.volume, &stats);
    CHECK(stats.usual_read_p50_ns > 0 && stats.usual_update_p99_ns >= stats.usual_update_p50_ns);

    /* At T0 the session is told; from then on it is the session's alone, and afterwards the volume's again. */
    const tz_session_config config = usual();
    install(&config);
    CHECK_EQ(tz_load_get(&header()->usual.histograms[TZ_LOAD_UPDATES].count), 2);
    CHECK_EQ(tz_load_get(&header()->usual.histograms[TZ_LOAD_READS].count), 1);
    CHECK_EQ(count(TZ_LOAD_UPDATES), 0);
    write_tracks(0, 1);
    read_track(9);
    CHECK_EQ(count(TZ_LOAD_UPDATES), 1);
    CHECK_EQ(count(TZ_LOAD_READS), 1);
    CHECK_EQ(tz_load_get(&header()->load.arrived), 2);
    CHECK_EQ(tz_load_get(&header()->load.written_bytes), TRACK);
    CHECK_EQ(usual_count(TZ_LOAD_UPDATES), 2);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    write_tracks(0, 1);
    CHECK_EQ(usual_count(TZ_LOAD_UPDATES), 3);
    teardown();
}

/* What an update is held for a before-image is what the application waits. */
static void holding_is_counted(void)
{
    const tz_session_config config = usual();
    update u;

    setup();
    install(&config);
    submit(&u, TZ_REQUEST_WRITE, 3, 1);
    CHECK_EQ(atomic_load(&header()->load.updates_in_flight), 1);
    usleep(20000);
    finish(&u);
    CHECK(tz_load_quantile(&header()->load.histograms[TZ_LOAD_UPDATES], 0.5) >= 18000000);
    CHECK_EQ(atomic_load(&header()->load.updates_in_flight), 0);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

/* A request that came before T0 is in flight afterwards, too; its session is told. */
static void what_is_in_flight_at_t0_is_known(void)
{
    const tz_session_config config = usual();
    update u;

    setup();
    CHECK_EQ(tz_session_prepare(&rig.session, rig.volume, &config), 0);
    close_gate();
    step_until(&rig.drained);
    submit(&u, TZ_REQUEST_WRITE, 3, 1); /* held by the closed gate */
    CHECK_EQ(tz_gate_install(rig.volume, rig.session), 0);
    CHECK_EQ(atomic_load(&header()->load.updates_in_flight), 1);
    CHECK(tz_load_get(&header()->load.last_ns) > 0);
    open_gate();
    finish(&u);
    CHECK_EQ(atomic_load(&header()->load.updates_in_flight), 0);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

static void what_fails_is_no_latency(void)
{
    update u;

    setup();
    rig.volume->read_only = true;
    submit(&u, TZ_REQUEST_WRITE, 3, 1);
    CHECK(u.done);
    CHECK_EQ(u.result, -EPERM);
    free(u.buffer);
    rig.volume->read_only = false;
    CHECK_EQ(usual_count(TZ_LOAD_UPDATES), 0);
    CHECK_EQ(atomic_load(&rig.volume->load.updates_in_flight), 0);
    teardown();
}

/* Every session of a volume has all of it. */
static void every_session_is_told(void)
{
    const tz_session_config config = usual();
    tz_session *first;

    setup();
    install(&config);
    first = rig.session;
    write_tracks(0, 1);
    install(&config);
    write_tracks(1, 1);
    CHECK_EQ(tz_load_get(&tz_session_header_of(first)->load.arrived), 2);
    CHECK_EQ(tz_load_get(&header()->load.arrived), 1);
    end(first, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

/* What was long ago weighs less than what is new. */
static void what_is_usual_fades(void)
{
    setup();
    for (int i = 0; i < 70000; i++)
        tz_load_add(&rig.volume->load.histograms[TZ_LOAD_READS], 10000000);
    CHECK(tz_load_quantile(&rig.volume->load.histograms[TZ_LOAD_READS], 0.5) >= 9000000);
    for (int i = 0; i < 140000; i++) {
        tz_request request = {.kind = TZ_REQUEST_READ, .volume.arrived_ns = tz_now_ns()};

        atomic_store(&rig.volume->load.reads_in_flight, 1);
        tz_volume_load_ended(rig.volume, &request, true);
    }
    CHECK(usual_count(TZ_LOAD_READS) < (UINT64_C(1) << 17));
    CHECK(tz_load_quantile(&rig.volume->load.histograms[TZ_LOAD_READS], 0.5) < 9000000);
    teardown();
}

int main(void)
{
    RUN(without_a_session_it_is_what_is_usual);
    RUN(holding_is_counted);
    RUN(what_is_in_flight_at_t0_is_known);
    RUN(what_fails_is_no_latency);
    RUN(every_session_is_told);
    RUN(what_is_usual_fades);
    return 0;
}
