/* SPDX-License-Identifier: Apache-2.0
 *
 * The subsystem's side of a session, small enough to see that it is right: what a mover under test runs against.
 * One lock around every update, whole tracks at a time, the before-image always saved before the write.
 */
#ifndef TZ_TESTS_FAKE_GATE_H
#define TZ_TESTS_FAKE_GATE_H

#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "mover_fixture.h"

typedef struct fake_gate {
    tz_session_header *h;
    tz_drain_ring *ring;
    _Atomic uint64_t *words;
    int owned_fd, shared_fd, drain_fd;
    tz_file volume, tier;
    uint8_t *before, *after; /* a track each */
    uint32_t *free_slots, free_count;
    uint64_t ring_tail, saved, freed_by_mover;
    bool forgiving; /* slots given back twice are passed over: for movers that are meant to be wrong */
    pthread_mutex_t lock;

    pthread_t writer;
    uint64_t writer_seed;
    _Atomic bool stop;
} fake_gate;

static inline int sealed_memory(const char *name, uint64_t bytes, void **at)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, (off_t)bytes), 0);
    *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(*at != MAP_FAILED);
    CHECK_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    return fd;
}

/* A session at T0 on the file `volume_fd`. */
static inline void fake_gate_install(fake_gate *g, scratch *s, int volume_fd, uint32_t track_shift,
                                     uint32_t memory_slots, uint32_t tier_slots, uint32_t low_mark)
{
    tz_session_header plan = {.magic = TZ_SESSION_MAGIC, .layout = TZ_SESSION_LAYOUT, .track_shift = track_shift};
    void *owned, *shared;
    int tier_fd;

    memset(g, 0, sizeof(*g));
    open_again(&g->volume, volume_fd, TZ_FILE_WRITE);
    tier_fd = make_file(s, "tier", 0, 1);
    open_again(&g->tier, tier_fd, TZ_FILE_WRITE);
    close(tier_fd);
    plan.volume_size = g->volume.size;
    plan.slots = memory_slots + tier_slots;
    plan.memory_slots = memory_slots;
    CHECK_EQ(tz_session_layout_plan(&plan), 0);
    plan.low_mark = low_mark;
    plan.high_mark = plan.slots;
    g->owned_fd = sealed_memory("owned", plan.owned_bytes, &owned);
    g->shared_fd = sealed_memory("shared", plan.shared_bytes, &shared);
    g->drain_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    g->h = owned;
    memcpy(g->h, &plan, sizeof(plan));
    atomic_store(&g->h->state, TZ_SESSION_ACTIVE);
    g->ring = (tz_drain_ring *)((uint8_t *)shared + plan.ring_offset);
    g->words = (_Atomic uint64_t *)((uint8_t *)shared + plan.words_offset);
    CHECK_EQ(posix_memalign((void **)&g->before, 4096, UINT64_C(1) << track_shift), 0);
    CHECK_EQ(posix_memalign((void **)&g->after, 4096, UINT64_C(1) << track_shift), 0);
    g->free_slots = malloc(plan.slots * sizeof(uint32_t));
    for (uint32_t i = 0; i < plan.slots; i++)
        g->free_slots[g->free_count++] = plan.slots - 1 - i;
    pthread_mutex_init(&g->lock, NULL);
}

static inline tz_session_view *fake_gate_view(fake_gate *g)
{
    tz_session_descriptors fds = {fcntl(g->owned_fd, F_DUPFD_CLOEXEC, 0), fcntl(g->shared_fd, F_DUPFD_CLOEXEC, 0),
                                  fcntl(g->drain_fd, F_DUPFD_CLOEXEC, 0), -1, -1};
    tz_session_view *view;
    tz_file file;

    CHECK_EQ(tz_file_reopen(&file, &g->volume, 0), 0);
    fds.volume_fd = file.fd;
    CHECK_EQ(tz_file_reopen(&file, &g->tier, 0), 0);
    fds.file_fd = file.fd;
    CHECK_EQ(tz_session_view_open(&view, &fds), 0);
    return view;
}

/* Of the whole volume, with a view of its own. */
static inline tz_source *fake_gate_source(fake_gate *g)
{
    tz_session_view *view = fake_gate_view(g);
    tz_source *source;

    CHECK_EQ(tz_source_session(&source, view), 0);
    tz_session_view_release(view);
    return source;
}

static inline void fake_gate_free(fake_gate *g, uint32_t slot)
{
    tz_slot *slots = tz_session_slots(g->h);
    uint64_t track = atomic_load(&slots[slot].track) - 1;
    _Atomic uint32_t *head = &tz_session_buckets(g->h)[tz_session_bucket(g->h, track)];
    uint32_t at = atomic_load(head) - 1, next = atomic_load(&slots[slot].next);

    atomic_fetch_add(&g->h->unlinks, 1);
    if (at == slot) {
        atomic_store(head, next == TZ_SLOT_NONE ? 0 : next + 1);
    } else {
        while (atomic_load(&slots[at].next) != slot)
            at = atomic_load(&slots[at].next);
        atomic_store(&slots[at].next, next);
    }
    atomic_store(&slots[slot].track, 0);
    atomic_fetch_add(&g->h->unlinks, 1);
    atomic_fetch_sub(&g->h->used_slots, 1);
    g->free_slots[g->free_count++] = slot;
}

/* Takes back what the mover drained. Under the lock. */
static inline void fake_gate_drain(fake_gate *g)
{
    uint64_t head = atomic_load_explicit(&g->ring->head, memory_order_acquire);

    for (; g->ring_tail < head; g->ring_tail++) {
        uint32_t slot = atomic_load(&g->ring->slots[g->ring_tail & (g->h->ring_entries - 1)]);

        CHECK(slot < g->h->slots);
        if (g->forgiving && atomic_load(&tz_session_slots(g->h)[slot].track) == 0)
            continue;
        CHECK(atomic_load(&tz_session_slots(g->h)[slot].track) != 0);
        fake_gate_free(g, slot);
        g->freed_by_mover++;
    }
}

static inline void fake_gate_save(fake_gate *g, uint64_t track, uint64_t track_size, uint64_t length)
{
    tz_slot *slots = tz_session_slots(g->h);
    uint32_t bit = UINT32_C(1) << track % TZ_TRACKS_A_WORD, slot = TZ_SLOT_NONE;
    bool zero = tz_is_zero(g->before, length);

    if (zero) {
        atomic_fetch_or(&tz_session_zero_words(g->h)[track / 64], UINT64_C(1) << track % 64);
    } else {
        _Atomic uint32_t *head = &tz_session_buckets(g->h)[tz_session_bucket(g->h, track)];
        uint32_t first = atomic_load(head);

        CHECK(g->free_count > 0);
        slot = g->free_slots[--g->free_count];
        if (slot < g->h->memory_slots)
            memcpy(tz_session_memory_slot(g->h, slot), g->before, track_size);
        else
            CHECK_EQ(
                pwrite(g->tier.fd, g->before, track_size, (off_t)((uint64_t)(slot - g->h->memory_slots) * track_size)),
                track_size);
        atomic_store(&slots[slot].next, first ? first - 1 : TZ_SLOT_NONE);
        atomic_store(&slots[slot].track, track + 1);
        atomic_store(head, slot + 1);
        atomic_fetch_add(&g->h->used_slots, 1);
        g->saved++;
    }
    if (tz_tracks_preserved(&g->words[track / TZ_TRACKS_A_WORD], bit) && !zero)
        fake_gate_free(g, slot);
}

/* An application's update of a whole track. */
static inline void fake_gate_update(fake_gate *g, uint64_t track, uint64_t pattern)
{
    uint64_t track_size = UINT64_C(1) << g->h->track_shift, at = track * track_size;
    uint64_t length = tz_min_u64(track_size, g->h->volume_size - at), word;
    uint32_t bit = UINT32_C(1) << track % TZ_TRACKS_A_WORD;

    pthread_mutex_lock(&g->lock);
    fake_gate_drain(g);
    word = atomic_load(&g->words[track / TZ_TRACKS_A_WORD]);
    if (!((word | word >> 32) & bit)) {
        memset(g->before, 0, track_size);
        CHECK_EQ(pread(g->volume.fd, g->before, track_size, (off_t)at), length);
        fake_gate_save(g, track, track_size, length);
    }
    for (uint64_t i = 0; i < track_size / 8; i++)
        memcpy(g->after + i * 8, &pattern, 8);
    atomic_fetch_add(&g->h->updates, 1);
    tz_load_bump(&g->h->load.arrived, 1);
    tz_load_add(&g->h->load.histograms[TZ_LOAD_UPDATES], 50000);
    CHECK_EQ(pwrite(g->volume.fd, g->after, length, (off_t)at), length);
    pthread_mutex_unlock(&g->lock);
}

static inline void *fake_gate_writer(void *arg)
{
    fake_gate *g = arg;
    uint64_t state = g->writer_seed * 2 + 1;

    while (!atomic_load(&g->stop)) {
        fake_gate_update(g, next_random(&state) % g->h->tracks, state | 1);
        usleep(50);
    }
    return NULL;
}

static inline void fake_gate_start_writer(fake_gate *g, uint64_t seed)
{
    g->writer_seed = seed;
    CHECK_EQ(pthread_create(&g->writer, NULL, fake_gate_writer, g), 0);
}

static inline void fake_gate_stop_writer(fake_gate *g)
{
    atomic_store(&g->stop, true);
    CHECK_EQ(pthread_join(g->writer, NULL), 0);
    pthread_mutex_lock(&g->lock);
    fake_gate_drain(g);
    pthread_mutex_unlock(&g->lock);
}

static inline void fake_gate_remove(fake_gate *g)
{
    uint64_t owned = g->h->owned_bytes, shared = g->h->shared_bytes;

    CHECK_EQ(munmap(g->ring, shared), 0);
    CHECK_EQ(munmap(g->h, owned), 0);
    close(g->owned_fd);
    close(g->shared_fd);
    close(g->drain_fd);
    tz_file_close(&g->volume);
    tz_file_close(&g->tier);
    free(g->before);
    free(g->after);
    free(g->free_slots);
    pthread_mutex_destroy(&g->lock);
}

#endif
