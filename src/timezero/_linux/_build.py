"""Build script of the cffi module timezero._linux._cffi: rare, stateless system calls. Used by setup.py alone."""

from __future__ import annotations

from cffi import FFI

ffi = FFI()

ffi.cdef(
    """
    int tz_freeze(int fd);
    int tz_thaw(int fd);
    int tz_rename_noreplace(const char *old, const char *new);
    int tz_direct_alignment(int fd, uint32_t *memory, uint32_t *offset);
    int tz_memfd_seals(void);
    int tz_io_flusher(int on);

    typedef struct {
        uint64_t logical, physical, length;
        uint32_t flags;
    } tz_fiemap_extent;
    int tz_fiemap(int fd, uint64_t start, tz_fiemap_extent *extents, uint32_t room);
    int tz_syncfs(int fd);

    typedef struct tz_files {
        uint64_t count, extents, bytes;
        void *facts;
        uint64_t *logical, *physical, *length, *flags;
        uint8_t *attributes;
        ...;
    } tz_files;
    #define TZ_FILES_ATTRIBUTES ...
    #define TZ_FILES_CONSTANTS ...
    #define TZ_FACTS_SIZE ...
    int tz_files_read(tz_files **out, const int *descriptors, const char *const *names, uint64_t count,
                      unsigned options);
    void tz_files_free(tz_files *files);
    """
)

# Every function: 0 or a count, or -errno.
ffi.set_source(
    "timezero._linux._cffi",
    r"""
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/fiemap.h>
    #include <linux/fs.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/ioctl.h>
    #include <sys/mman.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    #include "tz/files.h"

    enum { TZ_FACTS_SIZE = sizeof(tz_file_facts) };

    static int tz_result(int value)
    {
        return value < 0 ? -errno : value;
    }

    static int tz_freeze(int fd)
    {
        return tz_result(ioctl(fd, FIFREEZE, 0));
    }

    static int tz_thaw(int fd)
    {
        return tz_result(ioctl(fd, FITHAW, 0));
    }

    static int tz_rename_noreplace(const char *old, const char *new)
    {
        return tz_result((int)syscall(SYS_renameat2, AT_FDCWD, old, AT_FDCWD, new, RENAME_NOREPLACE));
    }

    /* The kernel's struct statx up to what is needed here: older headers have no STATX_DIOALIGN (Linux 6.1) yet. */
    #define TZ_STATX_DIOALIGN 0x2000U
    struct tz_statx {
        uint32_t mask, blksize;
        uint8_t before[144];
        uint32_t dio_mem_align, dio_offset_align;
        uint8_t after[96];
    };

    static int tz_direct_alignment(int fd, uint32_t *memory, uint32_t *offset)
    {
        struct tz_statx st;
        memset(&st, 0, sizeof st);
        if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, TZ_STATX_DIOALIGN, &st) != 0)
            return -errno;
        if (!(st.mask & TZ_STATX_DIOALIGN))
            return -EOPNOTSUPP;
        *memory = st.dio_mem_align;
        *offset = st.dio_offset_align;
        return 0;
    }

    /* The seals that a memory shared with a data mover needs: no resizing, no writing of others. */
    static int tz_memfd_seals(void)
    {
        int fd = (int)syscall(SYS_memfd_create, "timezero-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (fd < 0)
            return -errno;
        int result = tz_result(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | 0x0010 /* F_SEAL_FUTURE_WRITE */));
        close(fd);
        return result;
    }

    /* Linux 5.6; older headers lack the names. */
    static int tz_io_flusher(int on)
    {
        return tz_result(prctl(57 /* PR_SET_IO_FLUSHER */, on, 0, 0, 0));
    }

    typedef struct {
        uint64_t logical, physical, length;
        uint32_t flags;
    } tz_fiemap_extent;

    static int tz_fiemap(int fd, uint64_t start, tz_fiemap_extent *extents, uint32_t room)
    {
        struct fiemap *map = calloc(1, sizeof *map + (size_t)room * sizeof map->fm_extents[0]);
        if (!map)
            return -ENOMEM;
        map->fm_start = start;
        map->fm_length = FIEMAP_MAX_OFFSET - start;
        map->fm_extent_count = room;
        map->fm_flags = FIEMAP_FLAG_SYNC;
        int result = tz_result(ioctl(fd, FS_IOC_FIEMAP, map));
        for (uint32_t i = 0; result == 0 && i < map->fm_mapped_extents; i++) {
            const struct fiemap_extent *e = &map->fm_extents[i];
            extents[i] = (tz_fiemap_extent){e->fe_logical, e->fe_physical, e->fe_length, e->fe_flags};
        }
        if (result == 0)
            result = (int)map->fm_mapped_extents;
        free(map);
        return result;
    }

    static int tz_syncfs(int fd)
    {
        return tz_result(syncfs(fd));
    }
    """,
    include_dirs=["csrc/include"],
    depends=["csrc/include/tz/common.h", "csrc/include/tz/files.h"],
)
