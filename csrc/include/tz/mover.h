/* SPDX-License-Identifier: Apache-2.0
 *
 * The data mover: transfers of whole datasets, chunk by chunk, from a source to a sink.
 *
 *   claim a chunk ─▶ read into a frame ─▶ validate against the gate ─▶ digest, zero detection ─▶ write
 *      ▲                                                                                            │
 *      └──────────────────────────────────── give the frame back ◀──────────────────────────────────┘
 *
 * A tz_mover runs worker threads, each with an engine of its own and many chunks in flight; a chunk has one worker
 * from claim to end. Each transfer has an area of the buffer space and starts when it is granted. A source
 * that has a gate is looked at on every chunk: punctured ends the transfer; past the low mark the chunks that
 * hold live slots are claimed ahead of order (not for a stream, which has an order). A stuck or slow end of one
 * transfer leaves the others at least a place in flight each; files of user-space file systems are read and written by
 * threads of the kernel's (TZ_IO_ASIDE), so that one that does not answer does not keep the worker either; one that
 * does not say where its holes are does.
 *
 * From validation on the frame is the only certain copy of its chunk: it is never re-read from the volume.
 *
 * A source may be read for what is left of it (tz_source_salvage): damage ends no transfer then, and every chunk has an
 * outcome. A sink may look first (tz_sink_delta): a chunk that the target has already, by its digest, is neither read
 * from the source nor written.
 *
 * Errors   per transfer, the first one counts and stops that transfer alone: -errno with the
 *          offset and the side it happened on. -ECANCELED after cancel; -ESTALE when the session is punctured;
 *          -EBADMSG when content does not match its digest; -EPROTO when shared memory makes no sense; -ENODATA
 *          when the source ends before its size; -EPIPE when a stream's reader went away.
 * Memory   frames from the buffer space; per transfer an index entry a chunk and a claim bit a chunk, and an outcome
 *          (a byte) a chunk where there are outcomes.
 * Threads  create, add, start, wait, cancel, progress: any one controlling thread.
 *
 * An operation on a device that does not answer cannot be taken back, so cancel, wait and destroy may take as long as the
 * device does. Who knows from tz_mover_waiting that it is not going to answer leaves the mover alone, for the end of the
 * process.
 */
#ifndef TZ_MOVER_H
#define TZ_MOVER_H

#include "tz/bufspace.h"
#include "tz/digest.h"
#include "tz/file.h"
#include "tz/io.h"
#include "tz/session_layout.h"

typedef struct tz_mover tz_mover;
typedef struct tz_source tz_source;
typedef struct tz_sink tz_sink;
typedef struct tz_session_view tz_session_view;
typedef struct tz_pack_writer tz_pack_writer; /* the packs of one recovery point, shared by its sinks */

enum tz_origin { /* where a chunk's T0 content came from */
    TZ_ORIGIN_DIRECT = 0,
    TZ_ORIGIN_SIDEFILE = 1,
    TZ_ORIGIN_MIXED = 2,
};

enum tz_codec {
    TZ_CODEC_RAW = 0,
    TZ_CODEC_ZERO = 1, /* the chunk is all zero and stored nowhere */
};

/* How a chunk ended: of transfers from tz_source_salvage and to tz_sink_delta. */
enum tz_outcome {
    TZ_OUTCOME_NONE = 0,   /* not come to */
    TZ_OUTCOME_STORED,     /* read, right, and given to the sink */
    TZ_OUTCOME_KEPT,       /* the target had it already */
    TZ_OUTCOME_ALTERED,    /* from here on damage: does not match its digest */
    TZ_OUTCOME_UNREADABLE, /* its pack cannot be read there */
    TZ_OUTCOME_CUT,        /* its pack ends before it does */
    TZ_OUTCOME_NO_PACK,    /* its pack is not among those given */
    TZ_OUTCOME_BAD_ENTRY,  /* its index entry is impossible */
};

/* An index entry, as it lies on disk (little-endian; format 1). */
typedef struct tz_index_entry {
    uint64_t offset;        /* in the pack, bytes; 0 for zero chunks */
    uint32_t pack;          /* number of the pack; 0 for zero chunks */
    uint32_t stored_length; /* bytes in the pack; 0 for zero chunks */
    uint8_t codec, origin;
    uint8_t reserved[6]; /* zero */
    tz_digest digest;    /* of the chunk's content (its true length: the last chunk may be short) */
    uint64_t reserved2;  /* zero */
} tz_index_entry;
_Static_assert(sizeof(tz_index_entry) == 48, "on-disk size of an index entry");

/* ---- sources: where a transfer reads; each is given a size in bytes ---- */

/* A file or device, not served. Takes the tz_file over on success. `size` at most file->size. Holes and (where
 * the file system tells) unwritten extents are found with SEEK_DATA and not read. */
int tz_source_file(tz_source **out, const tz_file *file, uint64_t size);

/* A session on a served volume, as all sources over it share it: its memory is mapped once. All descriptors are taken
 * over on success. Sources hold the view; release gives the caller's hold back. Any thread. */
typedef struct tz_session_descriptors {
    int owned_fd, shared_fd, drain_fd, volume_fd, file_fd;
} tz_session_descriptors;
int tz_session_view_open(tz_session_view **out, const tz_session_descriptors *fds);
uint64_t tz_session_view_size(const tz_session_view *view);       /* of the volume, bytes */
uint64_t tz_session_view_track_size(const tz_session_view *view); /* bytes */
void tz_session_view_release(tz_session_view *view);

/* The whole volume under the session. One source of this kind a view. */
int tz_source_session(tz_source **out, tz_session_view *view);

/* A file that lies on the volume in `count` extents, columns of bytes: from `logical` on its content is at `physical`.
 * What no extent covers is zero; what lies past `size` is left out. -EINVAL, -EOVERFLOW as tz_extents_build has it;
 * -ERANGE an extent ends past the volume. Tracks may be shared by any number of sources of one view, but all of them
 * have to be added to their movers before the first is read: -EBUSY afterwards. A source that fails, or is never read,
 * keeps the before-images of its tracks until the session ends. */
int tz_source_extents(tz_source **out, tz_session_view *view, uint64_t size, const uint64_t *logical,
                      const uint64_t *physical, const uint64_t *length, uint64_t count);

/* A dataset in a repository. pack_fds[i] is the descriptor of pack number pack_numbers[i]; they are duplicated.
 * Index entries are checked (-EBADMSG): packs known, lengths and codecs possible. Every chunk, zeros too, is checked
 * against its digest. */
int tz_source_index(tz_source **out, const tz_index_entry *entries, uint64_t count, uint64_t size, uint32_t chunk_size,
                    const uint32_t *pack_numbers, const int *pack_fds, uint32_t packs);

/* The same, for what is left of it: an impossible entry, a pack that is not given or ends too early, content that cannot
 * be read or does not match its digest, are the outcome of their chunk and not an error. The sink gets zeros there. */
int tz_source_salvage(tz_source **out, const tz_index_entry *entries, uint64_t count, uint64_t size,
                      uint32_t chunk_size, const uint32_t *pack_numbers, const int *pack_fds, uint32_t packs);

bool tz_source_direct(const tz_source *source);   /* is all of it read past the page cache? */
uint64_t tz_source_size(const tz_source *source); /* bytes */
void tz_source_destroy(tz_source *source);

/* ---- sinks ---- */

/* A raw image or block device, written in place at the dataset's offsets. `fresh`: the target holds only zeros or holes
 * (a new file), so zeros are left out, within chunks too; otherwise zero chunks are zeroed, punched where possible. A
 * file has exactly the source's size at finish. Takes the tz_file over. -ENOSPC when a device is smaller than the data. */
int tz_sink_image(tz_sink **out, const tz_file *file, uint64_t size, bool fresh);

/* The same on a target that may hold some of the data already: each chunk is read there first, and only those whose
 * digest differs are read from the source and written. What cannot be read on the target differs. `keep`: where the
 * source is damaged the target stays as it is, instead of zeros. For sources that know digests: tz_mover_add says
 * -EINVAL for others. */
int tz_sink_delta(tz_sink **out, const tz_file *file, uint64_t size, bool keep);

/* A stream (pipe, socket, terminal, regular file at its position): in order, by one worker. The descriptor stays the
 * caller's, and its flags as they are. -EPIPE when a pipe has no reader. */
int tz_sink_stream(tz_sink **out, int fd);

/* Packs <prefix>-NNNN.pack in directory dir_fd, created exclusively, rolled over at max_bytes (0 = 4 GiB). */
int tz_pack_writer_create(tz_pack_writer **out, int dir_fd, const char *prefix, uint64_t max_bytes);
/* fdatasync of all packs. Any error, of making a pack or here, is final. Packs have a multiple of 4096 bytes. */
int tz_pack_writer_finish(tz_pack_writer *writer, uint32_t *packs, uint64_t *bytes);
uint64_t tz_pack_writer_pack_bytes(const tz_pack_writer *writer, uint32_t pack);
void tz_pack_writer_destroy(tz_pack_writer *writer); /* removes nothing: the owner of the id sweeps */
int tz_sink_packs(tz_sink **out, tz_pack_writer *writer);

/* Reads and checks, writes nothing (verify). */
int tz_sink_null(tz_sink **out);
void tz_sink_destroy(tz_sink *sink);

/* ---- the mover ---- */

#define TZ_LATENCY_PERCENT 125

typedef struct tz_mover_config {
    tz_io_kind io;
    uint32_t workers;    /* threads; 0 = 1 */
    uint32_t depth;      /* chunks in flight a worker; 0: 8, and up to 32 (and the frames there are) where more pay */
    uint32_t chunk_size; /* bytes; frames of the buffer space have this size */
    uint64_t rate;       /* bytes a second over all transfers; 0: no limit */
    bool opportunistic;  /* gives way to the application: see csrc/mover/controller.h */
    uint32_t latency_percent; /* what its latency may be, of what is usual without us; 0: TZ_LATENCY_PERCENT */
    uint64_t latency_ns;      /* the same, absolute; 0: relative */
    uint32_t faults;          /* tests only */
} tz_mover_config;

enum tz_transfer_side {
    TZ_SIDE_NONE = 0,
    TZ_SIDE_SOURCE = 1,
    TZ_SIDE_SINK = 2,
    TZ_SIDE_SESSION = 3
};

typedef struct tz_transfer_report {
    bool done;    /* ended, well or not */
    bool touched; /* the target may have been written to */
    int error;    /* 0 or -errno */
    enum tz_transfer_side side;
    uint64_t error_offset;
    uint64_t size, chunks;
    uint64_t bytes_done; /* of the dataset, holes included: for progress */
    uint64_t bytes_read; /* from the source */
    uint64_t bytes_written;
    uint64_t chunks_zero, chunks_direct, chunks_sidefile, chunks_mixed;
    uint64_t tracks_from_sidefile;
    uint64_t chunks_ahead;            /* claimed ahead of order, for the sidefile's sake */
    uint64_t chunks_kept, bytes_kept; /* the target had them already; counted nowhere above but in bytes_done */
    uint64_t chunks_damaged;          /* salvaged as zeros, or left as the target had them */
    uint32_t pressure;                /* used slots, now; 0 without a gate */
    uint64_t started_ns, ended_ns;    /* CLOCK_MONOTONIC; 0: not yet */
} tz_transfer_report;

int tz_mover_create(tz_mover **out, tz_bufspace *space, const tz_mover_config *config);
tz_io_kind tz_mover_engine(const tz_mover *mover); /* of its workers */

/* Adds a transfer before start; returns its number. Source and sink are taken over on success. `index`, room for
 * ceil(size / chunk_size) entries, zero-filled, or NULL; it must live until destroy. -EINVAL when the source cannot be
 * cut into chunks of this size, or the sink was made for another size; -EBUSY after start. */
int tz_mover_add(tz_mover *mover, tz_source *source, tz_sink *sink, tz_index_entry *index);

int tz_mover_start(tz_mover *mover);

/* [any] From now on nothing is begun but what a sidefile needs copied: past its low mark what can be found ahead of order,
 * from halfway between the marks on what comes next in order, too; until it is called with false. */
void tz_mover_rest(tz_mover *mover, bool rests);

typedef struct tz_mover_speed {
    uint32_t depth; /* chunks that may be in flight */
    uint32_t piece; /* most bytes of one request; 0: whole chunks */
    uint64_t rate;  /* bytes a second, read and written together, that yielding allows; 0: no limit */
    bool yields;    /* less than full speed, for the application's sake */
    bool rests;
} tz_mover_speed;
void tz_mover_speed_get(tz_mover *mover, tz_mover_speed *out); /* [any] */

int tz_mover_wait(tz_mover *mover, int64_t timeout_ns); /* 1 all transfers ended, 0 not yet */
void tz_mover_cancel(tz_mover *mover);                  /* soon; wait still has to be called */
void tz_mover_report_get(tz_mover *mover, uint32_t transfer, tz_transfer_report *out);
uint64_t tz_mover_bytes_done(tz_mover *mover); /* over all transfers */

/* An outcome (enum tz_outcome) a chunk; NULL for transfers that have none. Final once the transfer has ended. */
const uint8_t *tz_mover_outcomes(const tz_mover *mover, uint32_t transfer);

/* The oldest operation on a device, source or target, that has not ended, or look for holes: since when, in nanoseconds;
 * 0: there is none. Waiting for the reader of a stream does not count, nor does what a worker asks of a target without an
 * operation (to make a pack; the size of an image). */
uint64_t tz_mover_waiting(tz_mover *mover, uint32_t *transfer, enum tz_transfer_side *side);

/* Does an operation of this transfer wait for the device on this side? */
bool tz_mover_waits_for(tz_mover *mover, uint32_t transfer, enum tz_transfer_side side);

/* Makes the data of a finished transfer durable (fdatasync of images; packs have their own finish). */
int tz_mover_sync(tz_mover *mover, uint32_t transfer);

/* Cancels, waits, gives every frame and area back, destroys sources and sinks. */
void tz_mover_destroy(tz_mover *mover);

#endif
