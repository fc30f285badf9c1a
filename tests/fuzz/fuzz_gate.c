/* SPDX-License-Identifier: Apache-2.0
 *
 * A mover that writes anything at all into the memory it shares with the gate, beside an honest one on the same volume,
 * while an application writes. One event at a time, on the engine of the C tests whose order comes from a seed.
 *
 *   input   4 bytes: the seed; then operations: a byte, and the bytes each takes (see `operate`)
 *
 * What must hold: no sanitizer speaks and nothing waits for ever; the application reads what it wrote; the honest
 * session ends intact and every track it takes is T0; the other is intact or punctured, and its slots are free or live.
 */
#include <sys/ioctl.h>

#include "../../csrc/subsystem/clock.h"
#include "../../csrc/subsystem/session_private.h"
#include "../c/fake_io.h"
#include "target.h"

#define TRACKS     64
#define TRACK      4096u
#define UPDATES    6
#define STEPS_MOST 1000000

typedef struct update {
    tz_request request;
    bool busy;
    uint8_t buffer[8 * TRACK] __attribute__((aligned(4096)));
} update;

static struct world {
    tz_io *io;
    tz_volume *volume;
    int fd;
    tz_session *honest, *forger; /* forger NULL: it has ended */
    tz_gate_closer closer;
    bool drained, settled;
    uint64_t taken; /* tracks that the honest mover has */
    uint8_t model[TRACKS * TRACK];
    update updates[UPDATES];
} world;

static uint8_t t0_of(uint64_t track)
{
    return track % 7 ? (uint8_t)(track + 1) : 0;
}

/* ---- setting up ---- */

static void on_drained(tz_gate_closer *closer)
{
    (void)closer;
    world.drained = true;
}

static void on_broken(tz_gate_closer *closer)
{
    (void)closer;
    REQUIRE(!"nobody fires the deadline");
}

static void on_settled(tz_gate_closer *closer)
{
    (void)closer;
    world.settled = true;
}

static void step_until(const bool *flag)
{
    for (uint32_t steps = 0; !*flag; steps++) {
        REQUIRE(steps < STEPS_MOST);
        fake_step(world.io);
    }
}

static tz_session *prepare(uint64_t memory)
{
    tz_session_config config = {.track_size = TRACK, .memory_bytes = memory, .file_fd = -1, .max_delay_us = 1};
    tz_session *session;

    REQUIRE(tz_session_prepare(&session, world.volume, &config) == 0);
    return session;
}

static void begin(uint64_t seed)
{
    tz_volume_config config;
    char path[40];

    for (uint64_t track = 0; track < TRACKS; track++)
        memset(world.model + track * TRACK, t0_of(track), TRACK);
    world.fd = memory_file("volume", world.model, sizeof(world.model));
    snprintf(path, sizeof(path), "/proc/self/fd/%d", world.fd);
    config = (tz_volume_config){.path = path};
    REQUIRE(tz_io_create(&world.io, NULL) == 0);
    world.io->seed ^= seed;
    world.io->seed += !world.io->seed;
    REQUIRE(tz_volume_open(&world.volume, world.io, &config) == 0);
    world.honest = prepare(768 * TZ_KIB); /* room for every track */
    world.forger = prepare(128 * TZ_KIB);
    world.closer = (tz_gate_closer){on_drained, on_broken, on_settled, 0};
    world.drained = world.settled = false;
    REQUIRE(tz_gate_close(world.volume, &world.closer, tz_now_ns() + UINT64_C(3600000000000)) == 0);
    step_until(&world.drained);
    REQUIRE(tz_gate_install(world.volume, world.honest) == 0);
    REQUIRE(tz_gate_install(world.volume, world.forger) == 0);
    tz_gate_open(world.volume, &world.closer);
    step_until(&world.settled);
    world.taken = 0;
}

/* ---- the application ---- */

static void on_updated(tz_request *request, int64_t result)
{
    update *u = request->user;

    REQUIRE(result == 0);
    if (request->kind == TZ_REQUEST_WRITE)
        memcpy(world.model + request->offset, request->buffer, request->length);
    else if (request->kind == TZ_REQUEST_ZERO)
        memset(world.model + request->offset, 0, request->length);
    else
        REQUIRE(memcmp(world.model + request->offset, request->buffer, request->length) == 0);
    u->busy = false;
}

static update *free_update(uint64_t offset, uint64_t length)
{
    update *chosen = NULL;

    for (int i = 0; i < UPDATES; i++) {
        update *u = &world.updates[i];

        if (!u->busy)
            chosen = u;
        else if (u->request.offset < offset + length && offset < u->request.offset + u->request.length)
            return NULL; /* which of two would come last, nobody says */
    }
    return chosen;
}

static void submit(tz_request_kind kind, uint64_t offset, uint64_t length, uint8_t content)
{
    update *u;

    length = tz_min_u64(length, sizeof(world.model) - offset);
    u = free_update(offset, length);
    if (!u)
        return;
    memset(u->buffer, content, length);
    u->request = (tz_request){
        .kind = kind, .offset = offset, .length = length, .buffer = u->buffer, .done = on_updated, .user = u};
    u->busy = true;
    tz_volume_submit(world.volume, &u->request);
}

/* ---- the honest mover ---- */

static void give_back(tz_session *session, uint32_t slot)
{
    uint64_t one = 1;

    tz_drain_push(tz_session_header_of(session), session->sidefile.ring, slot);
    REQUIRE(write(session->drain_fd, &one, sizeof(one)) == sizeof(one));
}

static void take_track(uint64_t track)
{
    const tz_session_header *h = tz_session_header_of(world.honest);
    uint8_t frame[TRACK];
    uint32_t n, mask = tz_track_mask(track, 1, &n), slot;

    if (world.taken >> track & 1)
        return;
    world.taken |= UINT64_C(1) << track;
    REQUIRE(pread(world.fd, frame, TRACK, (off_t)(track * TRACK)) == TRACK);
    if (tz_tracks_copied(&world.honest->sidefile.words[track / 32], mask)) {
        if (tz_session_is_zero_image(h, track)) {
            memset(frame, 0, TRACK);
        } else {
            slot = tz_session_find(h, track);
            REQUIRE(slot < h->memory_slots);
            memcpy(frame, tz_session_memory_slot(h, slot), TRACK);
            give_back(world.honest, slot);
        }
    }
    for (uint32_t i = 0; i < TRACK; i++)
        REQUIRE(frame[i] == t0_of(track));
}

/* ---- the other mover ---- */

static void forge(unsigned what, input *in)
{
    tz_session *session = world.forger;
    uint64_t value;

    switch (what) {
    case 0: /* an entry of the ring */
        value = take(in, 1) & (tz_session_header_of(session)->ring_entries - 1);
        atomic_store(&session->sidefile.ring->slots[value], (uint32_t)take(in, 4));
        break;
    case 1: /* its head: a little further, */
        atomic_fetch_add(&session->sidefile.ring->head, (uint64_t)(int64_t)(int8_t)take(in, 1));
        break;
    case 2: /* or anywhere */
        atomic_store(&session->sidefile.ring->head, take(in, 8));
        break;
    case 3: /* copied and preserved */
        value = take(in, 1) & 1;
        atomic_store(&session->sidefile.words[value], take(in, 8));
        break;
    case 4: /* a wake-up; a full counter would keep us waiting */
        value = 1;
        if (write(session->drain_fd, &value, sizeof(value)) < 0)
            REQUIRE(errno == EAGAIN);
        break;
    case 5: /* nobody else gets the wake-up */
        (void)!read(session->drain_fd, &value, sizeof(value));
        break;
    default: /* a slot given back, as it should be or twice */
        give_back(session, (uint32_t)take(in, 1));
    }
}

static void end(tz_session *session, bool cancel)
{
    tz_call call;

    tz_call_init(&call, NULL);
    tz_session_end_start(session, cancel, &call);
    step_until(&call.done);
}

/* Every slot is free or live, once. */
static void check_books(const tz_session *session)
{
    const tz_sidefile *sidefile = &session->sidefile;
    const tz_session_header *h = sidefile->header;
    uint32_t live = 0;

    for (uint32_t i = 0; i < h->slots; i++)
        live += atomic_load(&tz_session_slots(h)[i].track) != 0;
    REQUIRE(live == sidefile->used);
    REQUIRE(sidefile->memory.count + sidefile->file.count + live == h->slots);
}

static void end_forger(bool cancel)
{
    enum tz_session_state state;

    if (!world.forger)
        return;
    end(world.forger, cancel);
    state = tz_session_state_of(world.forger);
    REQUIRE(state == TZ_SESSION_PUNCTURED || (!cancel && state == TZ_SESSION_ENDED));
    check_books(world.forger);
    tz_session_destroy(world.forger);
    world.forger = NULL;
}

/* ---- the whole ---- */

static void operate(input *in)
{
    uint8_t operation = (uint8_t)take(in, 1);
    uint64_t offset, length;

    switch (operation & 7) {
    case 0:
    case 1: /* whole tracks, or pieces of 512 bytes */
        offset = (take(in, 1) & (TRACKS - 1)) * TRACK + (operation & 1) * 512 * (operation >> 5);
        length = operation & 1 ? 512 + 512 * (uint64_t)(operation >> 3 & 3) : TRACK * (uint64_t)(1 + (operation >> 5));
        submit(operation & 16 ? TZ_REQUEST_ZERO : TZ_REQUEST_WRITE, offset, length, (uint8_t)take(in, 1));
        break;
    case 2:
        offset = (take(in, 1) & (TRACKS - 1)) * TRACK;
        submit(TZ_REQUEST_READ, offset, TRACK, 0);
        break;
    case 3:
        for (int i = operation >> 3; i >= 0; i--)
            fake_step(world.io);
        break;
    case 4:
        take_track(take(in, 1) & (TRACKS - 1));
        break;
    case 5:
    case 6:
        if (world.forger)
            forge(operation >> 3 & 7, in);
        break;
    default:
        if (operation >> 3 == 31)
            end_forger(take(in, 1) & 1);
        else
            fake_step(world.io);
    }
}

static bool is_busy(void)
{
    for (int i = 0; i < UPDATES; i++)
        if (world.updates[i].busy)
            return true;
    return !tz_volume_is_idle(world.volume);
}

static void finish(void)
{
    uint8_t content[sizeof(world.model)];

    end_forger(false);
    for (uint32_t steps = 0; is_busy(); steps++) {
        REQUIRE(steps < STEPS_MOST);
        fake_step(world.io);
    }
    for (uint64_t track = 0; track < TRACKS; track++)
        take_track(track);
    end(world.honest, false);
    REQUIRE(tz_session_state_of(world.honest) == TZ_SESSION_ENDED);
    REQUIRE(tz_sidefile_drain(&world.honest->sidefile) >= 0 && world.honest->sidefile.used == 0);
    check_books(world.honest);
    tz_session_destroy(world.honest);
    REQUIRE(pread(world.fd, content, sizeof(content), 0) == sizeof(content));
    REQUIRE(memcmp(content, world.model, sizeof(content)) == 0);
    tz_volume_close(world.volume);
    tz_io_destroy(world.io);
    close(world.fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};

    if (size < 5 || size > 4096)
        return -1;
    begin(take(&in, 4));
    while (in.left)
        operate(&in);
    finish();
    return 0;
}
