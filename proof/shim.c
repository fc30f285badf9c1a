/* SPDX-License-Identifier: Apache-2.0
 *
 * A library to be preloaded that makes system calls of a program fail, take long, or do less than they were asked.
 *
 * Rules lie in a file, TZ_SHIM, which is mapped: whoever writes them there changes them while the program runs (proof/shim.py).
 * A rule is about some kinds of calls, on files whose path begins with its own; it applies to the n-th such call, or to so
 * many in a million. What goes past the C library (io_uring) is not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    CALL_OPEN = 1 << 0, /* for writing, or to make */
    CALL_READ = 1 << 1,
    CALL_WRITE = 1 << 2,
    CALL_SYNC = 1 << 3,
    CALL_NAME = 1 << 4, /* link, rename */
    CALL_UNLINK = 1 << 5,
    CALL_MKDIR = 1 << 6,
    CALL_SIZE = 1 << 7, /* truncate, allocate */
};

#define RULES 8

struct rule {
    _Atomic uint32_t calls;
    _Atomic uint32_t error, per_million, delay_us, shorten; /* shorten: bytes that a transfer moves at most */
    _Atomic uint32_t last;                                  /* the kind of the last call it was applied to */
    _Atomic uint64_t nth, seen, hits;
    char path[208];
};
_Static_assert(sizeof(struct rule) == 256, "proof/shim.py has it, too");

struct control {
    _Atomic uint64_t random;
    char reserved[248];
    struct rule rules[RULES];
};

static struct control *control;

/* There under AddressSanitizer only. Its own functions work once this was called, and it makes folders (of its log) in there. */
void __asan_init(void) __attribute__((weak));

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("TZ_SHIM");
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0) : -1;
    void *memory;

    if (__asan_init)
        __asan_init();
    if (fd < 0)
        return;
    memory = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory != MAP_FAILED)
        control = memory;
    syscall(SYS_close, fd);
}

static bool by_chance(uint32_t per_million)
{
    uint64_t x = atomic_fetch_add(&control->random, UINT64_C(0x9e3779b97f4a7c15));

    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return (x ^ x >> 31) % 1000000 < per_million;
}

/* As long as the rule stands: a device that does not answer answers when it is taken away. */
static void take_time(struct rule *r)
{
    uint32_t left = atomic_load(&r->delay_us);

    while (left && atomic_load(&r->calls)) {
        uint32_t slice = left < 10000 ? left : 10000;
        struct timespec time = {0, slice * 1000};

        nanosleep(&time, NULL);
        left -= slice;
    }
}

/* errno for the call, or 0; *most: bytes that it may move. */
static int judge(uint32_t call, const char *path, size_t *most)
{
    int error = 0;

    for (struct rule *r = control->rules; r < control->rules + RULES && !error; r++) {
        uint64_t seen;

        if (!(atomic_load(&r->calls) & call) || strncmp(path, r->path, strlen(r->path)) != 0)
            continue;
        seen = atomic_fetch_add(&r->seen, 1) + 1;
        if (atomic_load(&r->nth) ? seen != atomic_load(&r->nth) : !by_chance(atomic_load(&r->per_million)))
            continue;
        atomic_fetch_add(&r->hits, 1);
        atomic_store(&r->last, call);
        take_time(r);
        if (most && atomic_load(&r->shorten))
            *most = atomic_load(&r->shorten);
        error = (int)atomic_load(&r->error);
    }
    return error;
}

static void path_of(int fd, char out[4096])
{
    char link[40];
    long length;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    length = syscall(SYS_readlinkat, AT_FDCWD, link, out, 4095);
    out[length > 0 ? length : 0] = 0;
}

static int judge_fd(uint32_t call, int fd, size_t *most)
{
    char path[4096];
    int before = errno, error;

    if (!control)
        return 0;
    path_of(fd, path);
    error = judge(call, path, most);
    errno = before;
    return error;
}

static int judge_path(uint32_t call, int at, const char *name)
{
    char path[8300];
    int before = errno, error, fd;

    if (!control)
        return 0;
    if (sscanf(name, "/proc/self/fd/%d", &fd) == 1 && !strchr(name + 14, '/')) {
        path_of(fd, path);
    } else if (name[0] == '/') {
        snprintf(path, sizeof(path), "%s", name);
    } else {
        if (at == AT_FDCWD)
            path[syscall(SYS_readlinkat, AT_FDCWD, "/proc/self/cwd", path, 4095)] = 0;
        else
            path_of(at, path);
        snprintf(path + strlen(path), 4000, "/%s", name);
    }
    error = judge(call, path, NULL);
    errno = before;
    return error;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define FAIL_IF(judgement)                                                                                             \
    do {                                                                                                               \
        int error_ = judgement;                                                                                        \
        if (error_) {                                                                                                  \
            errno = error_;                                                                                            \
            return -1;                                                                                                 \
        }                                                                                                              \
    } while (0)

/* ---- opening ---- */

#define OPENS(flags) ((flags) & (O_CREAT | O_WRONLY | O_RDWR) || ((flags)&O_TMPFILE) == O_TMPFILE)

#define MODE(flags)                                                                                                    \
    mode_t mode = 0;                                                                                                   \
    if ((flags)&O_CREAT || ((flags)&O_TMPFILE) == O_TMPFILE) {                                                         \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode = va_arg(list, mode_t);                                                                                   \
        va_end(list);                                                                                                  \
    }

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        MODE(flags)                                                                                                    \
        if (OPENS(flags))                                                                                              \
            FAIL_IF(judge_path(CALL_OPEN, AT_FDCWD, path));                                                            \
        return REAL(name)(path, flags, mode);                                                                          \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                   \
    int name(int at, const char *path, int flags, ...)                                                                 \
    {                                                                                                                  \
        MODE(flags)                                                                                                    \
        if (OPENS(flags))                                                                                              \
            FAIL_IF(judge_path(CALL_OPEN, at, path));                                                                  \
        return REAL(name)(at, path, flags, mode);                                                                      \
    }
OPENAT(openat)
OPENAT(openat64)

/* ---- moving ---- */

#define MOVE(name, call, type)                                                                                         \
    ssize_t name(int fd, type buffer, size_t length)                                                                   \
    {                                                                                                                  \
        size_t most = SIZE_MAX;                                                                                        \
        FAIL_IF(judge_fd(call, fd, &most));                                                                            \
        return REAL(name)(fd, buffer, length < most ? length : most);                                                  \
    }
MOVE(read, CALL_READ, void *)
MOVE(write, CALL_WRITE, const void *)

#define MOVE_AT(name, call, type)                                                                                      \
    ssize_t name(int fd, type buffer, size_t length, off_t offset)                                                     \
    {                                                                                                                  \
        size_t most = SIZE_MAX;                                                                                        \
        FAIL_IF(judge_fd(call, fd, &most));                                                                            \
        return REAL(name)(fd, buffer, length < most ? length : most, offset);                                          \
    }
MOVE_AT(pread, CALL_READ, void *)
MOVE_AT(pread64, CALL_READ, void *)
MOVE_AT(pwrite, CALL_WRITE, const void *)
MOVE_AT(pwrite64, CALL_WRITE, const void *)

/* The first buffer only, when there is to be less. */
static int fewer(const struct iovec *iov, int count, size_t most, struct iovec *first)
{
    if (count == 0 || most == SIZE_MAX)
        return 0;
    *first = iov[0];
    if (first->iov_len > most)
        first->iov_len = most;
    return 1;
}

#define MOVEV_AT(name, call)                                                                                           \
    ssize_t name(int fd, const struct iovec *iov, int count, off_t offset)                                             \
    {                                                                                                                  \
        size_t most = SIZE_MAX;                                                                                        \
        struct iovec first;                                                                                            \
        FAIL_IF(judge_fd(call, fd, &most));                                                                            \
        return fewer(iov, count, most, &first) ? REAL(name)(fd, &first, 1, offset)                                     \
                                               : REAL(name)(fd, iov, count, offset);                                   \
    }
MOVEV_AT(preadv, CALL_READ)
MOVEV_AT(preadv64, CALL_READ)
MOVEV_AT(pwritev, CALL_WRITE)
MOVEV_AT(pwritev64, CALL_WRITE)

/* ---- making durable, naming, sizing ---- */

#define SYNC(name)                                                                                                     \
    int name(int fd)                                                                                                   \
    {                                                                                                                  \
        FAIL_IF(judge_fd(CALL_SYNC, fd, NULL));                                                                        \
        return REAL(name)(fd);                                                                                         \
    }
SYNC(fsync)
SYNC(fdatasync)
SYNC(syncfs)

int rename(const char *from, const char *to)
{
    FAIL_IF(judge_path(CALL_NAME, AT_FDCWD, to));
    return REAL(rename)(from, to);
}

int renameat(int from_at, const char *from, int at, const char *to)
{
    FAIL_IF(judge_path(CALL_NAME, at, to));
    return REAL(renameat)(from_at, from, at, to);
}

int renameat2(int from_at, const char *from, int at, const char *to, unsigned flags)
{
    FAIL_IF(judge_path(CALL_NAME, at, to));
    return REAL(renameat2)(from_at, from, at, to, flags);
}

int link(const char *from, const char *to)
{
    FAIL_IF(judge_path(CALL_NAME, AT_FDCWD, to));
    return REAL(link)(from, to);
}

int linkat(int from_at, const char *from, int at, const char *to, int flags)
{
    FAIL_IF(judge_path(CALL_NAME, at, to));
    return REAL(linkat)(from_at, from, at, to, flags);
}

int unlink(const char *path)
{
    FAIL_IF(judge_path(CALL_UNLINK, AT_FDCWD, path));
    return REAL(unlink)(path);
}

int unlinkat(int at, const char *path, int flags)
{
    FAIL_IF(judge_path(CALL_UNLINK, at, path));
    return REAL(unlinkat)(at, path, flags);
}

int mkdir(const char *path, mode_t mode)
{
    FAIL_IF(judge_path(CALL_MKDIR, AT_FDCWD, path));
    return REAL(mkdir)(path, mode);
}

int mkdirat(int at, const char *path, mode_t mode)
{
    FAIL_IF(judge_path(CALL_MKDIR, at, path));
    return REAL(mkdirat)(at, path, mode);
}

#define TRUNCATE(name)                                                                                                 \
    int name(int fd, off_t length)                                                                                     \
    {                                                                                                                  \
        FAIL_IF(judge_fd(CALL_SIZE, fd, NULL));                                                                        \
        return REAL(name)(fd, length);                                                                                 \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define ALLOCATE(name)                                                                                                 \
    int name(int fd, int mode, off_t offset, off_t length)                                                             \
    {                                                                                                                  \
        FAIL_IF(judge_fd(CALL_SIZE, fd, NULL));                                                                        \
        return REAL(name)(fd, mode, offset, length);                                                                   \
    }
ALLOCATE(fallocate)
ALLOCATE(fallocate64)
