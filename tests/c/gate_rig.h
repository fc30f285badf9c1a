/* SPDX-License-Identifier: Apache-2.0
 *
 * Gate and mover as one state machine on the fake engine, against a plain model.
 *
 *   application   updates that never overlap in bytes while under way, so that what the volume must hold is known
 *   session       closes the gate, keeps an image of the file when it is drained (T0), installs, opens
 *   mover         reads chunks in any order, validates, takes before-images late, drains
 *
 * Two oracles: the volume's content is the model's at the end (and at every read); whatever a mover holds while its
 * session is not punctured is T0. Breaches are counted, not fatal, so that tests can show which rule prevents them.
 */
#ifndef TZ_TESTS_GATE_RIG_H
#define TZ_TESTS_GATE_RIG_H

#include <linux/falloc.h>
#include <sys/mman.h>

#include "../../csrc/subsystem/clock.h"
#include "../../csrc/subsystem/session_private.h"
#include "fake_io.h"

#define RIG_UPDATES     24
#define RIG_SESSIONS    2
#define RIG_CHUNK       4 /* tracks */
#define RIG_MOVER_DEPTH 3

typedef struct rig_config {
    uint64_t seed, track_size, size, memory_bytes, file_bytes;
    uint32_t steps, volume_faults, session_faults, sessions;
    uint32_t update_one_in, mover_one_in; /* steps between them, on average */
    bool buffered, unaligned, domain;
} rig_config;

struct rig;

typedef struct rig_update {
    tz_request request;
    struct rig *rig;
    char *buffer;
    bool busy;
} rig_update;

typedef struct rig_chunk {
    tz_io_op op;
    struct rig_session *session;
    uint64_t first, tracks; /* busy when tracks > 0 */
    uint32_t preserved[8];  /* words, from the word of `first` on */
    uint32_t taking;        /* tracks validated; 0: reading, 1 + n: n tracks taken */
    char *frame;
} rig_chunk;

typedef struct rig_session {
    struct rig *rig;
    tz_gate_closer closer;
    tz_session *session;
    enum {
        RIG_NONE,
        RIG_CLOSING,
        RIG_RUNNING,
        RIG_ENDING
    } stage;
    char *t0, *image;
    uint64_t *domain;
    uint64_t next_track, tracks_done; /* the mover's order wraps around from a random start */
    rig_chunk chunks[RIG_MOVER_DEPTH];
    bool settled;
    tz_call call;
} rig_session;

typedef struct rig {
    rig_config config;
    uint64_t seed;
    tz_io *io;
    tz_volume *volume;
    char path[64];
    char *model;
    uint64_t tracks;
    rig_update updates[RIG_UPDATES];
    rig_session sessions[RIG_SESSIONS];
    /* What came of it. */
    uint64_t breaches, intact, punctured, errors, leaks;
    tz_session_report sum;
} rig;

static uint64_t rig_random(rig *r, uint64_t below)
{
    return fake_random(&r->seed, below);
}

/* ---- application ---- */

static bool rig_overlaps(const rig *r, uint64_t offset, uint64_t length)
{
    for (int i = 0; i < RIG_UPDATES; i++) {
        const rig_update *u = &r->updates[i];

        if (u->busy && u->request.offset < offset + length && offset < u->request.offset + u->request.length)
            return true;
    }
    return false;
}

static void rig_apply(rig *r, const tz_request *request)
{
    const uint64_t align = r->volume->zero_align;
    uint64_t from = request->offset, to = from + request->length;

    switch (request->kind) {
    case TZ_REQUEST_WRITE:
        memcpy(r->model + from, request->buffer, to - from);
        break;
    case TZ_REQUEST_TRIM:
        from = tz_align_up(from, align);
        to = tz_align_down(to, align);
        if (from < to)
            memset(r->model + from, 0, to - from);
        break;
    case TZ_REQUEST_ZERO:
        memset(r->model + from, 0, to - from);
        break;
    case TZ_REQUEST_READ:
        if (memcmp(r->model + from, request->buffer, to - from) != 0)
            r->breaches++;
        break;
    default:
        break;
    }
}

static void rig_update_done(tz_request *request, int64_t result)
{
    rig_update *u = request->user;

    if (result < 0)
        u->rig->errors++;
    else
        rig_apply(u->rig, request);
    u->busy = false;
}

static void rig_fill(rig *r, char *buffer, uint64_t length)
{
    for (uint64_t i = 0; i < length; i++)
        buffer[i] = (char)(1 + rig_random(r, 255));
}

static void rig_submit_update(rig *r, rig_update *u)
{
    static const tz_request_kind kinds[] = {TZ_REQUEST_WRITE, TZ_REQUEST_WRITE, TZ_REQUEST_WRITE, TZ_REQUEST_WRITE,
                                            TZ_REQUEST_TRIM,  TZ_REQUEST_ZERO,  TZ_REQUEST_READ,  TZ_REQUEST_FLUSH};
    const uint64_t grain = r->config.unaligned ? 1 + rig_random(r, 700) : r->volume->zero_align;
    uint64_t length = grain * (1 + rig_random(r, rig_random(r, 4) ? 12 : 3 * r->config.track_size / grain));
    uint64_t offset = grain * rig_random(r, r->config.size / grain);

    /* Half of them crowd into a few tracks. */
    if (rig_random(r, 2))
        offset %= tz_min_u64(r->config.size, tz_align_up(6 * r->config.track_size, grain));
    if (offset + length > r->config.size)
        length = r->config.size - offset;
    if (length == 0 || rig_overlaps(r, offset, length))
        return;
    u->request = (tz_request){.kind = kinds[rig_random(r, 8)], .offset = offset, .length = length, .user = u};
    u->request.done = rig_update_done;
    u->request.buffer = u->buffer + (r->config.unaligned ? rig_random(r, 64) : 0);
    if (u->request.kind == TZ_REQUEST_WRITE)
        rig_fill(r, u->request.buffer, length);
    if (u->request.kind == TZ_REQUEST_ZERO && rig_random(r, 2))
        u->request.flags |= TZ_REQUEST_NO_HOLE;
    if (rig_random(r, 8) == 0)
        u->request.flags |= TZ_REQUEST_FUA;
    u->busy = true;
    tz_volume_submit(r->volume, &u->request);
}

static void rig_application(rig *r)
{
    rig_update *u = &r->updates[rig_random(r, RIG_UPDATES)];

    if (!u->busy)
        rig_submit_update(r, u);
}

/* ---- T0 ---- */

static void rig_drained(tz_gate_closer *closer)
{
    rig_session *s = tz_container_of(closer, rig_session, closer);
    rig *r = s->rig;
    int fd = open(r->path, O_RDONLY | O_CLOEXEC);

    CHECK(fd >= 0 && pread(fd, s->t0, r->config.size, 0) == (ssize_t)r->config.size);
    close(fd);
    CHECK_EQ(tz_gate_install(r->volume, s->session), 0);
}

static void rig_broken(tz_gate_closer *closer)
{
    (void)closer;
    CHECK(!"nobody fires the deadline");
}

static void rig_settled(tz_gate_closer *closer)
{
    tz_container_of(closer, rig_session, closer)->settled = true;
}

static int rig_file_tier(rig *r)
{
    return r->config.file_bytes ? open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) : -1;
}

static void rig_begin_session(rig *r, rig_session *s)
{
    tz_session_config config = {.track_size = r->config.track_size,
                                .memory_bytes = r->config.memory_bytes,
                                .file_bytes = r->config.file_bytes,
                                .file_fd = rig_file_tier(r),
                                .domain = r->config.domain,
                                .max_delay_us = 50,
                                .faults = r->config.session_faults};

    if (r->volume->gate.closer)
        return;
    for (uint64_t t = 0; t < r->tracks && s->domain; t++)
        if (rig_random(r, 3) == 0)
            s->domain[t / 64] &= ~(UINT64_C(1) << (t % 64));
    CHECK_EQ(tz_session_prepare(&s->session, r->volume, &config), 0);
    if (s->domain) {
        const size_t bytes = (r->tracks + 63) / 64 * 8;

        CHECK_EQ(pwrite(s->session->domain_fd, s->domain, bytes, 0), bytes);
        CHECK_EQ(tz_session_set_domain(s->session), 0);
    }
    s->closer = (tz_gate_closer){rig_drained, rig_broken, rig_settled, r->config.session_faults};
    s->stage = RIG_CLOSING;
    s->settled = false;
    s->next_track = rig_random(r, r->tracks) / RIG_CHUNK * RIG_CHUNK;
    s->tracks_done = 0;
    CHECK_EQ(tz_gate_close(r->volume, &s->closer, tz_now_ns() + 3600000000000u), 0);
}

/* ---- mover ---- */

static void rig_take_track(rig_chunk *c, uint64_t track)
{
    rig_session *s = c->session;
    const tz_session_header *h = tz_session_header_of(s->session);
    const uint64_t size = s->rig->config.track_size;
    char *place = c->frame + (track - c->first) * size;
    uint64_t one = 1;
    uint32_t slot;

    if (tz_session_is_zero_image(h, track)) {
        memset(place, 0, size);
        return;
    }
    slot = tz_session_find(h, track);
    if (slot == TZ_SLOT_NONE) {
        s->rig->breaches++; /* the session is broken */
        return;
    }
    if (slot < h->memory_slots)
        memcpy(place, tz_session_memory_slot(h, slot), size);
    else
        CHECK_EQ(pread(s->session->file_reader.fd, place, size, (off_t)((slot - h->memory_slots) * size)), size);
    tz_drain_push(h, s->session->sidefile.ring, slot);
    CHECK_EQ(write(s->session->drain_fd, &one, sizeof(one)), sizeof(one));
}

static void rig_chunk_done(rig_chunk *c)
{
    rig_session *s = c->session;
    rig *r = s->rig;
    const uint64_t track = r->config.track_size;

    for (uint64_t t = c->first; t < c->first + c->tracks; t++) {
        uint64_t length = tz_min_u64(track, r->config.size - t * track);
        bool designated = !s->domain || s->domain[t / 64] >> (t % 64) & 1;

        memcpy(s->image + t * track, c->frame + (t - c->first) * track, length);
        /* Rule 1: what is not T0 must not look sound. */
        if (designated && tz_session_state_of(s->session) == TZ_SESSION_ACTIVE &&
            memcmp(s->image + t * track, s->t0 + t * track, length) != 0)
            r->breaches++;
    }
    s->tracks_done += c->tracks;
    c->tracks = 0;
}

static void rig_chunk_read(tz_io_op *op, int64_t result)
{
    rig_chunk *c = op->user;
    _Atomic uint64_t *words = c->session->session->sidefile.words;
    uint32_t n;

    CHECK(result > 0);
    for (uint64_t t = c->first; t < c->first + c->tracks; t += n) {
        uint32_t mask = tz_track_mask(t, c->first + c->tracks - t, &n);

        c->preserved[t / 32 - c->first / 32] = tz_tracks_copied(&words[t / 32], mask);
    }
    c->taking = 1;
}

static void rig_start_chunk(rig *r, rig_session *s, rig_chunk *c)
{
    const uint64_t track = r->config.track_size, from = s->next_track * track;

    c->session = s;
    c->first = s->next_track;
    c->tracks = tz_min_u64(RIG_CHUNK, r->tracks - c->first);
    c->taking = 0;
    s->next_track = c->first + c->tracks == r->tracks ? 0 : c->first + c->tracks;
    c->op.user = c;
    memset(c->frame, 0, RIG_CHUNK * track);
    tz_io_read(r->io, &c->op, s->session->volume_reader.fd, c->frame,
               tz_min_u64(c->tracks * track, r->config.size - from), from, rig_chunk_read);
}

static void rig_step_chunk(rig_chunk *c)
{
    uint64_t t = c->first + c->taking - 1;

    if (c->taking == 0)
        return;
    if (c->taking > c->tracks) {
        rig_chunk_done(c);
        return;
    }
    if (c->preserved[t / 32 - c->first / 32] >> (t % 32) & 1)
        rig_take_track(c, t);
    c->taking++;
}

static bool rig_mover_busy(const rig_session *s)
{
    for (int i = 0; i < RIG_MOVER_DEPTH; i++)
        if (s->chunks[i].tracks)
            return true;
    return false;
}

static uint64_t rig_claimed(const rig_session *s)
{
    uint64_t claimed = s->tracks_done;

    for (int i = 0; i < RIG_MOVER_DEPTH; i++)
        claimed += s->chunks[i].tracks;
    return claimed;
}

/* ---- the end of a session ---- */

static void rig_compare(rig *r, rig_session *s)
{
    const uint64_t track = r->config.track_size;

    for (uint64_t t = 0; t < r->tracks; t++)
        if ((!s->domain || s->domain[t / 64] >> (t % 64) & 1) &&
            memcmp(s->image + t * track, s->t0 + t * track, tz_min_u64(track, r->config.size - t * track)) != 0)
            r->breaches++;
}

static void rig_end_session(rig *r, rig_session *s)
{
    tz_session_report report;

    tz_session_report_get(s->session, &report);
    if (report.state == TZ_SESSION_ENDED) {
        r->intact++;
        rig_compare(r, s);
        if (tz_sidefile_drain(&s->session->sidefile) < 0 || s->session->sidefile.used)
            r->leaks++;
    } else {
        r->punctured++;
    }
    r->sum.updates += report.updates;
    r->sum.intercepted += report.intercepted;
    r->sum.images += report.images;
    r->sum.zero_images += report.zero_images;
    r->sum.file_images += report.file_images;
    r->sum.self_freed += report.self_freed;
    r->sum.delayed += report.delayed;
    tz_session_destroy(s->session);
    s->session = NULL;
    s->stage = RIG_NONE;
}

static void rig_step_running(rig *r, rig_session *s)
{
    rig_chunk *c = &s->chunks[rig_random(r, RIG_MOVER_DEPTH)];

    if (c->tracks) {
        rig_step_chunk(c);
    } else if (rig_claimed(s) < r->tracks && tz_session_state_of(s->session) == TZ_SESSION_ACTIVE) {
        rig_start_chunk(r, s, c);
    } else if (!rig_mover_busy(s)) {
        tz_call_init(&s->call, NULL);
        s->stage = RIG_ENDING;
        tz_session_end_start(s->session, false, &s->call);
    }
}

static void rig_session_step(rig *r, rig_session *s)
{
    switch (s->stage) {
    case RIG_NONE:
        if (rig_random(r, 20) == 0)
            rig_begin_session(r, s);
        break;
    case RIG_CLOSING:
        if (tz_gate_is_closed_by(r->volume, &s->closer) && r->volume->gate.drained)
            tz_gate_open(r->volume, &s->closer);
        if (s->settled)
            s->stage = RIG_RUNNING;
        break;
    case RIG_RUNNING:
        rig_step_running(r, s);
        break;
    case RIG_ENDING:
        if (s->call.done)
            rig_end_session(r, s);
        break;
    }
}

/* ---- the whole ---- */

static void *rig_buffer(uint64_t bytes)
{
    void *memory = aligned_alloc(4096, tz_align_up(bytes, 4096));

    CHECK(memory);
    memset(memory, 0, bytes);
    return memory;
}

/* Half random, a third zeros, the rest holes. */
static void rig_make_file(rig *r)
{
    int fd;

    /* Most in memory, for speed; the others on a disk, which knows direct I/O and fallocate as disks do. */
    strcpy(r->path,
           r->config.seed % 4 && access("/dev/shm", W_OK) == 0 ? "/dev/shm/gate-rig-XXXXXX" : "./gate-rig-XXXXXX");
    fd = mkstemp(r->path);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)r->config.size) == 0);
    for (uint64_t at = 0; at < r->config.size; at += 4096) {
        uint64_t length = tz_min_u64(4096, r->config.size - at), kind = rig_random(r, 6);

        if (kind < 3)
            rig_fill(r, r->model + at, length);
        if (kind < 5)
            CHECK_EQ(pwrite(fd, r->model + at, length, (off_t)at), length);
    }
    close(fd);
}

static void rig_create(rig *r, const rig_config *config)
{
    tz_volume_config volume = {.path = r->path, .buffered = config->buffered, .lock = true};

    memset(r, 0, sizeof(*r));
    r->config = *config;
    r->seed = config->seed * 0x9e3779b97f4a7c15u + 1;
    r->tracks = (config->size + config->track_size - 1) / config->track_size;
    r->model = rig_buffer(config->size);
    rig_make_file(r);
    CHECK_EQ(tz_io_create(&r->io, NULL), 0);
    r->io->seed = config->seed + 1;
    r->io->stall_one_in = 2 + (uint32_t)rig_random(r, 6);
    volume.faults = config->volume_faults;
    CHECK_EQ(tz_volume_open(&r->volume, r->io, &volume), 0);
    for (int i = 0; i < RIG_UPDATES; i++) {
        r->updates[i].rig = r;
        r->updates[i].buffer = rig_buffer(4 * config->track_size + 65536);
    }
    for (uint32_t i = 0; i < config->sessions; i++) {
        rig_session *s = &r->sessions[i];

        s->rig = r;
        s->t0 = rig_buffer(config->size);
        s->image = rig_buffer(r->tracks * config->track_size);
        if (config->domain)
            s->domain = memset(rig_buffer(r->tracks / 8 + 8), 255, r->tracks / 8 + 8);
        for (int c = 0; c < RIG_MOVER_DEPTH; c++)
            s->chunks[c].frame = rig_buffer(RIG_CHUNK * config->track_size);
    }
}

static void rig_finish(rig *r)
{
    char *content = rig_buffer(r->config.size);
    bool busy = true;
    int fd;

    for (uint64_t steps = 0; busy; steps++) {
        CHECK(steps < 10000000); /* else something waits for ever */
        fake_step(r->io);
        busy = !tz_volume_is_idle(r->volume);
        for (uint32_t i = 0; i < r->config.sessions; i++) {
            if (r->sessions[i].stage != RIG_NONE)
                rig_session_step(r, &r->sessions[i]);
            busy = busy || r->sessions[i].stage != RIG_NONE;
        }
    }
    fd = open(r->path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0 && pread(fd, content, r->config.size, 0) == (ssize_t)r->config.size);
    close(fd);
    if (memcmp(content, r->model, r->config.size) != 0)
        r->breaches++;
    free(content);
}

static void rig_destroy(rig *r)
{
    tz_volume_close(r->volume);
    tz_io_destroy(r->io);
    unlink(r->path);
    free(r->model);
    for (int i = 0; i < RIG_UPDATES; i++)
        free(r->updates[i].buffer);
    for (uint32_t i = 0; i < r->config.sessions; i++) {
        free(r->sessions[i].t0);
        free(r->sessions[i].image);
        free(r->sessions[i].domain);
        for (int c = 0; c < RIG_MOVER_DEPTH; c++)
            free(r->sessions[i].chunks[c].frame);
    }
}

static void rig_run(rig *r, const rig_config *config)
{
    rig_create(r, config);
    for (uint32_t step = 0; step < config->steps; step++) {
        fake_step(r->io);
        if (rig_random(r, config->update_one_in) == 0)
            rig_application(r);
        if (config->sessions && rig_random(r, config->mover_one_in) == 0)
            rig_session_step(r, &r->sessions[rig_random(r, config->sessions)]);
    }
    rig_finish(r);
    rig_destroy(r);
}

#endif
