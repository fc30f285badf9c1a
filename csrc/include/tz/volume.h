/* SPDX-License-Identifier: Apache-2.0
 *
 * A served volume: requests in, updates through the gate, I/O to the file or device below.
 *
 *   tz_volume_submit ─▶ [align, block locks] ─▶ [gate: judge, hold, preserve] ─▶ tz_io ─▶ done
 *
 * Requests of any offset and length inside the volume are served; what does not fit the volume's
 * alignment is read, merged and written, serialized per block. Large trims and zeroes are split, each
 * piece judged on its own. Reads are never held. An update counts as in flight from its issue
 * until its completion, whatever became of its client.
 *
 * Errors   a request's `done` gets 0 or -errno (-EINVAL outside the volume is the caller's check, asserted here).
 * Memory   requests are the caller's, until done. All that a held update may need is allocated
 *          when the volume is opened or the session prepared.
 * Threads  a volume belongs to the thread of its tz_io. Functions marked [any] may be called by others.
 */
#ifndef TZ_VOLUME_H
#define TZ_VOLUME_H

#include "tz/common.h"
#include "tz/file.h"
#include "tz/io.h"

typedef struct tz_volume tz_volume;
typedef struct tz_request tz_request;

typedef enum tz_request_kind {
    TZ_REQUEST_READ,
    TZ_REQUEST_WRITE,
    TZ_REQUEST_FLUSH,
    TZ_REQUEST_TRIM,
    TZ_REQUEST_ZERO,
    TZ_REQUEST_CACHE,
    TZ_REQUEST_BLOCK_STATUS, /* extents come back through `buffer`: see tz_volume_extent */
} tz_request_kind;

enum {
    TZ_REQUEST_FUA = 1 << 0,
    TZ_REQUEST_NO_HOLE = 1 << 1,
    TZ_REQUEST_FAST_ZERO = 1 << 2, /* -ENOTSUP at once when zeroing would mean writing zeros */
    TZ_REQUEST_ONE_EXTENT = 1 << 3,
};

typedef struct tz_volume_extent {
    uint64_t length; /* bytes */
    uint32_t flags;  /* as base:allocation: 1 hole, 2 reads as zero */
} tz_volume_extent;

struct tz_request {
    /* The caller fills these. */
    tz_request_kind kind;
    uint32_t flags;
    uint64_t offset, length; /* bytes */
    /* READ, WRITE: length bytes; no alignment is asked for, but a buffer aligned to 4096 avoids a copy.
     * BLOCK_STATUS: room for `capacity` tz_volume_extent. */
    void *buffer;
    uint32_t capacity;
    /* 0 or -errno. BLOCK_STATUS: `capacity` is then the number of extents filled in, at least 1; together they cover a first
     * part of the range, at most all of it. May be called inside tz_volume_submit. */
    void (*done)(tz_request *request, int64_t result);
    void *user;

    /* The volume's own until done is called. Fixed room, so that no update ever waits for an allocation. */
    struct {
        tz_io_op op;
        tz_volume *volume;
        tz_request *next, *prev;               /* queue of the moment: for a block, held, for a bounce buffer */
        tz_request *active_next, *active_prev; /* updates from lock to completion */
        uint64_t cursor;                       /* done up to here */
        uint64_t from, to;                     /* the piece under way, as asked for */
        uint64_t at, end;                      /* the same, widened to blocks */
        uint64_t arrived_ns;                   /* 0: its load is not measured */
        uint64_t held_since_ns;
        uint64_t held_by; /* sessions that made it wait, a bit each */
        void *bounce;
        uint32_t method; /* how the piece is done */
        bool held, exclusive, delayed, delay_running;
    } volume;
};

typedef struct tz_volume_config {
    const char *path;
    bool read_only;
    bool buffered;   /* do not use O_DIRECT */
    bool lock;       /* take the exclusive lock (flock on a file, O_EXCL on a device) */
    uint32_t faults; /* tests only: TZ_FAULT_* of tz/faults.h */
} tz_volume_config;

typedef struct tz_volume_stats {
    uint64_t reads, writes, flushes, trims, zeroes; /* requests completed */
    uint64_t read_bytes, written_bytes;
    uint64_t errors;
    uint64_t held;                               /* updates held now, by a closed gate or for a before-image */
    uint64_t in_flight;                          /* updates issued and not completed, now */
    uint32_t sessions;                           /* installed now */
    uint32_t reads_in_flight, updates_in_flight; /* arrived and not completed, now */
    uint64_t usual_read_p50_ns, usual_read_p99_ns, usual_update_p50_ns,
        usual_update_p99_ns; /* without a session, lately */
} tz_volume_stats;

/* Updates that came in lately: within about a minute, or since the volume was opened. */
typedef struct tz_recent_writes {
    uint64_t ns; /* how long that is */
    uint64_t updates, bytes;
    uint64_t blocks; /* of 4 KiB, each counted once however often it was written; within a few percent */
    uint64_t newer_ns, newer_blocks; /* the same of the newer half of that time; of all of it where there is no half */
} tz_recent_writes;

/* [any, before the engine runs it] -EBUSY: locked by another server; -EROFS, -ENOTSUP and what open says. */
int tz_volume_open(tz_volume **out, tz_io *io, const tz_volume_config *config);

/* On the volume's thread. Asserts that nothing is queued or in flight and no session is installed. */
void tz_volume_close(tz_volume *volume);

const tz_file *tz_volume_file(const tz_volume *volume); /* [any] */
tz_io *tz_volume_io(const tz_volume *volume);           /* [any] */
bool tz_volume_is_idle(const tz_volume *volume);

void tz_volume_submit(tz_volume *volume, tz_request *request);
void tz_volume_stats_get(const tz_volume *volume, tz_volume_stats *out);
void tz_volume_recent_writes_get(const tz_volume *volume, tz_recent_writes *out);

#endif
