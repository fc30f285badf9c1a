/* SPDX-License-Identifier: Apache-2.0
 *
 * The watchdog that freezes file systems and thaws them, whatever becomes of who asked for it. A program of its own,
 * locked in memory: the root file system may be among the frozen ones, and then nobody who waits for a file gets on.
 *
 * All that it uses is there before it says that it is ready: descriptors, threads, their stacks. After that it touches
 * no file and allocates nothing; it waits for a descriptor or a clock, and calls FIFREEZE and FITHAW.
 *
 *     IDLE ──▶ FREEZING ──▶ FROZEN ──▶ THAWING ──▶ THAWED       a point: one file system
 *                  └─▶ REFUSED              ├───▶ LOST          it was not frozen any more: somebody else thawed it
 *                                           └───▶ STUCK         it could not be thawed, time and again
 *
 * `released` goes up once and never down again: everything frozen is to be thawed, nothing more is to be frozen. It is
 * raised by: the command to thaw; a refused point; the deadline; the end of the socket (the parent has let go of it);
 * the end of the parent (its pidfd: somebody else may have inherited the socket); SIGTERM, SIGINT, SIGHUP. The process
 * does not end before every point has come to rest.
 *
 * Nobody waits for a call that may hang. The main thread talks and keeps the deadline. One thread freezes, in the
 * order given. Thawing goes backwards and is a thread's work too; thread n joins in after n times PATIENCE, so that a
 * file system whose device does not answer keeps the others frozen for as long as that, and not for ever. The one that
 * freezes looks at `released` when its call returns: what came to be frozen too late is thawed by itself.
 *
 * Freezing waits for a grace period of RCU three times, twice of it with writers held. On an idle machine an ordinary one
 * takes some 10 ms, and all of the first freeze in a while 23 to 47 ms; with expedited ones it takes 1 to 2 (bench/freeze).
 * So they are expedited while we freeze: /sys/kernel/rcu_expedited, held open since the start.
 *
 * Descriptors: 0 to 2 are not used; 3 is a socket of type SOCK_SEQPACKET, 4 a pidfd of the parent, from 5 on a
 * descriptor on each file system. The argument is how many those are. Messages are structs of this machine's layout:
 * both ends are one package.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SOCKET      3
#define PARENT      4
#define FIRST_POINT 5
#define POINTS_MAX  64

#define MS         UINT64_C(1000000) /* in nanoseconds, as all times here */
#define PATIENCE   (100 * MS)
#define RETRY      (100 * MS)
#define RETRIES    600
#define STACK_SIZE (64 * 1024)

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

enum point_state {
    IDLE,
    FREEZING,
    FROZEN,
    THAWING,
    THAWED,
    REFUSED,
    LOST,
    STUCK
};
enum operation {
    READY = 1,
    FREEZE,
    THAW
};

struct request {
    uint32_t operation, reserved;
    uint64_t deadline_ns; /* of FREEZE: from its arrival on */
};

struct answer {
    uint32_t operation, points, expired;
    int32_t error; /* of READY: why it is not */
    struct point {
        uint32_t state;
        int32_t error;
        uint64_t freeze_ns, thaw_ns; /* how long the calls took */
    } point[POINTS_MAX];
};

static struct watchdog {
    pthread_mutex_t lock; /* holds for everything below it; never held over a call that waits */
    pthread_cond_t changed;
    int wake;      /* eventfd: tells the main thread that a point has changed */
    int expedited; /* rcu_expedited, or -1 */
    uint32_t points;
    bool begun, released, expired;
    uint64_t released_at;
    struct point point[POINTS_MAX];
} dog = {.lock = PTHREAD_MUTEX_INITIALIZER};

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 * MS + (uint64_t)t.tv_nsec;
}

static struct timespec timespec_of(uint64_t ns)
{
    return (struct timespec){(time_t)(ns / (1000 * MS)), (long)(ns % (1000 * MS))};
}

/* ---- under the lock ---- */

static void tell_changed(void)
{
    pthread_cond_broadcast(&dog.changed);
    uint64_t one = 1;
    ssize_t written = write(dog.wake, &one, sizeof one);
    (void)written; /* it fails when the counter is full, and then the main thread is woken anyway */
}

static void release_all(void)
{
    if (dog.released)
        return;
    dog.released = true;
    dog.released_at = now();
    tell_changed();
}

static bool any_in(enum point_state one, enum point_state other)
{
    for (uint32_t i = 0; i < dog.points; i++)
        if (dog.point[i].state == one || dog.point[i].state == other)
            return true;
    return false;
}

static bool all_frozen(void)
{
    for (uint32_t i = 0; i < dog.points; i++)
        if (dog.point[i].state != FROZEN)
            return false;
    return true;
}

static bool all_thawed(void)
{
    return dog.released && !any_in(FROZEN, THAWING);
}

static bool at_rest(void)
{
    return all_thawed() && !any_in(FREEZING, FREEZING);
}

/* ---- the threads that call ---- */

/* FITHAW until it is thawed; the state that this leaves the point in. */
static enum point_state thaw_point(int fd, int *error)
{
    for (int tries = 0;; tries++) {
        if (ioctl(fd, FITHAW, 0) == 0)
            return THAWED;
        *error = errno;
        if (*error == EINVAL)
            return LOST;
        if (tries == RETRIES)
            return STUCK;
        struct timespec pause = timespec_of(RETRY);
        nanosleep(&pause, NULL);
    }
}

/* Thaws, last first, what nobody else thaws already. */
static void thaw_frozen(void)
{
    pthread_mutex_lock(&dog.lock);
    for (uint32_t i = dog.points; i-- > 0;) {
        struct point *point = &dog.point[i];
        if (point->state != FROZEN)
            continue;
        point->state = THAWING;
        pthread_mutex_unlock(&dog.lock);
        int error = 0;
        uint64_t began = now();
        enum point_state state = thaw_point(FIRST_POINT + (int)i, &error);
        uint64_t took = now() - began;
        pthread_mutex_lock(&dog.lock);
        point->state = state;
        point->error = state == THAWED ? 0 : error;
        point->thaw_ns = took;
        tell_changed();
    }
    pthread_mutex_unlock(&dog.lock);
}

static void freeze_point(uint32_t i) /* locked, and again when it returns */
{
    struct point *point = &dog.point[i];
    point->state = FREEZING;
    pthread_mutex_unlock(&dog.lock);
    uint64_t began = now();
    int error = ioctl(FIRST_POINT + (int)i, FIFREEZE, 0) == 0 ? 0 : errno;
    uint64_t took = now() - began;
    pthread_mutex_lock(&dog.lock);
    point->state = error ? REFUSED : FROZEN;
    point->error = error;
    point->freeze_ns = took;
    if (error)
        release_all();
}

/* Expedited waits for everybody, for as long as freezing takes. Where they were on already they are not ours. */
static bool begin_expedited(void)
{
    char is = 0;
    return dog.expedited >= 0 && pread(dog.expedited, &is, 1, 0) == 1 && is == '0' &&
           pwrite(dog.expedited, "1", 1, 0) == 1;
}

static void end_expedited(bool ours)
{
    if (ours)
        (void)!pwrite(dog.expedited, "0", 1, 0);
}

static void *run_freezing(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&dog.lock);
    while (!dog.begun && !dog.released)
        pthread_cond_wait(&dog.changed, &dog.lock);
    bool expedited = begin_expedited();
    for (uint32_t i = 0; i < dog.points && !dog.released; i++)
        freeze_point(i);
    end_expedited(expedited);
    bool released = dog.released;
    tell_changed();
    pthread_mutex_unlock(&dog.lock);
    if (released)
        thaw_frozen();
    return NULL;
}

static void *run_thawing(void *number)
{
    pthread_mutex_lock(&dog.lock);
    while (!dog.released)
        pthread_cond_wait(&dog.changed, &dog.lock);
    struct timespec turn = timespec_of(dog.released_at + (uintptr_t)number * PATIENCE);
    int waited = 0;
    while (number && waited != ETIMEDOUT)
        waited = pthread_cond_timedwait(&dog.changed, &dog.lock, &turn);
    pthread_mutex_unlock(&dog.lock);
    thaw_frozen();
    return NULL;
}

/* ---- the thread that talks ---- */

static void answer(enum operation operation, int error)
{
    struct answer message = {.operation = operation, .error = error};
    pthread_mutex_lock(&dog.lock);
    message.points = dog.points;
    message.expired = dog.expired;
    memcpy(message.point, dog.point, sizeof message.point);
    pthread_mutex_unlock(&dog.lock);
    /* Nobody to tell it to is told by the next poll. */
    (void)!send(SOCKET, &message, sizeof message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static int start_thread(void *(*run)(void *), uintptr_t number)
{
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_SIZE);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int error = pthread_create(&thread, &attributes, run, (void *)number);
    pthread_attr_destroy(&attributes);
    return error;
}

/* What helps where it is allowed: not to be the victim when memory is short, not to wait in reclaim for what is frozen,
 * and to be run at once. */
static void ask_for_privileges(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        (void)!write(fd, "-1000", 5);
        close(fd);
    }
    dog.expedited = open("/sys/kernel/rcu_expedited", O_RDWR | O_CLOEXEC);
    (void)!prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
    (void)!setpriority(PRIO_PROCESS, 0, -20);
}

/* 0 or an errno; `signals` is a descriptor then. */
static int set_up(uint32_t points, int *signals)
{
    /* A signal to the parent's group, and the end of its terminal, are the parent's. */
    setsid();
    ask_for_privileges();
    dog.points = points;
    dog.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    *signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (dog.wake < 0 || *signals < 0)
        return errno;
    sigfillset(&set);
    pthread_sigmask(SIG_SETMASK, &set, NULL);

    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&dog.changed, &attributes);
    pthread_condattr_destroy(&attributes);

    /* Before the threads, so that their stacks are locked as they come. */
    if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0)
        return errno;
    int error = start_thread(run_freezing, 0);
    for (uintptr_t i = 0; i < points && !error; i++)
        error = start_thread(run_thawing, i);
    return error;
}

/* False when there is no one to take commands from any more. */
static bool take_request(struct request *request)
{
    ssize_t got;
    do
        got = recv(SOCKET, request, sizeof *request, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got < 0 && errno == EAGAIN) {
        request->operation = 0;
        return true;
    }
    return got == sizeof *request;
}

/* The time to wait, for ppoll; NULL: no deadline. */
static const struct timespec *until(uint64_t deadline, struct timespec *room)
{
    if (!deadline)
        return NULL;
    uint64_t at = now();
    *room = timespec_of(deadline > at ? deadline - at : 0);
    return room;
}

/* Until every point is at rest and nobody asks any more. */
static void watch(int signals)
{
    enum operation asked = 0;
    uint64_t deadline = 0;
    bool leaving = false;
    for (;;) {
        struct pollfd wait[] = {{dog.wake, POLLIN, 0},
                                {signals, POLLIN, 0},
                                {leaving ? -1 : PARENT, POLLIN, 0},
                                {leaving ? -1 : SOCKET, POLLIN, 0}};
        struct timespec room;
        ppoll(wait, 4, until(deadline, &room), NULL);
        uint64_t count;
        (void)!read(dog.wake, &count, sizeof count);
        if (wait[1].revents) {
            struct signalfd_siginfo which;
            (void)!read(signals, &which, sizeof which);
            leaving = true;
        }
        leaving |= wait[2].revents != 0;

        struct request request = {0};
        if (!leaving && wait[3].revents)
            leaving = !take_request(&request);

        pthread_mutex_lock(&dog.lock);
        if (request.operation == FREEZE && !dog.begun) {
            dog.begun = true;
            deadline = now() + request.deadline_ns;
            tell_changed();
        }
        if (request.operation)
            asked = request.operation;
        if (deadline && now() >= deadline) {
            deadline = 0;
            dog.expired |= !dog.released;
            release_all();
        }
        if (leaving || asked == THAW)
            release_all();
        bool frozen = asked == FREEZE && all_frozen(), thawed = all_thawed(), done = leaving && at_rest();
        pthread_mutex_unlock(&dog.lock);

        if (done)
            return;
        if (!leaving && asked && (frozen || thawed)) {
            answer(asked, 0);
            asked = 0;
        }
    }
}

int main(int argc, char **argv)
{
    long points = argc == 2 ? strtol(argv[1], NULL, 10) : 0;
    if (points < 1 || points > POINTS_MAX)
        return 2;
    int signals = -1;
    int error = set_up((uint32_t)points, &signals);
    answer(READY, error);
    if (error)
        return 1;
    watch(signals);
    /* Threads that wait for something end with the process. */
    _exit(0);
}
