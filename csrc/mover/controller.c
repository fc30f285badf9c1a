/* SPDX-License-Identifier: Apache-2.0 */
#include "controller.h"

#define MS UINT64_C(1000000)

/* Levels are counted in quarters of a power of two. */
#define OCTAVE 4

/* Level 0: pieces of LEAST_PIECE at FLOOR_RATE, both ways together; at PACED, one after the other without a pause. */
#define LEAST_PIECE (64 * TZ_KIB)
#define FLOOR_RATE  (8 * TZ_MIB)
#define PACED       (6 * OCTAVE)

/* One request of 256K in flight: p99 of an application with few updates is the same as with 64K, and the copy takes a
 * third of the time (bench/intercept/README.md). */
#define USUAL_LEVEL (PACED + 2 * OCTAVE)

/* Before anything is known: what is nearly always kind. Two windows later something is. */
#define FIRST_LEVEL PACED

#define IDLE_NS     (500 * MS)
#define RELISTEN_NS (5000 * MS)
#define LISTEN_NS   (1000 * MS) /* at most */

/* Readings that are believed about others. At the floor there is time; listening costs speed. */
#define HEARD_AT_FLOOR  5
#define HEARD_LISTENING 3

#define EASE  0.9
#define UP    1
#define DOWN  OCTAVE
#define HEAVY 2.0 /* times the limit: DOWN twice */

static int clamp(int value, int least, int most)
{
    return value < least ? least : value > most ? most : value;
}

/* The power of two that is not less, as a level. */
static int octaves(uint64_t value)
{
    int n = 0;

    while ((UINT64_C(1) << n) < value)
        n++;
    return n * OCTAVE;
}

/* Level from which chunks are read whole. */
static int whole(const tz_controller *c)
{
    return PACED + octaves(tz_max_u64(c->config.chunk_size / LEAST_PIECE, 1));
}

static uint64_t rate_of(int level)
{
    static const double parts[OCTAVE] = {1, 1.189207, 1.414214, 1.681793};

    return (uint64_t)((double)(FLOOR_RATE << (level / OCTAVE)) * parts[level % OCTAVE]);
}

void tz_controller_init(tz_controller *c, const tz_controller_config *config, bool idle, uint64_t now_ns)
{
    *c = (tz_controller){.config = *config, .others = 1, .look_ns = now_ns, .moved_ns = now_ns};
    c->top = whole(c) + octaves(config->full);
    c->usable = clamp(FIRST_LEVEL, 0, c->top);
    c->resting = idle;
    c->level = idle ? c->top : c->usable;
    c->busy_ns = idle ? now_ns - tz_min_u64(now_ns, IDLE_NS) : now_ns;
}

static double limit_of(const tz_controller *c)
{
    return c->config.factor > 0 ? c->config.factor * c->others : 1;
}

/* The paced level whose rate is what was really moved since the last judgement. */
static int given(const tz_controller *c, const tz_sight *sight)
{
    double seconds = (double)(sight->now_ns - c->moved_ns) / 1e9;
    double rate = seconds > 0 ? (double)(sight->moved - c->moved) / seconds : 0;
    int level = PACED;

    while (level > 0 && (double)rate_of(level) > rate)
        level--;
    return level;
}

/* ---- listening ---- */

static void listen_now(tz_controller *c, uint64_t now)
{
    c->listening = true;
    c->listening_ns = now;
    c->heard = 0;
}

/* A reading that is not of our making. */
static void hear(tz_controller *c, const tz_reading *reading)
{
    c->least = c->heard++ == 0 || reading->now < c->least ? reading->now : c->least;
}

static void conclude(tz_controller *c, uint64_t now)
{
    if (c->config.factor > 0 && c->heard > 0)
        c->others = c->least > 1 ? c->least : 1;
    c->told_ns = now;
    c->heard = 0;
}

static void look_after_listening(tz_controller *c, const tz_sight *sight)
{
    const tz_reading *reading = &sight->reading;

    if (sight->pressure > 0) {
        c->listening = false;
    } else if (c->listening) {
        if (reading->fresh)
            hear(c, reading);
        /* Learning a reference ends by itself. */
        if (reading->needs_quiet || (c->heard < HEARD_LISTENING && sight->now_ns - c->listening_ns < LISTEN_NS))
            return;
        conclude(c, sight->now_ns);
        c->listening = false;
    } else if (reading->needs_quiet || (c->others > 1 && sight->now_ns - c->told_ns >= RELISTEN_NS)) {
        listen_now(c, sight->now_ns);
    }
}

/* The mover is at its floor, and so listens all the time. */
static void listen_at_floor(tz_controller *c, const tz_sight *sight)
{
    hear(c, &sight->reading);
    if (c->heard >= HEARD_AT_FLOOR)
        conclude(c, sight->now_ns);
}

/* ---- the level ---- */

static void judge(tz_controller *c, const tz_sight *sight)
{
    const tz_reading *reading = &sight->reading;
    int from = c->level < PACED ? clamp(given(c, sight), 0, c->level) : c->level;

    if (c->level == 0 && sight->pressure <= 0)
        listen_at_floor(c, sight);
    else
        c->heard = 0;
    if (reading->now > limit_of(c)) {
        c->level = clamp(from - (reading->now > HEAVY * limit_of(c) ? 2 * DOWN : DOWN), 0, c->top);
    } else if (reading->standing < EASE * limit_of(c)) {
        c->level = clamp(c->level + UP, 0, c->top);
    }
    c->moved = sight->moved;
    c->moved_ns = sight->now_ns;
}

static void look_at_active(tz_controller *c, const tz_sight *sight)
{
    bool listened = c->listening;

    if (c->resting)
        c->level = clamp(c->level, 0, c->usable);
    c->resting = false;
    c->busy_ns = sight->now_ns;
    look_after_listening(c, sight);
    if (!listened && !c->listening && sight->reading.fresh)
        judge(c, sight);
    if (sight->reading.standing == 0) /* nothing is known of it */
        c->level = clamp(c->level + UP, 0, clamp(USUAL_LEVEL, 0, c->top));
    c->usable = c->level;
}

static void look_at_idle(tz_controller *c, const tz_sight *sight)
{
    uint64_t looks = (sight->now_ns - c->look_ns + TZ_LOOK_NS / 2) / TZ_LOOK_NS;

    c->listening = false;
    c->resting = sight->now_ns - c->busy_ns >= IDLE_NS;
    if (c->resting)
        c->level = clamp(c->level + OCTAVE * (int)tz_min_u64(looks, 64), 0, c->top);
}

/* ---- what it means ---- */

static tz_press press_of(const tz_controller *c, int level)
{
    tz_press press = {.depth = 1, .quiet = level == 0};

    if (level >= c->top) {
        press.depth = c->config.full;
    } else if (level >= whole(c)) {
        press.depth = UINT32_C(1) << (level - whole(c)) / OCTAVE;
    } else if (level >= PACED) {
        press.piece = LEAST_PIECE << (level - PACED) / OCTAVE;
    } else {
        press.piece = LEAST_PIECE;
        press.rate = rate_of(level);
    }
    return press;
}

tz_press tz_controller_look(tz_controller *c, const tz_sight *sight)
{
    int asked = (int)(sight->pressure * c->top);

    if (sight->reading.active)
        look_at_active(c, sight);
    else
        look_at_idle(c, sight);
    c->look_ns = sight->now_ns;
    return press_of(c, clamp(asked, c->listening ? 0 : c->level, c->top));
}
