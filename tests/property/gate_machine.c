/* SPDX-License-Identifier: Apache-2.0
 *
 * Volume, gate, session and the mover's part, one step at a time, for tests/property/test_gate_machine.py: nothing
 * happens here that Python did not ask for. The model is Python's; there is none here.
 */
#include "../../csrc/subsystem/clock.h"
#include "../../csrc/subsystem/session_private.h"
#include "../c/fake_io.h"

#define UPDATES  64
#define SESSIONS 3
#define LONGEST  (64 * 4096)

typedef struct update {
    tz_request request;
    int64_t result;
    bool done;
    char *buffer;
} update;

typedef struct part {
    tz_gate_closer closer;
    tz_session *session;
    bool drained, settled, broken, reading;
    tz_call call;
    tz_io_op op;
    int64_t read;
    char *frame;
} part;

typedef struct machine {
    tz_io *io;
    tz_volume *volume;
    update updates[UPDATES];
    part parts[SESSIONS];
} machine;

machine *machine_open(const char *path, int buffered, uint32_t faults)
{
    tz_volume_config config = {.path = path, .buffered = buffered, .lock = true, .faults = faults};
    machine *m = calloc(1, sizeof(*m));

    CHECK(m);
    CHECK_EQ(tz_io_create(&m->io, NULL), 0);
    CHECK_EQ(tz_volume_open(&m->volume, m->io, &config), 0);
    for (int i = 0; i < UPDATES; i++)
        m->updates[i].buffer = aligned_alloc(4096, LONGEST);
    for (int i = 0; i < SESSIONS; i++)
        m->parts[i].frame = aligned_alloc(4096, LONGEST);
    return m;
}

void machine_close(machine *m)
{
    tz_volume_close(m->volume);
    tz_io_destroy(m->io);
    for (int i = 0; i < UPDATES; i++)
        free(m->updates[i].buffer);
    for (int i = 0; i < SESSIONS; i++)
        free(m->parts[i].frame);
    free(m);
}

int machine_idle(machine *m)
{
    return tz_volume_is_idle(m->volume);
}

uint32_t machine_zero_align(machine *m)
{
    return m->volume->zero_align;
}

/* ---- the engine ---- */

uint32_t machine_ops(machine *m)
{
    return m->io->count;
}

/* Advances op `i` of those in the engine by one step. */
void machine_step(machine *m, uint32_t i)
{
    if (i < m->io->count)
        fake_step_at(m->io, i);
}

/* ---- requests ---- */

static void on_updated(tz_request *request, int64_t result)
{
    update *u = request->user;

    u->result = result;
    u->done = true;
}

void machine_submit(machine *m, uint32_t i, int kind, uint32_t flags, uint64_t offset, uint64_t length,
                    const char *data)
{
    update *u = &m->updates[i];

    if (data)
        memcpy(u->buffer, data, length);
    u->done = false;
    u->request = (tz_request){.kind = (tz_request_kind)kind,
                              .flags = flags,
                              .offset = offset,
                              .length = length,
                              .buffer = u->buffer,
                              .done = on_updated,
                              .user = u};
    tz_volume_submit(m->volume, &u->request);
}

int machine_done(machine *m, uint32_t i, int64_t *result)
{
    *result = m->updates[i].result;
    return m->updates[i].done;
}

const char *machine_buffer(machine *m, uint32_t i)
{
    return m->updates[i].buffer;
}

/* ---- a session's way ---- */

static void on_drained(tz_gate_closer *closer)
{
    tz_container_of(closer, part, closer)->drained = true;
}

static void on_broken(tz_gate_closer *closer)
{
    part *p = tz_container_of(closer, part, closer);

    p->broken = true;
    tz_session_puncture(p->session, TZ_PUNCTURE_GATE);
}

static void on_settled(tz_gate_closer *closer)
{
    tz_container_of(closer, part, closer)->settled = true;
}

int machine_prepare(machine *m, uint32_t i, uint64_t track, uint64_t memory, uint64_t file, uint32_t faults)
{
    part *p = &m->parts[i];
    tz_session_config config = {.track_size = track,
                                .memory_bytes = memory,
                                .file_bytes = file,
                                .file_fd = file ? open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) : -1,
                                .max_delay_us = 1,
                                .faults = faults};

    p->closer = (tz_gate_closer){on_drained, on_broken, on_settled, faults};
    p->drained = p->settled = p->broken = false;
    return tz_session_prepare(&p->session, m->volume, &config);
}

int machine_close_gate(machine *m, uint32_t i)
{
    return tz_gate_close(m->volume, &m->parts[i].closer, tz_now_ns() + UINT64_C(3600000000000));
}

int machine_drained(machine *m, uint32_t i)
{
    return m->parts[i].drained;
}

int machine_install(machine *m, uint32_t i)
{
    return tz_gate_install(m->volume, m->parts[i].session);
}

void machine_open_gate(machine *m, uint32_t i)
{
    tz_gate_open(m->volume, &m->parts[i].closer);
}

void machine_fire_deadline(machine *m)
{
    fake_fire_deadlines(m->io);
}

int machine_settled(machine *m, uint32_t i)
{
    return m->parts[i].settled;
}

int machine_state(machine *m, uint32_t i)
{
    return (int)tz_session_state_of(m->parts[i].session);
}

uint32_t machine_used(machine *m, uint32_t i)
{
    tz_session_report report;

    tz_session_report_get(m->parts[i].session, &report);
    return report.used_slots;
}

void machine_end_start(machine *m, uint32_t i, int cancel)
{
    tz_call_init(&m->parts[i].call, NULL);
    tz_session_end_start(m->parts[i].session, cancel, &m->parts[i].call);
}

int machine_ended(machine *m, uint32_t i)
{
    return m->parts[i].call.done;
}

void machine_destroy_session(machine *m, uint32_t i)
{
    tz_session_destroy(m->parts[i].session);
    m->parts[i].session = NULL;
}

/* ---- the mover's part ---- */

static void on_read(tz_io_op *op, int64_t result)
{
    part *p = op->user;

    p->read = result;
    p->reading = false;
}

void machine_mover_read(machine *m, uint32_t i, uint64_t offset, uint64_t length)
{
    part *p = &m->parts[i];

    p->reading = true;
    p->op.user = p;
    tz_io_read(m->io, &p->op, p->session->volume_reader.fd, p->frame, length, offset, on_read);
}

int64_t machine_mover_has_read(machine *m, uint32_t i)
{
    return m->parts[i].reading ? -1 : m->parts[i].read;
}

const char *machine_frame(machine *m, uint32_t i)
{
    return m->parts[i].frame;
}

/* Marks a track as copied; was it preserved before? */
int machine_mark_copied(machine *m, uint32_t i, uint64_t track)
{
    uint32_t n, mask = tz_track_mask(track, 1, &n);

    return tz_tracks_copied(&m->parts[i].session->sidefile.words[track / TZ_TRACKS_A_WORD], mask) != 0;
}

/* Copies the before-image of a preserved track into the frame (its first track); its slot, -1 for zeros, -2 when there
 * is none. */
int64_t machine_take(machine *m, uint32_t i, uint64_t track)
{
    char *place = m->parts[i].frame;
    const tz_session *session = m->parts[i].session;
    const tz_session_header *h = tz_session_header_of(session);
    const uint64_t size = session->track_size;
    uint32_t slot;

    if (tz_session_is_zero_image(h, track)) {
        memset(place, 0, size);
        return -1;
    }
    slot = tz_session_find(h, track);
    if (slot == TZ_SLOT_NONE)
        return -2;
    if (slot < h->memory_slots)
        memcpy(place, tz_session_memory_slot(h, slot), size);
    else
        CHECK_EQ(pread(session->file_reader.fd, place, size, (off_t)((slot - h->memory_slots) * size)), size);
    return slot;
}

void machine_give_back(machine *m, uint32_t i, uint32_t slot)
{
    const tz_session *session = m->parts[i].session;
    uint64_t one = 1;

    tz_drain_push(tz_session_header_of(session), session->sidefile.ring, slot);
    CHECK_EQ(write(session->drain_fd, &one, 8), 8);
}
