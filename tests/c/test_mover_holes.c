/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a file has holes (holes.c): what a real file system tells, and one that errs or lies. This program's lseek()
 * stands before the C library's, and counts.
 */
#include <sys/syscall.h>

#include "../../csrc/mover/holes.h"
#include "mover_fixture.h"

#define GRAIN TZ_HOLE_GRAIN
#define SIZE  (64 * GRAIN + 1000)

static int seeks;
static off_t (*told)(int whence, off_t at); /* NULL: the truth; negative: -errno */

off_t lseek(int fd, off_t offset, int whence)
{
    off_t answer;

    seeks++;
    if (!told)
        return syscall(SYS_lseek, fd, offset, whence);
    answer = told(whence, offset);
    if (answer >= 0)
        return answer;
    errno = (int)-answer;
    return -1;
}

static scratch s;
static tz_holes holes;
static int fd;

static void setup(void)
{
    scratch_make(&s, "/var/tmp");
    fd = openat(s.fd, "file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, SIZE), 0);
    tz_holes_init(&holes, fd, SIZE);
    seeks = 0;
    told = NULL;
}

static void teardown(void)
{
    tz_holes_fini(&holes);
    close(fd);
    scratch_remove(&s);
}

static void put(uint64_t from, uint64_t to)
{
    uint8_t *data = malloc(to - from);

    CHECK(data);
    memset(data, 1, to - from);
    CHECK_EQ(pwrite(fd, data, to - from, (off_t)from), to - from);
    free(data);
}

static void look(uint64_t at, uint64_t to, bool is_data)
{
    uint64_t length = 0;
    bool data = !is_data;

    CHECK_EQ(tz_holes_look(&holes, at, &length, &data), 0);
    CHECK_EQ(at + length, to);
    CHECK_EQ(data, is_data);
}

/* Stretches end on grains; holes of less than a grain are data, and so is the grain that data begins in. */
static void in_grains(void)
{
    setup();
    put(4 * GRAIN, 6 * GRAIN);
    put(8 * GRAIN + 4096, 9 * GRAIN - 4096);
    put(9 * GRAIN + 8192, 10 * GRAIN);
    look(0, 4 * GRAIN, false);
    look(4 * GRAIN, 6 * GRAIN, true);
    look(6 * GRAIN, 8 * GRAIN, false);
    look(8 * GRAIN, 9 * GRAIN, true);
    look(9 * GRAIN, 10 * GRAIN, true);
    look(10 * GRAIN, SIZE, false);
    look(3 * GRAIN + 4096, 4 * GRAIN, false); /* not on a grain */
    look(5 * GRAIN + 4096, 6 * GRAIN, true);
    look(8 * GRAIN + 4096, 9 * GRAIN, true);
    put(SIZE - 10, SIZE);
    look(11 * GRAIN, 64 * GRAIN, false);
    look(64 * GRAIN, SIZE, true);
    teardown();
}

static void what_was_found_is_kept(void)
{
    setup();
    put(32 * GRAIN, 64 * GRAIN);
    for (uint64_t at = 0; at < 32 * GRAIN; at += GRAIN)
        look(at, 32 * GRAIN, false);
    CHECK_EQ(seeks, 1);
    for (uint64_t at = 32 * GRAIN; at < 64 * GRAIN; at += 4096)
        look(at, 64 * GRAIN, true);
    CHECK_EQ(seeks, 3);
    look(0, 32 * GRAIN, false);
    CHECK_EQ(seeks, 4);
    teardown();
}

/* What is missing is no hole. */
static void a_file_cut_short(void)
{
    uint64_t length = 7;
    bool data = true;

    setup();
    put(0, GRAIN);
    CHECK_EQ(ftruncate(fd, 2 * GRAIN), 0);
    CHECK_EQ(tz_holes_look(&holes, GRAIN, &length, &data), -ENODATA);
    CHECK(length == 7 && data);
    look(0, GRAIN, true);
    CHECK_EQ(ftruncate(fd, SIZE), 0);
    look(GRAIN, SIZE, false); /* the failure was not kept */
    teardown();
}

static off_t fails(int whence, off_t at)
{
    (void)whence;
    (void)at;
    return -EIO;
}

static off_t fails_to_find_holes(int whence, off_t at)
{
    return whence == SEEK_HOLE ? -EIO : at;
}

static void an_error_is_told(void)
{
    uint64_t length = 7;
    bool data = true;

    setup();
    told = fails;
    CHECK_EQ(tz_holes_look(&holes, 0, &length, &data), -EIO);
    told = fails_to_find_holes;
    CHECK_EQ(tz_holes_look(&holes, 0, &length, &data), -EIO);
    CHECK(length == 7 && data);
    teardown();
}

static off_t zero(int whence, off_t at)
{
    (void)whence;
    (void)at;
    return 0;
}

static off_t one_less(int whence, off_t at)
{
    (void)whence;
    return at - 1;
}

static off_t no_hole(int whence, off_t at)
{
    return whence == SEEK_DATA ? at : 1;
}

static off_t far(int whence, off_t at)
{
    (void)at;
    return whence == SEEK_DATA ? 0 : INT64_MAX;
}

/* Whoever answers for a user-space file system may say anything: it is data then, and ends where the file does. */
static void lies_are_data(void)
{
    static off_t (*const lies[])(int, off_t) = {zero, one_less, no_hole, far};

    for (size_t i = 0; i < LENGTH_OF(lies); i++)
        for (uint64_t at = GRAIN; at < SIZE; at += 7 * GRAIN + 512) {
            uint64_t length = 0;
            bool data = false;

            setup();
            told = lies[i];
            CHECK_EQ(tz_holes_look(&holes, at, &length, &data), 0);
            CHECK(data && length > 0 && length <= SIZE - at);
            told = NULL;
            teardown();
        }
}

int main(void)
{
    RUN(in_grains);
    RUN(what_was_found_is_kept);
    RUN(a_file_cut_short);
    RUN(an_error_is_told);
    RUN(lies_are_data);
    return 0;
}
