/* SPDX-License-Identifier: Apache-2.0 */
#include "holes.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

void tz_holes_init(tz_holes *holes, int fd, uint64_t size)
{
    *holes = (tz_holes){.fd = fd, .size = size};
    pthread_mutex_init(&holes->lock, NULL);
}

void tz_holes_fini(tz_holes *holes)
{
    pthread_mutex_destroy(&holes->lock);
}

/* A hole that reaches the end may be a file that was cut short. */
static int still_whole(const tz_holes *holes)
{
    struct stat st;

    if (fstat(holes->fd, &st) < 0)
        return -errno;
    return (uint64_t)st.st_size < holes->size ? -ENODATA : 0;
}

/* The end of the stretch that begins at `at`, and its kind. */
static int find(const tz_holes *holes, uint64_t at, uint64_t *to, bool *is_data)
{
    off_t data = lseek(holes->fd, (off_t)at, SEEK_DATA), hole;

    if (data < 0 && errno != ENXIO)
        return -errno;
    *is_data = false;
    if (data < 0 || (uint64_t)data >= holes->size) {
        *to = holes->size;
        return still_whole(holes);
    }
    *to = tz_align_down((uint64_t)data, TZ_HOLE_GRAIN);
    if (*to > at)
        return 0;
    hole = lseek(holes->fd, data, SEEK_HOLE);
    if (hole < 0)
        return -errno;
    *is_data = true;
    *to = holes->size; /* a user-space file system may answer anything: data is right in any case */
    if ((uint64_t)hole > at)
        *to = tz_min_u64(holes->size, tz_align_up((uint64_t)hole, TZ_HOLE_GRAIN));
    return 0;
}

int tz_holes_look(tz_holes *holes, uint64_t at, uint64_t *length, bool *data)
{
    int rc = 0;

    pthread_mutex_lock(&holes->lock);
    if (at < holes->from || at >= holes->to) {
        bool is_data = false;
        uint64_t to = 0;

        rc = find(holes, at, &to, &is_data);
        if (rc == 0) {
            holes->from = at;
            holes->to = to;
            holes->data = is_data;
        }
    }
    if (rc == 0) {
        *data = holes->data;
        *length = holes->to - at;
    }
    pthread_mutex_unlock(&holes->lock);
    return rc;
}
