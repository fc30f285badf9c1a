/* SPDX-License-Identifier: Apache-2.0
 *
 * The gate of a volume, the sessions installed in it, and the suspension of a group.
 *
 *   prepare (any thread, no deadline) ─▶ suspend: close ─▶ drained ─▶ install ─▶ open ─▶ ... ─▶ end
 *
 * A closed gate holds every update (reads pass); it is drained when every update issued before has
 * completed. It reopens by itself at its deadline, whoever forgot it, and remembers that it did: a
 * session is valid only if its gate was closed without a break from before the last install
 * until the order to open.
 *
 * Errors   -ETIMEDOUT the deadline passed, everything is open again; -EBUSY the gate is closed for
 *          another suspension, or 64 sessions are installed; -ECANCELED a session of the suspension had its T0 before, or
 *          was ended; -ENODATA the domain of one was never set; at prepare -EINVAL (sizes), -ENOMEM, and -ENOSPC when the
 *          caps hold no slot, or the file tier's disk cannot hold its cap.
 * Memory   a session allocates, touches and locks all it needs at prepare; end frees it once the last
 *          before-image read has completed.
 * Threads  functions marked [any] post to the volume's thread and wait for it; the others
 *          are called on that thread.
 */
#ifndef TZ_GATE_H
#define TZ_GATE_H

#include "tz/session_layout.h"
#include "tz/volume.h"

typedef struct tz_session tz_session;       /* one volume's part of a session */
typedef struct tz_suspension tz_suspension; /* one group's passage from close to open */

typedef struct tz_session_config {
    uint64_t track_size;   /* bytes, power of two, 4 KiB to 1 MiB */
    uint64_t memory_bytes; /* cap of all the session takes: tables, track bits, read buffers; the rest: memory tier */
    uint64_t file_bytes;   /* cap of the file tier; 0: none */
    int file_fd;           /* file tier: an unlinked (or O_TMPFILE) file, read-write; taken over on success; -1: none */
    bool domain; /* only some tracks: tz_session_set_domain says which, before install; else the whole volume */
    uint32_t low_percent;      /* of slots; 0 = 25 */
    uint32_t high_percent;     /* of slots, above low_percent; 0 = 80 */
    uint32_t max_delay_us;     /* of a writer past the high mark; 0 = 2000 */
    uint32_t volume_answer_ms; /* longest wait for a before-image's read, then it is punctured; 0 = 30000 */
    uint32_t tier_answer_ms;   /* the same for its write to the file tier; 0 = 5000 */
    bool exempt;               /* writers of this volume are never delayed */
    uint32_t faults;           /* tests only */
} tz_session_config;

/* What the mover is given; the descriptors stay the session's (duplicate or send them). */
typedef struct tz_session_handles {
    int owned_fd;  /* header, slots, memory tier: sealed, map read-only */
    int shared_fd; /* ring and track words: map read-write */
    int drain_fd;  /* eventfd: written after slots were pushed */
    int volume_fd; /* fresh read-only open of the volume, in its cache mode */
    int file_fd;   /* fresh read-only open of the file tier, or -1 */
    int domain_fd; /* memory to write the domain into, zero-filled and of fixed size: a bit a track in little-endian 64-bit
                    * words; -1: the whole volume */
    uint64_t owned_bytes, shared_bytes;
} tz_session_handles;

typedef struct tz_session_report {
    enum tz_session_state state;
    enum tz_puncture_reason puncture;
    uint64_t updates, intercepted, images, zero_images, file_images, self_freed, delayed;
    uint64_t held_ns, held_max_ns;
    uint32_t slots, used_slots, high_water, low_mark;
    uint64_t track_size;

    /* The application's load since install, and its latencies (arrival to completion), beside those of before. */
    uint32_t reads_in_flight, updates_in_flight;
    uint64_t reads, read_bytes, written_bytes;
    uint64_t read_p50_ns, read_p99_ns, update_p50_ns, update_p99_ns;
    uint64_t usual_read_p99_ns, usual_update_p99_ns;
} tz_session_report;

/* [any] Allocates everything; the session is not yet in the gate. */
int tz_session_prepare(tz_session **out, tz_volume *volume, const tz_session_config *config);
void tz_session_handles_get(const tz_session *session, tz_session_handles *out); /* [any] */

/* [any] What prepare would say of the sizes, before anything is allocated: 0, -EINVAL, -ENOSPC. file_fd is not looked at. */
int tz_session_check(const tz_volume *volume, const tz_session_config *config);

/* [any] Copies the domain that lies in `domain_fd`; what is written there afterwards counts only when this is called
 * again. Bits past the last track are ignored. -EBUSY once the session is installed, or while another thread is at it;
 * -EINVAL when its domain is the whole volume. */
int tz_session_set_domain(tz_session *session);
bool tz_session_lacks_domain(const tz_session *session); /* [any] it has to be set before install */
void tz_session_report_get(const tz_session *session, tz_session_report *out); /* [any] */

/* [any] Takes the session out of its gate and waits until nothing of it is under way; the state becomes ENDED if it
 * was ACTIVE, and the report says so: "intact". `cancel`: it becomes PUNCTURED (reason MOVER) instead. Waiters are judged anew. */
int tz_session_end(tz_session *session, bool cancel, tz_session_report *out);

/* [any] The same, but waits no longer than `timeout_ns` for what is under way: -ETIMEDOUT says that a disk still owes an
 * answer. The session is out of its gate and its report final all the same; it is to be ended once more before destroy. */
int tz_session_end_within(tz_session *session, bool cancel, uint64_t timeout_ns, tz_session_report *out);

/* [any] Punctures the session (reason ADMISSION) if it is active; it has to be ended all the same. */
void tz_session_give_way(tz_session *session);

/* [any] After end (or never installed). */
void tz_session_destroy(tz_session *session);

typedef struct tz_suspension_times {
    uint64_t close_ns;   /* ordering all gates closed */
    uint64_t drain_ns;   /* until the last update in flight completed */
    uint64_t install_ns; /* sessions of all volumes */
    uint64_t open_ns;    /* until all gates were open */
    uint64_t total_ns;   /* first gate closed to last gate open */
} tz_suspension_times;

/* [any] The steps, for a coordinator of several subsystems. A suspension owns the gates of its sessions'
 * volumes from close to open. A process takes part in one at a time is the caller's rule.
 * `deadline_ns` counts from the call; the timers that reopen run in the volumes' own threads. A step that fails opens
 * everything and punctures what was installed. The sessions must outlive the suspension; several may be on one volume. */
int tz_suspension_create(tz_suspension **out, tz_session *const *sessions, uint32_t count);
int tz_suspension_close(tz_suspension *suspension, uint64_t deadline_ns); /* returns when drained */
int tz_suspension_install(tz_suspension *suspension);
/* -ETIMEDOUT: some gate had opened by itself; all sessions are punctured (GATE). */
int tz_suspension_open(tz_suspension *suspension);
/* Between steps: opens what is closed; installed sessions are punctured (GATE). */
void tz_suspension_abort(tz_suspension *suspension);
void tz_suspension_times_get(const tz_suspension *suspension, tz_suspension_times *out);
void tz_suspension_destroy(tz_suspension *suspension);

/* [any] All steps in one go, with as few thread wake-ups as possible: what a single subsystem uses. */
int tz_suspension_run(tz_suspension *suspension, uint64_t deadline_ns);

#endif
