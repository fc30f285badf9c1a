/* SPDX-License-Identifier: Apache-2.0
 *
 * A served volume under a session: the mover's side of the gate's bargain (tz/session_layout.h).
 *
 * A chunk is loaded in runs (all of it, or pieces while we yield, or single tracks after a read error):
 *
 *   READ run from the volume ──▶ VALIDATE: set copied, learn preserved ──▶ TAKE each preserved track ──▶ next run
 *     │ all its tracks are            (only after the read has ended)          │ zero image: memset
 *     │ preserved already: no read needed ──▶                                  │ memory slot: memcpy
 *     └ error: again track by track; a track that cannot be                    └ file-tier slots in a row: READ
 *       read is lost only when it is not preserved
 *
 * The session's state is looked at before every run and after the last: a puncture is published before the
 * first unprotected update is issued, so a read that saw one finds it here. Slots go back to the gate
 * when their content is in the frame; one eventfd write a chunk tells it.
 *
 * What the subsystem says is checked once, copied, and used from the copy; slot numbers and tracks are
 * checked each time.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"
#include "tz/faults.h"

/* Slots looked at for one claim ahead of order: bounds the time a claim takes when most are in flight already. */
#define TZ_AHEAD_SCAN 4096

enum session_phase {
    SESSION_NEXT = 0, /* nothing under way */
    SESSION_VOLUME,   /* the run is being read from the volume */
    SESSION_TIER,     /* a track is being read from the file tier */
};

typedef struct session_source {
    tz_source base;
    const tz_session_header *header; /* mapped read-only */
    uint64_t owned_bytes;
    void *shared;
    uint64_t shared_bytes;
    tz_drain_ring *ring;
    _Atomic uint64_t *words;
    tz_file volume, tier; /* tier.fd -1: none */
    int drain_fd;
    uint32_t chunk_size;

    /* Checked copies. */
    uint64_t track_size, tracks;
    uint32_t track_shift, slots, memory_slots;

    pthread_mutex_t drain_lock; /* the ring has one producer */
    uint32_t scan;              /* next slot to look at for a claim ahead; under the transfer's lock */
} session_source;

static session_source *of(tz_source *base)
{
    return tz_container_of(base, session_source, base);
}

/* ---- what the session says ---- */

static int check_state(session_source *source, tz_chunk *chunk)
{
    if (atomic_load(&source->header->state) == TZ_SESSION_ACTIVE || source->base.faults & TZ_FAULT_IGNORE_PUNCTURE)
        return 0;
    chunk->side = TZ_SIDE_SESSION;
    return -ESTALE;
}

static int broken(tz_chunk *chunk)
{
    chunk->side = TZ_SIDE_SESSION;
    return -EPROTO;
}

static void activity(const tz_source *base, tz_activity *out)
{
    const tz_session_header *header = tz_container_of(base, session_source, base)->header;

    out->updates = atomic_load_explicit(&header->updates, memory_order_relaxed);
    out->used = atomic_load_explicit(&header->used_slots, memory_order_relaxed);
    out->low = header->low_mark;
    out->high = header->high_mark;
}

/* Under the transfer's lock: a chunk that holds a live slot and is not claimed. */
static int ahead(tz_source *base, tz_bitmap *claimed, uint64_t *number)
{
    session_source *source = of(base);
    const tz_slot *slots = tz_session_slots(source->header);

    if (atomic_load_explicit(&source->header->used_slots, memory_order_relaxed) <= source->header->low_mark)
        return 0;
    for (uint32_t i = 0; i < TZ_AHEAD_SCAN && i < source->slots; i++) {
        uint64_t track = atomic_load(&slots[source->scan].track), chunk;

        source->scan = source->scan + 1 < source->slots ? source->scan + 1 : 0;
        if (track == 0)
            continue;
        if (track > source->tracks)
            return -EPROTO;
        chunk = ((track - 1) << source->track_shift) / source->chunk_size;
        if (tz_bitmap_claim(claimed, chunk)) {
            *number = chunk;
            return 1;
        }
    }
    return 0;
}

/* ---- giving slots back ---- */

static void push(session_source *source, tz_chunk *chunk, uint32_t slot)
{
    pthread_mutex_lock(&source->drain_lock);
    tz_drain_push(source->header, source->ring, slot);
    pthread_mutex_unlock(&source->drain_lock);
    chunk->pushed++;
}

/* A full counter (EAGAIN) has woken the gate already; it finds the slots in the ring. */
static int announce(session_source *source, tz_chunk *chunk)
{
    uint64_t one = 1;
    ssize_t n = 0;

    if (chunk->pushed)
        n = write(source->drain_fd, &one, sizeof(one));
    chunk->pushed = 0;
    return n < 0 && errno != EAGAIN ? broken(chunk) : 0;
}

/* ---- validation ---- */

static uint64_t first_track(const session_source *source, const tz_chunk *chunk)
{
    return chunk->offset >> source->track_shift;
}

static uint32_t tracks_in(const session_source *source, uint32_t bytes)
{
    return (uint32_t)((bytes + source->track_size - 1) >> source->track_shift);
}

/* The run's tracks are T0 in the frame, or preserved and noted in `take`. Only after the read has ended. */
static void validate(session_source *source, tz_chunk *chunk)
{
    uint32_t from = chunk->at >> source->track_shift, to = from + tracks_in(source, chunk->run), n;

    chunk->take_at = from;
    chunk->take_end = to;
    memset(chunk->take, 0, (tracks_in(source, chunk->length) + 31) / 32 * sizeof(chunk->take[0]));
    while (from < to) {
        uint64_t track = first_track(source, chunk) + from;
        uint32_t mask = tz_track_mask(track, to - from, &n);
        uint32_t preserved = tz_tracks_copied(&source->words[track / TZ_TRACKS_A_WORD], mask);

        if (source->base.faults & TZ_FAULT_NO_VALIDATION)
            preserved = 0;
        preserved >>= track % TZ_TRACKS_A_WORD;
        for (; preserved; preserved &= preserved - 1) {
            uint32_t at = from + (uint32_t)__builtin_ctz(preserved);

            chunk->take[at / 32] |= UINT32_C(1) << at % 32;
        }
        from += n;
    }
}

static bool all_preserved(session_source *source, const tz_chunk *chunk)
{
    uint64_t track = first_track(source, chunk) + (chunk->at >> source->track_shift);
    uint32_t left = tracks_in(source, chunk->run), n;

    for (; left > 0; left -= n, track += n) {
        uint32_t mask = tz_track_mask(track, left, &n);

        if ((atomic_load(&source->words[track / TZ_TRACKS_A_WORD]) >> 32 & mask) != mask)
            return false;
    }
    return !(source->base.faults & TZ_FAULT_NO_VALIDATION);
}

/* ---- taking before-images ---- */

static void tracks_taken(tz_chunk *chunk, uint32_t count)
{
    chunk->taken += count;
    chunk->take_at += count;
}

static bool is_to_take(const tz_chunk *chunk, uint32_t at)
{
    return chunk->take[at / 32] >> at % 32 & 1;
}

/* Bytes of the chunk in `count` tracks from `take_at` on: the volume's last track may be short. */
static uint32_t take_bytes(const session_source *source, const tz_chunk *chunk, uint32_t count)
{
    uint32_t at = chunk->take_at << source->track_shift;

    return (uint32_t)tz_min_u64((uint64_t)count << source->track_shift, chunk->length - at);
}

/* Tracks from `take_at` on, the first one in `slot`, whose slots of the file tier lie in a row, so that one request
 * reads them: the gate writes a run of tracks to such slots. */
static uint32_t slots_in_a_row(const session_source *source, const tz_chunk *chunk, uint32_t slot)
{
    uint32_t most = chunk->take_end - chunk->take_at, n = 1;

    if (chunk->read_piece)
        most = (uint32_t)tz_min_u64(most, tz_max_u64(1, chunk->read_piece >> source->track_shift));
    while (n < most && is_to_take(chunk, chunk->take_at + n)) {
        uint64_t track = first_track(source, chunk) + chunk->take_at + n;

        /* Zero images have no slot, and are not looked for. */
        if (tz_session_is_zero_image(source->header, track) || tz_session_find(source->header, track) != slot + n)
            break;
        n++;
    }
    return n;
}

static int take_from_file(session_source *source, tz_chunk *chunk, uint32_t slot)
{
    if (source->tier.fd < 0)
        return broken(chunk);
    chunk->slot = slot;
    chunk->slots = slots_in_a_row(source, chunk, slot);
    if (chunk->slots > source->slots - slot)
        return broken(chunk);
    chunk->phase = SESSION_TIER;
    tz_chunk_read(chunk, source->tier.fd, chunk->frame + ((uint64_t)chunk->take_at << source->track_shift),
                  (uint64_t)chunk->slots << source->track_shift,
                  (uint64_t)(slot - source->memory_slots) << source->track_shift);
    return TZ_STEP_PENDING;
}

static int take_one(session_source *source, tz_chunk *chunk)
{
    uint64_t track = first_track(source, chunk) + chunk->take_at;
    uint8_t *place = chunk->frame + ((uint64_t)chunk->take_at << source->track_shift);
    uint32_t slot;

    if (tz_session_is_zero_image(source->header, track)) {
        memset(place, 0, take_bytes(source, chunk, 1));
        tracks_taken(chunk, 1);
        return 0;
    }
    slot = tz_session_find(source->header, track);
    if (slot >= source->slots)
        return broken(chunk);
    if (slot >= source->memory_slots)
        return take_from_file(source, chunk, slot);
    memcpy(place, tz_session_memory_slot(source->header, slot), take_bytes(source, chunk, 1));
    push(source, chunk, slot);
    tracks_taken(chunk, 1);
    return 0;
}

static int tier_read_ended(session_source *source, tz_chunk *chunk)
{
    if (chunk->result < take_bytes(source, chunk, chunk->slots)) {
        chunk->side = TZ_SIDE_SESSION;
        return chunk->result < 0 ? (int)chunk->result : -EPROTO;
    }
    chunk->read += (uint64_t)chunk->slots << source->track_shift;
    for (uint32_t i = 0; i < chunk->slots; i++)
        push(source, chunk, chunk->slot + i);
    tracks_taken(chunk, chunk->slots);
    return 0;
}

static int take_run(session_source *source, tz_chunk *chunk)
{
    while (chunk->take_at < chunk->take_end) {
        int rc = 0;

        if (is_to_take(chunk, chunk->take_at))
            rc = take_one(source, chunk);
        else
            chunk->take_at++;
        if (rc != 0)
            return rc;
    }
    chunk->at += chunk->run;
    chunk->run = 0;
    return 0;
}

/* ---- the volume ---- */

static int next_run(session_source *source, tz_chunk *chunk)
{
    uint64_t piece = tz_max_u64(chunk->read_piece, source->track_size);
    uint64_t left = chunk->length - chunk->at;

    chunk->run = (uint32_t)(chunk->read_piece ? tz_min_u64(tz_align_down(piece, source->track_size), left) : left);
    if (all_preserved(source, chunk)) {
        validate(source, chunk);
        return 0;
    }
    chunk->phase = SESSION_VOLUME;
    tz_chunk_read(chunk, source->volume.fd, chunk->frame + chunk->at,
                  tz_align_up(chunk->run, source->volume.offset_align), chunk->offset + chunk->at);
    return TZ_STEP_PENDING;
}

static int volume_read_ended(session_source *source, tz_chunk *chunk)
{
    int error = chunk->result < 0 ? (int)chunk->result : chunk->result < chunk->run ? -ENODATA : 0;

    if (error && chunk->run > source->track_size) {
        chunk->read_piece = (uint32_t)source->track_size;
        chunk->run = 0;
        return 0;
    }
    validate(source, chunk);
    if (error && !is_to_take(chunk, chunk->take_at))
        return error;
    chunk->read += error ? 0 : chunk->run;
    return 0;
}

static void set_origin(session_source *source, tz_chunk *chunk)
{
    uint32_t tracks = tracks_in(source, chunk->length);

    chunk->entry.origin = chunk->taken == 0        ? TZ_ORIGIN_DIRECT
                          : chunk->taken == tracks ? TZ_ORIGIN_SIDEFILE
                                                   : TZ_ORIGIN_MIXED;
}

static int load(tz_source *base, tz_chunk *chunk)
{
    session_source *source = of(base);
    enum session_phase phase = chunk->phase;
    bool loaded = false;
    int rc = 0;

    chunk->zero = false;
    chunk->phase = SESSION_NEXT;
    if (phase == SESSION_VOLUME)
        rc = volume_read_ended(source, chunk);
    else if (phase == SESSION_TIER)
        rc = tier_read_ended(source, chunk);
    while (rc == 0 && !loaded) {
        if (chunk->run)
            rc = take_run(source, chunk);
        if (rc == 0)
            rc = check_state(source, chunk);
        loaded = chunk->at == chunk->length;
        if (rc == 0 && !loaded)
            rc = next_run(source, chunk);
    }
    if (loaded)
        set_origin(source, chunk);
    if (rc == TZ_STEP_DONE)
        rc = announce(source, chunk);
    return rc;
}

/* ---- setting up ---- */

static int prepare(tz_source *base, uint32_t chunk_size)
{
    session_source *source = of(base);

    if (chunk_size % source->track_size)
        return -EINVAL;
    source->chunk_size = chunk_size;
    return 0;
}

static void unmap(session_source *source)
{
    if (source->header)
        munmap((void *)source->header, source->owned_bytes);
    if (source->shared)
        munmap(source->shared, source->shared_bytes);
}

static void destroy(tz_source *base)
{
    session_source *source = of(base);

    unmap(source);
    tz_file_close(&source->volume);
    if (source->tier.fd >= 0)
        tz_file_close(&source->tier);
    close(source->drain_fd);
    pthread_mutex_destroy(&source->drain_lock);
    free(source);
}

static const tz_source_ops session_source_ops = {
    .prepare = prepare, .load = load, .ahead = ahead, .activity = activity, .destroy = destroy};

/* A file that could shrink under the mapping would kill us with SIGBUS: it has to be sealed. */
static int map_sealed(int fd, int protection, void **out, uint64_t *bytes)
{
    int seals = fcntl(fd, F_GET_SEALS);
    struct stat st;
    void *at;

    if (fstat(fd, &st) < 0)
        return -errno;
    if (seals < 0 || !(seals & F_SEAL_SHRINK) || st.st_size <= 0)
        return -EPROTO;
    at = mmap(NULL, (size_t)st.st_size, protection, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return -errno;
    *out = at;
    *bytes = (uint64_t)st.st_size;
    return 0;
}

static int map_session(session_source *source, const tz_session_descriptors *fds)
{
    const tz_session_header *h;
    void *owned;
    int rc;

    rc = map_sealed(fds->owned_fd, PROT_READ, &owned, &source->owned_bytes);
    if (rc < 0)
        return rc;
    source->header = h = owned;
    rc = map_sealed(fds->shared_fd, PROT_READ | PROT_WRITE, &source->shared, &source->shared_bytes);
    if (rc == 0)
        rc = tz_session_layout_check(h, source->owned_bytes, source->shared_bytes);
    if (rc < 0)
        return rc;
    source->ring = (tz_drain_ring *)((uint8_t *)source->shared + h->ring_offset);
    source->words = (_Atomic uint64_t *)((uint8_t *)source->shared + h->words_offset);
    source->track_shift = h->track_shift;
    source->track_size = UINT64_C(1) << h->track_shift;
    source->tracks = h->tracks;
    source->slots = h->slots;
    source->memory_slots = h->memory_slots;
    source->base.size = h->volume_size;
    return 0;
}

/* The descriptors are fresh opens of the subsystem's, in the mode that the gate reads in: flags stay as they are. */
static int adopt(tz_file *out, int fd, uint64_t track_size)
{
    int flags = fcntl(fd, F_GETFL), rc;

    if (flags < 0)
        return -errno;
    rc = tz_file_adopt(out, fd, flags & O_DIRECT ? 0 : TZ_FILE_BUFFERED);
    if (rc == 0 && (out->memory_align > TZ_FRAME_ALIGN || out->offset_align > track_size))
        return -EPROTO;
    return rc;
}

int tz_source_session(tz_source **out, const tz_session_descriptors *fds)
{
    session_source *source = calloc(1, sizeof(*source));
    int rc;

    if (!source)
        return -ENOMEM;
    source->tier.fd = -1;
    rc = map_session(source, fds);
    if (rc == 0)
        rc = adopt(&source->volume, fds->volume_fd, source->track_size);
    if (rc == 0 && source->volume.size < source->base.size)
        rc = -EPROTO;
    if (rc == 0 && fds->file_fd >= 0)
        rc = adopt(&source->tier, fds->file_fd, source->track_size);
    if (rc < 0) {
        unmap(source);
        free(source);
        return rc;
    }
    source->base.ops = &session_source_ops;
    source->drain_fd = fds->drain_fd;
    pthread_mutex_init(&source->drain_lock, NULL);
    /* The mappings hold the memory; the descriptors of it are no longer needed. */
    close(fds->owned_fd);
    close(fds->shared_fd);
    *out = &source->base;
    return 0;
}
