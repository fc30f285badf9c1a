/* SPDX-License-Identifier: Apache-2.0
 *
 * Block status: what SEEK_DATA and SEEK_HOLE say of a file. A device has no holes that it tells of; nor is a file system
 * asked that may have to ask a server first, who need not answer: all volumes of the thread would wait for him.
 */
#include "volume_private.h"

#include <errno.h>
#include <unistd.h>

/* Most seeks a request may cost: on a badly cut-up file the client asks again for the rest. */
#define MOST_SEEKS 512

#define HOLE UINT32_C(3) /* base:allocation: hole, reads as zeros */

/* The end of the stretch of one kind that begins at `at`; *flags says which kind. Up to two seeks. */
static uint64_t stretch(const tz_volume *volume, uint64_t at, uint64_t stop, uint32_t *flags)
{
    off_t next = lseek(volume->file.fd, (off_t)at, SEEK_DATA);

    *flags = HOLE;
    if (next < 0 && errno == ENXIO)
        return stop; /* a hole up to the end of the file */
    if (next >= 0 && (uint64_t)next > at)
        return tz_min_u64((uint64_t)next, stop);
    *flags = 0;
    next = lseek(volume->file.fd, (off_t)at, SEEK_HOLE);
    /* Data is the safe answer when the file system does not tell. */
    return next > (off_t)at ? tz_min_u64((uint64_t)next, stop) : stop;
}

int tz_volume_block_status(tz_volume *volume, tz_request *request)
{
    tz_volume_extent *extents = request->buffer;
    uint32_t capacity = request->flags & TZ_REQUEST_ONE_EXTENT ? 1 : request->capacity, n = 0, flags;
    uint64_t at = request->offset, stop = at + request->length;

    if (request->capacity == 0)
        return -EINVAL;
    for (uint32_t seeks = 0; at < stop && seeks < MOST_SEEKS; seeks += 2) {
        uint64_t end = volume->file.tells_holes ? stretch(volume, at, stop, &flags) : (flags = 0, stop);

        if (n && extents[n - 1].flags == flags)
            extents[n - 1].length += end - at;
        else if (n < capacity)
            extents[n++] = (tz_volume_extent){.length = end - at, .flags = flags};
        else
            break;
        at = end;
    }
    request->capacity = n;
    return 0;
}
