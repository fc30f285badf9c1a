/* SPDX-License-Identifier: Apache-2.0
 *
 * The mover's part of the rules, where a plain backup would not show that it is missing: a slot is given back after its
 * content was taken and once, whoever gives; the volume is read in the gate's cache mode.
 */
#include "fake_gate.h"

typedef struct world {
    scratch s;
    int volume, t0, target;
    fake_gate gate;
} world;

static void world_make(world *w, uint64_t size, uint32_t track_shift, uint32_t slots)
{
    uint64_t bytes;
    uint8_t *data;

    scratch_make(&w->s, "/var/tmp");
    w->volume = make_file(&w->s, "volume", size, 42);
    w->t0 = make_file(&w->s, "t0", 0, 1);
    w->target = make_file(&w->s, "target", 0, 1);
    data = read_all(w->volume, &bytes);
    CHECK_EQ(pwrite(w->t0, data, bytes, 0), bytes);
    CHECK_EQ(fsync(w->volume), 0);
    free(data);
    fake_gate_install(&w->gate, &w->s, w->volume, track_shift, slots, 0, 0);
}

static void world_remove(world *w)
{
    fake_gate_remove(&w->gate);
    close(w->volume);
    close(w->t0);
    close(w->target);
    scratch_remove(&w->s);
}

static void back_up(world *w, uint32_t workers)
{
    tz_mover_config config = {.workers = workers, .depth = 2, .chunk_size = CHUNK};
    tz_transfer_report report;

    run_one(&config, fake_gate_source(&w->gate), image_sink_of(w->target, w->gate.h->volume_size, true, 0), NULL,
            &report);
    CHECK_EQ(report.error, 0);
}

/* ---- rule 3: first the content, then the slot ---- */

/* The one slot there is: whatever comes back is scribbled over, its end first, and holds the next track. */
static void *reuse_at_once(void *arg)
{
    fake_gate *g = arg;
    const uint64_t track_size = UINT64_C(1) << g->h->track_shift;
    uint8_t *slot = tz_session_memory_slot(g->h, 0);
    uint64_t left = g->h->tracks;

    while (!atomic_load(&g->stop)) {
        bool free_slot;

        pthread_mutex_lock(&g->lock);
        if (atomic_load(&g->ring->head) != g->ring_tail)
            for (uint64_t at = track_size; at > 0; at -= 4096)
                memset(slot + at - 4096, 0x5a, 4096);
        fake_gate_drain(g);
        free_slot = g->free_count > 0;
        pthread_mutex_unlock(&g->lock);
        if (free_slot && left > 0) {
            left--;
            fake_gate_update(g, left, left + 1);
        }
    }
    return NULL;
}

static void rule_3_a_slot_is_given_back_after_its_content_was_taken(void)
{
    for (int round = 0; round < 5; round++) {
        pthread_t thread;
        world w;

        world_make(&w, 64 * CHUNK, 18, 1);
        CHECK_EQ(UINT64_C(1) << 18, CHUNK);
        CHECK_EQ(pthread_create(&thread, NULL, reuse_at_once, &w.gate), 0);
        while (!atomic_load(&w.gate.h->used_slots))
            usleep(100);
        back_up(&w, 1);
        atomic_store(&w.gate.stop, true);
        CHECK_EQ(pthread_join(thread, NULL), 0);
        fake_gate_drain(&w.gate);
        CHECK(w.gate.freed_by_mover > 0);
        CHECK(same_content(w.t0, w.target));
        world_remove(&w);
    }
}

/* Every track is preserved, so that all that three workers do is to give slots back. */
static void rule_3_every_worker_gives_back_what_it_took(void)
{
    const uint64_t tracks = 24 * CHUNK >> 12;

    for (int round = 0; round < 5; round++) {
        world w;

        world_make(&w, 24 * CHUNK, 12, (uint32_t)tracks);
        for (uint64_t track = 0; track < tracks; track++)
            fake_gate_update(&w.gate, track, track + 1);
        CHECK(w.gate.saved > tracks / 4);
        back_up(&w, 3);
        fake_gate_drain(&w.gate);
        CHECK_EQ(atomic_load(&w.gate.h->used_slots), 0);
        CHECK_EQ(w.gate.freed_by_mover, w.gate.saved);
        CHECK(same_content(w.t0, w.target));
        world_remove(&w);
    }
}

/* ---- rule 7 ---- */

static void rule_7_the_volume_is_read_in_the_gates_cache_mode(void)
{
    for (int buffered = 0; buffered < 2; buffered++) {
        tz_session_descriptors fds;
        tz_session_view *view;
        int mode, watched;
        tz_file file;
        char path[32];
        world w;

        world_make(&w, 4 * CHUNK, 16, 8);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", w.volume);
        CHECK_EQ(tz_file_open(&file, path, buffered ? TZ_FILE_BUFFERED : 0), 0);
        mode = fcntl(file.fd, F_GETFL) & O_DIRECT;
        CHECK_EQ(mode != 0, file.direct);
        CHECK(!buffered || !mode);
        watched = dup(file.fd); /* shares the flags */
        fds = (tz_session_descriptors){fcntl(w.gate.owned_fd, F_DUPFD_CLOEXEC, 0),
                                       fcntl(w.gate.shared_fd, F_DUPFD_CLOEXEC, 0),
                                       fcntl(w.gate.drain_fd, F_DUPFD_CLOEXEC, 0), file.fd, -1};
        CHECK_EQ(tz_session_view_open(&view, &fds), 0);
        CHECK_EQ(fcntl(watched, F_GETFL) & O_DIRECT, mode);
        tz_session_view_release(view);
        close(watched);
        world_remove(&w);
    }
}

int main(void)
{
    RUN(rule_3_a_slot_is_given_back_after_its_content_was_taken);
    RUN(rule_3_every_worker_gives_back_what_it_took);
    RUN(rule_7_the_volume_is_read_in_the_gates_cache_mode);
    return 0;
}
