/* SPDX-License-Identifier: Apache-2.0
 *
 * Preservation: which tracks an update needs saved, and saving them.
 *
 *   need = tracks of the update & domain & ~copied & ~saved
 *   not yet pending ─▶ read a run into a buffer ─▶ each track: zero? a bit. memory slot? copy. else file tier: write ─▶
 * published
 *
 * Slots are taken only when the content is known, so that zeros never cost one, and the cap is felt last.
 */
#include <errno.h>
#include <string.h>

#include "session_private.h"
#include "tz/crash.h"
#include "tz/digest.h"

static void save(tz_preserve *p);

/* ---- the books of a run ---- */

static void mark(uint32_t *words, uint64_t track)
{
    words[track / TZ_TRACKS_A_WORD] |= UINT32_C(1) << (track % TZ_TRACKS_A_WORD);
}

static void unmark(uint32_t *words, uint64_t track)
{
    words[track / TZ_TRACKS_A_WORD] &= ~(UINT32_C(1) << (track % TZ_TRACKS_A_WORD));
}

static char *track_bytes(const tz_preserve *p, uint32_t track)
{
    return (char *)p->buffer + ((uint64_t)track << p->session->track_shift);
}

/* Bytes of the run on the volume: the volume's last track may be short. */
static uint64_t run_bytes(const tz_preserve *p)
{
    const uint32_t shift = p->session->track_shift;
    const uint64_t from = p->first << shift, size = tz_session_header_of(p->session)->volume_size;

    return tz_min_u64((uint64_t)p->count << shift, size - from);
}

static void end_run(tz_preserve *p)
{
    tz_session *session = p->session;
    const uint32_t shift = session->track_shift;
    uint64_t from = p->first << shift, to = (p->first + p->count) << shift;

    for (uint32_t i = 0; i < p->count; i++)
        unmark(session->pending, p->first + i);
    p->until_ns = 0;
    p->next = session->free_preserves;
    session->free_preserves = p;
    session->preserving--;
    if (session->starved) {
        session->starved = false;
        from = 0;
        to = UINT64_MAX;
    }
    if (session->active)
        tz_gate_judge_again(session->volume, from, to);
    tz_session_end_check(session);
}

/* ---- saving ---- */

static void published(tz_preserve *p)
{
    mark(p->session->saved, p->first + p->saved);
    p->saved++;
}

static void on_file_written(tz_io_op *op, int64_t result)
{
    tz_preserve *p = op->user;
    tz_session *session = p->session;

    if (!session->active) {
        end_run(p); /* all slots go with the session */
        return;
    }
    if (result < 0) {
        tz_session_puncture(session, TZ_PUNCTURE_SIDEFILE);
        end_run(p);
        return;
    }
    TZ_CRASH_POINT("image.written");
    for (uint32_t i = 0; i < p->writing; i++) {
        tz_sidefile_publish(&session->sidefile, p->first + p->saved, p->slot + i);
        published(p);
    }
    save(p);
}

/* As many tracks in one write as have slots in a row and are not zero. False: no slot. */
static bool save_in_file(tz_preserve *p)
{
    tz_session *session = p->session;
    const uint64_t track = session->track_size;
    uint32_t most = 1;
    uint64_t slot;

    while (p->saved + most < p->count && !tz_is_zero(track_bytes(p, p->saved + most), track))
        most++;
    p->slot = tz_sidefile_take_file(&session->sidefile, most, &p->writing);
    if (p->slot == TZ_SLOT_NONE)
        return false;
    slot = p->slot - tz_session_header_of(session)->memory_slots;
    (session->file_tier.aside ? tz_io_write_aside : tz_io_write)(session->volume->io, &p->op, session->file_tier.fd,
                                                                 track_bytes(p, p->saved), p->writing * track,
                                                                 slot << session->track_shift, on_file_written);
    tz_session_expect(session, p, session->tier_answer_ns);
    return true;
}

enum saved {
    SAVED,
    WRITING,
    NO_ROOM
};

static enum saved save_track(tz_preserve *p)
{
    tz_session *session = p->session;
    tz_sidefile *sidefile = &session->sidefile;
    const uint64_t track = p->first + p->saved;
    uint32_t slot;

    if (tz_is_zero(track_bytes(p, p->saved), session->track_size)) {
        tz_sidefile_publish_zero(sidefile, track);
    } else {
        slot = tz_sidefile_take_memory(sidefile);
        if (slot == TZ_SLOT_NONE)
            return save_in_file(p) ? WRITING : NO_ROOM;
        memcpy(tz_session_memory_slot(sidefile->header, slot), track_bytes(p, p->saved), session->track_size);
        tz_sidefile_publish(sidefile, track, slot);
    }
    published(p);
    return SAVED;
}

/* At the cap. Room may lie in the ring, or the mover may hold this track meanwhile; else the backup gives way. */
static bool find_room(tz_preserve *p)
{
    tz_session *session = p->session;
    int64_t freed = tz_sidefile_drain(&session->sidefile);

    if (freed > 0)
        return true;
    if (freed == 0 && tz_sidefile_is_copied(&session->sidefile, p->first + p->saved)) {
        p->saved++; /* copied: nobody needs it saved */
        return true;
    }
    tz_session_puncture(session, freed < 0 ? TZ_PUNCTURE_PROTOCOL : TZ_PUNCTURE_CAP);
    return false;
}

static void save(tz_preserve *p)
{
    while (p->saved < p->count) {
        enum saved outcome = save_track(p);

        if (outcome == WRITING)
            return;
        if (outcome == NO_ROOM && !find_room(p))
            break;
    }
    end_run(p);
}

static void on_image_read(tz_io_op *op, int64_t result)
{
    tz_preserve *p = op->user;
    const uint64_t bytes = run_bytes(p), room = (uint64_t)p->count << p->session->track_shift;

    if (!p->session->active) {
        end_run(p);
        return;
    }
    if (result != (int64_t)bytes) {
        tz_session_puncture(p->session, TZ_PUNCTURE_READ);
        end_run(p);
        return;
    }
    TZ_CRASH_POINT("image.read");
    memset((char *)p->buffer + bytes, 0, room - bytes); /* a short last track is stored whole */
    save(p);
}

/* Starts to save tracks [first, first + count), or as many as there are free preservations for. */
static void start(tz_session *session, uint64_t first, uint64_t count)
{
    while (count) {
        tz_preserve *p = session->free_preserves;

        if (!p) {
            session->starved = true;
            return;
        }
        session->free_preserves = p->next;
        session->preserving++;
        p->first = first;
        p->count = (uint32_t)tz_min_u64(count, session->preserve_tracks);
        p->saved = 0;
        for (uint32_t i = 0; i < p->count; i++)
            mark(session->pending, first + i);
        (session->volume->file.aside ? tz_io_read_aside : tz_io_read)(session->volume->io, &p->op,
                                                                      session->volume->file.fd, p->buffer, run_bytes(p),
                                                                      first << session->track_shift, on_image_read);
        tz_session_expect(session, p, session->volume_answer_ns);
        first += p->count;
        count -= p->count;
    }
}

/* ---- need ---- */

/* Of the tracks of `mask` in word `w`: those whose T0 content is in nobody's hands yet. */
static uint32_t needed(const tz_session *session, uint64_t w, uint32_t mask)
{
    /* A word in memory is a cache miss on a large volume, so the one that most often decides comes first: as a backup goes
     * on, that the track is copied. */
    mask &= ~(uint32_t)atomic_load(&session->sidefile.words[w]);
    if (mask && session->domain)
        mask &= session->domain[w];
    return mask ? mask & ~session->saved[w] : 0;
}

bool tz_session_cover(tz_session *session, uint64_t at, uint64_t end)
{
    const uint64_t stop = ((end - 1) >> session->track_shift) + 1;
    uint64_t run = 0, run_count = 0;
    bool covered = true;
    uint32_t in_word;

    if (session->faults & TZ_FAULT_PASS_ALL)
        return true;
    for (uint64_t track = at >> session->track_shift; track < stop; track += in_word) {
        uint64_t w = track / TZ_TRACKS_A_WORD;
        uint32_t need = needed(session, w, tz_track_mask(track, stop - track, &in_word));
        uint32_t fresh = need ? need & ~session->pending[w] : 0; /* a cache miss less for what is copied */

        covered = covered && !need;
        for (; fresh; fresh &= fresh - 1) {
            uint64_t t = w * TZ_TRACKS_A_WORD + (uint64_t)__builtin_ctz(fresh);

            if (run_count && run + run_count == t) {
                run_count++;
                continue;
            }
            start(session, run, run_count);
            run = t;
            run_count = 1;
        }
    }
    start(session, run, run_count);
    return covered || (session->faults & TZ_FAULT_ISSUE_EARLY);
}
