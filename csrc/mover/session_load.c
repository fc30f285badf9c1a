/* SPDX-License-Identifier: Apache-2.0
 *
 * Loading chunks from a served volume: the mover's side of the gate's bargain (tz/session_layout.h).
 *
 * A chunk is loaded in runs, pieces of it that lie in one piece on the volume (all of a whole volume's chunk; what an
 * extent has of a file's; less while we yield; single tracks after a read error), and zeros between them:
 *
 *   READ run from the volume ──▶ VALIDATE: set copied, learn preserved ──▶ TAKE each preserved track ──▶ next run
 *     │ all its tracks are            (only after the read has ended)          │ zero image: memset
 *     │ preserved already: no read needed ──▶                                  │ memory slot: memcpy
 *     └ error: again track by track; a track that cannot be                    └ file-tier slots in a row: READ
 *       read is lost only when it is not preserved
 *
 * A run that begins in a hole of the volume's file is not read: that it is a hole now says what a read would, zeros, and is
 * validated like one. (A stretch found once is good for later chunks too: it was found after T0, and validation is later.)
 *
 * Runs that follow each other on the volume, whatever lies between them in the file, are one read. Each is then
 * validated by itself. Of a preserved track a run takes only the part that is its own.
 *
 * Tracks that several runs need (session_uses.h):
 *
 *   one use    old = fetch_or(copied); preserved in old: take the part, give the slot back
 *   several    look: preserved: take the part, the slot stays; then count down, and who was the last:
 *              old = fetch_or(copied); preserved in old: give the slot back
 *
 * The last one may find a before-image that others did not take: they looked after their reads, and saw that the
 * overwriting write had not been issued, so they read T0.
 *
 * The session's state is looked at before every run and after the last: a puncture is published before the
 * first unprotected update is issued, so a read that saw one finds it here. Slots go back to the gate
 * when their content is in the frame; one eventfd write a chunk tells it. Slot numbers and tracks are checked each time.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "session_view.h"
#include "tz/crash.h"
#include "tz/faults.h"

/* What lies badly for direct I/O is read through memory of our own, in pieces of this size or of a track. */
#define BOUNCE_BYTES (256 * TZ_KIB)

enum load_phase {
    LOAD_NEXT = 0, /* nothing under way */
    LOAD_VOLUME,   /* the run is being read from the volume, perhaps with some that follow */
    LOAD_TIER,     /* a track is being read from the file tier */
};

/* What a run has of a track. */
typedef struct part {
    uint8_t *place;
    uint32_t skip, length; /* in the track */
} part;

/* ---- what the session says ---- */

static bool has_fault(const tz_chunk *chunk, uint32_t fault)
{
    return chunk->transfer->source->faults & fault;
}

static int check_state(const tz_session_view *view, tz_chunk *chunk)
{
    if (atomic_load(&view->header->state) == TZ_SESSION_ACTIVE || has_fault(chunk, TZ_FAULT_IGNORE_PUNCTURE))
        return 0;
    chunk->side = TZ_SIDE_SESSION;
    return -ESTALE;
}

static int broken(tz_chunk *chunk)
{
    chunk->side = TZ_SIDE_SESSION;
    return -EPROTO;
}

/* ---- tracks of the run ---- */

static uint64_t first_track(const tz_session_view *view, const tz_chunk *chunk)
{
    return chunk->physical >> view->track_shift;
}

static uint32_t tracks_of(const tz_session_view *view, uint64_t physical, uint32_t length)
{
    return (uint32_t)(((physical + length - 1) >> view->track_shift) - (physical >> view->track_shift) + 1);
}

static bool takes(const tz_chunk *chunk, uint32_t at)
{
    return chunk->take[at / 32] >> at % 32 & 1;
}

static uint32_t several_in(const tz_session_view *view, const tz_chunk *chunk, uint64_t track, uint32_t mask)
{
    return has_fault(chunk, TZ_FAULT_NO_USES) ? 0
                                              : tz_session_uses_several(&view->uses, track / TZ_TRACKS_A_WORD) & mask;
}

/* Part number take_at of the run. */
static part part_of(const tz_session_view *view, const tz_chunk *chunk)
{
    uint64_t track = (first_track(view, chunk) + chunk->take_at) << view->track_shift;
    uint64_t from = tz_max_u64(track, chunk->physical);
    uint64_t to = tz_min_u64(track + view->track_size, chunk->physical + chunk->run);

    return (part){chunk->frame + chunk->at + (from - chunk->physical), (uint32_t)(from - track), (uint32_t)(to - from)};
}

/* ---- validation ---- */

/* The run's tracks are T0 in the frame, or preserved and noted in `take`. Only after the read has ended. */
static void validate(tz_session_view *view, tz_chunk *chunk)
{
    uint64_t track = first_track(view, chunk);
    uint32_t count = tracks_of(view, chunk->physical, chunk->run), n;

    chunk->take_at = 0;
    chunk->take_end = count;
    chunk->tracks += count;
    memset(chunk->take, 0, (count + 31) / 32 * sizeof(chunk->take[0]));
    for (uint32_t at = 0; at < count; at += n, track += n) {
        uint32_t mask = tz_track_mask(track, count - at, &n), several = several_in(view, chunk, track, mask);
        _Atomic uint64_t *word = &view->words[track / TZ_TRACKS_A_WORD];
        uint32_t preserved = 0;

        if (mask & ~several)
            preserved = tz_tracks_copied(word, mask & ~several);
        if (several)
            preserved |= (uint32_t)(atomic_load(word) >> 32) & several;
        if (has_fault(chunk, TZ_FAULT_NO_VALIDATION))
            preserved = 0;
        preserved >>= track % TZ_TRACKS_A_WORD;
        for (; preserved; preserved &= preserved - 1) {
            uint32_t take = at + (uint32_t)__builtin_ctz(preserved);

            chunk->take[take / 32] |= UINT32_C(1) << take % 32;
        }
    }
}

static bool all_preserved(const tz_session_view *view, const tz_chunk *chunk, uint64_t physical, uint32_t length)
{
    uint64_t track = physical >> view->track_shift;
    uint32_t left = tracks_of(view, physical, length), n;

    for (; left > 0; left -= n, track += n) {
        uint32_t mask = tz_track_mask(track, left, &n);

        if ((atomic_load(&view->words[track / TZ_TRACKS_A_WORD]) >> 32 & mask) != mask)
            return false;
    }
    return !has_fault(chunk, TZ_FAULT_NO_VALIDATION);
}

/* ---- reading, through the bounce where it has to be ---- */

/* A dataset's or chunk's last bytes may be followed by what the frame has room for. */
static bool lies_well(const tz_chunk *chunk, const tz_file *file, const uint8_t *place, uint32_t length,
                      uint64_t offset)
{
    uint64_t at = (uint64_t)(place - chunk->frame), whole = tz_align_up(length, file->offset_align);

    if (offset % file->offset_align || at % file->memory_align)
        return false;
    return whole == length || (at + length == chunk->length && at + whole <= chunk->worker->mover->config.chunk_size);
}

static int get_bounce(const tz_session_view *view, tz_chunk *chunk)
{
    size_t bytes = tz_max_u64(BOUNCE_BYTES, view->track_size) + 2 * view->track_size;
    uint8_t *bounce;

    if (chunk->bounce_bytes >= bytes)
        return 0;
    bounce = aligned_alloc(TZ_FRAME_ALIGN, bytes);
    if (!bounce)
        return -ENOMEM;
    free(chunk->bounce);
    chunk->bounce = bounce;
    chunk->bounce_bytes = bytes;
    return 0;
}

static int read_bounced(const tz_session_view *view, tz_chunk *chunk, const tz_file *file, uint8_t *place,
                        uint32_t length, uint64_t offset)
{
    uint64_t from = tz_align_down(offset, file->offset_align);
    int rc = get_bounce(view, chunk);

    if (rc < 0)
        return rc;
    chunk->bounced.place = place;
    chunk->bounced.skip = (uint32_t)(offset - from);
    chunk->bounced.length = length;
    chunk->asked = chunk->bounced.skip + length;
    tz_chunk_read(chunk, file, chunk->bounce, tz_align_up(chunk->asked, file->offset_align), from);
    return TZ_STEP_PENDING;
}

/* 0, or what went wrong. */
static int read_ended(tz_chunk *chunk)
{
    uint8_t *place = chunk->bounced.place;

    chunk->bounced.place = NULL;
    if (chunk->result < 0)
        return (int)chunk->result;
    if (chunk->result < chunk->asked)
        return -ENODATA;
    if (place)
        memcpy(place, chunk->bounce + chunk->bounced.skip, chunk->bounced.length);
    return 0;
}

/* ---- taking before-images ---- */

/* Tracks from take_at on, the first one in `slot`, whose slots of the file tier lie in a row, so that one request reads
 * them: the gate writes a run of tracks to such slots. */
static uint32_t slots_in_a_row(const tz_session_view *view, const tz_chunk *chunk, uint32_t slot)
{
    uint32_t most = chunk->take_end - chunk->take_at, n = 1;

    if (chunk->piece)
        most = (uint32_t)tz_min_u64(most, tz_max_u64(1, chunk->piece >> view->track_shift));
    while (n < most && takes(chunk, chunk->take_at + n)) {
        uint64_t track = first_track(view, chunk) + chunk->take_at + n;

        /* Zero images have no slot, and are not looked for. */
        if (tz_session_view_is_zero(view, track) || tz_session_view_find(view, chunk, track) != slot + n)
            break;
        n++;
    }
    return n;
}

/* Bytes of the run in `chunk->slots` tracks from that of `p` on: their parts are one stretch of the frame, and of the
 * tier. */
static uint32_t stretch_of(const tz_session_view *view, const tz_chunk *chunk, part p)
{
    uint64_t left = (uint64_t)(chunk->frame + chunk->at + chunk->run - p.place);

    return (uint32_t)tz_min_u64(((uint64_t)chunk->slots << view->track_shift) - p.skip, left);
}

static int take_from_tier(tz_session_view *view, tz_chunk *chunk, part p)
{
    uint64_t offset = ((uint64_t)(chunk->slot - view->memory_slots) << view->track_shift) + p.skip;
    uint32_t length;

    if (view->tier.fd < 0)
        return broken(chunk);
    chunk->phase = LOAD_TIER;
    chunk->slots = slots_in_a_row(view, chunk, chunk->slot);
    length = stretch_of(view, chunk, p);
    if (!lies_well(chunk, &view->tier, p.place, length, offset)) {
        chunk->slots = (uint32_t)tz_min_u64(chunk->slots, tz_max_u64(1, BOUNCE_BYTES >> view->track_shift));
        return read_bounced(view, chunk, &view->tier, p.place, stretch_of(view, chunk, p), offset);
    }
    chunk->asked = length;
    tz_chunk_read(chunk, &view->tier, p.place, tz_align_up(length, view->tier.offset_align), offset);
    return TZ_STEP_PENDING;
}

static int take_one(tz_session_view *view, tz_chunk *chunk)
{
    uint64_t track = first_track(view, chunk) + chunk->take_at;
    part p = part_of(view, chunk);
    uint32_t slot;

    chunk->slot = TZ_SLOT_NONE;
    if (tz_session_view_is_zero(view, track)) {
        memset(p.place, 0, p.length);
        return 0;
    }
    slot = tz_session_view_find(view, chunk, track);
    if (slot >= view->slots)
        return broken(chunk);
    chunk->slot = slot;
    if (slot < view->memory_slots) {
        memcpy(p.place, tz_session_view_memory(view, slot) + p.skip, p.length);
        return 0;
    }
    return take_from_tier(view, chunk, p);
}

/* The last of several who needed the track has its part. */
static int last_use(tz_session_view *view, tz_chunk *chunk, uint64_t track)
{
    uint32_t n, mask = tz_track_mask(track, 1, &n), slot;

    if (!tz_tracks_copied(&view->words[track / TZ_TRACKS_A_WORD], mask) || tz_session_view_is_zero(view, track))
        return 0;
    slot = tz_session_view_find(view, chunk, track);
    if (slot >= view->slots)
        return broken(chunk);
    tz_session_view_push(view, chunk, slot);
    return 0;
}

/* The run is done with its track number take_at: what it needed of it is in the frame. */
static int track_done(tz_session_view *view, tz_chunk *chunk, bool taken)
{
    uint64_t track = first_track(view, chunk) + chunk->take_at;
    uint32_t n, mask = tz_track_mask(track, 1, &n);
    int rc = 0;

    if (several_in(view, chunk, track, mask)) {
        if (tz_session_uses_done(&view->uses, track))
            rc = last_use(view, chunk, track);
    } else if (taken && chunk->slot != TZ_SLOT_NONE) {
        tz_session_view_push(view, chunk, chunk->slot);
    }
    chunk->taken += taken;
    chunk->take_at++;
    return rc;
}

static int tier_read_ended(tz_session_view *view, tz_chunk *chunk)
{
    uint32_t slot = chunk->slot, count = chunk->slots;
    int error = read_ended(chunk);

    if (error) {
        chunk->side = TZ_SIDE_SESSION;
        return chunk->result < 0 ? error : -EPROTO;
    }
    for (uint32_t i = 0; i < count && error == 0; i++) {
        chunk->slot = slot + i;
        chunk->read += part_of(view, chunk).length;
        error = track_done(view, chunk, true);
    }
    return error;
}

static int take_run(tz_session_view *view, tz_chunk *chunk)
{
    while (chunk->take_at < chunk->take_end) {
        bool take = takes(chunk, chunk->take_at);
        int rc = 0;

        if (take)
            rc = take_one(view, chunk);
        if (rc == 0)
            rc = track_done(view, chunk, take);
        if (rc != 0)
            return rc;
    }
    chunk->at += chunk->run;
    chunk->run = 0;
    return 0;
}

/* ---- the volume ---- */

/* How much of a run that begins at `at` is loaded at once. It ends with the run or a track: no run has two parts of a
 * track. */
static uint32_t cut(const tz_session_view *view, const tz_chunk *chunk, const tz_extent *run, uint64_t most)
{
    uint64_t left = tz_min_u64(run->length, chunk->length - chunk->at);

    if (chunk->at < chunk->ready)
        return (uint32_t)tz_min_u64(left, chunk->ready - chunk->at);
    if (most)
        left = tz_min_u64(left, tz_align_down(run->physical + tz_max_u64(most, view->track_size), view->track_size) -
                                    run->physical);
    return (uint32_t)left;
}

/* The next run in the chunk from `at` on; false when only zeros follow. */
static bool find_next(tz_chunk *chunk, tz_run_find find, uint32_t *at, tz_extent *run)
{
    uint64_t next = *at;

    while (next < chunk->length && !find(chunk->transfer->source, chunk->offset + next, run))
        next = tz_min_u64(chunk->length, run->length < chunk->length ? next + run->length : chunk->length);
    *at = (uint32_t)next;
    return next < chunk->length;
}

/* Adds what follows the run on the volume to its read, as long as it is to be read and lies well. */
static uint32_t add_runs(tz_session_view *view, tz_chunk *chunk, tz_run_find find)
{
    uint64_t most = chunk->piece ? tz_max_u64(chunk->piece, view->track_size) : chunk->length;
    uint32_t iovs = 1, at = chunk->ready, length;
    tz_extent run;

    while (iovs < TZ_CHUNK_IOVS && !chunk->alone && find_next(chunk, find, &at, &run) &&
           run.physical == chunk->physical + chunk->asked) {
        length = (uint32_t)tz_min_u64(run.length, chunk->length - at);
        if (chunk->asked + length > most || chunk->asked % view->volume.offset_align ||
            !lies_well(chunk, &view->volume, chunk->frame + at, length, run.physical) ||
            all_preserved(view, chunk, run.physical, length))
            break;
        chunk->iov[iovs++] = (struct iovec){chunk->frame + at, tz_align_up(length, view->volume.offset_align)};
        chunk->asked += length;
        chunk->ready = at += length;
    }
    return iovs;
}

static int read_volume(tz_session_view *view, tz_chunk *chunk, tz_run_find find, const tz_extent *run)
{
    uint8_t *place = chunk->frame + chunk->at;

    chunk->phase = LOAD_VOLUME;
    if (!lies_well(chunk, &view->volume, place, chunk->run, chunk->physical)) {
        uint64_t most = chunk->alone ? view->track_size : BOUNCE_BYTES;

        chunk->run = (uint32_t)tz_min_u64(chunk->run, cut(view, chunk, run, most));
        chunk->ready = chunk->at + chunk->run;
        return read_bounced(view, chunk, &view->volume, place, chunk->run, chunk->physical);
    }
    chunk->iov[0] = (struct iovec){place, tz_align_up(chunk->run, view->volume.offset_align)};
    chunk->asked = chunk->run;
    chunk->ready = chunk->at + chunk->run;
    tz_chunk_readv(chunk, &view->volume, add_runs(view, chunk, find), chunk->physical);
    return TZ_STEP_PENDING;
}

/* Zeros up to the next run. The frame of a chunk that has nothing else stays untouched. */
static void pass_hole(tz_chunk *chunk, uint64_t length)
{
    uint32_t zeros = (uint32_t)tz_min_u64(length, chunk->length - chunk->at);

    if (!chunk->zero)
        memset(chunk->frame + chunk->at, 0, zeros);
    chunk->at += zeros;
}

/* The frame holds zeros up to `end`, where nothing but zeros was so far. */
static void materialize(tz_chunk *chunk, uint32_t end)
{
    if (chunk->zero)
        memset(chunk->frame, 0, end);
    chunk->zero = false;
}

/* The run that begins here, when it lies in a hole of the volume: what is preserved of it is still to be taken. */
static bool load_hole(tz_session_view *view, tz_chunk *chunk, const tz_extent *run)
{
    uint64_t hole = tz_session_view_hole(view, run->physical), left = cut(view, chunk, run, 0);

    if (hole < left)
        left = tz_align_down(run->physical + hole, view->track_size) > run->physical
                   ? tz_align_down(run->physical + hole, view->track_size) - run->physical
                   : 0;
    if (left == 0)
        return false;
    chunk->physical = run->physical;
    chunk->run = (uint32_t)left;
    validate(view, chunk);
    if (!chunk->zero)
        memset(chunk->frame + chunk->at, 0, left);
    for (uint32_t i = 0; i < chunk->take_end; i++)
        if (takes(chunk, i))
            materialize(chunk, chunk->at + chunk->run);
    return true;
}

static int next_run(tz_session_view *view, tz_chunk *chunk, tz_run_find find)
{
    tz_extent run;

    if (!find(chunk->transfer->source, chunk->offset + chunk->at, &run)) {
        pass_hole(chunk, run.length);
        return 0;
    }
    if (chunk->at >= chunk->ready && load_hole(view, chunk, &run))
        return 0;
    materialize(chunk, chunk->at);
    chunk->physical = run.physical;
    chunk->run = cut(view, chunk, &run, chunk->alone ? view->track_size : chunk->piece);
    if (chunk->at < chunk->ready || all_preserved(view, chunk, chunk->physical, chunk->run)) {
        validate(view, chunk);
        return 0;
    }
    return read_volume(view, chunk, find, &run);
}

static int volume_read_ended(tz_session_view *view, tz_chunk *chunk)
{
    bool single = chunk->ready == chunk->at + chunk->run && tracks_of(view, chunk->physical, chunk->run) == 1;
    int error = read_ended(chunk);

    if (error && !single) {
        chunk->alone = true;
        chunk->ready = chunk->at;
        chunk->run = 0;
        return 0;
    }
    TZ_CRASH_POINT("chunk.read");
    validate(view, chunk);
    TZ_CRASH_POINT("chunk.copied");
    if (error && !takes(chunk, 0))
        return error;
    chunk->read += error ? 0 : chunk->asked;
    return 0;
}

/* ---- the step ---- */

static void set_origin(tz_chunk *chunk)
{
    chunk->entry.origin = chunk->taken == 0               ? TZ_ORIGIN_DIRECT
                          : chunk->taken == chunk->tracks ? TZ_ORIGIN_SIDEFILE
                                                          : TZ_ORIGIN_MIXED;
}

/* Uses that are counted down are not added to any more. */
static void begin(tz_session_view *view)
{
    if (atomic_load(&view->begun))
        return;
    pthread_mutex_lock(&view->lock);
    atomic_store(&view->begun, true);
    pthread_mutex_unlock(&view->lock);
}

int tz_session_load(tz_session_view *view, tz_chunk *chunk, tz_run_find find)
{
    enum load_phase phase = chunk->phase;
    bool loaded = false;
    int rc = 0;

    begin(view);
    chunk->phase = LOAD_NEXT;
    if (phase == LOAD_VOLUME)
        rc = volume_read_ended(view, chunk);
    else if (phase == LOAD_TIER)
        rc = tier_read_ended(view, chunk);
    while (rc == 0 && !loaded) {
        if (chunk->run)
            rc = take_run(view, chunk);
        if (rc == 0)
            rc = check_state(view, chunk);
        loaded = chunk->at == chunk->length;
        if (rc == 0 && !loaded)
            rc = next_run(view, chunk, find);
    }
    if (loaded)
        set_origin(chunk);
    if (rc == TZ_STEP_DONE)
        rc = tz_session_view_announce(view, chunk);
    return rc;
}
