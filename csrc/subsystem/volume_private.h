/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of volume and gate know of each other.
 *
 * An update passes these stages, a piece at a time (a piece is what one I/O does):
 *
 *   next piece ─▶ block lock ─▶ gate ─▶ [bounce buffer ─▶ read edges] ─▶ write ─▶ next piece ... ─▶ [sync] ─▶ done
 *      wait:       queue blocked  held     queue starved
 *
 * The gate comes after the block lock and before anything that is scarce: whoever owns a bounce buffer is
 * issued and will complete, so that nobody waits for somebody whom a gate holds.
 *
 * Threads  the volume's own.
 */
#ifndef TZ_VOLUME_PRIVATE_H
#define TZ_VOLUME_PRIVATE_H

#include "tz/load.h"
#include "tz/volume.h"

#include "gate_private.h"
#include "volume_recent.h"

/* Bounce buffers for requests that do not fit the volume's alignment; a peer that is aligned needs none. */
#define TZ_BOUNCES      8
#define TZ_BOUNCE_BYTES (128 * TZ_KIB)

/* The grain of trims and zeroes: the physical block of a device, which it changes as a whole. What a device says is not
 * believed beyond what the edges of a zero have room for: some say three pages, some 16 MiB. */
static inline uint32_t tz_volume_zero_align(const tz_file *file)
{
    bool usable = tz_is_pow2(file->block_size) && file->block_size <= TZ_BOUNCE_BYTES;

    return file->block_device && usable && file->block_size > file->offset_align ? file->block_size
                                                                                 : file->offset_align;
}

/* Rule 9: the largest piece while a session is installed, and otherwise; also the largest write of zeros. */
#define TZ_PIECE_GATED (4 * TZ_MIB)
#define TZ_PIECE_FREE  (1 * TZ_GIB)
#define TZ_PIECE_ZEROS (1 * TZ_MIB)

/* How a piece of an update is done; what the file system refuses is tried the next way. */
enum tz_method {
    TZ_METHOD_WRITE,   /* the caller's bytes, or zeros at the unaligned edge of a ZERO */
    TZ_METHOD_PUNCH,   /* FALLOC_FL_PUNCH_HOLE: reads as zeros, no space */
    TZ_METHOD_RANGE,   /* FALLOC_FL_ZERO_RANGE: reads as zeros, space kept */
    TZ_METHOD_BLKZERO, /* the same of a block device */
    TZ_METHOD_DISCARD, /* BLKDISCARD */
    TZ_METHOD_ZEROS,   /* write zeros */
};

struct tz_volume {
    tz_io *io;
    tz_file file;
    bool read_only;
    uint32_t faults;
    uint32_t zero_align;  /* grain of trims and zeroes */
    uint32_t unsupported; /* methods (a bit each) that this file has refused */

    /* Rule 8. */
    tz_request *active; /* updates from lock to completion, any order */
    uint64_t exclusives;
    tz_queue blocked;

    tz_gate gate;

    void *bounces[TZ_BOUNCES];
    uint32_t bounces_free;
    void *bounce_memory, *zeros; /* zeros: TZ_PIECE_ZEROS bytes */
    tz_queue starved;

    uint64_t requests; /* submitted and not done */
    tz_load load;      /* its histograms: while no session is installed */
    tz_volume_stats stats;
    tz_recent recent;
};

/* In memory, what is no longer than this is transferred on the spot: copying it takes less than 50 us. */
#define TZ_QUICK_BYTES (256 * TZ_KIB)

static inline void tz_volume_read_file(tz_volume *volume, tz_request *request, void *buffer, uint64_t length,
                                       uint64_t at, tz_io_done done)
{
    bool quick = volume->file.in_memory && length <= TZ_QUICK_BYTES;

    (quick                ? tz_io_read_here
     : volume->file.aside ? tz_io_read_aside
                          : tz_io_read)(volume->io, &request->volume.op, volume->file.fd, buffer, length, at, done);
}

static inline void tz_volume_write_file(tz_volume *volume, tz_request *request, const void *buffer, uint64_t length,
                                        uint64_t at, tz_io_done done)
{
    bool quick = volume->file.in_memory && length <= TZ_QUICK_BYTES;

    (quick                ? tz_io_write_here
     : volume->file.aside ? tz_io_write_aside
                          : tz_io_write)(volume->io, &request->volume.op, volume->file.fd, buffer, length, at, done);
}

/* volume.c */
void tz_volume_finish(tz_volume *volume, tz_request *request, int64_t result);
void *tz_volume_take_bounce(tz_volume *volume);
/* Gives it to the first who waits for one, if any. */
void tz_volume_give_bounce(tz_volume *volume, tz_request *request);
void tz_volume_read_piece(tz_volume *volume, tz_request *request); /* with its bounce buffer */

/* volume_load.c: of reads and updates */
void tz_volume_load_arrived(tz_volume *volume, tz_request *request);
void tz_volume_load_ended(tz_volume *volume, tz_request *request, bool good);
void tz_volume_load_stats(const tz_volume *volume, tz_volume_stats *out);

/* volume_update.c */
void tz_volume_update(tz_volume *volume, tz_request *request);
/* The gate has passed the piece: do it. */
void tz_volume_issue(tz_volume *volume, tz_request *request);
void tz_volume_write_piece(tz_volume *volume, tz_request *request); /* with its bounce buffer */
/* Cuts a piece that was made before a session was installed down to what may be judged at once. */
void tz_volume_cut_piece(tz_volume *volume, tz_request *request);

/* volume_extents.c */
int tz_volume_block_status(tz_volume *volume, tz_request *request);

#endif
