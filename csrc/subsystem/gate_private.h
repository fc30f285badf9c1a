/* SPDX-License-Identifier: Apache-2.0
 *
 * The gate: one a volume, inside it.
 *
 *   open ──close──▶ closed, draining ──last completion──▶ closed, drained ──open──▶ open
 *                          └──────────────deadline───────────────┴──▶ open, and the closer is told "broken"
 *
 * Held updates wait in one line. They are judged again, in order, when something they may wait for has happened:
 * a before-image was saved, a session was punctured or ended, the gate opened, a delay is over.
 *
 * Threads  the volume's own.
 */
#ifndef TZ_GATE_PRIVATE_H
#define TZ_GATE_PRIVATE_H

#include "tz/faults.h"
#include "tz/gate.h"

#include "queue.h"

#define TZ_GATE_SESSIONS 64 /* installed at once on one volume */

/* Who closed the gate. Its functions are called on the volume's thread. */
typedef struct tz_gate_closer tz_gate_closer;
struct tz_gate_closer {
    void (*drained)(tz_gate_closer *closer); /* once, if the gate was not broken before; may be called inside close */
    void (*broken)(tz_gate_closer *closer);  /* the deadline passed; called before held updates are released */
    void (*settled)(tz_gate_closer *closer); /* after open: the gate and its timer have no more to do with the closer */
    uint32_t faults;
};

typedef struct tz_gate {
    tz_session *sessions;
    uint64_t numbers; /* of installed sessions, a bit each */
    tz_queue held;
    uint64_t in_flight; /* updates issued and not completed */
    bool closed, drained, timer_runs;
    tz_gate_closer *closer;
    tz_io_op timer;
} tz_gate;

void tz_gate_init(tz_volume *volume);
bool tz_gate_is_idle(const tz_gate *gate);
tz_session *tz_gate_next_session(const tz_session *session);

/* May this update (request->volume.at .. end) be issued now? True: it may, and counts as issued from now on. False: the
 * gate holds it, and calls tz_volume_issue when it may. */
bool tz_gate_pass(tz_volume *volume, tz_request *request);
void tz_gate_completed(tz_volume *volume); /* an issued update's I/O has ended */

/* -EBUSY: closed by somebody else. deadline_ns is CLOCK_MONOTONIC. */
int tz_gate_close(tz_volume *volume, tz_gate_closer *closer, uint64_t deadline_ns);
bool tz_gate_is_closed_by(const tz_volume *volume, const tz_gate_closer *closer);
void tz_gate_open(tz_volume *volume, tz_gate_closer *closer); /* nothing when it is not closed by this closer */

/* -EBUSY: too many, or its domain is being set; -ECANCELED: ended before; -ENODATA: its domain was never set. */
int tz_gate_install(tz_volume *volume, tz_session *session);
void tz_gate_remove(tz_volume *volume, tz_session *session);

/* Judges held updates that overlap [from, to) again. */
void tz_gate_judge_again(tz_volume *volume, uint64_t from, uint64_t to);

#endif
