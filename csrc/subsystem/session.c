/* SPDX-License-Identifier: Apache-2.0
 *
 * A session on one volume: from installation to its end. (Its making: session_prepare.c.)
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "clock.h"
#include "session_private.h"
#include "tz/crash.h"

/* ---- the mover's wake-ups ---- */

static void watch(tz_session *session)
{
    session->watching = true;
    tz_io_submit(session->volume->io, &session->watch);
}

/* Never blocks, whatever a mover did to the flags that it shares with this descriptor. */
static void clear_eventfd(int fd)
{
    uint64_t value;
    struct iovec iov = {.iov_base = &value, .iov_len = sizeof(value)};

    (void)!preadv2(fd, &iov, 1, -1, RWF_NOWAIT);
}

static void on_drained(tz_io_op *op, int64_t result)
{
    tz_session *session = op->user;

    session->watching = false;
    if (session->active && result >= 0) {
        clear_eventfd(session->drain_fd);
        if (tz_sidefile_drain(&session->sidefile) < 0)
            tz_session_puncture(session, TZ_PUNCTURE_PROTOCOL);
        else
            watch(session);
    }
    tz_session_end_check(session);
}

/* ---- states ---- */

void tz_session_installed(tz_session *session)
{
    tz_session_header *h = tz_session_header_of(session);

    tz_load_copy(&h->usual, &session->volume->load);
    atomic_store(&h->load.reads_in_flight, atomic_load(&h->usual.reads_in_flight));
    atomic_store(&h->load.updates_in_flight, atomic_load(&h->usual.updates_in_flight));
    atomic_store(&h->load.last_ns, atomic_load(&h->usual.last_ns));
    session->installed = session->active = true;
    session->watch.opcode = TZ_IO_POLL;
    session->watch.fd = session->drain_fd;
    session->watch.arg = POLLIN;
    session->watch.done = on_drained;
    session->watch.user = session;
    atomic_store(&h->state, TZ_SESSION_ACTIVE);
    watch(session);
}

static void set_punctured(tz_session *session, enum tz_puncture_reason reason)
{
    tz_session_header *h = tz_session_header_of(session);

    session->active = false;
    atomic_store(&h->puncture, reason);
    if (session->faults & TZ_FAULT_LATE_PUNCTURE)
        session->late = true;
    else
        atomic_store(&h->state, TZ_SESSION_PUNCTURED);
}

void tz_session_puncture(tz_session *session, enum tz_puncture_reason reason)
{
    if (!session->active)
        return;
    set_punctured(session, reason); /* rule 1: seen before any update goes on unprotected */
    TZ_CRASH_POINT("session.punctured");
    tz_gate_judge_again(session->volume, 0, UINT64_MAX);
}

/* From nothing where it ends to the most at the cap: it fades out, and what it begins with is a small part of the most
 * (with the usual marks a quarter). Looked at whenever a slot may be wanted, so that no rise of usage is missed. */
uint64_t tz_session_delay_ns(tz_session *session)
{
    const uint32_t used = session->sidefile.used, end = session->high.end;
    const uint64_t most = (uint64_t)session->max_delay_us * 1000;

    session->pressed = tz_mark_is_past(session->high, used, session->pressed);
    if (!session->pressed || most == 0)
        return 0;
    return most * (used - end) / (tz_session_header_of(session)->slots - end);
}

/* ---- the end ---- */

void tz_session_end_check(tz_session *session)
{
    tz_call *call = session->ending;

    if (!call || session->preserving || session->watching || session->waiting)
        return;
    session->ending = NULL;
    TZ_CRASH_POINT("session.over");
    tz_call_answer(call);
}

static void set_over(tz_session *session, bool cancel)
{
    enum tz_session_state state = tz_session_state_of(session);

    session->over = true;
    if (session->late)
        atomic_store(&tz_session_header_of(session)->state, TZ_SESSION_PUNCTURED);
    else if (cancel && (state == TZ_SESSION_PREPARED || state == TZ_SESSION_ACTIVE))
        set_punctured(session, TZ_PUNCTURE_MOVER);
    else if (session->active)
        atomic_store(&tz_session_header_of(session)->state, TZ_SESSION_ENDED);
    session->active = false;
}

void tz_session_end_start(tz_session *session, bool cancel, tz_call *call)
{
    assert(!session->ending);
    session->ending = call;
    if (!session->over)
        set_over(session, cancel);
    if (session->installed) {
        session->installed = false;
        tz_gate_remove(session->volume, session);
    }
    if (session->watching)
        tz_io_cancel(session->volume->io, &session->watch);
    tz_session_patience_end(session);
    tz_session_end_check(session);
}

/* What others ask of the volume's thread. */
struct order {
    tz_call call;
    tz_session *session;
    bool cancel;    /* of an end */
    bool withdrawn; /* the answer of a withdrawal */
};

static void give(struct order *order, void (*run)(tz_io_message *message))
{
    tz_call_init(&order->call, run);
    tz_io_post(order->session->volume->io, &order->call.message);
}

static struct order *order_of(tz_io_message *message)
{
    return tz_container_of(message, struct order, call.message);
}

static void run_end(tz_io_message *message)
{
    struct order *order = order_of(message);

    tz_session_end_start(order->session, order->cancel, &order->call);
}

static void run_withdraw(tz_io_message *message)
{
    struct order *order = order_of(message);

    order->withdrawn = order->session->ending != NULL;
    order->session->ending = NULL;
    tz_call_answer(&order->call);
}

/* Nobody waits for the end any more; false when it was quicker. */
static bool withdraw(tz_session *session)
{
    struct order order = {.session = session};

    give(&order, run_withdraw);
    tz_call_wait(&order.call);
    return order.withdrawn;
}

int tz_session_end_within(tz_session *session, bool cancel, uint64_t timeout_ns, tz_session_report *out)
{
    struct order end = {.session = session, .cancel = cancel};
    uint64_t now = tz_now_ns();
    int rc = 0;

    give(&end, run_end);
    if (!tz_call_wait_until(&end.call, now + tz_min_u64(timeout_ns, INT64_MAX - now))) {
        if (withdraw(session)) {
            tz_call_fini(&end.call);
            rc = -ETIMEDOUT;
        } else {
            tz_call_wait(&end.call);
        }
    }
    if (out)
        tz_session_report_get(session, out);
    return rc;
}

int tz_session_end(tz_session *session, bool cancel, tz_session_report *out)
{
    return tz_session_end_within(session, cancel, UINT64_MAX, out);
}

/* ---- giving way ---- */

static void run_give_way(tz_io_message *message)
{
    struct order *order = order_of(message);

    tz_session_puncture(order->session, TZ_PUNCTURE_ADMISSION);
    tz_call_answer(&order->call);
}

void tz_session_give_way(tz_session *session)
{
    struct order order = {.session = session};

    give(&order, run_give_way);
    tz_call_wait(&order.call);
}

/* ---- for others ---- */

void tz_session_handles_get(const tz_session *session, tz_session_handles *out)
{
    *out = (tz_session_handles){
        .owned_fd = session->owned_fd,
        .shared_fd = session->shared_fd,
        .drain_fd = session->drain_fd,
        .volume_fd = session->volume_reader.fd,
        .file_fd = session->file_reader.fd,
        .domain_fd = session->domain_fd,
        .owned_bytes = tz_session_header_of(session)->owned_bytes,
        .shared_bytes = tz_session_header_of(session)->shared_bytes,
    };
}

void tz_session_report_get(const tz_session *session, tz_session_report *out)
{
    const tz_session_header *h = tz_session_header_of(session);

    *out = (tz_session_report){
        .state = atomic_load(&h->state),
        .puncture = atomic_load(&h->puncture),
        .updates = atomic_load(&h->updates),
        .intercepted = atomic_load(&h->intercepted),
        .images = atomic_load(&h->images),
        .zero_images = atomic_load(&h->zero_images),
        .file_images = atomic_load(&h->file_images),
        .self_freed = atomic_load(&h->self_freed),
        .delayed = atomic_load(&h->delayed),
        .held_ns = atomic_load(&h->held_ns),
        .held_max_ns = atomic_load(&h->held_max_ns),
        .slots = h->slots,
        .used_slots = atomic_load(&h->used_slots),
        .high_water = atomic_load(&h->high_water),
        .low_mark = h->low_mark,
        .track_size = session->track_size,
        .reads_in_flight = atomic_load(&h->load.reads_in_flight),
        .updates_in_flight = atomic_load(&h->load.updates_in_flight),
        .reads = tz_load_get(&h->load.histograms[TZ_LOAD_READS].count),
        .read_bytes = tz_load_get(&h->load.read_bytes),
        .written_bytes = tz_load_get(&h->load.written_bytes),
        .read_p50_ns = tz_load_quantile(&h->load.histograms[TZ_LOAD_READS], 0.5),
        .read_p99_ns = tz_load_quantile(&h->load.histograms[TZ_LOAD_READS], 0.99),
        .update_p50_ns = tz_load_quantile(&h->load.histograms[TZ_LOAD_UPDATES], 0.5),
        .update_p99_ns = tz_load_quantile(&h->load.histograms[TZ_LOAD_UPDATES], 0.99),
        .usual_read_p99_ns = tz_load_quantile(&h->usual.histograms[TZ_LOAD_READS], 0.99),
        .usual_update_p99_ns = tz_load_quantile(&h->usual.histograms[TZ_LOAD_UPDATES], 0.99),
    };
}
