/* SPDX-License-Identifier: Apache-2.0
 *
 * A file or block device as the core sees it: size, cache mode, alignment, what it can punch and zero.
 *
 * Errors   what open, fstat or the ioctls say; -EISDIR for a directory, -ENOTSUP for anything else that is
 *          neither a regular file nor a block device (a FIFO is told without waiting for its other end).
 * Memory   plain struct, no allocation; tz_file_close closes the descriptor.
 * Threads  the struct is constant after opening and may be read by all.
 */
#ifndef TZ_FILE_H
#define TZ_FILE_H

#include "tz/common.h"

enum {
    TZ_FILE_WRITE = 1 << 0,    /* read-write instead of read-only */
    TZ_FILE_BUFFERED = 1 << 1, /* never O_DIRECT */
    TZ_FILE_EXCL = 1 << 2,     /* O_EXCL on a block device: refuse it when mounted or claimed */
};

typedef struct tz_file {
    int fd;
    bool block_device;
    bool direct; /* O_DIRECT is on; offsets, lengths and memory must obey the alignments */
    bool writable;
    bool in_memory;         /* on tmpfs or ramfs: a transfer is a copy, and no device is waited for */
    bool aside;             /* a user-space file system: see TZ_IO_ASIDE */
    bool tells_holes;       /* SEEK_DATA answers at once, and as a read would, of a file that is being written, too */
    uint32_t memory_align;  /* of buffers; 1 when buffered */
    uint32_t offset_align;  /* of offsets and lengths; a power of two; 1 when buffered */
    uint32_t block_size;    /* preferred I/O grain in bytes (st_blksize or the device's physical sector) */
    uint64_t size;          /* bytes, as of opening */
    uint64_t device, inode; /* identity: st_dev and st_ino, or st_rdev and 0 for a block device */
} tz_file;

/* Opens with O_DIRECT where the file system has it (statx STATX_DIOALIGN; where statx does not say, the
 * logical sector size, proved by a read) with an alignment of memory of at most 4096 and of offsets of at most 64 KiB,
 * buffered otherwise, or when the size is not a multiple of
 * offset_align and the file is to be written in place (TZ_FILE_WRITE): a direct write of the last
 * block would make the file longer. Always close-on-exec. */
int tz_file_open(tz_file *out, const char *path, unsigned flags);

/* The same on a descriptor that is already open: takes it over on success. Its access mode is kept;
 * O_DIRECT is set with fcntl where it is possible, unless TZ_FILE_BUFFERED is given; O_NONBLOCK is taken off.
 * -EINVAL for a writable descriptor with O_APPEND, where offsets mean nothing. */
int tz_file_adopt(tz_file *out, int fd, unsigned flags);

/* A fresh open of the same file (through /proc/self/fd, so names do not matter), in the same cache mode,
 * read-only unless TZ_FILE_WRITE is given. File status flags are not shared with the original. -EINVAL when the file
 * cannot be had in that mode any more (its size became ragged). */
int tz_file_reopen(tz_file *out, const tz_file *from, unsigned flags);

void tz_file_close(tz_file *file);

#endif
