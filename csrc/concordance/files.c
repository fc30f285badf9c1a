/* SPDX-License-Identifier: Apache-2.0
 *
 * A file of few extents costs some five system calls, answered from memory, an extent of a large one half a microsecond
 * in the kernel; so the work is cut into pieces for all processors.
 *
 *   pieces    every file is one: status, name, attributes, extents. The extents of a large file are put off, and read as
 *             pieces of their own, ranges of equal size, when all files have been looked at.
 *   workers   take pieces from a counter and add what they find to columns of their own.
 *   joining   copies from the workers' columns in the order of files and ranges. An extent that lies across the border
 *             of two ranges is found by both, as a whole or in two parts: the second keeps what the first does not have.
 */
#include "tz/files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
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

/* Cutting is for two processors worth a fifth to nearly a half of the time (bench/freeze). */
#define WORKERS_MAX 8
#define TAKE        32                /* pieces at a time */
#define FILES_EACH  512               /* for fewer, starting a thread costs more than it saves */
#define LARGE       (64 * TZ_MIB)     /* files from this size on are read in ranges */
#define RANGES      (4 * WORKERS_MAX) /* more than workers, because extents are seldom spread evenly */

typedef struct columns {
    uint64_t extents, room, bytes, bytes_room;
    uint64_t *logical, *physical, *length, *flags;
    uint8_t *attributes;
} columns;

typedef struct piece {
    uint64_t file, from, to; /* a range of logical addresses; to: up to and not with */
    uint64_t first, rows;    /* in the columns of its worker */
    uint64_t bytes_first, bytes;
    uint32_t worker;
    bool put_off; /* its extents are other pieces */
} piece;

typedef struct job {
    const int *descriptors;
    const char *const *names;
    unsigned options;
    bool ranges; /* pieces are ranges of files that have been looked at */
    tz_file_facts *facts;
    piece *pieces;
    uint64_t count;
    _Atomic uint64_t next;
    _Atomic int result;
} job;

typedef struct worker {
    job *job;
    uint32_t number;
    columns columns;
    struct fiemap *map;
    char *list, *value;
} worker;

static int grow(void *column, uint64_t room, size_t width)
{
    void **at = column;
    void *larger = realloc(*at, room * width);
    if (!larger)
        return -ENOMEM;
    *at = larger;
    return 0;
}

static int make_room(columns *c, uint64_t extents, uint64_t bytes)
{
    uint64_t room = c->room ? c->room : BATCH, bytes_room = c->bytes_room ? c->bytes_room : VALUE_MAX;
    while (c->extents + extents > room)
        room *= 2;
    while (c->bytes + bytes > bytes_room)
        bytes_room *= 2;
    if (room != c->room) {
        if (grow(&c->logical, room, 8) || grow(&c->physical, room, 8) || grow(&c->length, room, 8) ||
            grow(&c->flags, room, 8))
            return -ENOMEM;
        c->room = room;
    }
    if (bytes_room != c->bytes_room) {
        if (grow(&c->attributes, bytes_room, 1))
            return -ENOMEM;
        c->bytes_room = bytes_room;
    }
    return 0;
}

static void free_columns(columns *c)
{
    free(c->logical);
    free(c->physical);
    free(c->length);
    free(c->flags);
    free(c->attributes);
}

static void free_worker(worker *w)
{
    free_columns(&w->columns);
    free(w->map);
    free(w->list);
    free(w->value);
}

static int make_worker(worker *w)
{
    w->map = malloc(sizeof *w->map + BATCH * sizeof w->map->fm_extents[0]);
    w->list = malloc(LIST_MAX);
    w->value = malloc(VALUE_MAX);
    if (w->map && w->list && w->value)
        return make_room(&w->columns, 0, 0);
    return -ENOMEM;
}

static int64_t nanoseconds(struct statx_timestamp t)
{
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static bool is_this_file(const struct statx *st, const tz_file_facts *facts)
{
    return st->stx_ino == facts->inode && makedev(st->stx_dev_major, st->stx_dev_minor) == facts->device;
}

static int read_status(int fd, const char *name, unsigned options, tz_file_facts *facts)
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

    if (options & TZ_FILES_CONSTANTS) {
        /* The ioctl is declared with a long and writes an int (ioctl_iflags(2)). */
        uint32_t generation[2] = {0, 0};
        if (ioctl(fd, FS_IOC_GETVERSION, generation) == 0)
            facts->generation = generation[0];
        struct fsxattr flags;
        if (ioctl(fd, FS_IOC_FSGETXATTR, &flags) == 0)
            facts->xflags = flags.fsx_xflags;
    }
    if (name) {
        if (statx(AT_FDCWD, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_INO, &st) != 0)
            facts->named = TZ_NAMED_GONE;
        else if (!is_this_file(&st, facts))
            facts->named = TZ_NAMED_OTHER;
    }
    return 0;
}

/* Extents that begin before `to`, from the one on that holds `from`. */
static int read_extents(int fd, columns *c, struct fiemap *map, uint64_t from, uint64_t to)
{
    while (from < to) {
        memset(map, 0, sizeof *map);
        map->fm_start = from;
        map->fm_length = to - from;
        map->fm_extent_count = BATCH;
        if (ioctl(fd, FS_IOC_FIEMAP, map) != 0)
            return -errno;
        uint32_t found = map->fm_mapped_extents;
        if (!found)
            return 0;
        if (make_room(c, found, 0))
            return -ENOMEM;
        for (uint32_t i = 0; i < found; i++) {
            const struct fiemap_extent *e = &map->fm_extents[i];
            uint64_t row = c->extents + i;
            c->logical[row] = e->fe_logical;
            c->physical[row] = e->fe_physical;
            c->length[row] = e->fe_length;
            c->flags[row] = e->fe_flags;
        }
        c->extents += found;
        const struct fiemap_extent *last = &map->fm_extents[found - 1];
        if (last->fe_flags & FIEMAP_EXTENT_LAST)
            return 0;
        if (last->fe_logical + last->fe_length <= from)
            return -EIO; /* a file system that does not get on would keep us here for ever */
        from = last->fe_logical + last->fe_length;
    }
    return 0;
}

static int add_attribute(columns *c, const char *name, uint32_t name_length, const void *value, uint32_t length)
{
    uint64_t needed = 8 + (uint64_t)name_length + length;
    if (make_room(c, 0, needed))
        return -ENOMEM;
    uint8_t *at = c->attributes + c->bytes;
    memcpy(at, &name_length, 4);
    memcpy(at + 4, &length, 4);
    memcpy(at + 8, name, name_length);
    memcpy(at + 8 + name_length, value, length);
    c->bytes += needed;
    return 0;
}

static int read_attributes(int fd, worker *w)
{
    ssize_t listed = flistxattr(fd, w->list, LIST_MAX);
    if (listed < 0)
        return errno == EOPNOTSUPP ? 0 : -errno;
    for (const char *name = w->list; name < w->list + listed;) {
        size_t length = strlen(name);
        ssize_t got = fgetxattr(fd, name, w->value, VALUE_MAX);
        if (got < 0 && errno != ENODATA) /* listed, and yet none: some security modules do that */
            return -errno;
        if (got >= 0 && add_attribute(&w->columns, name, (uint32_t)length, w->value, (uint32_t)got))
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

static int read_file(worker *w, piece *p)
{
    job *job = w->job;
    tz_file_facts *facts = &job->facts[p->file];
    int fd = job->descriptors[p->file];
    int result = read_status(fd, job->names ? job->names[p->file] : NULL, job->options, facts);
    if (result < 0)
        return failed(facts, TZ_FILE_STATUS, result);
    p->put_off = facts->size >= LARGE;
    if (!p->put_off)
        result = read_extents(fd, &w->columns, w->map, 0, FIEMAP_MAX_OFFSET);
    if (result < 0)
        return failed(facts, TZ_FILE_EXTENTS, result);
    if (job->options & TZ_FILES_ATTRIBUTES)
        result = read_attributes(fd, w);
    return result < 0 ? failed(facts, TZ_FILE_ATTRIBUTES, result) : 0;
}

/* The facts of a file may be written by several workers here, all with an error of the same step: an int is enough. */
static int read_range(worker *w, piece *p)
{
    int result = read_extents(w->job->descriptors[p->file], &w->columns, w->map, p->from, p->to);
    if (result < 0 && result != -ENOMEM) {
        p->rows = 0;
        __atomic_store_n(&w->job->facts[p->file].step, (uint32_t)TZ_FILE_EXTENTS, __ATOMIC_RELAXED);
        __atomic_store_n(&w->job->facts[p->file].error, -result, __ATOMIC_RELAXED);
        return 0;
    }
    return result;
}

static void *work(void *argument)
{
    worker *w = argument;
    job *job = w->job;
    if (!w->map && make_worker(w) < 0) {
        atomic_store(&job->result, -ENOMEM);
        return NULL;
    }
    uint64_t take = job->ranges ? 1 : TAKE;
    for (;;) {
        uint64_t begin = atomic_fetch_add(&job->next, take);
        if (begin >= job->count || atomic_load(&job->result) < 0)
            return NULL;
        for (uint64_t i = begin; i < tz_min_u64(begin + take, job->count); i++) {
            piece *p = &job->pieces[i];
            p->worker = w->number;
            p->first = w->columns.extents;
            p->bytes_first = w->columns.bytes;
            int result = job->ranges ? read_range(w, p) : read_file(w, p);
            p->rows = w->columns.extents - p->first;
            p->bytes = w->columns.bytes - p->bytes_first;
            if (result < 0) {
                atomic_store(&job->result, result);
                return NULL;
            }
        }
    }
}

/* All pieces, by up to `count` workers: this thread is the first, and does with fewer when threads are not to be had. */
static int run(job *job, worker *workers, uint32_t count)
{
    pthread_t threads[WORKERS_MAX];
    uint32_t started = 1;
    for (; started < count; started++)
        if (pthread_create(&threads[started], NULL, work, &workers[started]) != 0)
            break;
    work(&workers[0]);
    for (uint32_t i = 1; i < started; i++)
        pthread_join(threads[i], NULL);
    return atomic_load(&job->result);
}

static uint32_t processors(void)
{
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return (uint32_t)tz_min_u64((uint64_t)count, WORKERS_MAX);
}

/* The ranges of all files that were put off; NULL when there is no memory for them. */
static piece *cut(const piece *pieces, const tz_file_facts *facts, uint64_t count, uint64_t *ranges)
{
    uint64_t large = 0;
    for (uint64_t i = 0; i < count; i++)
        large += pieces[i].put_off;
    *ranges = large * RANGES;
    piece *cut = calloc(*ranges ? *ranges : 1, sizeof *cut), *at = cut;
    for (uint64_t i = 0; cut && i < count; i++) {
        if (!pieces[i].put_off)
            continue;
        uint64_t step = tz_align_up(facts[i].size / RANGES, TZ_MIB);
        for (uint64_t r = 0; r < RANGES; r++)
            *at++ = (piece){.file = i, .from = r * step, .to = r == RANGES - 1 ? FIEMAP_MAX_OFFSET : (r + 1) * step};
    }
    return cut;
}

/* ---- joining ---- */

static void append(tz_files *files, const columns *from, const piece *p, uint64_t skip)
{
    uint64_t to = files->extents, first = p->first + skip, rows = p->rows - skip;
    memcpy(files->logical + to, from->logical + first, rows * 8);
    memcpy(files->physical + to, from->physical + first, rows * 8);
    memcpy(files->length + to, from->length + first, rows * 8);
    memcpy(files->flags + to, from->flags + first, rows * 8);
    files->extents += rows;
}

/* A range after the one before it, of which the file's rows begin at `begin`. */
static void append_range(tz_files *files, const columns *from, const piece *p, uint64_t begin)
{
    uint64_t end = 0, skip = 0;
    if (files->extents > begin)
        end = files->logical[files->extents - 1] + files->length[files->extents - 1];
    while (skip < p->rows && from->logical[p->first + skip] + from->length[p->first + skip] <= end)
        skip++;
    uint64_t row = files->extents;
    append(files, from, p, skip);
    if (skip < p->rows && files->logical[row] < end) {
        uint64_t known = end - files->logical[row];
        files->logical[row] += known;
        files->physical[row] += known;
        files->length[row] -= known;
    }
}

static int join(tz_files *files, const worker *workers, uint32_t count, const piece *pieces, const piece *ranges)
{
    uint64_t extents = 0, bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        extents += workers[i].columns.extents;
        bytes += workers[i].columns.bytes;
    }
    columns all = {0};
    int result = make_room(&all, extents, bytes);
    files->logical = all.logical;
    files->physical = all.physical;
    files->length = all.length;
    files->flags = all.flags;
    files->attributes = all.attributes;
    if (result < 0)
        return result;
    for (uint64_t i = 0; i < files->count; i++) {
        const piece *p = &pieces[i];
        const columns *from = &workers[p->worker].columns;
        uint64_t begin = files->extents;
        append(files, from, p, 0);
        for (int r = 0; p->put_off && r < RANGES; r++, ranges++)
            append_range(files, &workers[ranges->worker].columns, ranges, begin);
        if (p->bytes)
            memcpy(files->attributes + files->bytes, from->attributes + p->bytes_first, p->bytes);
        files->bytes += p->bytes;
        files->facts[i].extents_end = files->extents;
        files->facts[i].attributes_end = files->bytes;
    }
    return 0;
}

static int read_all(tz_files *files, worker *workers, uint32_t count, piece *pieces, job *job)
{
    for (uint64_t i = 0; i < files->count; i++)
        pieces[i] = (piece){.file = i};
    job->pieces = pieces;
    job->count = files->count;
    int result = run(job, workers, (uint32_t)tz_min_u64(count, 1 + files->count / FILES_EACH));
    if (result < 0)
        return result;
    uint64_t cuts;
    piece *ranges = cut(pieces, files->facts, files->count, &cuts);
    if (!ranges)
        return -ENOMEM;
    job->pieces = ranges;
    job->count = cuts;
    job->ranges = true;
    atomic_store(&job->next, 0);
    if (cuts)
        result = run(job, workers, count);
    if (result == 0)
        result = join(files, workers, count, pieces, ranges);
    free(ranges);
    return result;
}

int tz_files_read(tz_files **out, const int *descriptors, const char *const *names, uint64_t count, unsigned options)
{
    if (options & ~(unsigned)(TZ_FILES_ATTRIBUTES | TZ_FILES_CONSTANTS))
        return -EINVAL;
    if (count > UINT32_MAX)
        return -ENOMEM;
    worker workers[WORKERS_MAX] = {0};
    uint32_t several = processors();
    tz_files *files = calloc(1, sizeof *files);
    piece *pieces = calloc(count ? count : 1, sizeof *pieces);
    int result = files && pieces ? 0 : -ENOMEM;
    if (result == 0) {
        files->count = count;
        files->facts = calloc(count ? count : 1, sizeof *files->facts);
        result = files->facts ? 0 : -ENOMEM;
    }
    job job = {.descriptors = descriptors, .names = names, .options = options, .facts = files ? files->facts : NULL};
    for (uint32_t i = 0; i < several; i++) {
        workers[i].job = &job;
        workers[i].number = i;
    }
    if (result == 0)
        result = read_all(files, workers, several, pieces, &job);
    for (uint32_t i = 0; i < several; i++)
        free_worker(&workers[i]);
    free(pieces);
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
