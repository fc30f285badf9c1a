/* SPDX-License-Identifier: Apache-2.0
 *
 * Files and block devices: what they are, and how direct I/O wants to be aligned on them.
 *
 *   open / reopen ─▶ adopt: kind ─▶ size ─▶ direct? ─┬─ statx says how ──────────────┐
 *                                                    ├─ it does not: try a read ─────┼─▶ direct
 *                                                    └─ neither, or not wanted ──────┴─▶ buffered
 */
#include "tz/file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PROBE_MAX 4096

/* What all buffers are made for: they lie on pages, and a bounce buffer holds a whole number of units. A file that says
 * more is used through the cache. */
#define MEMORY_ALIGN_MAX 4096
#define OFFSET_ALIGN_MAX (64 * TZ_KIB)

/* struct statx as Linux 6.1 made it; the C library's may be older. */
struct statx_dio {
    uint32_t mask;
    uint8_t skipped[148];
    uint32_t memory_align, offset_align;
    uint8_t rest[96];
};

#define STATX_DIO_MASK 0x2000u

static int kind_of(const struct stat *st, bool *block_device)
{
    if (S_ISDIR(st->st_mode))
        return -EISDIR;
    if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode))
        return -ENOTSUP;
    *block_device = S_ISBLK(st->st_mode);
    return 0;
}

static int set_direct(const tz_file *file, int status, bool direct)
{
    /* O_NONBLOCK means nothing to a file but to io_uring, which would answer EAGAIN instead of waiting for the disk. */
    status &= ~(O_DIRECT | O_NONBLOCK);
    return fcntl(file->fd, F_SETFL, status | (direct ? O_DIRECT : 0)) < 0 ? -errno : 0;
}

/* Does a direct read of one unit work, at the beginning and, where there is one, at the second? Only EINVAL speaks
 * about alignment; a disk that cannot read its first sector is another matter. */
static bool unit_is_accepted(const tz_file *file, uint32_t unit)
{
    _Alignas(PROBE_MAX) char buffer[PROBE_MAX];

    for (uint64_t at = 0; at <= unit; at += unit)
        if ((at == 0 || at < file->size) && pread(file->fd, buffer, unit, (off_t)at) < 0)
            if (errno == EINVAL || errno == EBADF)
                return false;
    return true;
}

static bool find_unit(tz_file *file)
{
    int sector = 512;

    if (file->block_device && (ioctl(file->fd, BLKSSZGET, &sector) < 0 || sector < 512))
        return false;
    for (uint32_t unit = (uint32_t)sector; unit <= PROBE_MAX; unit *= 2) {
        if (unit_is_accepted(file, unit)) {
            file->memory_align = file->offset_align = unit;
            return true;
        }
    }
    return false;
}

static bool find_alignment(tz_file *file)
{
    struct statx_dio st = {0};

    if (syscall(SYS_statx, file->fd, "", AT_EMPTY_PATH, STATX_DIO_MASK, &st) < 0 || !(st.mask & STATX_DIO_MASK))
        return find_unit(file);
    if (!tz_is_pow2(st.memory_align) || !tz_is_pow2(st.offset_align)) /* 0: this file cannot */
        return false;
    if (st.memory_align > MEMORY_ALIGN_MAX || st.offset_align > OFFSET_ALIGN_MAX)
        return false;
    file->memory_align = st.memory_align;
    file->offset_align = st.offset_align;
    return true;
}

/* Leaves the file in the best mode it has: direct or buffered. */
static int choose_mode(tz_file *file, int status, bool buffered)
{
    file->direct = !buffered && set_direct(file, status, true) == 0 && find_alignment(file) &&
                   !(file->writable && file->size % file->offset_align);
    if (file->direct)
        return 0;
    file->memory_align = file->offset_align = 1;
    return set_direct(file, status, false);
}

static void look_at_file_system(tz_file *file)
{
    struct statfs fs;

    if (file->block_device || fstatfs(file->fd, &fs) < 0)
        return;
    file->in_memory = fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC;
    file->aside = fs.f_type == FUSE_SUPER_MAGIC;
    /* A list of those that are known to. Others may ask a server (FUSE, NFS), which does not know what is only in this
     * machine's cache and need not answer; or have called dirty data a hole (ZFS before 2.2.2). */
    file->tells_holes = fs.f_type == EXT4_SUPER_MAGIC || fs.f_type == XFS_SUPER_MAGIC ||
                        fs.f_type == BTRFS_SUPER_MAGIC || fs.f_type == TMPFS_MAGIC;
}

static int measure(tz_file *file, const struct stat *st)
{
    unsigned physical;

    file->size = (uint64_t)st->st_size;
    file->block_size = (uint32_t)st->st_blksize;
    file->device = st->st_dev;
    file->inode = st->st_ino;
    look_at_file_system(file);
    if (!file->block_device)
        return 0;
    if (ioctl(file->fd, BLKGETSIZE64, &file->size) < 0 || ioctl(file->fd, BLKPBSZGET, &physical) < 0)
        return -errno;
    file->block_size = physical;
    file->device = st->st_rdev;
    file->inode = 0;
    return 0;
}

int tz_file_adopt(tz_file *out, int fd, unsigned flags)
{
    tz_file file = {.fd = fd};
    int status = fcntl(fd, F_GETFL);
    struct stat st;
    int rc;

    if (status < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (status & O_PATH)
        return -EBADF;
    rc = kind_of(&st, &file.block_device);
    if (rc < 0)
        return rc;
    file.writable = (status & O_ACCMODE) != O_RDONLY;
    if (file.writable && (status & O_APPEND)) /* would put every write at the end, whatever its offset */
        return -EINVAL;
    rc = measure(&file, &st);
    if (rc < 0)
        return rc;
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return -errno;
    rc = choose_mode(&file, status, flags & TZ_FILE_BUFFERED);
    if (rc == 0)
        *out = file;
    return rc;
}

int tz_file_open(tz_file *out, const char *path, unsigned flags)
{
    /* NONBLOCK, NOCTTY: whatever stands there by the time of the open, it neither hangs nor becomes our terminal. */
    int how = O_CLOEXEC | O_NONBLOCK | O_NOCTTY | (flags & TZ_FILE_WRITE ? O_RDWR : O_RDONLY);
    bool block_device;
    struct stat st;
    int fd, rc;

    if (stat(path, &st) < 0)
        return -errno;
    rc = kind_of(&st, &block_device); /* before opening: merely to open some devices does something */
    if (rc < 0)
        return rc;
    if (block_device && (flags & TZ_FILE_EXCL))
        how |= O_EXCL;
    fd = open(path, how);
    if (fd < 0)
        return -errno;
    rc = tz_file_adopt(out, fd, flags);
    if (rc < 0)
        close(fd);
    return rc;
}

int tz_file_reopen(tz_file *out, const tz_file *from, unsigned flags)
{
    char path[32];
    tz_file file;
    int rc;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", from->fd);
    flags &= ~(unsigned)TZ_FILE_BUFFERED;
    rc = tz_file_open(&file, path, flags | (from->direct ? 0 : TZ_FILE_BUFFERED));
    if (rc < 0)
        return rc;
    if (file.direct != from->direct) { /* the file changed its size, and a ragged one is not written directly */
        tz_file_close(&file);
        return -EINVAL;
    }
    *out = file;
    return 0;
}

void tz_file_close(tz_file *file)
{
    if (!file || file->fd < 0)
        return;
    close(file->fd);
    file->fd = -1;
}
