/* SPDX-License-Identifier: Apache-2.0
 *
 * What a concordance is formed from: facts, extents and extended attributes of many open files, read in one pass while
 * their file systems are frozen.
 *
 *   facts[0] ─ extents_end ─┐      columns  logical  physical  length  flags     a file's extents are those from the
 *   facts[1] ─ extents_end ─┼──▶            (one row an extent, in order)        end of the file before it up to its own
 *
 * The same for the attributes: records of {uint32 name length, uint32 value length, name, value}, without padding.
 *
 * Nothing here writes to a file system, waits for one that is frozen, or takes access times: it is statx, ioctls that
 * read, and reading of attributes.
 *
 * Errors   -ENOMEM; -EINVAL unknown options. What is wrong with one file stands in its facts and stops no other.
 * Memory   one object: 32 bytes an extent, twice that while it is made.
 * Threads  helpers of its own, up to the number of processors and eight, which end with the call; any thread may call,
 *          and the object belongs to its owner.
 */
#ifndef TZ_FILES_H
#define TZ_FILES_H

#include "tz/common.h"

enum {
    TZ_FILES_ATTRIBUTES = 1 << 0, /* extended attributes as well */
    TZ_FILES_CONSTANTS = 1 << 1,  /* generation and flags as well: a file that is held open keeps them */
};

enum tz_file_step { /* where a file failed */
    TZ_FILE_FINE,
    TZ_FILE_STATUS,
    TZ_FILE_EXTENTS,
    TZ_FILE_ATTRIBUTES,
};

enum tz_file_named { /* what the file's name means now */
    TZ_NAMED_SAME,
    TZ_NAMED_OTHER, /* another file */
    TZ_NAMED_GONE,  /* nothing, or nothing that can be looked at */
};

typedef struct tz_file_facts {
    uint64_t size, inode, device;
    int64_t atime_ns, mtime_ns, ctime_ns;
    uint64_t attributes;                  /* STATX_ATTR_* */
    uint64_t extents_end, attributes_end; /* rows; bytes */
    uint32_t mode, uid, gid, links;
    uint32_t generation; /* 0 when not asked for, and where the file system has none */
    uint32_t xflags;     /* FS_XFLAG_*; the same */
    uint32_t named;      /* enum tz_file_named */
    uint32_t step;       /* enum tz_file_step */
    int32_t error;       /* errno of that step, or 0 */
    uint32_t reserved;   /* zero */
} tz_file_facts;

typedef struct tz_files {
    uint64_t count, extents, bytes;
    tz_file_facts *facts;
    uint64_t *logical, *physical, *length;
    uint64_t *flags; /* FIEMAP_EXTENT_* */
    uint8_t *attributes;
} tz_files;

/* Reads `count` files through their descriptors. `names`: for each its absolute path, to see whether it still names
 * this file; NULL: not looked at. */
int tz_files_read(tz_files **out, const int *descriptors, const char *const *names, uint64_t count, unsigned options);
void tz_files_free(tz_files *files);

#endif
