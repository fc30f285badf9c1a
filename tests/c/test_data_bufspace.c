/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"
#include "tz/bufspace.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#define FRAME 4096

static uint64_t next_random(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *seed >> 33;
}

static void test_refuses_bad_sizes(void)
{
    tz_bufspace *space = (tz_bufspace *)&space;
    tz_area *area = NULL;

    CHECK_EQ(tz_bufspace_create(&space, 0, 4, 1, 0), -EINVAL);
    CHECK_EQ(tz_bufspace_create(&space, 4095, 4, 1, 0), -EINVAL);
    CHECK_EQ(tz_bufspace_create(&space, FRAME, 0, 1, 0), -EINVAL);
    CHECK_EQ(tz_bufspace_create(&space, FRAME, 4, 0, 0), -EINVAL);
    CHECK_EQ(tz_bufspace_create(&space, FRAME, 4, 5, 0), -EINVAL);
    CHECK_EQ(tz_bufspace_create(&space, FRAME, 4, 1, 1u << 9), -EINVAL);
    CHECK_EQ(tz_bufspace_create(&space, SIZE_MAX & ~(size_t)4095, UINT32_MAX, 1, 0), -ENOMEM);
    CHECK_EQ(tz_bufspace_create(&space, (size_t)1 << 46, 64, 1, 0), -ENOMEM);
    CHECK(space == (tz_bufspace *)&space); /* untouched */
    CHECK_EQ(tz_bufspace_create(&space, FRAME, 4, 1, 0), 0);
    CHECK_EQ(tz_area_request(&area, space, 0, NULL, NULL), -EINVAL);
    tz_area_release(NULL);
    tz_bufspace_destroy(space);
    tz_bufspace_destroy(NULL);
}

static void test_mapping(void)
{
    tz_bufspace_stats stats;
    tz_bufspace *space;
    tz_area *area;
    size_t bytes;
    uint8_t *base;

    for (unsigned flags = 0; flags < 4; flags++) {
        CHECK_EQ(tz_bufspace_create(&space, 3 * FRAME, 7, 1, flags), 0);
        base = tz_bufspace_base(space, &bytes);
        CHECK_EQ(bytes, 7 * 3 * FRAME);
        CHECK_EQ((uintptr_t)base % (flags & TZ_BUFSPACE_HUGE ? 2 << 20 : FRAME), 0);
        tz_bufspace_stats_get(space, &stats);
        CHECK_EQ(stats.frame_size, 3 * FRAME);
        CHECK_EQ(stats.frames, 7);
        CHECK(flags & TZ_BUFSPACE_HUGE || !stats.huge);
        CHECK(flags & TZ_BUFSPACE_LOCK || !stats.locked);
        CHECK_EQ(tz_area_request(&area, space, 9, NULL, NULL), 0);
        CHECK_EQ(tz_area_quota(area), 7);
        for (int i = 0; i < 7; i++) {
            uint8_t *frame = tz_area_take(area);

            CHECK(frame == base + i * 3 * FRAME);
            memset(frame, i, 3 * FRAME);
        }
        CHECK(tz_area_take(area) == NULL);
        for (int i = 0; i < 7; i++) {
            CHECK_EQ(base[i * 3 * FRAME], i);
            tz_area_give(area, base + i * 3 * FRAME);
        }
        tz_area_release(area);
        tz_bufspace_destroy(space);
    }
}

static void count_notify(void *user)
{
    ++*(int *)user;
}

static void test_small_datasets_leave_their_share_to_others(void)
{
    tz_bufspace *space;
    tz_area *area[4];

    CHECK_EQ(tz_bufspace_create(&space, FRAME, 20, 2, 0), 0);
    CHECK_EQ(tz_area_request(&area[0], space, 1000, NULL, NULL), 0);
    CHECK_EQ(tz_area_quota(area[0]), 20);
    CHECK_EQ(tz_area_request(&area[1], space, 1000, NULL, NULL), 0);
    CHECK_EQ(tz_area_quota(area[0]), 10);
    CHECK_EQ(tz_area_request(&area[2], space, 3, NULL, NULL), 0);
    CHECK_EQ(tz_area_quota(area[0]), 9); /* 17 for two: the earlier one has the odd frame */
    CHECK_EQ(tz_area_quota(area[1]), 8);
    CHECK_EQ(tz_area_quota(area[2]), 3);
    CHECK_EQ(tz_area_request(&area[3], space, 1, NULL, NULL), 0);
    CHECK_EQ(tz_area_quota(area[1]), 8);
    CHECK_EQ(tz_area_quota(area[2]), 3);
    CHECK_EQ(tz_area_quota(area[3]), 1);
    tz_area_release(area[0]);
    CHECK_EQ(tz_area_quota(area[1]), 16);
    CHECK_EQ(tz_area_request(&area[0], space, 1000, NULL, NULL), 0); /* now the small ones come first */
    tz_area_release(area[1]);
    CHECK_EQ(tz_area_request(&area[1], space, 1000, NULL, NULL), 0);
    tz_area_release(area[3]);
    CHECK_EQ(tz_area_quota(area[2]), 3);
    CHECK_EQ(tz_area_quota(area[0]), 9);
    CHECK_EQ(tz_area_quota(area[1]), 8);
    for (int i = 0; i < 3; i++)
        tz_area_release(area[i]);
    tz_bufspace_destroy(space);
}

/* An area over its quota gives back before others get; the newcomer is told of each frame that it may take. */
static void test_surplus_comes_back(void)
{
    int told_old = 0, told_new = 0;
    tz_bufspace *space;
    tz_area *old, *new;
    void *frames[4], *frame;

    CHECK_EQ(tz_bufspace_create(&space, FRAME, 4, 2, 0), 0);
    CHECK_EQ(tz_area_request(&old, space, 100, count_notify, &told_old), 0);
    for (int i = 0; i < 4; i++)
        CHECK((frames[i] = tz_area_take(old)) != NULL);
    CHECK_EQ(tz_area_request(&new, space, 100, count_notify, &told_new), 0);
    CHECK(tz_area_granted(new));
    CHECK(tz_area_take(new) == NULL);
    CHECK_EQ(told_new, 0);
    tz_area_give(old, frames[0]);
    CHECK_EQ(told_new, 1);
    CHECK(tz_area_take(old) == NULL); /* 3 held, quota 2 */
    CHECK((frame = tz_area_take(new)) == frames[0]);
    tz_area_give(old, frames[1]);
    CHECK_EQ(told_new, 1); /* it was refused nothing since */
    CHECK_EQ(told_old, 0); /* 2 held, quota 2 */
    tz_area_give(old, frames[2]);
    CHECK_EQ(told_old, 1); /* its own give made room */
    tz_area_give(old, frames[3]);
    tz_area_give(new, frame);
    tz_area_release(old);
    tz_area_release(new);
    tz_bufspace_destroy(space);
}

/* One free frame is for whoever takes it first, and an end is for everyone: all who were refused are told. */
static void test_all_who_were_refused_are_told(void)
{
    int told[4] = {0};
    tz_bufspace *space;
    tz_area *area[4];
    void *frames[6];

    CHECK_EQ(tz_bufspace_create(&space, FRAME, 6, 2, 0), 0);
    CHECK_EQ(tz_area_request(&area[3], space, 1, count_notify, &told[3]), 0);
    CHECK_EQ(tz_area_request(&area[0], space, 9, count_notify, &told[0]), 0);
    for (int i = 0; i < 5; i++)
        CHECK((frames[i] = tz_area_take(area[0])) != NULL);
    CHECK((frames[5] = tz_area_take(area[3])) != NULL);
    tz_area_give(area[3], frames[5]);
    tz_area_release(area[3]); /* who asked for one frame never had more than one */
    CHECK((frames[5] = tz_area_take(area[0])) != NULL);
    for (int i = 1; i < 3; i++) {
        CHECK_EQ(tz_area_request(&area[i], space, 9, count_notify, &told[i]), 0);
        CHECK(tz_area_take(area[i]) == NULL);
    }
    tz_area_give(area[0], frames[5]);
    CHECK_EQ(told[1], 1);
    CHECK_EQ(told[2], 1);
    for (int i = 0; i < 5; i++)
        tz_area_give(area[0], frames[i]);
    for (int i = 0; i < 2; i++) {
        CHECK((frames[2 * i] = tz_area_take(area[1 + i])) != NULL);
        CHECK((frames[2 * i + 1] = tz_area_take(area[1 + i])) != NULL);
        CHECK(tz_area_take(area[1 + i]) == NULL); /* at its quota, and two frames are free */
    }
    tz_area_release(area[0]); /* quotas rise */
    CHECK_EQ(told[1], 2);
    CHECK_EQ(told[2], 2);
    CHECK_EQ(told[0] + told[3], 0);
    for (int i = 0; i < 4; i++)
        tz_area_give(area[1 + i / 2], frames[i]);
    tz_area_release(area[1]);
    tz_area_release(area[2]);
    tz_bufspace_destroy(space);
}

static void test_line_is_first_come_first_served(void)
{
    int told[4] = {0};
    tz_bufspace_stats stats;
    tz_bufspace *space;
    tz_area *area[4];
    static const uint32_t useful[] = {9, 1, 9, 1};

    CHECK_EQ(tz_bufspace_create(&space, FRAME, 4, 3, 0), 0);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(tz_area_request(&area[i], space, useful[i], count_notify, &told[i]), 0);
    tz_bufspace_stats_get(space, &stats);
    CHECK_EQ(stats.areas, 2);
    CHECK_EQ(stats.areas_waiting, 2); /* the small one does not overtake */
    CHECK_EQ(tz_area_quota(area[2]), 0);
    CHECK(tz_area_take(area[2]) == NULL);
    tz_area_release(area[1]);
    CHECK_EQ(told[2], 0);
    tz_area_release(area[0]);
    CHECK(tz_area_granted(area[2]) && tz_area_granted(area[3]));
    CHECK_EQ(told[2], 1);
    CHECK_EQ(told[3], 1);
    CHECK_EQ(told[0] + told[1], 0);
    CHECK_EQ(tz_area_quota(area[2]), 3);
    CHECK_EQ(tz_area_request(&area[0], space, 4, count_notify, &told[0]), 0);
    CHECK_EQ(tz_area_request(&area[1], space, 1, count_notify, &told[1]), 0);
    CHECK(!tz_area_granted(area[1]));
    tz_area_release(area[3]); /* still no room for the first in line */
    CHECK(!tz_area_granted(area[0]) && !tz_area_granted(area[1]));
    tz_area_release(area[0]); /* who leaves the line lets the next one in */
    CHECK(tz_area_granted(area[1]));
    CHECK_EQ(told[1], 1);
    CHECK_EQ(told[0], 0);
    tz_area_release(area[1]);
    tz_area_release(area[2]);
    tz_bufspace_stats_get(space, &stats);
    CHECK_EQ(stats.areas + stats.areas_waiting, 0);
    CHECK_EQ(stats.areas_total, 5);
    tz_bufspace_destroy(space);
}

/* ---- datasets that come and go in threads: all get through, no frame is ever in two hands ---- */

#define DATASETS 24
#define RUNNERS  4
#define CHUNKS   40
#define FRAMES   8

struct bell {
    pthread_mutex_t mutex;
    pthread_cond_t rung;
    unsigned rings;
};

static void ring(void *user)
{
    struct bell *bell = user;

    pthread_mutex_lock(&bell->mutex);
    bell->rings++;
    pthread_cond_signal(&bell->rung);
    pthread_mutex_unlock(&bell->mutex);
}

static void bell_wait(struct bell *bell, unsigned *seen)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    pthread_mutex_lock(&bell->mutex);
    while (bell->rings == *seen) /* a lost wake-up fails here */
        CHECK_EQ(pthread_cond_timedwait(&bell->rung, &bell->mutex, &until), 0);
    *seen = bell->rings;
    pthread_mutex_unlock(&bell->mutex);
}

static void *run_dataset(void *space)
{
    static atomic_uint number;
    struct bell bell = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
    unsigned seen = 0, held = 0, me = atomic_fetch_add(&number, 1) + 1;
    uint64_t seed = me;
    uint32_t *frames[FRAMES], *frame;
    tz_area *area;

    CHECK_EQ(tz_area_request(&area, space, me % 5 + 1, ring, &bell), 0);
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        while (!(frame = tz_area_take(area))) {
            if (held) {
                CHECK_EQ(*frames[--held], me);
                tz_area_give(area, frames[held]);
            } else {
                bell_wait(&bell, &seen);
            }
        }
        *frame = me;
        frames[held++] = frame;
        if (next_random(&seed) % 4 == 0) {
            CHECK_EQ(*frames[--held], me);
            tz_area_give(area, frames[held]);
        }
    }
    while (held)
        tz_area_give(area, frames[--held]);
    tz_area_release(area);
    return NULL;
}

static void *run_datasets(void *space)
{
    for (int i = 0; i < DATASETS / RUNNERS; i++)
        run_dataset(space);
    return NULL;
}

static void test_threads(void)
{
    tz_bufspace_stats stats;
    pthread_t threads[RUNNERS];
    tz_bufspace *space;

    CHECK_EQ(tz_bufspace_create(&space, FRAME, FRAMES, 3, 0), 0);
    for (int i = 0; i < RUNNERS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, run_datasets, space), 0);
    for (int i = 0; i < RUNNERS; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    tz_bufspace_stats_get(space, &stats);
    CHECK_EQ(stats.areas_total, DATASETS);
    CHECK_EQ(stats.frames_taken, 0);
    CHECK(stats.frames_peak <= FRAMES);
    tz_bufspace_destroy(space);
}

int main(void)
{
    RUN(test_refuses_bad_sizes);
    RUN(test_mapping);
    RUN(test_small_datasets_leave_their_share_to_others);
    RUN(test_surplus_comes_back);
    RUN(test_all_who_were_refused_are_told);
    RUN(test_line_is_first_come_first_served);
    RUN(test_threads);
    return 0;
}
