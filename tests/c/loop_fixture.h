/* SPDX-License-Identifier: Apache-2.0
 *
 * Loop devices (root).
 */
#ifndef TZ_TESTS_LOOP_FIXTURE_H
#define TZ_TESTS_LOOP_FIXTURE_H

#include <linux/loop.h>
#include <sys/ioctl.h>

#include "mover_fixture.h"

typedef struct loop_device {
    int fd, number;
} loop_device;

/* A loop device over `backing`, with 512-byte sectors. Another process may take a free number first. */
static inline void loop_make(loop_device *loop, int backing)
{
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    struct loop_config config = {.fd = (uint32_t)backing, .block_size = 512};
    char path[40];

    CHECK(control >= 0);
    for (int tries = 0;; tries++) {
        CHECK(tries < 100);
        loop->number = ioctl(control, LOOP_CTL_GET_FREE);
        CHECK(loop->number >= 0);
        snprintf(path, sizeof(path), "/dev/loop%d", loop->number);
        loop->fd = open(path, O_RDWR | O_CLOEXEC);
        CHECK(loop->fd >= 0);
        if (ioctl(loop->fd, LOOP_CONFIGURE, &config) == 0)
            break;
        CHECK(errno == EBUSY);
        close(loop->fd);
    }
    close(control);
}

static inline void loop_remove(loop_device *loop)
{
    CHECK_EQ(ioctl(loop->fd, LOOP_CLR_FD, 0), 0);
    close(loop->fd);
}

#endif
