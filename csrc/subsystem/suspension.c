/* SPDX-License-Identifier: Apache-2.0
 *
 * A group's passage from close to open.
 *
 * Volumes are grouped by thread into lanes; a phase is one message a lane. Whoever ends a phase last starts the next
 * one from where it is, so that a whole suspension costs one wake-up of each thread a phase, and its own thread none:
 *
 *   run ─▶ CLOSE, drained? ─last─▶ INSTALL ─last─▶ OPEN, settled? ─last─▶ answer
 *              any error ──────────────┴─▶ OPEN ─last─▶ FAIL (puncture what was installed) ─last─▶ answer
 *
 * In steps the coordinator is answered after each phase. A gate whose deadline passed has opened by itself, punctured
 * its sessions of this suspension first, and lets every later phase fail.
 *
 * `left` counts the lanes that still run the phase and the gates that have not done their part; whoever takes the
 * last one off owns the suspension, and nobody else touches it until the next phase.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "clock.h"
#include "session_private.h"

/* An hour: longer than any application waits, and far from where sums overflow. */
#define MOST_DEADLINE_NS (UINT64_C(3600) * 1000000000)

enum phase {
    CLOSE,
    INSTALL,
    OPEN,
    FAIL
};

struct lane;

struct gate_part {
    tz_gate_closer closer;
    tz_volume *volume;
    struct lane *lane;
    bool closing; /* counted in `left` until drained or broken */
    bool opening; /* counted in `left` until settled */
};

struct lane {
    tz_io_message message;
    tz_suspension *suspension;
    tz_io *io;
};

struct tz_suspension {
    /* Constant. */
    uint32_t sessions_count, gates_count, lanes_count;
    tz_session **sessions;
    struct gate_part *gates;
    struct lane *lanes;
    pthread_mutex_t step; /* one step at a time; abort waits for the step that runs */

    /* Set for a phase before it starts. */
    enum phase phase;
    bool whole; /* all phases in one go */
    uint64_t deadline_ns, start_ns;
    tz_call *call;

    _Atomic uint32_t left;
    _Atomic int error; /* the first */
    bool closed;       /* by the coordinator's thread: close was called, open was not */

    _Atomic uint64_t first_closed_ns, all_closed_ns, all_open_ns;
    tz_suspension_times times;
};

static void start_phase(tz_suspension *s, enum phase phase, struct lane *here);

static void set_error(tz_suspension *s, int error)
{
    int none = 0;

    atomic_compare_exchange_strong(&s->error, &none, error);
}

static void keep_latest(_Atomic uint64_t *time, uint64_t now)
{
    uint64_t seen = atomic_load(time);

    while (seen < now && !atomic_compare_exchange_weak(time, &seen, now))
        ;
}

/* ---- the end of a phase, on the thread that ended it ---- */

static void end_phase(tz_suspension *s, struct lane *here)
{
    const uint64_t now = tz_now_ns();
    const bool failed = atomic_load(&s->error) != 0;

    switch (s->phase) {
    case CLOSE:
        s->times.close_ns = atomic_load(&s->all_closed_ns) - s->start_ns;
        s->times.drain_ns = now - atomic_load(&s->all_closed_ns);
        break;
    case INSTALL:
        s->times.install_ns = now - s->start_ns;
        break;
    case OPEN:
        if (failed)
            break; /* some gate may never have been open to be timed */
        s->times.open_ns = atomic_load(&s->all_open_ns) - s->start_ns;
        s->times.total_ns = atomic_load(&s->all_open_ns) - atomic_load(&s->first_closed_ns);
        break;
    case FAIL:
        break;
    }
    if (failed && s->phase != FAIL)
        start_phase(s, s->phase == OPEN ? FAIL : OPEN, here);
    else if (s->whole && s->phase < OPEN)
        start_phase(s, s->phase + 1, here);
    else
        tz_call_answer(s->call);
}

static void done_one(tz_suspension *s, struct lane *here)
{
    if (atomic_fetch_sub(&s->left, 1) == 1)
        end_phase(s, here);
}

/* ---- what the gates tell, on their volumes' threads ---- */

static void puncture_sessions(tz_suspension *s, const tz_volume *volume)
{
    for (uint32_t i = 0; i < s->sessions_count; i++)
        if (s->sessions[i]->volume == volume && s->sessions[i]->installed)
            tz_session_puncture(s->sessions[i], TZ_PUNCTURE_GATE);
}

static void on_drained(tz_gate_closer *closer)
{
    struct gate_part *gate = tz_container_of(closer, struct gate_part, closer);

    gate->closing = false;
    done_one(gate->lane->suspension, gate->lane);
}

static void on_broken(tz_gate_closer *closer)
{
    struct gate_part *gate = tz_container_of(closer, struct gate_part, closer);
    tz_suspension *s = gate->lane->suspension;

    set_error(s, -ETIMEDOUT);
    puncture_sessions(s, gate->volume);
}

/* The gate is done with us: after an order to open, or after its deadline. */
static void on_settled(tz_gate_closer *closer)
{
    struct gate_part *gate = tz_container_of(closer, struct gate_part, closer);
    bool counted = gate->closing || gate->opening;

    gate->closing = gate->opening = false;
    if (counted)
        done_one(gate->lane->suspension, gate->lane);
}

/* ---- the phases, on each lane's thread ---- */

static void close_gate(tz_suspension *s, struct gate_part *gate)
{
    uint64_t none = 0;
    int rc;

    atomic_compare_exchange_strong(&s->first_closed_ns, &none, tz_now_ns());
    gate->closing = true;
    rc = tz_gate_close(gate->volume, &gate->closer, s->deadline_ns);
    keep_latest(&s->all_closed_ns, tz_now_ns());
    if (rc < 0) {
        gate->closing = false;
        set_error(s, rc);
        done_one(s, gate->lane);
    }
}

static void install_sessions(tz_suspension *s, struct gate_part *gate)
{
    for (uint32_t i = 0; i < s->sessions_count; i++) {
        int rc;

        if (s->sessions[i]->volume != gate->volume)
            continue;
        rc = tz_gate_is_closed_by(gate->volume, &gate->closer) ? tz_gate_install(gate->volume, s->sessions[i])
                                                               : -ETIMEDOUT;
        if (rc < 0)
            set_error(s, rc);
    }
    done_one(s, gate->lane);
}

static void open_gate(tz_suspension *s, struct gate_part *gate)
{
    if (!tz_gate_is_closed_by(gate->volume, &gate->closer)) {
        set_error(s, -ETIMEDOUT); /* unless it never was ours: then the first error is -EBUSY */
        done_one(s, gate->lane);
        return;
    }
    if (atomic_load(&s->error))
        puncture_sessions(s, gate->volume); /* before held updates go on */
    gate->opening = true;
    tz_gate_open(gate->volume, &gate->closer);
    keep_latest(&s->all_open_ns, tz_now_ns());
}

static void fail_sessions(tz_suspension *s, struct gate_part *gate)
{
    puncture_sessions(s, gate->volume);
    done_one(s, gate->lane);
}

static void run_lane(tz_io_message *message)
{
    static void (*const steps[])(tz_suspension *, struct gate_part *) = {
        [CLOSE] = close_gate, [INSTALL] = install_sessions, [OPEN] = open_gate, [FAIL] = fail_sessions};
    struct lane *lane = tz_container_of(message, struct lane, message);
    tz_suspension *s = lane->suspension;

    for (uint32_t i = 0; i < s->gates_count; i++)
        if (s->gates[i].lane == lane)
            steps[s->phase](s, &s->gates[i]);
    done_one(s, lane); /* may be the end of the phase, of the suspension, of *lane */
}

/* `here`: the lane whose thread this is; NULL: the coordinator's. */
static void start_phase(tz_suspension *s, enum phase phase, struct lane *here)
{
    struct lane *lanes = s->lanes;
    const uint32_t count = s->lanes_count;

    s->phase = phase;
    s->start_ns = tz_now_ns();
    atomic_store(&s->left, count + s->gates_count);
    for (uint32_t i = 0; i < count; i++)
        if (&lanes[i] != here)
            tz_io_post(lanes[i].io, &lanes[i].message);
    if (here)
        run_lane(&here->message);
}

/* ---- creation ---- */

static struct lane *find_lane(tz_suspension *s, tz_io *io)
{
    for (uint32_t i = 0; i < s->lanes_count; i++)
        if (s->lanes[i].io == io)
            return &s->lanes[i];
    s->lanes[s->lanes_count] = (struct lane){.message.run = run_lane, .suspension = s, .io = io};
    return &s->lanes[s->lanes_count++];
}

static void add_session(tz_suspension *s, tz_session *session)
{
    struct gate_part *gate = NULL;

    s->sessions[s->sessions_count++] = session;
    for (uint32_t i = 0; i < s->gates_count && !gate; i++)
        if (s->gates[i].volume == session->volume)
            gate = &s->gates[i];
    if (!gate) {
        gate = &s->gates[s->gates_count++];
        gate->volume = session->volume;
        gate->lane = find_lane(s, session->volume->io);
        gate->closer = (tz_gate_closer){.drained = on_drained, .broken = on_broken, .settled = on_settled};
    }
    gate->closer.faults |= session->faults;
}

int tz_suspension_create(tz_suspension **out, tz_session *const *sessions, uint32_t count)
{
    tz_suspension *s;

    if (count == 0)
        return -EINVAL;
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t j = 0; j < i; j++)
            if (sessions[i] == sessions[j])
                return -EINVAL;
    s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    pthread_mutex_init(&s->step, NULL);
    s->sessions = calloc(count, sizeof(*s->sessions));
    s->gates = calloc(count, sizeof(*s->gates));
    s->lanes = calloc(count, sizeof(*s->lanes));
    if (!s->sessions || !s->gates || !s->lanes) {
        tz_suspension_destroy(s);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < count; i++)
        add_session(s, sessions[i]);
    *out = s;
    return 0;
}

void tz_suspension_destroy(tz_suspension *s)
{
    if (!s)
        return;
    tz_suspension_abort(s);
    pthread_mutex_destroy(&s->step);
    free(s->sessions);
    free(s->gates);
    free(s->lanes);
    free(s);
}

/* ---- the coordinator's side ---- */

/* Runs a phase (and what follows from it) and waits. */
static int run_phase(tz_suspension *s, enum phase phase)
{
    tz_call call;

    tz_call_init(&call, NULL);
    s->call = &call;
    start_phase(s, phase, NULL);
    tz_call_wait(&call);
    s->call = NULL;
    if (atomic_load(&s->error))
        s->closed = false;
    return atomic_load(&s->error);
}

/* A session has one T0. One that had it, or was cancelled, must not make the others of this group fail half way. In
 * steps, a domain may still be set while the gates are closed; then install tells. */
static int check_sessions(const tz_suspension *s, bool whole)
{
    for (uint32_t i = 0; i < s->sessions_count; i++) {
        if (tz_session_state_of(s->sessions[i]) != TZ_SESSION_PREPARED)
            return -ECANCELED;
        if (whole && tz_session_lacks_domain(s->sessions[i]))
            return -ENODATA;
    }
    return 0;
}

static int close_step(tz_suspension *s, uint64_t deadline_ns, bool whole)
{
    int rc = -EINVAL;

    pthread_mutex_lock(&s->step);
    if (!s->closed)
        rc = check_sessions(s, whole);
    if (rc == 0) {
        atomic_store(&s->error, 0);
        atomic_store(&s->first_closed_ns, 0);
        s->times = (tz_suspension_times){0};
        s->deadline_ns = tz_now_ns() + tz_min_u64(deadline_ns, MOST_DEADLINE_NS);
        s->whole = whole;
        s->closed = true;
        rc = run_phase(s, CLOSE);
        if (whole)
            s->closed = false;
    }
    pthread_mutex_unlock(&s->step);
    return rc;
}

/* A step after close. Whatever fails opens everything. */
static int later_step(tz_suspension *s, enum phase phase)
{
    int rc = -EINVAL;

    pthread_mutex_lock(&s->step);
    if (s->closed) {
        rc = run_phase(s, phase);
        if (phase == OPEN)
            s->closed = false;
    }
    pthread_mutex_unlock(&s->step);
    return rc;
}

int tz_suspension_close(tz_suspension *s, uint64_t deadline_ns)
{
    return close_step(s, deadline_ns, false);
}

int tz_suspension_install(tz_suspension *s)
{
    return later_step(s, INSTALL);
}

int tz_suspension_open(tz_suspension *s)
{
    return later_step(s, OPEN);
}

int tz_suspension_run(tz_suspension *s, uint64_t deadline_ns)
{
    return close_step(s, deadline_ns, true);
}

void tz_suspension_abort(tz_suspension *s)
{
    pthread_mutex_lock(&s->step);
    if (s->closed) {
        set_error(s, -ECANCELED);
        run_phase(s, OPEN);
    }
    pthread_mutex_unlock(&s->step);
}

void tz_suspension_times_get(const tz_suspension *s, tz_suspension_times *out)
{
    *out = s->times;
}
