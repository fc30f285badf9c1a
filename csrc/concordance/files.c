/* SPDX-License-Identifier: Apache-2.0
 *
 * Files are read one after the other by the thread that asks: a file of few extents costs some three microseconds of
 * system calls, all of them answered from memory.
 */
#include "tz/files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

/* Extents that one call asks for: the kernel writes only what there is, so that a small file pays nothing for it. */
#define BATCH 4096

/* The most that Linux allows (linux/limits.h: XATTR_LIST_MAX, XATTR_SIZE_MAX), so that one buffer always does. */
#define LIST_MAX  65536
#define VALUE_MAX 65536

typedef struct scratch {
    struct fiemap *map;
    char *list, *value;
} scratch;

static void scratch_free(scratch *s)
{
    free(s->map);
    free(s->list);
    free(s->value);
}

static int scratch_make(scratch *s)
{
    s->map = malloc(sizeof *s->map + BATCH * sizeof s->map->fm_extents[0]);
    s->list = malloc(LIST_MAX);
    s->value = malloc(VALUE_MAX);
    if (s->map && s->list && s->value)
        return 0;
    scratch_free(s);
    return -ENOMEM;
}

static int grow(void *column, uint64_t room, size_t width)
{
    void **at = column;
    void *larger = realloc(*at, room * width);
    if (!larger)
        return -ENOMEM;
    *at = larger;
    return 0;
}

static int room_for_extents(tz_files *files, uint64_t more)
{
    uint64_t room = files->extents_room;
    if (files->extents + more <= room)
        return 0;
    while (files->extents + more > room)
        room *= 2;
    if (grow(&files->logical, room, sizeof *files->logical) || grow(&files->physical, room, sizeof *files->physical) ||
        grow(&files->length, room, sizeof *files->length) || grow(&files->flags, room, sizeof *files->flags))
        return -ENOMEM;
    files->extents_room = room;
    return 0;
}

static int64_t nanoseconds(struct statx_timestamp t)
{
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static bool is_this_file(const struct statx *st, const tz_file_facts *facts)
{
    return st->stx_ino == facts->inode && makedev(st->stx_dev_major, st->stx_dev_minor) == facts->device;
}

static int read_status(int fd, const char *name, tz_file_facts *facts)
{
    struct statx st;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &st) != 0)
        return -errno;
    facts->size = st.stx_size;
    facts->inode = st.stx_ino;
    facts->device = makedev(st.stx_dev_major, st.stx_dev_minor);
    facts->atime_ns = nanoseconds(st.stx_atime);
    facts->mtime_ns = nanoseconds(st.stx_mtime);
    facts->ctime_ns = nanoseconds(st.stx_ctime);
    facts->attributes = st.stx_attributes;
    facts->mode = st.stx_mode;
    facts->uid = st.stx_uid;
    facts->gid = st.stx_gid;
    facts->links = st.stx_nlink;

    /* The ioctl is declared with a long and writes an int (ioctl_iflags(2)). */
    uint32_t generation[2] = {0, 0};
    if (ioctl(fd, FS_IOC_GETVERSION, generation) == 0)
        facts->generation = generation[0];
    struct fsxattr flags;
    if (ioctl(fd, FS_IOC_FSGETXATTR, &flags) == 0)
        facts->xflags = flags.fsx_xflags;

    if (name) {
        if (statx(AT_FDCWD, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_INO, &st) != 0)
            facts->named = TZ_NAMED_GONE;
        else if (!is_this_file(&st, facts))
            facts->named = TZ_NAMED_OTHER;
    }
    return 0;
}

static int read_extents(int fd, tz_files *files, struct fiemap *map)
{
    uint64_t start = 0;
    for (;;) {
        memset(map, 0, sizeof *map);
        map->fm_start = start;
        map->fm_length = FIEMAP_MAX_OFFSET - start;
        map->fm_extent_count = BATCH;
        if (ioctl(fd, FS_IOC_FIEMAP, map) != 0)
            return -errno;
        uint32_t found = map->fm_mapped_extents;
        if (!found)
            return 0;
        if (room_for_extents(files, found))
            return -ENOMEM;
        for (uint32_t i = 0; i < found; i++) {
            const struct fiemap_extent *e = &map->fm_extents[i];
            uint64_t row = files->extents + i;
            files->logical[row] = e->fe_logical;
            files->physical[row] = e->fe_physical;
            files->length[row] = e->fe_length;
            files->flags[row] = e->fe_flags;
        }
        files->extents += found;
        const struct fiemap_extent *last = &map->fm_extents[found - 1];
        if (last->fe_flags & FIEMAP_EXTENT_LAST)
            return 0;
        if (last->fe_logical + last->fe_length <= start)
            return -EIO; /* a file system that does not get on would keep us here for ever */
        start = last->fe_logical + last->fe_length;
    }
}

static int add_attribute(tz_files *files, const char *name, uint32_t name_length, const void *value, uint32_t length)
{
    uint64_t needed = files->bytes + 8 + name_length + length, room = files->bytes_room;
    if (needed > room) {
        while (needed > room)
            room *= 2;
        if (grow(&files->attributes, room, 1))
            return -ENOMEM;
        files->bytes_room = room;
    }
    uint8_t *at = files->attributes + files->bytes;
    memcpy(at, &name_length, 4);
    memcpy(at + 4, &length, 4);
    memcpy(at + 8, name, name_length);
    memcpy(at + 8 + name_length, value, length);
    files->bytes = needed;
    return 0;
}

static int read_attributes(int fd, tz_files *files, scratch *s)
{
    ssize_t listed = flistxattr(fd, s->list, LIST_MAX);
    if (listed < 0)
        return errno == EOPNOTSUPP ? 0 : -errno;
    for (const char *name = s->list; name < s->list + listed;) {
        size_t length = strlen(name);
        ssize_t got = fgetxattr(fd, name, s->value, VALUE_MAX);
        if (got < 0 && errno != ENODATA) /* listed, and yet none: some security modules do that */
            return -errno;
        if (got >= 0 && add_attribute(files, name, (uint32_t)length, s->value, (uint32_t)got))
            return -ENOMEM;
        name += length + 1;
    }
    return 0;
}

/* 0, also when the file failed: then its facts say so. */
static int failed(tz_file_facts *facts, enum tz_file_step step, int result)
{
    facts->step = step;
    facts->error = -result;
    return result == -ENOMEM ? -ENOMEM : 0;
}

static int read_file(tz_files *files, tz_file_facts *facts, int fd, const char *name, unsigned options, scratch *s)
{
    int result = read_status(fd, name, facts);
    if (result < 0)
        return failed(facts, TZ_FILE_STATUS, result);
    result = read_extents(fd, files, s->map);
    if (result < 0)
        return failed(facts, TZ_FILE_EXTENTS, result);
    if (options & TZ_FILES_ATTRIBUTES)
        result = read_attributes(fd, files, s);
    return result < 0 ? failed(facts, TZ_FILE_ATTRIBUTES, result) : 0;
}

/* Room for a few extents and attributes a file, so that columns seldom grow. */
static tz_files *make(uint64_t count)
{
    tz_files *files = calloc(1, sizeof *files);
    if (!files)
        return NULL;
    files->count = count;
    files->extents_room = 2 * count + BATCH;
    files->bytes_room = 64 * count + VALUE_MAX;
    files->facts = calloc(count ? count : 1, sizeof *files->facts);
    files->attributes = malloc(files->bytes_room);
    files->logical = malloc(files->extents_room * sizeof *files->logical);
    files->physical = malloc(files->extents_room * sizeof *files->physical);
    files->length = malloc(files->extents_room * sizeof *files->length);
    files->flags = malloc(files->extents_room * sizeof *files->flags);
    if (files->facts && files->attributes && files->logical && files->physical && files->length && files->flags)
        return files;
    tz_files_free(files);
    return NULL;
}

int tz_files_read(tz_files **out, const int *descriptors, const char *const *names, uint64_t count, unsigned options)
{
    if (options & ~(unsigned)TZ_FILES_ATTRIBUTES)
        return -EINVAL;
    if (count > UINT32_MAX)
        return -ENOMEM;
    scratch s;
    if (scratch_make(&s))
        return -ENOMEM;
    tz_files *files = make(count);
    int result = files ? 0 : -ENOMEM;
    for (uint64_t i = 0; result == 0 && i < count; i++) {
        tz_file_facts *facts = &files->facts[i];
        result = read_file(files, facts, descriptors[i], names ? names[i] : NULL, options, &s);
        facts->extents_end = files->extents;
        facts->attributes_end = files->bytes;
    }
    scratch_free(&s);
    if (result < 0) {
        tz_files_free(files);
        return result;
    }
    *out = files;
    return 0;
}

void tz_files_free(tz_files *files)
{
    if (!files)
        return;
    free(files->facts);
    free(files->attributes);
    free(files->logical);
    free(files->physical);
    free(files->length);
    free(files->flags);
    free(files);
}
