/* SPDX-License-Identifier: Apache-2.0
 *
 * The domain of a session of files: which tracks are designated is known only when file systems are frozen, long after
 * prepare and just before install.
 *
 *   LACKING ──set──▶ BEING_SET ──copied──▶ SET ──install──▶ INSTALLED: constant
 *      ▲                │  ▲                │
 *      └──────error─────┘  └──────set───────┘
 *
 * The client writes into memory of its own choice of moment, so what the gate looks at is a copy of ours. It is made by
 * the thread that asks: a bitmap of 16 TiB is not to be copied on a reactor's thread. The words are plain, because each
 * change of the state hands them over: a thread writes them only between taking BEING_SET and storing SET, and the
 * volume's thread reads them only after it has taken SET itself.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "session_private.h"

static int copy_stretch(tz_session *session, uint64_t from, uint64_t to)
{
    while (from < to) {
        ssize_t n = pread(session->domain_fd, (char *)session->domain + from, to - from, (off_t)from);

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n == 0)
            return 0;
        from += n > 0 ? (uint64_t)n : 0;
    }
    return 0;
}

/* Pages that were never written are not looked at, so that few files on a large volume cost little. Read and not
 * mapped: reading a hole through a mapping would allocate it. */
static int copy_domain(tz_session *session)
{
    const off_t size = (off_t)session->domain_bytes;
    off_t at = 0;

    while (at < size) {
        off_t data = lseek(session->domain_fd, at, SEEK_DATA), hole;
        int rc;

        if (data < 0)
            return errno == ENXIO ? 0 : -errno;
        hole = lseek(session->domain_fd, data, SEEK_HOLE);
        /* The client may punch and write beside us: on, in any case. */
        at = hole > data ? hole : data + 4096;
        at = at < size ? at : size;
        rc = copy_stretch(session, (uint64_t)data, (uint64_t)at);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static bool begin(tz_session *session)
{
    uint32_t state = TZ_DOMAIN_LACKING;

    if (atomic_compare_exchange_strong(&session->domain_state, &state, TZ_DOMAIN_BEING_SET))
        return true;
    return state == TZ_DOMAIN_SET &&
           atomic_compare_exchange_strong(&session->domain_state, &state, TZ_DOMAIN_BEING_SET);
}

int tz_session_set_domain(tz_session *session)
{
    int rc;

    if (!session->domain)
        return -EINVAL;
    if (!begin(session))
        return -EBUSY;
    if (session->domain_touched)
        memset(session->domain, 0, session->domain_bytes);
    session->domain_touched = true;
    rc = copy_domain(session);
    atomic_store(&session->domain_state, rc < 0 ? TZ_DOMAIN_LACKING : TZ_DOMAIN_SET);
    return rc;
}

bool tz_session_lacks_domain(const tz_session *session)
{
    return session->domain && atomic_load(&session->domain_state) == TZ_DOMAIN_LACKING;
}

int tz_session_take_domain(tz_session *session)
{
    uint32_t state = TZ_DOMAIN_SET;

    if (!session->domain || atomic_compare_exchange_strong(&session->domain_state, &state, TZ_DOMAIN_INSTALLED))
        return 0;
    return state == TZ_DOMAIN_LACKING ? -ENODATA : -EBUSY;
}
