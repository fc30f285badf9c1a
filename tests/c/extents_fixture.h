/* SPDX-License-Identifier: Apache-2.0
 *
 * Files in extents on a volume under the fake gate: each is backed up by a transfer of its own, and has to be what its
 * extents say of the volume at T0.
 */
#ifndef TZ_TESTS_EXTENTS_FIXTURE_H
#define TZ_TESTS_EXTENTS_FIXTURE_H

#include "../../csrc/mover/internal.h"
#include "fake_gate.h"
#include "tz/faults.h"

#define TRACK_SHIFT 14
#define TRACK       (UINT64_C(1) << TRACK_SHIFT)
#define SMALL_CHUNK (64 * TZ_KIB)
#define MOST_FILES  16 /* with one transfer more for an image */
#define MOST_RUNS   512

typedef struct laid_file {
    uint64_t size, count;
    uint64_t logical[MOST_RUNS], physical[MOST_RUNS], length[MOST_RUNS];
    int target;
} laid_file;

typedef struct laid_world {
    scratch s;
    int volume;
    uint8_t *t0;
    uint64_t volume_size;
    fake_gate gate;
    laid_file files[MOST_FILES];
    uint32_t count;
    tz_session_view *view;
    tz_source_ops hooked;
    int image;        /* of the whole volume, a transfer beside the files'; -1: none */
    bool image_first; /* added before the files, or after them */
} laid_world;

/* The world whose sources are hooked: called before every step of loading. */
typedef void (*laid_hook)(laid_world *w, tz_chunk *chunk);
static laid_world *hooked_world;
static laid_hook hook;
static int (*hooked_load)(tz_source *source, tz_chunk *chunk);

static inline laid_file *add_file(laid_world *w, uint64_t size)
{
    laid_file *f = &w->files[w->count++];

    CHECK(w->count <= MOST_FILES);
    *f = (laid_file){.size = size, .target = -1};
    return f;
}

static inline void add_extent(laid_file *f, uint64_t logical, uint64_t physical, uint64_t length)
{
    CHECK(f->count < MOST_RUNS);
    f->logical[f->count] = logical;
    f->physical[f->count] = physical;
    f->length[f->count++] = length;
}

/* A volume full of data that differs in every word. */
static inline void laid_make(laid_world *w, const char *base, uint64_t size)
{
    uint64_t state = 77;

    memset(w, 0, sizeof(*w));
    w->image = -1;
    scratch_make(&w->s, base);
    w->volume_size = size;
    w->t0 = malloc(size + 8);
    CHECK(w->t0);
    for (uint64_t i = 0; i < size; i += 8) {
        uint64_t word = next_random(&state);

        memcpy(w->t0 + i, &word, 8);
    }
    w->volume = openat(w->s.fd, "volume", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(w->volume >= 0);
    CHECK_EQ(pwrite(w->volume, w->t0, size, 0), size);
    CHECK_EQ(fsync(w->volume), 0);
}

static inline void laid_install(laid_world *w, uint32_t memory_slots, uint32_t tier_slots, uint32_t low_mark)
{
    fake_gate_install(&w->gate, &w->s, w->volume, TRACK_SHIFT, memory_slots, tier_slots, low_mark);
    w->view = fake_gate_view(&w->gate);
}

static inline void laid_remove(laid_world *w)
{
    tz_session_view_release(w->view);
    fake_gate_remove(&w->gate);
    for (uint32_t i = 0; i < w->count; i++)
        if (w->files[i].target >= 0)
            close(w->files[i].target);
    if (w->image >= 0)
        close(w->image);
    close(w->volume);
    free(w->t0);
    scratch_remove(&w->s);
}

static inline tz_source *source_of(laid_world *w, const laid_file *f)
{
    tz_source *source;

    CHECK_EQ(tz_source_extents(&source, w->view, f->size, f->logical, f->physical, f->length, f->count), 0);
    return source;
}

static inline int load_hooked(tz_source *source, tz_chunk *chunk)
{
    hook(hooked_world, chunk);
    return hooked_load(source, chunk);
}

static inline tz_source *hooked_source(laid_world *w, tz_source *source)
{
    if (hook) {
        hooked_world = w;
        hooked_load = source->ops->load;
        w->hooked = *source->ops;
        w->hooked.load = load_hooked;
        source->ops = &w->hooked;
    }
    return source;
}

static inline bool file_is_t0(laid_world *w, const laid_file *f)
{
    uint8_t *expected = calloc(1, f->size + 1), *found;
    uint64_t size;
    bool same;

    for (uint64_t i = 0; i < f->count; i++)
        if (f->logical[i] < f->size)
            memcpy(expected + f->logical[i], w->t0 + f->physical[i], tz_min_u64(f->length[i], f->size - f->logical[i]));
    found = read_all(f->target, &size);
    same = size == f->size && memcmp(expected, found, size) == 0;
    free(expected);
    free(found);
    return same;
}

static inline bool image_is_t0(laid_world *w)
{
    uint64_t size;
    uint8_t *found = read_all(w->image, &size);
    bool same = size == w->volume_size && memcmp(found, w->t0, size) == 0;

    free(found);
    return same;
}

static inline void add_image(laid_world *w, tz_mover *mover)
{
    tz_source *source;

    CHECK_EQ(tz_source_session(&source, w->view), 0);
    CHECK(tz_mover_add(mover, source, image_sink_of(w->image, w->volume_size, true, 0), NULL) >= 0);
}

static inline void add_transfers(laid_world *w, tz_mover *mover)
{
    if (w->image >= 0 && w->image_first)
        add_image(w, mover);
    for (uint32_t i = 0; i < w->count; i++) {
        laid_file *f = &w->files[i];
        char name[20];

        snprintf(name, sizeof(name), "target-%u", i);
        f->target = make_file(&w->s, name, 0, 1);
        CHECK(tz_mover_add(mover, hooked_source(w, source_of(w, f)), image_sink_of(f->target, f->size, true, 0),
                           NULL) >= 0);
    }
    if (w->image >= 0 && !w->image_first)
        add_image(w, mover);
}

/* Backs up all files with one mover, and the volume when there is an image. How many files are T0; `reports`: one a
 * transfer. */
static inline uint32_t back_up_files(laid_world *w, tz_mover_config config, tz_transfer_report *reports)
{
    const uint32_t transfers = w->count + (w->image >= 0);
    tz_bufspace *space;
    tz_mover *mover;
    uint32_t good = 0;

    config.chunk_size = SMALL_CHUNK;
    CHECK_EQ(tz_bufspace_create(&space, SMALL_CHUNK, 2 * MOST_FILES + 8, MOST_FILES + 1, 0), 0);
    CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
    add_transfers(w, mover);
    CHECK_EQ(tz_mover_start(mover), 0);
    CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
    check_space_empty(space);
    for (uint32_t i = 0; i < transfers; i++) {
        tz_mover_report_get(mover, i, &reports[i]);
        CHECK(reports[i].done);
    }
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
    for (uint32_t i = 0; i < w->count; i++)
        good += reports[i + (w->image >= 0 && w->image_first)].error == 0 && file_is_t0(w, &w->files[i]);
    return good;
}

/* Does some file need the track? */
static inline bool is_designated(const laid_world *w, uint64_t track)
{
    for (uint32_t i = 0; i < w->count; i++)
        for (uint64_t e = 0; e < w->files[i].count; e++) {
            const laid_file *f = &w->files[i];
            uint64_t end = tz_min_u64(f->length[e], f->size > f->logical[e] ? f->size - f->logical[e] : 0);

            if (end && f->physical[e] >> TRACK_SHIFT <= track && (f->physical[e] + end - 1) >> TRACK_SHIFT >= track)
                return true;
        }
    return false;
}

/* Live slots of designated tracks; the ring is drained before. */
static inline uint32_t slots_kept(laid_world *w)
{
    uint32_t kept = 0;

    fake_gate_drain(&w->gate);
    for (uint32_t i = 0; i < w->gate.h->slots; i++) {
        uint64_t track = atomic_load(&tz_session_slots(w->gate.h)[i].track);

        kept += track && is_designated(w, track - 1);
    }
    return kept;
}

#endif
