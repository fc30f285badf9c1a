/* SPDX-License-Identifier: Apache-2.0
 *
 * How long a session waits for its disks.
 *
 * A before-image's read, or its write to the file tier, may never end: the device behind it does not answer. The update
 * that waits for it is an application's, so such a session is punctured, and what it held goes on; the volume, the others
 * on the same thread and their sessions notice nothing. The operation itself cannot be taken back: the session's memory
 * is the kernel's to write until it has ended (tz_session_end_within).
 *
 * One timer a session looks at all operations under way, four times in the shorter of the two waits; it runs only while
 * before-images are being saved.
 */
#include "clock.h"
#include "session_private.h"

static void on_patience(tz_io_op *op, int64_t result);

static void wait_on(tz_session *session)
{
    session->waiting = true;
    session->patience = (tz_io_op){
        .opcode = TZ_IO_TIMEOUT,
        .length = tz_min_u64(session->volume_answer_ns, session->tier_answer_ns) / 4,
        .done = on_patience,
        .user = session,
    };
    tz_io_submit(session->volume->io, &session->patience);
}

static bool is_late(const tz_session *session)
{
    uint64_t now = tz_now_ns();

    for (uint32_t i = 0; i < session->preserves_count; i++)
        if (session->preserves[i].until_ns && session->preserves[i].until_ns < now)
            return true;
    return false;
}

static void on_patience(tz_io_op *op, int64_t result)
{
    tz_session *session = op->user;

    (void)result;
    session->waiting = false;
    if (session->active && is_late(session))
        tz_session_puncture(session, TZ_PUNCTURE_STALLED);
    if (session->active && session->preserving)
        wait_on(session);
    tz_session_end_check(session);
}

void tz_session_expect(tz_session *session, tz_preserve *p, uint64_t within_ns)
{
    p->until_ns = tz_now_ns() + within_ns;
    if (!session->waiting)
        wait_on(session);
}

void tz_session_patience_end(tz_session *session)
{
    if (session->waiting)
        tz_io_cancel(session->volume->io, &session->patience);
}
