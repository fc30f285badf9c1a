/* SPDX-License-Identifier: Apache-2.0
 *
 * Volumes one request at a time: what is read back, what is refused, what a file system that lacks a method gets.
 */
#include <linux/falloc.h>
#include <linux/loop.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "../../csrc/subsystem/volume_private.h"
#include "fake_io.h"

#define SIZE (64 * 4096)

static struct volume_rig {
    tz_io *io;
    tz_volume *volume;
    char path[32];
    char model[SIZE], content[SIZE];
} rig;

static int64_t last_result;

/* Before the C library's. */
static int advised;

int posix_fadvise(int fd, off_t offset, off_t length, int advice)
{
    (void)fd;
    (void)offset;
    (void)length;
    (void)advice;
    advised++;
    return 0;
}

static void on_done(tz_request *request, int64_t result)
{
    (void)request;
    last_result = result;
}

static void setup_file(void)
{
    int fd;

    strcpy(rig.path, "./volume-XXXXXX");
    fd = mkstemp(rig.path);
    for (int i = 0; i < SIZE; i++)
        rig.model[i] = (char)(i * 31 + i / 4096 + 1);
    CHECK(fd >= 0 && write(fd, rig.model, SIZE) == SIZE);
    close(fd);
    CHECK_EQ(tz_io_create(&rig.io, NULL), 0);
}

static void setup(bool buffered)
{
    tz_volume_config config = {.path = rig.path, .buffered = buffered, .lock = true};

    setup_file();
    CHECK_EQ(tz_volume_open(&rig.volume, rig.io, &config), 0);
}

static void teardown(void)
{
    CHECK(tz_volume_is_idle(rig.volume));
    tz_volume_close(rig.volume);
    tz_io_destroy(rig.io);
    unlink(rig.path);
}

static int64_t run(tz_request *request)
{
    last_result = 1;
    request->done = on_done;
    tz_volume_submit(rig.volume, request);
    for (int steps = 0; last_result == 1; steps++) {
        CHECK(steps < 1000000);
        fake_step(rig.io);
    }
    return last_result;
}

static int64_t run_kind(tz_request_kind kind, uint32_t flags, uint64_t offset, uint64_t length, void *buffer)
{
    tz_request request = {.kind = kind, .flags = flags, .offset = offset, .length = length, .buffer = buffer};

    return run(&request);
}

static void check_content(void)
{
    int fd = open(rig.path, O_RDONLY);

    CHECK(fd >= 0 && pread(fd, rig.content, SIZE, 0) == SIZE);
    close(fd);
    CHECK(memcmp(rig.content, rig.model, SIZE) == 0);
}

/* ---- reads and writes ---- */

static void reads_and_writes_of_any_shape(bool buffered)
{
    static const uint64_t shapes[][2] = {{0, 4096},      {1, 1},        {4095, 2},     {512, 512},
                                         {5000, 70000},  {0, SIZE},     {SIZE - 1, 1}, {SIZE - 513, 513},
                                         {4096, 131072}, {3, SIZE - 7}, {8191, 4098},  {100, 135000}};
    char *buffer = aligned_alloc(4096, SIZE + 4096);

    setup(buffered);
    CHECK(rig.volume->file.direct == !buffered);
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        for (int shift = 0; shift < 2; shift++) {
            uint64_t offset = shapes[i][0], length = shapes[i][1];
            char *place = buffer + shift * 3;

            memset(place, (int)(i * 2 + shift + 'A'), length);
            memset(rig.model + offset, (int)(i * 2 + shift + 'A'), length);
            CHECK_EQ(run_kind(TZ_REQUEST_WRITE, i % 2 ? TZ_REQUEST_FUA : 0, offset, length, place), 0);
            memset(place, 0, length);
            CHECK_EQ(run_kind(TZ_REQUEST_READ, 0, offset, length, place), 0);
            CHECK(memcmp(place, rig.model + offset, length) == 0);
            check_content();
        }
    }
    free(buffer);
    teardown();
}

static void direct_reads_and_writes(void)
{
    reads_and_writes_of_any_shape(false);
}

static void buffered_reads_and_writes(void)
{
    reads_and_writes_of_any_shape(true);
}

static void empty_requests(void)
{
    setup(false);
    CHECK_EQ(run_kind(TZ_REQUEST_READ, 0, SIZE, 0, NULL), 0);
    CHECK_EQ(run_kind(TZ_REQUEST_WRITE, 0, 77, 0, NULL), 0);
    CHECK_EQ(run_kind(TZ_REQUEST_ZERO, 0, 0, 0, NULL), 0);
    CHECK_EQ(run_kind(TZ_REQUEST_TRIM, 0, 5, 0, NULL), 0);
    CHECK_EQ(run_kind(TZ_REQUEST_FLUSH, 0, 0, 0, NULL), 0);
    CHECK_EQ(run_kind(TZ_REQUEST_CACHE, 0, 0, SIZE, NULL), 0);
    check_content();
    teardown();
}

/* ---- zeroing and trimming ---- */

static uint32_t refused;

/* A file system without some modes of fallocate. */
static int refuse(tz_io *io, const tz_io_op *op)
{
    (void)io;
    if (op->opcode != TZ_IO_FALLOCATE)
        return 0;
    if (op->arg & FALLOC_FL_PUNCH_HOLE)
        return refused & 1 ? -EOPNOTSUPP : 0;
    return refused & 2 ? -EOPNOTSUPP : 0;
}

static void zeroes_by_every_method(void)
{
    for (refused = 0; refused < 4; refused++) {
        setup(false);
        rig.io->fault = refuse;
        for (uint64_t i = 0; i < 6; i++) {
            uint64_t offset = i * 30000, length = i % 2 ? 25000 : 16384 + i;

            memset(rig.model + offset, 0, length);
            CHECK_EQ(run_kind(TZ_REQUEST_ZERO, i % 3 ? 0 : TZ_REQUEST_NO_HOLE, offset, length, NULL), 0);
            check_content();
        }
        teardown();
    }
}

static void fast_zero_never_writes(void)
{
    setup(false);
    refused = 3;
    rig.io->fault = refuse;
    for (int i = 0; i < 2; i++) /* found out the first time, known the second */
        CHECK_EQ(run_kind(TZ_REQUEST_ZERO, TZ_REQUEST_FAST_ZERO, 8192, 16384, NULL), -ENOTSUP);
    check_content();
    refused = 0;
    teardown();

    setup(false);
    CHECK_EQ(run_kind(TZ_REQUEST_ZERO, TZ_REQUEST_FAST_ZERO, 8192, 16384, NULL), 0);
    memset(rig.model + 8192, 0, 16384);
    check_content();
    teardown();
}

static void no_hole_keeps_the_space(void)
{
    struct stat before, after;

    setup(false);
    CHECK_EQ(stat(rig.path, &before), 0);
    CHECK_EQ(run_kind(TZ_REQUEST_ZERO, TZ_REQUEST_NO_HOLE, 0, SIZE, NULL), 0);
    CHECK(stat(rig.path, &after) == 0 && after.st_blocks >= before.st_blocks);
    CHECK_EQ(run_kind(TZ_REQUEST_ZERO, 0, 0, SIZE, NULL), 0);
    CHECK(stat(rig.path, &after) == 0 && after.st_blocks < before.st_blocks);
    teardown();
}

/* Advice: whole blocks only, and no error where it cannot be followed. */
static void trims(void)
{
    const uint64_t align = 4096;

    setup(false);
    CHECK_EQ(run_kind(TZ_REQUEST_TRIM, 0, 4096 + 100, 3 * 4096, NULL), 0);
    memset(rig.model + 2 * align, 0, 2 * align);
    if (rig.volume->zero_align < align) { /* this file system knows smaller blocks */
        const uint64_t from = tz_align_up(4096 + 100, rig.volume->zero_align);
        const uint64_t to = tz_align_down(4096 + 100 + 3 * 4096, rig.volume->zero_align);

        memset(rig.model + from, 0, to - from);
    }
    check_content();
    CHECK_EQ(run_kind(TZ_REQUEST_TRIM, TZ_REQUEST_FUA, 10, 200, NULL), 0);
    check_content();
    refused = 3;
    rig.io->fault = refuse;
    for (int i = 0; i < 2; i++)
        CHECK_EQ(run_kind(TZ_REQUEST_TRIM, 0, 65536, 65536, NULL), 0);
    check_content();
    refused = 0;
    teardown();
}

/* ---- block status ---- */

static void extents_of_a_file_with_holes(void)
{
    tz_volume_extent extents[8];
    tz_request request = {
        .kind = TZ_REQUEST_BLOCK_STATUS, .offset = 4096, .length = SIZE - 4096, .buffer = extents, .capacity = 8};

    setup(false);
    CHECK_EQ(run_kind(TZ_REQUEST_ZERO, 0, 16 * 4096, 8 * 4096, NULL), 0);
    CHECK_EQ(run(&request), 0);
    CHECK_EQ(request.capacity, 3);
    CHECK(extents[0].length == 15 * 4096 && extents[0].flags == 0);
    CHECK(extents[1].length == 8 * 4096 && extents[1].flags == 3);
    CHECK(extents[2].length == SIZE - 24 * 4096 && extents[2].flags == 0);

    request.capacity = 2;
    CHECK_EQ(run(&request), 0);
    CHECK_EQ(request.capacity, 2);
    request.flags = TZ_REQUEST_ONE_EXTENT;
    request.offset = 17 * 4096 + 1;
    request.length = 2 * 4096;
    CHECK_EQ(run(&request), 0);
    CHECK(request.capacity == 1 && extents[0].length == 2 * 4096 && extents[0].flags == 3);
    request.capacity = 0;
    CHECK_EQ(run(&request), -EINVAL);
    teardown();
}

/* Advice is given where it costs no wait: through the cache of this machine's own file systems. */
static void reading_ahead(void)
{
    for (int mode = 0; mode < 3; mode++) {
        setup(mode > 0);
        rig.volume->file.aside = mode == 2;
        advised = 0;
        CHECK_EQ(run_kind(TZ_REQUEST_CACHE, 0, 0, SIZE, NULL), 0);
        CHECK_EQ(advised, !rig.volume->file.direct && mode < 2);
        teardown();
    }
}

/* Where the file system has to ask somebody for them, it is not asked. */
static void extents_of_a_file_that_does_not_tell(void)
{
    tz_volume_extent extents[8];
    tz_request request = {.kind = TZ_REQUEST_BLOCK_STATUS, .length = SIZE, .buffer = extents, .capacity = 8};

    setup(false);
    CHECK_EQ(run_kind(TZ_REQUEST_ZERO, 0, 16 * 4096, 8 * 4096, NULL), 0);
    rig.volume->file.tells_holes = false;
    CHECK_EQ(run(&request), 0);
    CHECK_EQ(request.capacity, 1);
    CHECK(extents[0].length == SIZE && extents[0].flags == 0);
    teardown();
}

/* The edges of a zero have to fit a bounce buffer, whatever a device says of itself. */
static void a_device_is_not_believed_everything(void)
{
    static const struct {
        bool device;
        uint32_t offset_align, block_size, zero_align;
    } said[] = {
        {true, 512, 512, 512},           {true, 512, 4096, 4096},           {true, 4096, 512, 4096},
        {true, 512, 64 << 10, 64 << 10}, {true, 512, 128 << 10, 128 << 10}, {true, 512, 16 << 20, 512},
        {true, 4096, UINT32_MAX, 4096},  {true, 512, 3 * 4096, 512},        {true, 512, 0, 512},
        {true, 1, 4096, 4096},           {false, 512, 4096, 512},
    };

    for (size_t i = 0; i < sizeof(said) / sizeof(said[0]); i++) {
        tz_file file = {
            .block_device = said[i].device, .offset_align = said[i].offset_align, .block_size = said[i].block_size};

        CHECK_EQ(tz_volume_zero_align(&file), said[i].zero_align);
        CHECK(tz_volume_zero_align(&file) <= TZ_BOUNCE_BYTES);
    }
}

/* ---- errors ---- */

static tz_io_opcode failing;

static int fail(tz_io *io, const tz_io_op *op)
{
    (void)io;
    return op->opcode == failing ? -EIO : 0;
}

static void errors_are_those_of_the_request(void)
{
    static char buffer[8192] __attribute__((aligned(4096)));
    tz_volume_stats stats;

    setup(false);
    rig.io->fault = fail;
    failing = TZ_IO_READ;
    CHECK_EQ(run_kind(TZ_REQUEST_READ, 0, 0, 4096, buffer), -EIO);
    CHECK_EQ(run_kind(TZ_REQUEST_READ, 0, 1, 4096, buffer), -EIO);
    CHECK_EQ(run_kind(TZ_REQUEST_WRITE, 0, 1, 4096, buffer), -EIO); /* its edges could not be read */
    failing = TZ_IO_WRITE;
    CHECK_EQ(run_kind(TZ_REQUEST_WRITE, 0, 0, 4096, buffer), -EIO);
    CHECK_EQ(run_kind(TZ_REQUEST_WRITE, 0, 1, 5000, buffer), -EIO);
    failing = TZ_IO_DATASYNC;
    CHECK_EQ(run_kind(TZ_REQUEST_FLUSH, 0, 0, 0, NULL), -EIO);
    CHECK_EQ(run_kind(TZ_REQUEST_WRITE, TZ_REQUEST_FUA, 0, 4096, rig.model), -EIO);
    CHECK_EQ(run_kind(TZ_REQUEST_READ, 0, 0, 4096, buffer), 0);
    tz_volume_stats_get(rig.volume, &stats);
    CHECK_EQ(stats.errors, 7);
    CHECK_EQ(stats.reads, 1);
    CHECK(stats.in_flight == 0 && stats.held == 0);
    teardown();
}

/* Somebody cut the file short: no zeros are made up. */
static void a_file_cut_short(void)
{
    static char buffer[8192] __attribute__((aligned(4096)));

    setup(false);
    CHECK_EQ(truncate(rig.path, SIZE / 2), 0);
    CHECK_EQ(run_kind(TZ_REQUEST_READ, 0, SIZE / 2 - 4096, 8192, buffer), -EIO);
    CHECK_EQ(run_kind(TZ_REQUEST_READ, 0, SIZE / 2 + 1, 8, buffer), -EIO);
    teardown();
}

/* ---- opening ---- */

static void one_server_a_volume(void)
{
    tz_volume_config config = {.path = rig.path, .lock = true};
    tz_volume *second;
    char alias[48];

    setup(false);
    CHECK_EQ(tz_volume_open(&second, rig.io, &config), -EBUSY);
    config.read_only = true;
    CHECK_EQ(tz_volume_open(&second, rig.io, &config), -EBUSY);
    snprintf(alias, sizeof(alias), "%s-alias", rig.path);
    CHECK_EQ(link(rig.path, alias), 0);
    config.path = alias;
    CHECK_EQ(tz_volume_open(&second, rig.io, &config), -EBUSY);
    config.lock = false;
    CHECK_EQ(tz_volume_open(&second, rig.io, &config), 0);
    tz_volume_close(second);
    unlink(alias);
    teardown();
}

/* As qemu does: a shared byte-range lock on "I write", a look at who forbids it. */
static void who_uses_it_with_qemu_is_noticed(void)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 101, .l_len = 1};
    tz_volume_config config = {.path = rig.path, .lock = true};
    int fd;

    setup_file();
    fd = open(rig.path, O_RDWR);
    CHECK(fd >= 0 && fcntl(fd, F_OFD_SETLK, &lock) == 0);
    CHECK_EQ(tz_volume_open(&rig.volume, rig.io, &config), -EBUSY);
    close(fd);
    CHECK_EQ(tz_volume_open(&rig.volume, rig.io, &config), 0);
    fd = open(rig.path, O_RDWR);
    CHECK(fd >= 0 && fcntl(fd, F_OFD_SETLK, &lock) < 0 && errno == EAGAIN);
    close(fd);
    teardown();
}

static void read_only_volumes_refuse_updates(void)
{
    static char buffer[4096] __attribute__((aligned(4096)));
    tz_volume_config config = {.path = rig.path, .lock = true, .read_only = true};

    setup_file();
    CHECK_EQ(tz_volume_open(&rig.volume, rig.io, &config), 0);
    CHECK_EQ(run_kind(TZ_REQUEST_WRITE, 0, 0, 4096, buffer), -EPERM);
    CHECK_EQ(run_kind(TZ_REQUEST_TRIM, 0, 0, 4096, NULL), -EPERM);
    CHECK_EQ(run_kind(TZ_REQUEST_ZERO, 0, 0, 4096, NULL), -EPERM);
    CHECK_EQ(run_kind(TZ_REQUEST_FLUSH, 0, 0, 0, NULL), 0);
    CHECK_EQ(run_kind(TZ_REQUEST_READ, 0, 0, 4096, buffer), 0);
    CHECK(memcmp(buffer, rig.model, 4096) == 0);
    check_content();
    teardown();
}

static void what_cannot_be_a_volume(void)
{
    tz_volume_config config = {.path = rig.path, .lock = true};
    tz_volume *volume;

    setup_file();
    CHECK_EQ(truncate(rig.path, 0), 0);
    CHECK_EQ(tz_volume_open(&volume, rig.io, &config), -EINVAL);
    unlink(rig.path);
    CHECK_EQ(tz_volume_open(&volume, rig.io, &config), -ENOENT);
    config.path = "/dev/null";
    CHECK_EQ(tz_volume_open(&volume, rig.io, &config), -ENOTSUP);
    tz_io_destroy(rig.io);
}

/* ---- block devices: only root can make one ---- */

static int attach(char *device, size_t room)
{
    struct loop_config config = {.fd = (uint32_t)open(rig.path, O_RDWR), .info.lo_flags = LO_FLAGS_AUTOCLEAR};
    int control = open("/dev/loop-control", O_RDWR), fd = -1;

    CHECK(control >= 0);
    for (int attempt = 0; attempt < 100 && fd < 0; attempt++) { /* others may take the free one first */
        snprintf(device, room, "/dev/loop%d", ioctl(control, LOOP_CTL_GET_FREE));
        fd = open(device, O_RDWR);
        if (fd >= 0 && ioctl(fd, LOOP_CONFIGURE, &config) < 0) {
            close(fd);
            fd = -1;
        }
    }
    CHECK(fd >= 0);
    close((int)config.fd);
    close(control);
    return fd; /* the device goes when it is closed last */
}

static void a_block_device(void)
{
    char device[32], *buffer = aligned_alloc(4096, SIZE);
    tz_volume_config config = {.path = device, .lock = true};
    tz_volume *second;
    int loop;

    setup_file();
    loop = attach(device, sizeof(device));
    CHECK_EQ(tz_volume_open(&rig.volume, rig.io, &config), 0);
    CHECK(rig.volume->file.block_device && rig.volume->file.size == SIZE);
    CHECK_EQ(tz_volume_open(&second, rig.io, &config), -EBUSY);
    for (uint32_t i = 0; i < 8; i++) {
        uint64_t offset = i * 30000 + (i % 2 ? 11 : 0), length = i % 3 ? 25001 : 16384;

        memset(rig.model + offset, 0, length);
        CHECK_EQ(run_kind(TZ_REQUEST_ZERO, i % 4 < 2 ? TZ_REQUEST_NO_HOLE | TZ_REQUEST_FUA : 0, offset, length, NULL),
                 0);
        memset(buffer, 7, 5000);
        memset(rig.model + offset, 7, 5000);
        CHECK_EQ(run_kind(TZ_REQUEST_WRITE, 0, offset, 5000, buffer), 0);
    }
    CHECK_EQ(run_kind(TZ_REQUEST_TRIM, TZ_REQUEST_FUA, 8192, 8192, NULL), 0);
    CHECK_EQ(run_kind(TZ_REQUEST_READ, 0, 0, SIZE, buffer), 0);
    CHECK(memcmp(buffer, rig.model, 8192) == 0 && memcmp(buffer + 16384, rig.model + 16384, SIZE - 16384) == 0);
    tz_volume_close(rig.volume);
    close(loop);
    tz_io_destroy(rig.io);
    unlink(rig.path);
    free(buffer);
}

int main(void)
{
    RUN(direct_reads_and_writes);
    RUN(buffered_reads_and_writes);
    RUN(empty_requests);
    RUN(zeroes_by_every_method);
    RUN(fast_zero_never_writes);
    RUN(no_hole_keeps_the_space);
    RUN(trims);
    RUN(extents_of_a_file_with_holes);
    RUN(reading_ahead);
    RUN(extents_of_a_file_that_does_not_tell);
    RUN(a_device_is_not_believed_everything);
    RUN(errors_are_those_of_the_request);
    RUN(a_file_cut_short);
    RUN(one_server_a_volume);
    RUN(who_uses_it_with_qemu_is_noticed);
    RUN(read_only_volumes_refuse_updates);
    RUN(what_cannot_be_a_volume);
    if (geteuid() == 0)
        RUN(a_block_device);
    else
        printf("not root: a_block_device was not run\n");
    return 0;
}
