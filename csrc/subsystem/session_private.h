/* SPDX-License-Identifier: Apache-2.0
 *
 * A session's part on one volume, as gate, preservation and suspension see it.
 *
 *   PREPARED ──install──▶ ACTIVE ──end──▶ ENDED
 *       └───────cancel───────┴──puncture, cancel──▶ PUNCTURED
 *
 * Trust   `saved`, `pending`, `domain` and the free slots are private; of what a mover can write only the copied bits
 *         (for this session alone) and the ring (checked) are read.
 */
#ifndef TZ_SESSION_PRIVATE_H
#define TZ_SESSION_PRIVATE_H

#include "call.h"
#include "sidefile.h"
#include "tz/marks.h"
#include "volume_private.h"

/* One run of tracks whose before-images are being saved: read, then tier by tier. */
typedef struct tz_preserve tz_preserve;
struct tz_preserve {
    tz_io_op op;
    tz_session *session;
    tz_preserve *next; /* free list */
    uint64_t first;    /* track */
    uint32_t count;    /* tracks */
    uint32_t saved;    /* of them, from the first */
    uint32_t writing;  /* tracks on their way to the file tier, */
    uint32_t slot;     /* from this slot on */
    uint64_t until_ns; /* the operation under way should have ended by then; 0: none is */
    void *buffer;
};

/* See session_domain.c for the drawing. */
enum tz_domain_state {
    TZ_DOMAIN_LACKING = 0,
    TZ_DOMAIN_BEING_SET,
    TZ_DOMAIN_SET,
    TZ_DOMAIN_INSTALLED,
};

struct tz_session {
    /* Constant once prepared. */
    tz_volume *volume;
    uint64_t track_size;
    uint32_t track_shift;
    uint32_t faults;
    uint32_t max_delay_us; /* 0: never delayed */
    tz_mark high;
    uint32_t preserve_tracks; /* most tracks one preservation reads */
    uint64_t volume_answer_ns, tier_answer_ns;
    tz_preserve *preserves; /* all of them */
    uint32_t preserves_count;
    int owned_fd, shared_fd, drain_fd, domain_fd;
    tz_file file_tier, volume_reader, file_reader; /* fd -1: none */
    void *private_memory;
    size_t owned_bytes, shared_bytes, private_bytes, domain_bytes;

    /* Whose turn it is with the domain, domain_state says. 32 tracks a word, as saved and pending; in little-endian
     * order these are the bytes of the 64-bit words of domain_fd. NULL: the whole volume. */
    uint32_t *domain;
    bool domain_touched;
    _Atomic uint32_t domain_state; /* enum tz_domain_state */

    /* The volume's thread. */
    tz_session *next; /* in the gate */
    uint32_t number;  /* in the gate */
    bool installed;
    bool active;   /* installed and neither punctured nor ended: the gate looks at it */
    bool late;     /* TZ_FAULT_LATE_PUNCTURE: the state is told only at the end */
    bool starved;  /* somebody waits for a free preservation */
    bool pressed;  /* past the high mark, as of the last update that was held */
    bool over;     /* ended; nothing may start any more */
    bool watching; /* `watch` is submitted */
    bool waiting;  /* `patience` is submitted */
    uint32_t preserving;
    tz_preserve *free_preserves;
    uint32_t *saved, *pending;
    tz_sidefile sidefile;
    tz_io_op watch, patience;
    tz_call *ending; /* who waits for the end */
};

static inline tz_session_header *tz_session_header_of(const tz_session *session)
{
    return session->sidefile.header;
}

static inline enum tz_session_state tz_session_state_of(const tz_session *session)
{
    return atomic_load(&tz_session_header_of(session)->state);
}

/* session_domain.c, on the volume's thread: 0, and from now on the domain is constant; -ENODATA it was never set;
 * -EBUSY it is being set. */
int tz_session_take_domain(tz_session *session);

/* session.c, on the volume's thread */
void tz_session_installed(tz_session *session); /* by the gate: T0 */
/* T0 is lost. Held updates are judged again, without this session. */
void tz_session_puncture(tz_session *session, enum tz_puncture_reason reason);
/* Starts the end; `call` is answered when nothing is under way any more. */
void tz_session_end_start(tz_session *session, bool cancel, tz_call *call);
void tz_session_end_check(tz_session *session);
/* Nanoseconds by which an update that was intercepted now is delayed; 0 unless past the high mark. */
uint64_t tz_session_delay_ns(tz_session *session);

/* session_patience.c, on the volume's thread */
void tz_session_expect(tz_session *session, tz_preserve *p, uint64_t within_ns); /* an operation of p was submitted */
void tz_session_patience_end(tz_session *session);

/* preserve.c, on the volume's thread */

/* Needs this session nothing of [at, end) any more? If it does: starts to save what is not yet being saved. */
bool tz_session_cover(tz_session *session, uint64_t at, uint64_t end);

#endif
