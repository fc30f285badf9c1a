/* SPDX-License-Identifier: Apache-2.0
 *
 * The gate: judging, holding and issuing updates; closing, draining and opening.
 */
#include "gate_private.h"

#include <errno.h>
#include <stdatomic.h>

#include "clock.h"
#include "session_private.h"
#include "tz/crash.h"

static void on_deadline(tz_io_op *op, int64_t result);

void tz_gate_init(tz_volume *volume)
{
    volume->gate.timer.opcode = TZ_IO_TIMEOUT;
    volume->gate.timer.done = on_deadline;
    volume->gate.timer.user = volume;
}

bool tz_gate_is_idle(const tz_gate *gate)
{
    return !gate->closed && !gate->timer_runs && !gate->held.count && !gate->in_flight;
}

tz_session *tz_gate_next_session(const tz_session *session)
{
    return session->next;
}

/* ---- judging ---- */

static void on_delay_over(tz_io_op *op, int64_t result)
{
    tz_request *request = op->user;
    tz_volume *volume = request->volume.volume;

    (void)result;
    request->volume.delay_running = false;
    tz_gate_judge_again(volume, request->volume.at, request->volume.end);
}

/* The request's own op is free while it is held. */
static void delay(tz_volume *volume, tz_request *request, tz_session *session)
{
    uint64_t delay_ns = tz_session_delay_ns(session);
    tz_io_op *op = &request->volume.op;

    if (delay_ns == 0 || request->volume.delayed)
        return;
    request->volume.delayed = request->volume.delay_running = true;
    atomic_fetch_add_explicit(&tz_session_header_of(session)->delayed, 1, memory_order_relaxed);
    op->opcode = TZ_IO_TIMEOUT;
    op->length = delay_ns;
    op->done = on_delay_over;
    op->user = request;
    tz_io_submit(volume->io, op);
}

/* The heart: is T0 of every session safe from this update? What is not is on its way to be when this returns. */
static bool is_covered(tz_volume *volume, tz_request *request)
{
    bool covered = true;

    if (volume->gate.sessions)
        tz_volume_cut_piece(volume, request);
    for (tz_session *s = volume->gate.sessions; s; s = s->next) {
        if (!s->active || tz_session_cover(s, request->volume.at, request->volume.end))
            continue;
        covered = false;
        if (!request->volume.held_by)
            request->volume.held_since_ns = tz_now_ns();
        request->volume.held_by |= UINT64_C(1) << s->number;
        delay(volume, request, s);
    }
    return covered && !request->volume.delay_running;
}

static void account(tz_volume *volume, const tz_request *request)
{
    uint64_t held_ns = request->volume.held_by ? tz_now_ns() - request->volume.held_since_ns : 0;

    for (tz_session *s = volume->gate.sessions; s; s = s->next) {
        tz_session_header *h = tz_session_header_of(s);

        atomic_fetch_add_explicit(&h->updates, 1, memory_order_relaxed);
        if (!(request->volume.held_by >> s->number & 1))
            continue;
        atomic_fetch_add_explicit(&h->intercepted, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&h->held_ns, held_ns, memory_order_relaxed);
        if (held_ns > atomic_load_explicit(&h->held_max_ns, memory_order_relaxed))
            atomic_store_explicit(&h->held_max_ns, held_ns, memory_order_relaxed);
    }
}

static void hold(tz_volume *volume, tz_request *request)
{
    request->volume.held = true;
    tz_queue_push(&volume->gate.held, request);
}

bool tz_gate_pass(tz_volume *volume, tz_request *request)
{
    if (volume->gate.closed || !is_covered(volume, request)) {
        hold(volume, request);
        return false;
    }
    volume->gate.in_flight++;
    account(volume, request);
    return true;
}

static void release(tz_volume *volume, tz_request *request)
{
    tz_queue_remove(&volume->gate.held, request);
    request->volume.held = false;
    volume->gate.in_flight++;
    account(volume, request);
    tz_volume_issue(volume, request);
    TZ_CRASH_POINT("update.issued");
}

/* Issuing an update never completes it at once, so the line only loses those that are released here. */
static void judge_held(tz_volume *volume, uint64_t from, uint64_t to, bool judge)
{
    tz_request *next;

    if (volume->gate.closed)
        return;
    for (tz_request *r = volume->gate.held.first; r; r = next) {
        next = r->volume.next;
        if (r->volume.at >= to || r->volume.end <= from)
            continue;
        if (judge ? is_covered(volume, r) : !r->volume.delay_running)
            release(volume, r);
    }
}

void tz_gate_judge_again(tz_volume *volume, uint64_t from, uint64_t to)
{
    judge_held(volume, from, to, true);
}

/* ---- in flight ---- */

static void drained(tz_gate *gate)
{
    gate->drained = true;
    TZ_CRASH_POINT("gate.drained");
    gate->closer->drained(gate->closer);
}

void tz_gate_completed(tz_volume *volume)
{
    tz_gate *gate = &volume->gate;

    assert(gate->in_flight > 0);
    if (gate->sessions)
        TZ_CRASH_POINT("update.done");
    gate->in_flight--;
    if (gate->closed && !gate->drained && gate->in_flight == 0)
        drained(gate);
}

/* ---- closing and opening ---- */

int tz_gate_close(tz_volume *volume, tz_gate_closer *closer, uint64_t deadline_ns)
{
    tz_gate *gate = &volume->gate;
    uint64_t now = tz_now_ns();

    if (gate->closer)
        return -EBUSY;
    gate->closer = closer;
    gate->closed = gate->timer_runs = true;
    gate->drained = false;
    TZ_CRASH_POINT("gate.closed");
    gate->timer.length = deadline_ns > now ? deadline_ns - now : 1;
    tz_io_submit(volume->io, &gate->timer);
    if (gate->in_flight == 0 || (volume->faults | closer->faults) & TZ_FAULT_NO_DRAIN)
        drained(gate);
    return 0;
}

bool tz_gate_is_closed_by(const tz_volume *volume, const tz_gate_closer *closer)
{
    return volume->gate.closed && volume->gate.closer == closer;
}

static void settle(tz_gate *gate)
{
    tz_gate_closer *closer = gate->closer;

    gate->closer = NULL;
    closer->settled(closer);
}

/* Needs are judged now, over the sessions that are installed now: held updates cross T0 (rule 2). */
static void let_go(tz_volume *volume, uint32_t faults)
{
    volume->gate.closed = false;
    judge_held(volume, 0, UINT64_MAX, !((volume->faults | faults) & TZ_FAULT_STALE_NEED));
}

void tz_gate_open(tz_volume *volume, tz_gate_closer *closer)
{
    if (!tz_gate_is_closed_by(volume, closer))
        return;
    let_go(volume, closer->faults);
    TZ_CRASH_POINT("gate.opened");
    tz_io_cancel(volume->io, &volume->gate.timer);
}

/* The deadline, or what came of its cancelling. A timer that fails opens the gate too: the application goes first. */
static void on_deadline(tz_io_op *op, int64_t result)
{
    tz_volume *volume = op->user;
    tz_gate *gate = &volume->gate;

    (void)result;
    gate->timer_runs = false;
    if (gate->closed) {
        gate->closer->broken(gate->closer);
        let_go(volume, gate->closer->faults);
    }
    settle(gate);
}

/* ---- sessions ---- */

int tz_gate_install(tz_volume *volume, tz_session *session)
{
    tz_gate *gate = &volume->gate;
    int rc;

    assert(gate->closed && (gate->in_flight == 0 || (volume->faults | gate->closer->faults) & TZ_FAULT_NO_DRAIN));
    if (session->over || session->installed || tz_session_state_of(session) != TZ_SESSION_PREPARED)
        return -ECANCELED;
    if (gate->numbers == UINT64_MAX)
        return -EBUSY;
    rc = tz_session_take_domain(session);
    if (rc < 0)
        return rc;
    session->number = (uint32_t)__builtin_ctzll(~gate->numbers);
    gate->numbers |= UINT64_C(1) << session->number;
    session->next = gate->sessions;
    gate->sessions = session;
    tz_session_installed(session);
    TZ_CRASH_POINT("gate.installed");
    return 0;
}

void tz_gate_remove(tz_volume *volume, tz_session *session)
{
    tz_gate *gate = &volume->gate;
    const uint64_t bit = UINT64_C(1) << session->number;
    tz_session **link = &gate->sessions;

    while (*link != session)
        link = &(*link)->next;
    *link = session->next;
    gate->numbers &= ~bit;
    for (tz_request *r = gate->held.first; r; r = r->volume.next)
        r->volume.held_by &= ~bit; /* the number may go to another session */
    tz_gate_judge_again(volume, 0, UINT64_MAX);
}
