/* SPDX-License-Identifier: Apache-2.0
 *
 * What a file system says of direct I/O (statx), at its face value only as far as buffers are made for it. Here it says
 * what the test wants: this program's syscall() stands before the C library's.
 */
#include <dlfcn.h>
#include <stdarg.h>
#include <sys/syscall.h>

#include "test_io_common.h"
#include "tz/file.h"

#define STATX_DIO 0x2000u

static uint32_t memory_said, offset_said;

long syscall(long number, ...)
{
    long (*real)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    long argument[6], result;
    va_list list;

    va_start(list, number);
    for (int i = 0; i < 6; i++)
        argument[i] = va_arg(list, long);
    va_end(list);
    result = real(number, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5]);
    if (number == SYS_statx && result == 0 && argument[3] & STATX_DIO) {
        uint32_t *answer = (uint32_t *)argument[4];

        answer[0] |= STATX_DIO;
        answer[38] = memory_said;
        answer[39] = offset_said;
    }
    return result;
}

static void opened_as(uint32_t memory, uint32_t offset, bool direct)
{
    char path[40];
    tz_file file;
    int fd = make_file(1 << 20, O_RDWR);

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    memory_said = memory;
    offset_said = offset;
    for (unsigned flags = 0; flags <= TZ_FILE_WRITE; flags += TZ_FILE_WRITE) {
        CHECK_EQ(tz_file_open(&file, path, flags), 0);
        CHECK_EQ(file.direct, direct);
        CHECK_EQ(fcntl(file.fd, F_GETFL) & O_DIRECT ? 1 : 0, direct);
        CHECK_EQ(file.memory_align, direct ? memory : 1);
        CHECK_EQ(file.offset_align, direct ? offset : 1);
        tz_file_close(&file);
    }
    close(fd);
}

static void what_buffers_are_made_for(void)
{
    opened_as(512, 512, true);
    opened_as(4, 512, true);
    opened_as(4096, 4096, true);
    opened_as(4096, 64 << 10, true);
}

/* A file system whose files are made of large units may ask for them (XFS: real-time files that share blocks). */
static void more_is_read_through_the_cache(void)
{
    opened_as(8192, 4096, false);
    opened_as(512, 128 << 10, false);
    opened_as(512, 1 << 20, false);
    opened_as(512, UINT32_C(1) << 31, false);
    opened_as(UINT32_C(1) << 31, 512, false);
}

static void nonsense_is_no_direct_io(void)
{
    opened_as(0, 0, false);
    opened_as(512, 0, false);
    opened_as(0, 512, false);
    opened_as(512, 1000, false);
    opened_as(3, 512, false);
}

int main(void)
{
    RUN(what_buffers_are_made_for);
    RUN(more_is_read_through_the_cache);
    RUN(nonsense_is_no_direct_io);
    return 0;
}
