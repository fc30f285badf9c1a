/* SPDX-License-Identifier: Apache-2.0
 *
 * Inside the mover: chunks, transfers, workers, and what sources and sinks implement.
 *
 * A source or sink is a step function: it is called for a chunk, submits at most one operation
 * (tz_chunk_read and friends) and is called again with chunk->result when that has ended:
 *
 *     DONE ◀── step ──▶ -errno           step ──▶ PENDING ──(operation ends)──▶ step ...
 *
 * All steps of a chunk run on its worker's thread. Several workers may step different chunks of one
 * source or sink at once, so what chunks share there is guarded or atomic.
 *
 * Threads  chunk: its worker. transfer: `lock` guards claims and the end, counters are atomic.
 *          worker: its thread, but for wake. pace: its own lock.
 */
#ifndef TZ_MOVER_INTERNAL_H
#define TZ_MOVER_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "controller.h"
#include "tz/bitmap.h"
#include "tz/mover.h"

#define TZ_FRAME_ALIGN       4096 /* what the buffer space promises for every frame; also the grain of packs */
#define TZ_CHUNK_TRACK_WORDS (TZ_CHUNK_MAX / TZ_TRACK_MIN / 32 + 1) /* a run may begin inside a track */
#define TZ_CHUNK_IOVS        16                                     /* runs read at once */

typedef struct tz_chunk tz_chunk;
typedef struct tz_transfer tz_transfer;
typedef struct tz_worker tz_worker;

enum tz_step {
    TZ_STEP_DONE = 0,
    TZ_STEP_PENDING = 1,
};

/* What the application does, as a gate tells it. */
typedef struct tz_activity {
    const void *gate;            /* whose it is: several sources may be behind one */
    const tz_load *load, *usual; /* since T0, and what was usual before */
    uint32_t used, low, high;
    bool past_low; /* with hysteresis (tz/marks.h) */
} tz_activity;

typedef struct tz_source_ops {
    /* Once, before the first chunk: can the content be cut into chunks of this size? */
    int (*prepare)(tz_source *source, uint32_t chunk_size);

    /* Step: T0 content of the chunk into its frame, or chunk->zero left true and the frame untouched. */
    int (*load)(tz_source *source, tz_chunk *chunk);

    /* Compares the digest with a stored one (-EBADMSG); NULL: nothing to compare with. */
    int (*check)(tz_source *source, const tz_chunk *chunk, const tz_digest *digest);

    /* Claims a chunk ahead of order: 1 and its number, 0 none; NULL: never. */
    int (*ahead)(tz_source *source, tz_bitmap *claimed, uint64_t *number);

    void (*activity)(const tz_source *source, tz_activity *out); /* NULL: no gate */
    bool (*direct)(const tz_source *source);                     /* NULL: not known to be */
    void (*destroy)(tz_source *source);
} tz_source_ops;

struct tz_source {
    const tz_source_ops *ops;
    uint64_t size;   /* bytes */
    bool salvage;    /* a failure that is damage is the chunk's alone: chunk->damage says so */
    uint32_t faults; /* tests only */
};

typedef struct tz_sink_ops {
    bool ordered; /* chunks come by number, from one worker */

    /* Once, before the first chunk. */
    int (*prepare)(tz_sink *sink, uint64_t size);

    /* Step: what the target holds where the chunk goes, into its frame; NULL: not looked at. Any error: nothing that
     * could be kept. */
    int (*look)(tz_sink *sink, tz_chunk *chunk);

    /* Step: the chunk's content to the target; fills the place in chunk->entry when there is one. */
    int (*store)(tz_sink *sink, tz_chunk *chunk);

    int (*finish)(tz_sink *sink); /* after the last chunk was stored; NULL: nothing to do */
    int (*sync)(tz_sink *sink);   /* makes it durable; NULL: nothing to do */
    void (*destroy)(tz_sink *sink);
} tz_sink_ops;

struct tz_sink {
    const tz_sink_ops *ops;
    bool keep; /* where the source is damaged, nothing is stored */
};

/* See pipeline.c for the drawing. */
enum tz_chunk_state {
    TZ_CHUNK_FREE = 0,
    TZ_CHUNK_LOOKING, /* at the target */
    TZ_CHUNK_LOADING,
    TZ_CHUNK_LOADED,
    TZ_CHUNK_PARKED, /* an ordered sink waits for an earlier chunk */
    TZ_CHUNK_STORING,
    TZ_CHUNK_STORED,
};

struct tz_chunk {
    tz_worker *worker;
    tz_transfer *transfer;
    enum tz_chunk_state state;
    uint64_t number, offset; /* of the dataset */
    uint32_t length;         /* true length: the last chunk may be short */
    uint8_t *frame;          /* chunk_size bytes */
    tz_index_entry entry;

    /* The operation under way, and how the last one ended. */
    tz_io_op op, pause; /* pause: before op is begun */
    bool pending, pausing;
    _Atomic uint64_t since_ns;      /* of the operation under way, for onlookers; 0: none that must end by itself */
    _Atomic(tz_transfer *) waiting; /* whose */
    _Atomic uint32_t waiting_side;  /* enum tz_transfer_side */
    bool interruptible;             /* may never end by itself: cancelled when the transfer stops */
    bool retried;
    int64_t result;
    struct iovec again; /* the write under way, for its one retry */

    /* The source's. */
    bool zero;                  /* content is zero and the frame may hold anything */
    bool blank;                 /* the target was looked at, and holds zeros there */
    uint8_t damage;             /* of a source that is salvaged: enum tz_outcome, 0 while there is none */
    uint8_t phase;              /* of the step function, source's or sink's; 0 to begin with */
    uint32_t piece;             /* most bytes in the next request; 0: no limit */
    uint32_t at;                /* bytes of the chunk that are loaded; while storing, the sink's */
    uint32_t run;               /* bytes being loaded behind `at` */
    uint64_t physical;          /* where the run lies on the volume */
    uint32_t ready;             /* the read under way, or the last one, ends here in the chunk */
    bool alone;                 /* after an error: one run of one track at a time */
    uint32_t take_at, take_end; /* tracks of the run still to be looked at in `take`, from its first */
    uint32_t slot;              /* the before-image being taken; TZ_SLOT_NONE: zeros */
    uint32_t slots;             /* from the file tier: how many, in a row */
    uint32_t tracks;            /* looked at, once for each run */
    uint32_t taken;             /* of them: those that came from the sidefile */
    uint32_t pushed;            /* slots given back and not yet announced */
    uint32_t take[TZ_CHUNK_TRACK_WORDS];
    struct iovec iov[TZ_CHUNK_IOVS];
    uint32_t asked;  /* bytes that the read has to bring at least */
    uint8_t *bounce; /* for what lies badly for direct I/O; kept by the chunk's place */
    size_t bounce_bytes;
    struct {
        uint8_t *place; /* NULL: the read goes to the frame */
        uint32_t skip, length;
    } bounced;
    enum tz_transfer_side side; /* to blame when the step fails */

    uint64_t read, written; /* bytes moved */
    uint32_t looked;        /* bytes read from the target */
};

struct tz_transfer {
    tz_mover *mover;
    tz_source *source;
    tz_sink *sink;
    tz_area *area; /* NULL before start, when there is no chunk, and after the end */
    tz_index_entry *index;
    uint8_t *outcomes; /* a chunk's is written by its worker; NULL: none are kept */
    uint64_t size, chunks;

    pthread_mutex_t lock;
    tz_bitmap claimed;
    void *claimed_memory;
    uint64_t cursor;   /* chunks below are claimed */
    uint64_t claims;   /* chunks claimed */
    uint64_t stored;   /* chunks stored */
    uint32_t active;   /* chunks in flight, and visits on the way to one */
    uint64_t in_order; /* next chunk of an ordered sink; its worker's alone */
    bool ending;       /* somebody is at the last rites */
    int error;
    enum tz_transfer_side side;
    uint64_t error_offset;

    _Atomic bool granted;  /* the area; never false again */
    _Atomic bool stopping; /* failed or cancelled: no more claims */
    _Atomic bool touched;  /* its sink was given something: from then on the target may be another */
    _Atomic bool ended;
    _Atomic uint64_t bytes_done, bytes_read, bytes_written;
    _Atomic uint64_t chunks_zero, chunks_by_origin[3], chunks_ahead, tracks_taken;
    _Atomic uint64_t chunks_kept, bytes_kept, chunks_damaged;
    _Atomic uint64_t started_ns, ended_ns;
};

struct tz_worker {
    tz_mover *mover;
    uint32_t number;
    pthread_t thread;
    bool running;
    tz_io *io;
    tz_chunk *chunks; /* mover->chunks_each of them */
    uint32_t in_flight;
    tz_transfer **live; /* transfers that have their area and have not ended, as far as this worker has noticed */
    uint32_t live_count;
    uint32_t next; /* transfer that is the next to become live: areas are granted in order */
    uint32_t turn; /* place in `live` to be looked at first */
    tz_io_op timer;
    bool timer_armed;
    tz_io_message wake;
    _Atomic bool wake_posted;
};

/* How fast: token buckets over all workers, and yielding to the application (pace.c). */
typedef struct tz_pace {
    /* Constant once prepared. */
    uint64_t rate; /* bytes a second; 0: no limit */
    bool yields;
    tz_target target; /* of the application's latency */
    uint32_t full;    /* chunks in flight over all workers, at full speed, */
    uint32_t frames;  /* unless there are fewer of these */
    uint32_t gates;   /* 0: nobody to yield to */

    pthread_mutex_t lock;
    uint64_t next_ns;       /* the bucket of chunks: when what was admitted is paid for */
    uint64_t piece_next_ns; /* the same of pieces */
    uint64_t look_ns;       /* of the last look at the application */
    enum tz_calm calm;      /* since then */
    tz_meter meter;         /* its volumes are the gates */
    tz_controller controller;

    _Atomic bool waiting;        /* outside of its hours */
    _Atomic uint64_t moved;      /* bytes read and written */
    _Atomic uint64_t requests;   /* reads and writes: for tests */
    _Atomic bool slowed;         /* for the application's sake, now */
    _Atomic uint32_t depth;      /* chunks in flight over all workers, now */
    _Atomic uint32_t piece;      /* most bytes of one request, now; 0: no limit */
    _Atomic uint64_t piece_rate; /* bytes a second, of pieces, now; 0: no limit */
} tz_pace;

/* How many chunks in flight pay (depth.c). */
typedef struct tz_depth {
    uint32_t most, workers; /* constant; depths are a worker's */

    /* Under the lock. */
    pthread_mutex_t lock;
    uint32_t settled;         /* has proved itself */
    uint32_t trial;           /* number of the window being measured, from 1; 0: no trial */
    uint32_t skip, left;      /* chunks of the window: not counted yet, still to be counted */
    uint64_t bytes, began_ns; /* of the window */
    uint64_t before;          /* rate of the window before, bytes a second */
    uint64_t wait, pause;     /* chunks to the next trial, and to the one after it */

    _Atomic uint32_t limit; /* in use now */
} tz_depth;

struct tz_mover {
    tz_mover_config config;
    uint32_t chunks_each; /* chunk objects of a worker: the most it may ever have in flight */
    tz_bufspace *space;
    tz_transfer **transfers;
    uint32_t count;
    tz_worker *workers; /* config.workers of them */
    bool started;
    _Atomic uint32_t running; /* transfers that have their area and have not ended */
    tz_pace pace;
    tz_depth depth;

    pthread_mutex_t lock;
    pthread_cond_t changed; /* `ended` moved */
    uint32_t ended;
};

uint64_t tz_mover_now(void); /* CLOCK_MONOTONIC, ns */

/* ---- for sources and sinks ---- */

/* Submit the step's one operation; return TZ_STEP_PENDING afterwards. `file` is looked at here and now only. */
void tz_chunk_read(tz_chunk *chunk, const tz_file *file, void *buffer, size_t length, uint64_t offset);
void tz_chunk_readv(tz_chunk *chunk, const tz_file *file, uint32_t iovs, uint64_t offset); /* into chunk->iov */
void tz_chunk_write(tz_chunk *chunk, const tz_file *file, void *buffer, size_t length, uint64_t offset);
void tz_chunk_range(tz_chunk *chunk, tz_io_opcode opcode, int fd, uint64_t offset, uint64_t length, uint32_t arg);
void tz_chunk_poll(tz_chunk *chunk, int fd, uint32_t events); /* interruptible */

/* Around what is asked of a device without an operation: tz_mover_waiting tells of it, too. */
void tz_chunk_asks(tz_chunk *chunk);
void tz_chunk_told(tz_chunk *chunk);

/* The frame holds the chunk's content afterwards, zeros too; the rest of the frame is zero up to a multiple of `pad`.
 */
void tz_chunk_materialize(tz_chunk *chunk, uint32_t pad);

/* Opens what `fd` names anew, for direct I/O on frames; buffered when its alignment is beyond that of frames. */
int tz_mover_file_open(tz_file *out, int fd, unsigned flags);

/* ---- pipeline.c ---- */

/* Runs a claimed chunk as far as it goes without waiting. */
void tz_chunk_start(tz_chunk *chunk, tz_transfer *transfer, uint64_t number, void *frame);

/* Ends what would never end by itself of a transfer that stops. */
void tz_worker_interrupt(tz_worker *worker, tz_transfer *transfer);

/* ---- transfer_state.c ---- */
int tz_transfer_create(tz_transfer **out, tz_mover *mover, tz_source *source, tz_sink *sink, tz_index_entry *index);
int tz_transfer_request(tz_transfer *transfer); /* the area */
bool tz_transfer_enter(tz_transfer *transfer);  /* true: there is a chunk to claim, and the caller leaves */
bool tz_transfer_claim(tz_transfer *transfer, uint64_t *number); /* between enter and leave */
uint32_t tz_transfer_chunk_length(const tz_transfer *transfer, uint64_t number);
void tz_transfer_fail(tz_transfer *transfer, int error, enum tz_transfer_side side, uint64_t offset);
void tz_transfer_leave(tz_transfer *transfer, bool stored); /* after the frame was given back */
void tz_transfer_settle(tz_transfer *transfer);             /* ends it when nothing is left to be done */
void tz_transfer_destroy(tz_transfer *transfer);

/* ---- worker.c ---- */
int tz_worker_create(tz_worker *worker, tz_mover *mover, uint32_t number);
int tz_worker_prepare(tz_worker *worker); /* after the last transfer was added */
int tz_worker_start(tz_worker *worker);
void tz_worker_wake(tz_worker *worker);  /* any thread */
void tz_mover_wake_all(tz_mover *mover); /* any thread */
void tz_worker_join(tz_worker *worker);
void tz_worker_destroy(tz_worker *worker); /* after all were joined: they wake each other */

/* ---- pace.c ---- */
void tz_pace_create(tz_pace *pace, const tz_mover_config *config, uint32_t frames);
int tz_pace_prepare(tz_mover *mover);                     /* after the last transfer was added: a meter a gate */
uint64_t tz_pace_admit(tz_pace *pace, uint64_t bytes);    /* 0: admitted; else ns to wait before asking again */
void tz_pace_refund(tz_pace *pace, uint64_t bytes);       /* what was admitted and not read */
uint64_t tz_pace_take(tz_pace *pace, uint64_t bytes);     /* ns to wait before a piece of so many is begun */
uint32_t tz_pace_depth(tz_mover *mover, uint32_t worker); /* chunks the worker may have in flight now */
uint32_t tz_pace_piece(const tz_pace *pace);              /* most bytes to read or write at once; 0: no limit */
bool tz_pace_drains(const tz_activity *activity);         /* does this sidefile ask for speed? */
void tz_pace_destroy(tz_pace *pace);

static inline bool tz_pace_waits(const tz_pace *pace)
{
    return atomic_load_explicit(&pace->waiting, memory_order_relaxed);
}

/* ---- depth.c ---- */
void tz_depth_init(tz_depth *depth, uint32_t least, uint32_t most, uint32_t workers); /* least == most: fixed */
void tz_depth_observe(tz_depth *depth, uint32_t bytes, uint64_t now_ns); /* a chunk has ended; bytes it moved */
void tz_depth_disturbed(tz_depth *depth);                                /* something else sets the pace now */
void tz_depth_fini(tz_depth *depth);

#endif
