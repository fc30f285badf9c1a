/* SPDX-License-Identifier: Apache-2.0
 *
 * The high mark: writers are delayed by a graduated and bounded time, exempt ones never, and it does not flap.
 */
#include "session_rig.h"

static tz_session_config small(void)
{
    tz_session_config c = usual();

    c.memory_bytes = 256 * 1024;
    c.low_percent = 20;
    c.high_percent = 60;
    c.max_delay_us = 1000;
    return c;
}

static const tz_session_header *header(void)
{
    return tz_session_header_of(rig.session);
}

static uint64_t delayed(void)
{
    return atomic_load(&header()->delayed);
}

/* The mover takes the before-image of a track. */
static void give_back(uint64_t track)
{
    uint32_t slot = tz_session_find(header(), track);

    CHECK(slot != TZ_SLOT_NONE);
    CHECK(mark_copied(track) != 0);
    push(slot);
}

/* What would be said with that many slots in use. */
static uint64_t delay_at(uint32_t used)
{
    const uint32_t really = rig.session->sidefile.used;
    uint64_t delay;

    rig.session->sidefile.used = used;
    delay = tz_session_delay_ns(rig.session);
    rig.session->sidefile.used = really;
    return delay;
}

static void the_delay_grows_and_is_bounded(void)
{
    tz_session_config c = small();
    uint64_t before = 0;

    setup();
    install(&c);
    for (uint32_t used = 0; used <= header()->slots; used++) {
        uint64_t delay = delay_at(used);

        CHECK((delay > 0) == (used > header()->high_mark));
        CHECK(delay >= before && delay <= 1000 * 1000);
        before = delay;
    }
    CHECK_EQ(before, 1000 * 1000); /* at the cap */
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

/* Past the mark an update is delayed once, however often it is judged, and only if it needs a before-image. */
static void writers_are_delayed_until_usage_is_clearly_below(void)
{
    tz_session_config c = small();
    uint32_t track = 0, end_at;
    uint64_t count;

    setup();
    install(&c);
    end_at = rig.session->high.end;
    CHECK(end_at < header()->high_mark && end_at > header()->low_mark);
    for (; track <= header()->high_mark; track++)
        write_tracks(track, 1);
    CHECK_EQ(delayed(), 0);
    write_tracks(track++, 1);
    CHECK_EQ(delayed(), 1);
    write_tracks(0, 1); /* has its image */
    CHECK_EQ(delayed(), 1);
    for (uint32_t taken = 0; rig.session->sidefile.used > end_at + 1; taken++)
        give_back(taken);
    CHECK(rig.session->sidefile.used < header()->high_mark);
    write_tracks(track++, 1); /* below the mark, and still */
    CHECK_EQ(delayed(), 2);
    give_back(track - 1);
    give_back(track - 2);
    CHECK_EQ(rig.session->sidefile.used, end_at);
    count = delayed();
    while (rig.session->sidefile.used <= header()->high_mark && track < SIZE / TRACK)
        write_tracks(track++, 1); /* up to the mark again: not before it */
    CHECK_EQ(delayed(), count);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

/* How often it begins and ends while usage goes up and down. */
static uint32_t changes(uint32_t from, uint32_t to)
{
    uint32_t changes = 0;
    bool was = delay_at(from) > 0;

    for (int round = 0; round < 100; round++) {
        bool is = delay_at(round % 2 ? from : to) > 0;

        changes += is != was;
        was = is;
    }
    return changes;
}

static void it_does_not_flap_around_a_mark(void)
{
    tz_session_config c = small();
    uint32_t high, width;

    setup();
    c.memory_bytes = 4 << 20; /* slots enough for a width of several */
    install(&c);
    high = header()->high_mark;
    width = high - rig.session->high.end;
    CHECK(width > 10);
    delay_at(0);
    CHECK_EQ(changes(high, high + 1), 1);
    CHECK_EQ(changes(high - width + 1, high + 1), 0); /* as wide as it may be */
    CHECK(changes(high - width, high + 1) > 50);      /* and no wider: the test can fail */
    delay_at(0);
    CHECK_EQ(changes(high - width, high), 0);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

/* The same for the mover's low mark, by the numbers. */
static void marks_of_any_size(void)
{
    for (uint32_t high = 0; high < 300; high++)
        for (uint32_t low = 0; low <= high; low++) {
            tz_mark l = tz_mark_low(low, high), h = tz_mark_high(low, high);

            CHECK(l.begin == low && l.end <= low && h.begin == high && h.end <= high);
            CHECK(low < 2 || high == low || l.end < low || high - low < 8);
            CHECK(high == 0 || h.end < high);
            CHECK(!tz_mark_is_past(l, low, false) && tz_mark_is_past(l, low + 1, false));
            CHECK(!tz_mark_is_past(l, l.end, true) && tz_mark_is_past(l, l.end + 1, true));
        }
}

static void exempt_writers_are_never_delayed(void)
{
    tz_session_config c = small();
    uint32_t slots;

    setup();
    c.exempt = true;
    install(&c);
    slots = header()->slots;
    CHECK(slots < SIZE / TRACK);
    for (uint32_t track = 0; track < slots; track++)
        write_tracks(track, 1);
    CHECK_EQ(rig.session->sidefile.used, slots);
    CHECK_EQ(delayed(), 0);
    CHECK_EQ(state(), TZ_SESSION_ACTIVE);
    write_tracks(slots, 1); /* the cap is the same for all */
    end(rig.session, false, TZ_SESSION_PUNCTURED, TZ_PUNCTURE_CAP);
    teardown();
}

int main(void)
{
    RUN(the_delay_grows_and_is_bounded);
    RUN(writers_are_delayed_until_usage_is_clearly_below);
    RUN(it_does_not_flap_around_a_mark);
    RUN(marks_of_any_size);
    RUN(exempt_writers_are_never_delayed);
    return 0;
}
