/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes at all, as what a storage subsystem puts into a session's memory, before the mover maps it and behind its
 * back afterwards.
 *
 *   input   4 bytes: slots in memory, slots in the file tier, terms, pokes before mapping
 *           6 bytes a poke: where (2: offset in 32-bit words; the highest bit: in the shared memory), what (4)
 *   terms   1: extents instead of the whole volume; 2: the memory is not sealed
 *
 * What must hold: no sanitizer speaks; the mapping is refused with -EPROTO, or the transfer ends with one of the errors
 * of a session; at the latest when it is cancelled; with 0, what was not preserved is the volume's content.
 */
#include <errno.h>
#include <sys/eventfd.h>

#include "target.h"
#include "tz/mover.h"

#define TRACKS    40
#define TRACK     4096u
#define VOLUME    (TRACKS * (uint64_t)TRACK - 1000)
#define SLOTS_MAX 12
#define POKES_MAX 64
#define LOOK_NS   (50 * INT64_C(1000000))
#define WAIT_NS   (20 * INT64_C(1000000000))

typedef struct session {
    tz_session_header plan;
    uint8_t *owned, *shared;
    int owned_fd, shared_fd, drain_fd, volume_fd, tier_fd;
} session;

static uint8_t *map(int fd, uint64_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    REQUIRE(at != MAP_FAILED);
    return at;
}

/* Some tracks are preserved in slots, as a gate would have done it. */
static void preserve_some(session *s)
{
    tz_session_header *h = (tz_session_header *)s->owned;
    _Atomic uint64_t *words = (_Atomic uint64_t *)(s->shared + s->plan.words_offset);

    for (uint32_t slot = 0; slot < h->slots; slot++) {
        uint64_t track = slot * 3 % TRACKS;
        _Atomic uint32_t *head = &tz_session_buckets(h)[tz_session_bucket(h, track)];
        uint32_t next = atomic_load(head);

        atomic_store(&tz_session_slots(h)[slot].next, next ? next - 1 : TZ_SLOT_NONE);
        atomic_store(&tz_session_slots(h)[slot].track, track + 1);
        atomic_store(head, slot + 1);
        if (slot < h->memory_slots)
            memset(tz_session_memory_slot(h, slot), 0x51, TRACK);
        tz_tracks_preserved(&words[track / 32], UINT32_C(1) << track % 32);
    }
    atomic_store(&h->used_slots, h->slots);
    atomic_fetch_or(&tz_session_zero_words(h)[0], UINT64_C(1) << 39);
    tz_tracks_preserved(&words[1], UINT32_C(1) << 7);
}

static void make_session(session *s, uint32_t memory, uint32_t tier, unsigned terms)
{
    static uint8_t volume[TRACKS * TRACK];

    memset(s, 0, sizeof(*s));
    s->plan = (tz_session_header){.magic = TZ_SESSION_MAGIC, .layout = TZ_SESSION_LAYOUT, .track_shift = 12};
    s->plan.volume_size = VOLUME;
    s->plan.slots = memory + tier;
    s->plan.memory_slots = memory;
    REQUIRE(tz_session_layout_plan(&s->plan) == 0);
    s->owned_fd = memory_file("owned", NULL, s->plan.owned_bytes);
    s->shared_fd = memory_file("shared", NULL, s->plan.shared_bytes);
    s->owned = map(s->owned_fd, s->plan.owned_bytes);
    s->shared = map(s->shared_fd, s->plan.shared_bytes);
    memcpy(s->owned, &s->plan, sizeof(s->plan));
    atomic_store(&((tz_session_header *)s->owned)->state, TZ_SESSION_ACTIVE);
    preserve_some(s);
    if (!(terms & 2)) {
        REQUIRE(fcntl(s->owned_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
        REQUIRE(fcntl(s->shared_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    }
    for (uint32_t i = 0; i < TRACKS; i++)
        memset(volume + i * TRACK, (int)i + 1, TRACK);
    s->volume_fd = memory_file("volume", volume, VOLUME);
    s->tier_fd = tier ? memory_file("tier", volume, tier * (uint64_t)TRACK) : -1;
    s->drain_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static void remove_session(session *s)
{
    munmap(s->owned, s->plan.owned_bytes);
    munmap(s->shared, s->plan.shared_bytes);
}

static void poke(session *s, input *in)
{
    uint32_t where = (uint32_t)take(in, 2), what = (uint32_t)take(in, 4);
    bool shared = where & 0x8000;
    uint64_t bytes = shared ? s->plan.shared_bytes : s->plan.owned_bytes;
    uint64_t at = (uint64_t)(where & 0x7fff) * 4 % bytes;

    memcpy((shared ? s->shared : s->owned) + at, &what, sizeof(what));
}

static int open_view(session *s, tz_session_view **view)
{
    tz_session_descriptors fds = {s->owned_fd, s->shared_fd, s->drain_fd, s->volume_fd, s->tier_fd};
    int rc = tz_session_view_open(view, &fds);

    REQUIRE(rc == 0 || rc == -EPROTO);
    if (rc < 0)
        for (int i = 0; i < 5; i++)
            if (((int *)&fds)[i] >= 0)
                close(((int *)&fds)[i]);
    return rc;
}

static tz_source *make_source(tz_session_view *view, unsigned terms)
{
    const uint64_t logical[] = {0, 5 * TRACK + 512, 20 * TRACK}, physical[] = {2 * TRACK, 17 * TRACK + 512, 0},
                   length[] = {5 * TRACK, TRACK, 3 * TRACK};
    tz_source *source;

    if (terms & 1)
        REQUIRE(tz_source_extents(&source, view, 24 * TRACK, logical, physical, length, 3) == 0);
    else
        REQUIRE(tz_source_session(&source, view) == 0);
    tz_session_view_release(view);
    return source;
}

static void check_content(int target, uint64_t preserved)
{
    uint8_t got[TRACK];

    for (uint32_t i = 0; i < TRACKS - 1; i++) {
        if (preserved >> i & 1)
            continue;
        REQUIRE(pread(target, got, TRACK, (off_t)(i * (uint64_t)TRACK)) == TRACK);
        for (uint32_t b = 0; b < TRACK; b++)
            REQUIRE(got[b] == i + 1);
    }
}

static uint64_t preserved_of(const session *s)
{
    const _Atomic uint64_t *words = (const _Atomic uint64_t *)(s->shared + s->plan.words_offset);

    return atomic_load(&words[0]) >> 32 | (atomic_load(&words[1]) >> 32) << 32;
}

static void move(session *s, tz_source *source, unsigned terms)
{
    const uint64_t size = tz_source_size(source), preserved = preserved_of(s);
    tz_mover_config config = {.io = TZ_IO_THREADS, .chunk_size = 4 * TRACK, .depth = 3};
    int target = memory_file("target", NULL, size);
    tz_transfer_report report;
    tz_bufspace *space;
    tz_mover *mover;
    tz_file file;
    tz_sink *sink;

    REQUIRE(tz_file_adopt(&file, fcntl(target, F_DUPFD_CLOEXEC, 0), TZ_FILE_WRITE) == 0);
    REQUIRE(tz_sink_image(&sink, &file, size, true) == 0);
    REQUIRE(tz_bufspace_create(&space, config.chunk_size, 4, 2, 0) == 0);
    REQUIRE(tz_mover_create(&mover, space, &config) == 0);
    REQUIRE(tz_mover_add(mover, source, sink, NULL) == 0);
    REQUIRE(tz_mover_start(mover) == 0);
    if (!tz_mover_wait(mover, LOOK_NS)) {
        tz_mover_cancel(mover);
        REQUIRE(tz_mover_wait(mover, WAIT_NS) == 1);
    }
    tz_mover_report_get(mover, 0, &report);
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
    REQUIRE(report.error == 0 || report.error == -ESTALE || report.error == -EPROTO || report.error == -ECANCELED ||
            report.error == -ENODATA);
    if (report.error == 0 && !(terms & 1))
        check_content(target, preserved);
    close(target);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    uint32_t memory, tier, before;
    tz_session_view *view;
    unsigned terms;
    session s;

    if (size < 4)
        return -1;
    memory = (uint32_t)take(&in, 1) % (SLOTS_MAX / 2 + 1);
    tier = (uint32_t)take(&in, 1) % (SLOTS_MAX / 2 + 1);
    terms = (unsigned)take(&in, 1);
    before = (uint32_t)take(&in, 1) % POKES_MAX;
    make_session(&s, memory + (memory + tier == 0), tier, terms);
    for (uint32_t i = 0; i < before && in.left; i++)
        poke(&s, &in);
    if (open_view(&s, &view) == 0) {
        tz_source *source = make_source(view, terms);

        for (uint32_t i = 0; i < POKES_MAX && in.left; i++)
            poke(&s, &in);
        move(&s, source, terms);
    }
    remove_session(&s);
    return 0;
}
