/* SPDX-License-Identifier: Apache-2.0 */
#include "controller.h"

#define MS UINT64_C(1000000)

/* Levels are counted in quarters of a power of two. */
#define OCTAVE 4

/* Level 0: pieces of LEAST_PIECE at FLOOR_RATE, both ways together; at PACED, one after the other without a pause. */
#define LEAST_PIECE (64 * TZ_KIB)
#define FLOOR_RATE  (8 * TZ_MIB)
#define PACED       (6 * OCTAVE)

/* At full speed: so many bytes in flight, or what is moved in IN_FLIGHT_NS, as measured over MEASURE_NS; in requests of no
 * less than FAST_PIECE (controller.h argues them). */
#define IN_FLIGHT    (8 * TZ_MIB)
#define IN_FLIGHT_NS (50 * MS)
#define MEASURE_NS   (500 * MS)
#define FAST_PIECE   TZ_MIB

/* While listening: a piece in each tenth of a second, which is as long as one may be kept waiting (pace.c). */
#define QUIET_RATE (10 * LEAST_PIECE)

/* One request of 256K in flight: p99 of an application with few updates is the same as with 64K, and the copy takes a
 * third of the time (bench/intercept/README.md). */
#define USUAL_LEVEL (PACED + 2 * OCTAVE)

/* Before anything is known: what is nearly always kind. Two windows later something is. */
#define FIRST_LEVEL PACED

#define IDLE_NS (500 * MS)

/* Levels to one of strain; most at once; and most of what is remembered of going down: of what was too steep to be gone at
 * once, and of what may have been chance. */
#define GAIN  1.0
#define MOST  (2.0 * OCTAVE)
#define DEBT  32.0
#define DOUBT (1.0 * OCTAVE)

/* A sidefile that fills is in the way of being quiet: it does not begin then, and ends beyond this, for some time. */
#define LISTEN_PRESSURE 0.5
#define UNQUIET_NS      (5000 * MS)

static double clamp(double value, double least, double most)
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

/* Bytes of a request where so many are in flight. */
static uint32_t piece_of(const tz_controller *c, uint64_t in_flight)
{
    uint64_t share = in_flight / tz_max_u64(1, tz_min_u64(c->config.full, c->config.frames)), piece = FAST_PIECE;

    while (2 * piece <= share)
        piece *= 2;
    return (uint32_t)tz_min_u64(piece, c->config.chunk_size);
}

/* Bytes of the largest request while it yields. */
static uint32_t largest(const tz_controller *c)
{
    return piece_of(c, IN_FLIGHT);
}

/* Level from which requests are the largest, and more than one is in flight beyond it. */
static int whole(const tz_controller *c)
{
    return PACED + octaves(tz_max_u64(largest(c) / LEAST_PIECE, 1));
}

static uint64_t rate_of(int level)
{
    static const double parts[OCTAVE] = {1, 1.189207, 1.414214, 1.681793};

    return (uint64_t)((double)(FLOOR_RATE << (level / OCTAVE)) * parts[level % OCTAVE]);
}

void tz_controller_init(tz_controller *c, const tz_controller_config *config, bool idle, uint64_t now_ns)
{
    *c = (tz_controller){.config = *config, .look_ns = now_ns, .moved_ns = now_ns};
    c->top = whole(c) + octaves(config->full);
    c->usable = clamp(FIRST_LEVEL, 0, c->top);
    c->resting = idle;
    c->level = idle ? c->top : c->usable;
    c->in_flight = IN_FLIGHT;
    c->busy_ns = idle ? now_ns - tz_min_u64(now_ns, IDLE_NS) : now_ns;
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

/* Down by MOST at once, the rest is a debt. What may be chance does not lead below what is nearly always kind, and is a debt
 * of DOUBT at most. */
static void lower(tz_controller *c, const tz_sight *sight)
{
    bool certain = sight->reading.certain;
    double down = GAIN * (sight->reading.now - 1), goes = clamp(down, 0, MOST), most = certain ? DEBT : DOUBT;

    if (certain && down > MOST && c->level <= PACED)
        c->level = clamp(given(c, sight), 0, c->level);
    if (!certain)
        goes = clamp(goes, 0, c->level - clamp(USUAL_LEVEL, 0, c->level));
    if (c->debt < most)
        c->debt = clamp(c->debt + down - goes, 0, most);
    c->level = clamp(c->level - goes, 0, c->top);
}

static void judge(tz_controller *c, const tz_sight *sight)
{
    const tz_reading *reading = &sight->reading;

    /* Where it really was. If that is too much, nothing is known of less. */
    if (reading->standing <= 1)
        c->level = clamp(c->asked, c->level, c->top);
    if (reading->now > 1 && c->asked <= c->level) {
        lower(c, sight);
    } else if (reading->standing < 1) {
        double up = GAIN * (1 - reading->standing), paid = clamp(up, 0, c->debt);

        c->debt -= paid;
        c->level = clamp(c->level + up - paid, 0, c->top);
    }
    c->moved = sight->moved;
    c->moved_ns = sight->now_ns;
}

/* Nobody is there: all the faster, the longer. */
static void rest(tz_controller *c, const tz_sight *sight)
{
    uint64_t looks = (sight->now_ns - c->look_ns + TZ_LOOK_NS / 2) / TZ_LOOK_NS;

    c->resting = true;
    c->listening = false;
    c->level = clamp(c->level + OCTAVE * (int)tz_min_u64(looks, 64), 0, c->top);
}

/* What full speed is. Of what was begun: half a second has room for the difference. */
static void measure(tz_controller *c, const tz_sight *sight)
{
    uint64_t ns = sight->now_ns - c->full_ns;
    bool full = c->resting && c->level >= c->top;

    if (full && c->full_ns && ns < MEASURE_NS)
        return;
    c->in_flight = IN_FLIGHT;
    if (full && c->full_ns)
        c->in_flight = tz_max_u64(IN_FLIGHT, (sight->moved - c->full_moved) / (ns / IN_FLIGHT_NS));
    c->full_ns = full ? sight->now_ns : 0;
    c->full_moved = sight->moved;
}

static bool listens(tz_controller *c, const tz_sight *sight)
{
    if (!sight->reading.wants_quiet)
        return false;
    if (!c->listening)
        return sight->pressure <= 0 && sight->now_ns >= c->unquiet_ns;
    if (sight->pressure < LISTEN_PRESSURE)
        return true;
    c->unquiet_ns = sight->now_ns + UNQUIET_NS;
    return false;
}

static void yield(tz_controller *c, const tz_sight *sight)
{
    bool listened = c->listening;

    if (c->resting)
        c->level = clamp(c->level, 0, c->usable);
    c->resting = false;
    c->listening = listens(c, sight);
    if (listened || sight->rests) {
        c->moved = sight->moved;
        c->moved_ns = sight->now_ns;
    } else if (sight->reading.fresh) {
        judge(c, sight);
    } else if (!sight->reading.known) {
        c->level = clamp(c->level + GAIN / 4, 0, clamp(USUAL_LEVEL, 0, c->top));
    }
    c->usable = c->level;
}

/* ---- what it means ---- */

static tz_press press_of(const tz_controller *c, int level)
{
    tz_press press = {.depth = 1, .yields = level < (int)c->top, .calm = level == 0 ? TZ_CALM_FLOOR : TZ_CALM_NOT};

    if (level >= whole(c)) {
        press.depth = press.yields ? UINT32_C(1) << (level - whole(c)) / OCTAVE : c->config.full;
        press.piece = press.yields ? largest(c) : piece_of(c, c->in_flight);
        press.piece = press.piece < c->config.chunk_size ? press.piece : 0;
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
    if (sight->reading.active)
        c->busy_ns = sight->now_ns;
    if (sight->now_ns - c->busy_ns >= IDLE_NS)
        rest(c, sight);
    else
        yield(c, sight);
    measure(c, sight);
    c->look_ns = sight->now_ns;
    c->asked = sight->pressure * c->top;
    if (c->listening)
        return (tz_press){.depth = 1, .piece = LEAST_PIECE, .rate = QUIET_RATE, .yields = true, .calm = TZ_CALM_QUIET};
    return press_of(c, (int)clamp(c->asked, c->level, c->top));
}
