/* SPDX-License-Identifier: Apache-2.0
 *
 * Suspensions of groups with real engines, reactors and movers' threads: one T0 explains every block of every volume;
 * deadlines reopen everything; what fails is punctured, not believed. Under TSan: gate and mover share one mapping
 * here.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "../../csrc/subsystem/clock.h"
#include "../../csrc/subsystem/session_private.h"
#include "check.h"
#include "tz/reactor.h"

#define BLOCK    4096
#define BLOCKS   512
#define VERSIONS 4096
#define DEPTH    8
#define VOLUMES  4
#define REACTORS 2
#define MS       UINT64_C(1000000)
#define SECOND   (1000 * MS)

/* ---- a load whose every write is told by what it left behind ---- */

typedef struct load_block {
    _Atomic uint32_t versions; /* started */
    _Atomic uint64_t started[VERSIONS], acked[VERSIONS];
    bool busy;
} load_block;

typedef struct load load;
typedef struct load_writer {
    tz_request request;
    load *load;
    uint64_t *buffer;
    uint32_t block;
} load_writer;

struct load {
    tz_reactor *reactor;
    tz_volume *volume;
    char path[32];
    uint64_t seed;
    _Atomic uint64_t *clock;
    _Atomic bool stop;
    _Atomic uint32_t running;
    load_block *blocks;
    load_writer writers[DEPTH];
};

static void write_next(load_writer *w);

static void on_write_done(tz_request *request, int64_t result)
{
    load_writer *w = request->user;
    load_block *b = &w->load->blocks[w->block];

    CHECK_EQ(result, 0); /* whatever became of a session, the application's write succeeds */
    atomic_store(&b->acked[b->versions - 1], atomic_fetch_add(w->load->clock, 1));
    b->busy = false;
    if (atomic_load(&w->load->stop))
        atomic_fetch_sub(&w->load->running, 1);
    else
        write_next(w);
}

static uint64_t next_random(load *l, uint64_t below)
{
    l->seed = l->seed * 6364136223846793005u + 1442695040888963407u;
    return (l->seed >> 33) % below;
}

static void write_next(load_writer *w)
{
    load_block *b;
    uint32_t version;

    do {
        w->block = (uint32_t)next_random(w->load, BLOCKS);
        b = &w->load->blocks[w->block];
    } while (b->busy || b->versions == VERSIONS);
    b->busy = true;
    version = b->versions;
    for (int i = 0; i < BLOCK / 8; i++)
        w->buffer[i] = ((uint64_t)w->block << 32) | (version + 1);
    atomic_store(&b->started[version], atomic_fetch_add(w->load->clock, 1));
    atomic_store(&b->versions, version + 1);
    w->request = (tz_request){.kind = TZ_REQUEST_WRITE,
                              .offset = (uint64_t)w->block * BLOCK,
                              .length = BLOCK,
                              .buffer = w->buffer,
                              .done = on_write_done,
                              .user = w};
    tz_volume_submit(w->load->volume, &w->request);
}

static int start_writers(void *arg)
{
    load *l = arg;

    for (int i = 0; i < DEPTH; i++)
        write_next(&l->writers[i]);
    return 0;
}

static int close_volume(void *arg)
{
    load *l = arg;

    if (!tz_volume_is_idle(l->volume))
        return -EBUSY;
    tz_volume_close(l->volume);
    return 0;
}

static void load_create(load *l, tz_reactor *reactor, _Atomic uint64_t *clock, uint64_t seed)
{
    tz_volume_config config = {.path = l->path, .lock = true};
    int fd;

    memset(l, 0, sizeof(*l));
    strcpy(l->path, "./suspension-XXXXXX");
    fd = mkstemp(l->path);
    CHECK(fd >= 0 && ftruncate(fd, BLOCKS * BLOCK) == 0);
    close(fd);
    l->reactor = reactor;
    l->seed = seed;
    l->clock = clock;
    l->blocks = calloc(BLOCKS, sizeof(*l->blocks));
    CHECK(l->blocks);
    CHECK_EQ(tz_volume_open(&l->volume, tz_reactor_io(reactor), &config), 0);
    for (int i = 0; i < DEPTH; i++) {
        l->writers[i].load = l;
        l->writers[i].buffer = aligned_alloc(4096, BLOCK);
    }
}

static void load_start(load *l)
{
    atomic_store(&l->stop, false);
    atomic_store(&l->running, DEPTH);
    CHECK_EQ(tz_reactor_call(l->reactor, start_writers, l), 0);
}

static void load_stop(load *l)
{
    atomic_store(&l->stop, true);
    for (uint64_t end = tz_now_ns() + 60 * SECOND; atomic_load(&l->running);) {
        CHECK(tz_now_ns() < end); /* an update waits for ever */
        usleep(1000);
    }
}

static void load_destroy(load *l)
{
    CHECK_EQ(tz_reactor_call(l->reactor, close_volume, l), 0);
    unlink(l->path);
    for (int i = 0; i < DEPTH; i++)
        free(l->writers[i].buffer);
    free(l->blocks);
}

/* ---- the oracle: an interval of instants that explains what was copied ---- */

typedef struct instant {
    uint64_t after, before;
} instant;

static void explain(const load *l, const char *image, instant *t)
{
    for (uint32_t i = 0; i < BLOCKS; i++) {
        const uint64_t *words = (const uint64_t *)(image + (uint64_t)i * BLOCK);
        const load_block *b = &l->blocks[i];
        uint64_t next = words[0] & UINT32_MAX; /* the version after this one; 0: never written */

        for (int w = 1; w < BLOCK / 8; w++)
            CHECK(words[w] == words[0]); /* not torn */
        if (next) {
            CHECK_EQ(words[0] >> 32, i);
            CHECK(next <= b->versions);
            t->after = tz_max_u64(t->after, b->started[next - 1]);
        }
        if (next < b->versions && b->acked[next])
            t->before = tz_min_u64(t->before, b->acked[next]);
    }
}

/* ---- a mover in a thread of its own ---- */

typedef struct mover {
    tz_session *session;
    pthread_t thread;
    char *image;
    bool broken;
} mover;

static void take(mover *m, uint64_t track)
{
    const tz_session_header *h = tz_session_header_of(m->session);
    const uint64_t size = m->session->track_size;
    char *place = m->image + track * size;
    uint32_t slot;
    uint64_t one = 1;

    if (tz_session_is_zero_image(h, track)) {
        memset(place, 0, size);
        return;
    }
    slot = tz_session_find(h, track);
    if (slot == TZ_SLOT_NONE) {
        m->broken = true;
        return;
    }
    if (slot < h->memory_slots)
        memcpy(place, tz_session_memory_slot(h, slot), size);
    else
        CHECK_EQ(pread(m->session->file_reader.fd, place, size, (off_t)((slot - h->memory_slots) * size)), size);
    tz_drain_push(h, m->session->sidefile.ring, slot);
    CHECK_EQ(write(m->session->drain_fd, &one, 8), 8);
}

static void *copy(void *arg)
{
    mover *m = arg;
    const tz_session_header *h = tz_session_header_of(m->session);
    const uint64_t size = m->session->track_size;

    for (uint64_t i = 0; i < h->tracks; i++) {
        uint64_t track = (i * 7 + 3) % h->tracks; /* the count is a power of two */
        uint32_t n, mask = tz_track_mask(track, 1, &n);

        CHECK_EQ(pread(m->session->volume_reader.fd, m->image + track * size, size, (off_t)(track * size)), size);
        if (tz_tracks_copied(&m->session->sidefile.words[track / TZ_TRACKS_A_WORD], mask))
            take(m, track);
    }
    return NULL;
}

static void mover_start(mover *m, tz_session *session)
{
    m->session = session;
    m->broken = false;
    m->image = aligned_alloc(4096, BLOCKS * BLOCK);
    CHECK(m->image);
    CHECK_EQ(pthread_create(&m->thread, NULL, copy, m), 0);
}

/* ---- groups ---- */

static struct group {
    tz_reactor *reactors[REACTORS];
    load loads[VOLUMES];
    _Atomic uint64_t clock;
} group;

static void group_create(tz_io_kind kind)
{
    tz_io_config config = {.kind = kind};

    atomic_store(&group.clock, 1);
    for (int i = 0; i < REACTORS; i++)
        CHECK_EQ(tz_reactor_create(&group.reactors[i], &config), 0);
    for (int i = 0; i < VOLUMES; i++)
        load_create(&group.loads[i], group.reactors[i % REACTORS], &group.clock, (uint64_t)i + 1);
}

static void group_destroy(void)
{
    for (int i = 0; i < VOLUMES; i++)
        load_destroy(&group.loads[i]);
    for (int i = 0; i < REACTORS; i++)
        tz_reactor_destroy(group.reactors[i]);
}

static tz_session *prepare(int volume, uint64_t track, uint64_t memory, uint64_t file)
{
    tz_session_config config = {.track_size = track,
                                .memory_bytes = memory,
                                .file_bytes = file,
                                .file_fd = file ? open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) : -1};
    tz_session *session;

    CHECK_EQ(tz_session_prepare(&session, group.loads[volume].volume, &config), 0);
    return session;
}

static tz_suspension *suspend(tz_session **sessions, uint32_t count)
{
    tz_suspension *suspension;

    CHECK_EQ(tz_suspension_create(&suspension, sessions, count), 0);
    return suspension;
}

/* Ends and destroys; all must have come to this state and reason. */
static void end(tz_session *session, bool cancel, enum tz_session_state state, enum tz_puncture_reason reason)
{
    tz_session_report report;

    CHECK_EQ(tz_session_end(session, cancel, &report), 0);
    CHECK_EQ(report.state, state);
    CHECK_EQ(report.puncture, reason);
    tz_session_destroy(session);
}

/* One session of the group under load; its parts must be explained by one instant. */
static void back_up_group(uint64_t track, uint64_t memory, uint64_t file, instant *t, uint64_t *intercepted)
{
    tz_session *sessions[VOLUMES];
    mover movers[VOLUMES];
    tz_suspension *suspension;
    tz_suspension_times times;

    for (int i = 0; i < VOLUMES; i++)
        sessions[i] = prepare(i, track, memory, file);
    suspension = suspend(sessions, VOLUMES);
    CHECK_EQ(tz_suspension_run(suspension, 20 * SECOND), 0);
    tz_suspension_times_get(suspension, &times);
    CHECK(times.total_ns > 0 && times.total_ns < 20 * SECOND);
    tz_suspension_destroy(suspension);
    for (int i = 0; i < VOLUMES; i++)
        mover_start(&movers[i], sessions[i]);
    for (int i = 0; i < VOLUMES; i++) {
        tz_session_report report;

        CHECK_EQ(pthread_join(movers[i].thread, NULL), 0);
        CHECK(!movers[i].broken);
        CHECK_EQ(tz_session_end(sessions[i], false, &report), 0);
        CHECK_EQ(report.state, TZ_SESSION_ENDED);
        *intercepted += report.intercepted;
        explain(&group.loads[i], movers[i].image, t);
        free(movers[i].image);
        tz_session_destroy(sessions[i]);
    }
    CHECK(t->after < t->before);
}

static void t0_of_a_group(tz_io_kind kind)
{
    static const struct {
        uint64_t track, memory, file;
    } cases[] = {{4096, 8 << 20, 0}, {65536, 8 << 20, 0}, {4096, 128 << 10, 4 << 20}};
    uint64_t intercepted = 0, before = 0;

    group_create(kind);
    for (int i = 0; i < VOLUMES; i++)
        load_start(&group.loads[i]);
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        instant t = {0, UINT64_MAX};

        usleep(20000);
        back_up_group(cases[c].track, cases[c].memory, cases[c].file, &t, &intercepted);
        CHECK(t.after > before); /* later sessions see later states */
        before = t.after;
    }
    for (int i = 0; i < VOLUMES; i++)
        load_stop(&group.loads[i]);
    CHECK(intercepted > 0);
    group_destroy();
}

static void t0_of_a_group_uring(void)
{
    t0_of_a_group(TZ_IO_URING);
}

static void t0_of_a_group_threads(void)
{
    t0_of_a_group(TZ_IO_THREADS);
}

/* Two sessions with different instants on the same volumes, and both on one volume in one suspension. */
static void two_sessions_at_once(void)
{
    tz_session *first[2], *second;
    mover movers[3];
    instant t1 = {0, UINT64_MAX}, t2 = {0, UINT64_MAX};
    tz_suspension *s;

    group_create(TZ_IO_AUTO);
    load_start(&group.loads[0]);
    first[0] = prepare(0, 4096, 8 << 20, 0);
    first[1] = prepare(0, 65536, 8 << 20, 0);
    s = suspend(first, 2);
    CHECK_EQ(tz_suspension_run(s, 20 * SECOND), 0);
    tz_suspension_destroy(s);
    usleep(20000);
    second = prepare(0, 4096, 8 << 20, 0);
    s = suspend(&second, 1);
    CHECK_EQ(tz_suspension_run(s, 20 * SECOND), 0);
    tz_suspension_destroy(s);
    mover_start(&movers[0], first[0]);
    mover_start(&movers[1], first[1]);
    mover_start(&movers[2], second);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(pthread_join(movers[i].thread, NULL), 0);
    end(first[0], false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    end(first[1], false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    end(second, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    load_stop(&group.loads[0]);
    CHECK_EQ(memcmp(movers[0].image, movers[1].image, BLOCKS * BLOCK), 0);
    explain(&group.loads[0], movers[0].image, &t1);
    explain(&group.loads[0], movers[2].image, &t2);
    CHECK(t1.after < t1.before && t2.after < t2.before && t1.after < t2.after);
    for (int i = 0; i < 3; i++)
        free(movers[i].image);
    group_destroy();
}

/* ---- deadlines, aborts ---- */

static _Atomic bool occupied;
static _Atomic uint64_t ordered_ns;

/* Keeps a reactor from its work until well after the deadline of the suspension that is ordered meanwhile. */
static int keep_busy(void *arg)
{
    (void)arg;
    atomic_store(&occupied, true);
    while (!atomic_load(&ordered_ns) || tz_now_ns() < atomic_load(&ordered_ns) + 200 * MS)
        usleep(1000);
    return 0;
}

static void *occupy(void *reactor)
{
    tz_reactor_call(reactor, keep_busy, NULL);
    return NULL;
}

/* One thread of the group cannot close in time: the other reopens by itself, the suspension fails, a retry succeeds. */
static void deadline_of_a_group(void)
{
    tz_session *sessions[2];
    tz_suspension *s;
    pthread_t thread;

    group_create(TZ_IO_AUTO);
    load_start(&group.loads[0]);
    sessions[0] = prepare(0, 4096, 8 << 20, 0);
    sessions[1] = prepare(1, 4096, 8 << 20, 0);
    s = suspend(sessions, 2);
    CHECK_EQ(pthread_create(&thread, NULL, occupy, group.reactors[1]), 0);
    while (!atomic_load(&occupied))
        usleep(1000);
    atomic_store(&ordered_ns, tz_now_ns());
    CHECK_EQ(tz_suspension_run(s, 20 * MS), -ETIMEDOUT);
    pthread_join(thread, NULL);
    CHECK_EQ(tz_session_state_of(sessions[0]), TZ_SESSION_PREPARED);
    CHECK_EQ(tz_suspension_run(s, 20 * SECOND), 0);
    tz_suspension_destroy(s);
    load_stop(&group.loads[0]);
    end(sessions[0], false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    end(sessions[1], true, TZ_SESSION_PUNCTURED, TZ_PUNCTURE_MOVER);
    group_destroy();
}

/* In steps: a coordinator that is late after close has no T0; after install, its sessions are punctured. */
static void deadline_between_steps(void)
{
    tz_session *session;
    tz_suspension *s;

    group_create(TZ_IO_AUTO);
    session = prepare(0, 4096, 8 << 20, 0);
    s = suspend(&session, 1);
    load_start(&group.loads[0]);
    CHECK_EQ(tz_suspension_close(s, SECOND), 0);
    usleep(1100000);
    CHECK_EQ(tz_suspension_install(s), -ETIMEDOUT);
    CHECK_EQ(tz_session_state_of(session), TZ_SESSION_PREPARED);
    CHECK_EQ(tz_suspension_open(s), -EINVAL); /* it is open */

    CHECK_EQ(tz_suspension_close(s, SECOND), 0);
    CHECK_EQ(tz_suspension_install(s), 0);
    CHECK_EQ(tz_session_state_of(session), TZ_SESSION_ACTIVE);
    usleep(1100000);
    CHECK_EQ(tz_suspension_open(s), -ETIMEDOUT);
    tz_suspension_destroy(s);
    load_stop(&group.loads[0]); /* and the application went on */
    end(session, false, TZ_SESSION_PUNCTURED, TZ_PUNCTURE_GATE);
    group_destroy();
}

static void abort_opens(void)
{
    tz_session *session;
    tz_suspension *s;

    group_create(TZ_IO_AUTO);
    session = prepare(0, 4096, 8 << 20, 0);
    s = suspend(&session, 1);
    load_start(&group.loads[0]);
    CHECK_EQ(tz_suspension_close(s, 20 * SECOND), 0);
    CHECK_EQ(group.loads[0].volume->gate.in_flight, 0);
    tz_suspension_abort(s);
    CHECK_EQ(tz_session_state_of(session), TZ_SESSION_PREPARED);
    CHECK_EQ(tz_suspension_close(s, 20 * SECOND), 0);
    CHECK_EQ(tz_suspension_install(s), 0);
    tz_suspension_destroy(s); /* aborts */
    load_stop(&group.loads[0]);
    end(session, false, TZ_SESSION_PUNCTURED, TZ_PUNCTURE_GATE);
    group_destroy();
}

/* A gate serves one suspension at a time; who comes second is refused and harms neither. */
static void one_suspension_a_gate(void)
{
    tz_session *first, *both[2];
    tz_suspension *s1, *s2;

    group_create(TZ_IO_AUTO);
    first = prepare(0, 4096, 8 << 20, 0);
    both[0] = prepare(1, 4096, 8 << 20, 0);
    both[1] = prepare(0, 4096, 8 << 20, 0);
    s1 = suspend(&first, 1);
    s2 = suspend(both, 2);
    CHECK_EQ(tz_suspension_close(s1, 20 * SECOND), 0);
    CHECK_EQ(tz_suspension_run(s2, 20 * SECOND), -EBUSY);
    CHECK_EQ(tz_suspension_install(s1), 0);
    CHECK_EQ(tz_suspension_open(s1), 0);
    CHECK_EQ(tz_suspension_run(s2, 20 * SECOND), 0);
    tz_suspension_destroy(s1);
    tz_suspension_destroy(s2);
    end(first, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    end(both[0], false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    end(both[1], false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    group_destroy();
}

static void same_session_twice_is_refused(void)
{
    tz_session *twice[2];
    tz_suspension *s;

    group_create(TZ_IO_AUTO);
    twice[0] = twice[1] = prepare(0, 4096, 8 << 20, 0);
    CHECK_EQ(tz_suspension_create(&s, twice, 2), -EINVAL);
    CHECK_EQ(tz_suspension_create(&s, twice, 0), -EINVAL);
    s = suspend(twice, 1);
    CHECK_EQ(tz_suspension_run(s, UINT64_MAX), 0);
    CHECK_EQ(tz_suspension_run(s, UINT64_MAX), -ECANCELED); /* a session has one T0 */
    tz_suspension_destroy(s);
    end(twice[0], false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    group_destroy();
}

int main(void)
{
    RUN(t0_of_a_group_uring);
    RUN(t0_of_a_group_threads);
    RUN(two_sessions_at_once);
    RUN(deadline_of_a_group);
    RUN(deadline_between_steps);
    RUN(abort_opens);
    RUN(one_suspension_a_gate);
    RUN(same_session_twice_is_refused);
    return 0;
}
