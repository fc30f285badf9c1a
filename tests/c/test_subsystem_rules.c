/* SPDX-License-Identifier: Apache-2.0
 *
 * Rules that a history of one thread does not show: books that two threads read, memory that a mover may scribble on,
 * what a held update may ask of the system, places beyond 32 bits. Each test fails when its rule is dropped.
 */
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include "../../csrc/subsystem/clock.h"
#include "../../csrc/subsystem/session_private.h"
#include "fake_io.h"

#define TRACK 4096
#define UNTIL (tz_now_ns() + UINT64_C(3600000000000))

/* ---- every allocation is counted ---- */

static _Atomic uint64_t allocations;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
/* Of sanitizer/allocator_interface.h, which gcc does not bring along. */
int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void *, size_t), void (*)(const volatile void *));

static void on_malloc(const volatile void *at, size_t bytes)
{
    (void)at;
    (void)bytes;
    atomic_fetch_add(&allocations, 1);
}

static void on_free(const volatile void *at)
{
    (void)at;
}

static void count_allocations(void)
{
    CHECK(__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free) > 0);
}
#else
extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *at, size_t bytes);
extern void *__libc_memalign(size_t align, size_t bytes);

void *malloc(size_t bytes)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_calloc(count, bytes);
}

void *realloc(void *at, size_t bytes)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_realloc(at, bytes);
}

void *aligned_alloc(size_t align, size_t bytes)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_memalign(align, bytes);
}

static void count_allocations(void)
{
}
#endif

/* ---- one volume, sessions, updates ---- */

static struct rules_rig {
    tz_io *io;
    tz_volume *volume;
    tz_gate_closer closer;
    bool drained, settled;
    char path[32];
} rig;

static void on_drained(tz_gate_closer *closer)
{
    (void)closer;
    rig.drained = true;
}

static void on_broken(tz_gate_closer *closer)
{
    (void)closer;
    CHECK(!"nobody fires the deadline");
}

static void on_settled(tz_gate_closer *closer)
{
    (void)closer;
    rig.settled = true;
}

static void step_until(const bool *flag)
{
    for (int steps = 0; !*flag; steps++) {
        CHECK(steps < 10000000);
        fake_step(rig.io);
    }
}

/* A file of `size` bytes, the tracks [first, first + count) of it filled with their numbers, 1 and so on. */
static void setup(uint64_t size, uint64_t first, uint64_t count)
{
    tz_volume_config config = {.path = rig.path};
    char block[TRACK];
    int fd;

    memset(&rig, 0, sizeof(rig));
    strcpy(rig.path, "./rules-XXXXXX");
    fd = mkstemp(rig.path);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    for (uint64_t i = 0; i < count; i++) {
        memset(block, (int)(i + 1), TRACK);
        CHECK_EQ(pwrite(fd, block, TRACK, (off_t)((first + i) * TRACK)), TRACK);
    }
    close(fd);
    CHECK_EQ(tz_io_create(&rig.io, NULL), 0);
    CHECK_EQ(tz_volume_open(&rig.volume, rig.io, &config), 0);
}

static void teardown(void)
{
    CHECK(tz_volume_is_idle(rig.volume));
    tz_volume_close(rig.volume);
    tz_io_destroy(rig.io);
    unlink(rig.path);
}

static tz_session *install(tz_session_config config)
{
    tz_session *session;

    config.file_fd = config.file_bytes ? open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) : -1;
    CHECK_EQ(tz_session_prepare(&session, rig.volume, &config), 0);
    rig.closer = (tz_gate_closer){on_drained, on_broken, on_settled, 0};
    rig.drained = rig.settled = false;
    CHECK_EQ(tz_gate_close(rig.volume, &rig.closer, UNTIL), 0);
    step_until(&rig.drained);
    CHECK_EQ(tz_gate_install(rig.volume, session), 0);
    tz_gate_open(rig.volume, &rig.closer);
    step_until(&rig.settled);
    return session;
}

static void end(tz_session *session, enum tz_session_state state)
{
    tz_call call;

    tz_call_init(&call, NULL);
    tz_session_end_start(session, false, &call);
    step_until(&call.done);
    CHECK_EQ(tz_session_state_of(session), state);
    tz_session_destroy(session);
}

static void on_updated(tz_request *request, int64_t result)
{
    CHECK_EQ(result, 0);
    *(bool *)request->user = true;
}

static void update(tz_request_kind kind, uint64_t offset, uint64_t length)
{
    static _Alignas(4096) char bytes[64 * TRACK];
    bool done = false;
    tz_request request = {.kind = kind,
                          .offset = offset,
                          .length = length,
                          .buffer = kind == TZ_REQUEST_WRITE ? bytes : NULL,
                          .done = on_updated,
                          .user = &done};

    CHECK(kind != TZ_REQUEST_WRITE || length <= sizeof(bytes));
    memset(bytes, 0xee, sizeof(bytes));
    tz_volume_submit(rig.volume, &request);
    step_until(&done);
}

static tz_session_header *header(const tz_session *session)
{
    return tz_session_header_of(session);
}

/* ---- rule 3: the books under two threads ---- */

#define BOOK_SLOTS 48
#define BOOK_BLOCK 32 /* the mover takes tracks in blocks of so many, half of them before they are saved */

/* Tracks whose slots all lie in two buckets, so that chains are long and the walk is met in its middle. */
static struct books {
    tz_sidefile sidefile;
    tz_session_header *h;
    void *owned, *shared;
    uint32_t *free_slots;
    uint64_t *tracks, count;
    _Atomic uint64_t saved; /* tracks [0, saved) of the list are published */
    uint64_t lost, wrong;   /* by the mover */
    bool races;             /* a rule is dropped: both may be at one slot, which is the point */
} books;

static void books_create(uint64_t count, uint32_t faults)
{
    tz_session_header plan = {.track_shift = 12, .slots = BOOK_SLOTS, .memory_slots = BOOK_SLOTS};

    plan.volume_size = 40 * count * TRACK;
    CHECK_EQ(tz_session_layout_plan(&plan), 0);
    books.owned = calloc(1, plan.owned_bytes);
    books.shared = calloc(1, plan.shared_bytes);
    books.free_slots = calloc(BOOK_SLOTS, sizeof(uint32_t));
    books.tracks = calloc(count, sizeof(uint64_t));
    CHECK(books.owned && books.shared && books.free_slots && books.tracks);
    books.h = books.owned;
    memcpy(books.h, &plan, sizeof(plan));
    tz_sidefile_init(&books.sidefile, books.h, books.shared, books.free_slots, faults);
    books.count = books.lost = books.wrong = 0;
    books.races = faults != 0;
    for (uint64_t t = 0; books.count < count; t++) {
        CHECK(t < plan.tracks);
        if (tz_session_bucket(books.h, t) < 2)
            books.tracks[books.count++] = t;
    }
    atomic_store(&books.saved, 0);
}

static void books_destroy(void)
{
    free(books.owned);
    free(books.shared);
    free(books.free_slots);
    free(books.tracks);
}

/* A slot's content: plain, so that ThreadSanitizer sees whether the rules order it; atomic where they are dropped on purpose. */
static void book_put(void *slot, uint64_t content)
{
    if (books.races)
        __atomic_store_n((uint64_t *)slot, content, __ATOMIC_RELAXED);
    else
        *(uint64_t *)slot = content;
}

static uint64_t book_get(const void *slot)
{
    return books.races ? __atomic_load_n((const uint64_t *)slot, __ATOMIC_RELAXED) : *(const uint64_t *)slot;
}

static void book_track(uint64_t track)
{
    uint32_t slot;

    if (track % 7 == 0) {
        tz_sidefile_publish_zero(&books.sidefile, track);
        return;
    }
    while ((slot = tz_sidefile_take_memory(&books.sidefile)) == TZ_SLOT_NONE)
        if (tz_sidefile_drain(&books.sidefile) <= 0)
            sched_yield();
    book_put(tz_session_memory_slot(books.h, slot), ~track);
    tz_sidefile_publish(&books.sidefile, track, slot);
}

static void *book_gate(void *unused)
{
    for (uint64_t i = 0; i < books.count; i++) {
        book_track(books.tracks[i]);
        atomic_store(&books.saved, i + 1);
    }
    return unused;
}

static void take_track(uint64_t track)
{
    uint32_t n, mask = tz_track_mask(track, 1, &n), slot;

    if (!tz_tracks_copied(&books.sidefile.words[track / TZ_TRACKS_A_WORD], mask))
        return;
    if (tz_session_is_zero_image(books.h, track)) {
        books.wrong += track % 7 != 0;
        return;
    }
    slot = tz_session_find(books.h, track);
    if (slot == TZ_SLOT_NONE) {
        books.lost++;
        return;
    }
    books.wrong += book_get(tz_session_memory_slot(books.h, slot)) != ~track;
    tz_drain_push(books.h, books.sidefile.ring, slot);
}

/* Just behind the gate and, in every block, ahead of it. */
static void *book_mover(void *unused)
{
    for (uint64_t at = 0; at < books.count; at += BOOK_BLOCK) {
        while (atomic_load(&books.saved) < tz_min_u64(at + BOOK_BLOCK / 2, books.count))
            sched_yield();
        for (uint64_t i = tz_min_u64(at + BOOK_BLOCK, books.count); i-- > at;)
            take_track(books.tracks[i]);
    }
    return unused;
}

static void keep_books(uint64_t count, uint32_t faults)
{
    pthread_t gate, mover;

    books_create(count, faults);
    CHECK_EQ(pthread_create(&gate, NULL, book_gate, NULL), 0);
    CHECK_EQ(pthread_create(&mover, NULL, book_mover, NULL), 0);
    CHECK_EQ(pthread_join(gate, NULL), 0);
    CHECK_EQ(pthread_join(mover, NULL), 0);
}

static void rule_3_every_slot_is_found_and_freed_once(void)
{
    keep_books(100000, 0);
    CHECK_EQ(books.lost, 0);
    CHECK_EQ(books.wrong, 0);
    CHECK(tz_sidefile_drain(&books.sidefile) >= 0); /* nothing was given back twice */
    CHECK_EQ(books.sidefile.used, 0);
    CHECK_EQ(books.sidefile.memory.count, BOOK_SLOTS);
    CHECK(atomic_load(&books.h->self_freed) > 0 && atomic_load(&books.h->self_freed) < atomic_load(&books.h->images));
    books_destroy();
}

/* The gate frees what the mover is going to take. */
static void without_rule_3_slots_are_lost(void)
{
    keep_books(2000, TZ_FAULT_DOUBLE_FREE);
    CHECK(books.lost > 0);
    books_destroy();
}

/* ---- rule 3: the gate keeps its own record ---- */

/* A mover says that all is preserved, and to the other session's that all is copied. */
static void rule_3_the_gate_believes_its_own_record(void)
{
    tz_session_config c = {.track_size = TRACK, .memory_bytes = 512 * 1024};
    tz_session *honest, *forger;

    setup(64 * TRACK, 0, 64);
    honest = install(c);
    forger = install(c);
    for (uint64_t w = 0; w < 2; w++) {
        atomic_store(&honest->sidefile.words[w], UINT64_C(0xffffffff) << 32);
        atomic_store(&forger->sidefile.words[w], UINT64_MAX);
    }
    update(TZ_REQUEST_WRITE, 30 * TRACK, 8 * TRACK);
    CHECK_EQ(atomic_load(&header(honest)->images), 8);
    for (uint64_t t = 30; t < 38; t++) {
        uint32_t slot = tz_session_find(header(honest), t);

        CHECK(slot != TZ_SLOT_NONE);
        CHECK_EQ(*(unsigned char *)tz_session_memory_slot(header(honest), slot), t + 1);
    }
    CHECK_EQ(atomic_load(&header(forger)->images), 0); /* it harms itself alone */
    /* Taking its word back does not make the gate save a track twice. */
    atomic_store(&honest->sidefile.words[0], 0);
    update(TZ_REQUEST_WRITE, 30 * TRACK, TRACK);
    CHECK_EQ(atomic_load(&header(honest)->images), 8);
    end(honest, TZ_SESSION_ENDED);
    end(forger, TZ_SESSION_ENDED);
    teardown();
}

/* ---- rule 1: half a before-image is none ---- */

/* Somebody cuts the file short under us: what the read does not give must not pass for T0. */
static void rule_1_a_short_before_image_punctures(void)
{
    tz_session_config c = {.track_size = TRACK, .memory_bytes = 512 * 1024};
    tz_session *session;

    setup(64 * TRACK, 0, 64);
    session = install(c);
    CHECK_EQ(truncate(rig.path, 20 * TRACK + 512), 0);
    update(TZ_REQUEST_WRITE, 20 * TRACK, TRACK);
    CHECK_EQ(tz_session_state_of(session), TZ_SESSION_PUNCTURED);
    CHECK_EQ(atomic_load(&header(session)->puncture), TZ_PUNCTURE_READ);
    end(session, TZ_SESSION_PUNCTURED);
    teardown();
}

/* ---- rule 6 ---- */

static void check_resident(void *at, uint64_t bytes)
{
    static unsigned char pages[1 << 16];
    const uint64_t count = tz_align_up(bytes, 4096) / 4096;

    CHECK(count <= sizeof(pages));
    CHECK_EQ(mincore(at, bytes, pages), 0);
    for (uint64_t i = 0; i < count; i++)
        CHECK(pages[i] & 1);
}

static void rule_6_all_memory_is_there_at_prepare(void)
{
    tz_session_config c = {.track_size = TRACK, .memory_bytes = 16 << 20, .file_fd = -1};
    tz_session *session;

    setup(64 << 20, 0, 1);
    CHECK_EQ(tz_session_prepare(&session, rig.volume, &c), 0);
    check_resident(header(session), session->owned_bytes);
    check_resident(session->sidefile.ring, session->shared_bytes);
    check_resident(session->private_memory, session->private_bytes);
    tz_session_destroy(session);
    teardown();
}

/* Through both tiers, zeros, trims, unaligned edges, the delay and the cap: nothing is allocated. */
static void rule_6_nothing_is_allocated_behind_an_update(void)
{
    tz_session_config c = {
        .track_size = TRACK, .memory_bytes = 128 * 1024, .file_bytes = 40 * TRACK, .max_delay_us = 10};
    tz_session *session;
    uint64_t before;

    setup(256 * TRACK, 0, 128);
    session = install(c);
    before = atomic_load(&allocations);
    CHECK(before > 0); /* counting works */
    update(TZ_REQUEST_WRITE, 0, 20 * TRACK);
    update(TZ_REQUEST_WRITE, 30 * TRACK + 100, 3 * TRACK);
    update(TZ_REQUEST_ZERO, 40 * TRACK, 5 * TRACK);
    update(TZ_REQUEST_TRIM, 128 * TRACK, 128 * TRACK);
    CHECK_EQ(tz_session_state_of(session), TZ_SESSION_ACTIVE);
    CHECK(atomic_load(&header(session)->zero_images) == 128 && atomic_load(&header(session)->file_images) > 0);
    update(TZ_REQUEST_WRITE, 50 * TRACK, 60 * TRACK);
    CHECK_EQ(tz_session_state_of(session), TZ_SESSION_PUNCTURED);
    CHECK(atomic_load(&header(session)->delayed) > 0);
    CHECK_EQ(atomic_load(&allocations), before);
    end(session, TZ_SESSION_PUNCTURED);
    teardown();
}

/* 8 TiB in tracks of 1 MiB: bytes, and tracks of 4 KiB, are beyond 32 bits. */
static void rule_6_places_have_64_bits(void)
{
    const uint64_t size = UINT64_C(8) << 40, at = size - 3 * TZ_MIB;
    tz_session_config c = {.track_size = TZ_MIB, .memory_bytes = 32 << 20};
    tz_session *session;
    uint32_t slot;

    setup(size, at / TRACK, 1);
    session = install(c);
    CHECK_EQ(header(session)->tracks, size / TZ_MIB);
    update(TZ_REQUEST_WRITE, at, TRACK);
    slot = tz_session_find(header(session), at / TZ_MIB);
    CHECK(slot != TZ_SLOT_NONE);
    CHECK_EQ(*(char *)tz_session_memory_slot(header(session), slot), 1);
    CHECK_EQ(atomic_load(&header(session)->images), 1);
    update(TZ_REQUEST_TRIM, size - UINT64_C(2) * TZ_MIB, 2 * TZ_MIB);
    CHECK(tz_session_is_zero_image(header(session), size / TZ_MIB - 1));
    end(session, TZ_SESSION_ENDED);
    teardown();
}

/* ---- rule 7 ---- */

static void check_is_its_own(int given, int kept)
{
    CHECK_EQ(fcntl(given, F_GETFL) & O_ACCMODE, O_RDONLY);
    CHECK_EQ(fcntl(given, F_SETFL, fcntl(given, F_GETFL) | O_NONBLOCK), 0);
    CHECK(!(fcntl(kept, F_GETFL) & O_NONBLOCK)); /* duplicates share their flags */
    CHECK_EQ((fcntl(given, F_GETFL) ^ fcntl(kept, F_GETFL)) & O_DIRECT, 0);
}

static void rule_7_what_the_mover_gets_is_opened_anew(void)
{
    tz_session_config c = {.track_size = TRACK, .memory_bytes = 512 * 1024, .file_bytes = 16 * TRACK};
    tz_session_handles handles;
    tz_session *session;

    setup(64 * TRACK, 0, 64);
    session = install(c);
    tz_session_handles_get(session, &handles);
    check_is_its_own(handles.volume_fd, rig.volume->file.fd);
    check_is_its_own(handles.file_fd, session->file_tier.fd);
    end(session, TZ_SESSION_ENDED);
    teardown();
}

int main(void)
{
    count_allocations();
    RUN(rule_3_every_slot_is_found_and_freed_once);
    RUN(without_rule_3_slots_are_lost);
    RUN(rule_3_the_gate_believes_its_own_record);
    RUN(rule_1_a_short_before_image_punctures);
    RUN(rule_6_all_memory_is_there_at_prepare);
    RUN(rule_6_nothing_is_allocated_behind_an_update);
    RUN(rule_6_places_have_64_bits);
    RUN(rule_7_what_the_mover_gets_is_opened_anew);
    return 0;
}
