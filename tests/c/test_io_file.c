/* SPDX-License-Identifier: Apache-2.0
 *
 * tz_file on what the machine has: TMPDIR's file system, tmpfs, a loop device with 4096-byte sectors and a file on an
 * ext4 there (as root), and everything that must be refused.
 */
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "test_io_common.h"
#include "tz/file.h"

/* A named file of that size, in a directory that the test removes. */
static void put_file(const char *path, size_t size)
{
    int fd = open(path, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
    uint8_t *data = malloc(size + 1);

    CHECK(fd >= 0);
    for (size_t i = 0; i < size; i++)
        data[i] = pattern(i);
    CHECK_EQ(pwrite(fd, data, size, 0), (ssize_t)size);
    CHECK_EQ(fsync(fd), 0);
    free(data);
    close(fd);
}

/* Reads all of a file by its own rules, compares. */
static void check_content(const tz_file *file)
{
    size_t room = (size_t)tz_align_up(file->size + 1, tz_max_u64(4096, file->offset_align));
    tz_io *io = make_io(TZ_IO_THREADS, 0, 1);
    uint8_t *data = aligned(room);
    probe p = {0};

    CHECK(file->memory_align <= 4096);
    tz_io_read(io, &p.op, file->fd, data, room, 0, probe_done);
    settle(io);
    CHECK_EQ(p.result, (int64_t)file->size);
    for (size_t i = 0; i < file->size; i++)
        CHECK_EQ(data[i], pattern(i));
    free(data);
    tz_io_destroy(io);
}

static bool is_direct(int fd)
{
    return fcntl(fd, F_GETFL) & O_DIRECT;
}

static void check_consistent(const tz_file *file)
{
    CHECK_EQ(is_direct(file->fd), file->direct);
    CHECK(fcntl(file->fd, F_GETFD) & FD_CLOEXEC);
    CHECK(!(fcntl(file->fd, F_GETFL) & O_NONBLOCK));
    CHECK(tz_is_pow2(file->memory_align) && tz_is_pow2(file->offset_align));
    CHECK(file->block_size >= 512);
    if (!file->direct)
        CHECK(file->memory_align == 1 && file->offset_align == 1);
}

static void try_sizes(const char *dir, bool expect_direct)
{
    static const size_t sizes[] = {0, 1, 511, 512, 4095, 4096, 5000, 65536, 65536 + 512, 70001};
    char path[300];

    snprintf(path, sizeof(path), "%s/sizes", dir);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        tz_file file, again;
        uint32_t unit;

        put_file(path, sizes[i]);
        CHECK_EQ(tz_file_open(&file, path, 0), 0);
        check_consistent(&file);
        CHECK_EQ(file.size, sizes[i]);
        CHECK(!file.writable && !file.block_device);
        CHECK_EQ(file.direct, expect_direct);
        check_content(&file);
        unit = file.offset_align;
        CHECK_EQ(tz_file_reopen(&again, &file, 0), 0);
        CHECK(again.fd != file.fd && again.direct == file.direct && again.inode == file.inode);
        CHECK_EQ(again.offset_align, file.offset_align);
        tz_file_close(&again);
        tz_file_close(&file);

        CHECK_EQ(tz_file_open(&file, path, TZ_FILE_WRITE), 0);
        check_consistent(&file);
        CHECK(file.writable);
        CHECK_EQ(file.direct, expect_direct && sizes[i] % unit == 0); /* never grown by a write of its last block */
        check_content(&file);
        CHECK_EQ(tz_file_reopen(&again, &file, 0), 0);
        CHECK(!again.writable && again.direct == file.direct); /* the mover's descriptor: read-only, same mode */
        check_content(&again);
        tz_file_close(&again);
        tz_file_close(&file);

        CHECK_EQ(tz_file_open(&file, path, TZ_FILE_BUFFERED), 0);
        check_consistent(&file);
        CHECK(!file.direct);
        check_content(&file);
        tz_file_close(&file);
    }
    CHECK_EQ(unlink(path), 0);
}

static char *make_dir(const char *parent)
{
    static char path[200];

    snprintf(path, sizeof(path), "%s/tz-test-XXXXXX", parent);
    CHECK(mkdtemp(path) != NULL);
    return path;
}

static void test_here(void)
{
    const char *parent = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    char *dir = make_dir(parent), path[300];
    tz_file file;
    int raw;

    /* What the file system says to a plain open is what we expect of it. */
    snprintf(path, sizeof(path), "%s/raw", dir);
    put_file(path, 4096);
    raw = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    try_sizes(dir, raw >= 0);
    if (raw >= 0)
        close(raw);
    /* A file that is deleted, and a name that now means another one, do not confuse a reopen. */
    CHECK_EQ(tz_file_open(&file, path, TZ_FILE_WRITE), 0);
    CHECK_EQ(unlink(path), 0);
    put_file(path, 10);
    tz_file again;
    CHECK_EQ(tz_file_reopen(&again, &file, TZ_FILE_WRITE), 0);
    CHECK(again.inode == file.inode && again.size == 4096 && again.writable);
    tz_file_close(&again);
    tz_file_close(&file);
    tz_file_close(&file); /* twice is no harm */
    CHECK_EQ(unlink(path), 0);
    CHECK_EQ(rmdir(dir), 0);
}

static void test_tmpfs(void)
{
    char *dir = make_dir("/dev/shm"), path[300];
    tz_file file;
    int raw;

    snprintf(path, sizeof(path), "%s/raw", dir);
    put_file(path, 4096);
    raw = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC); /* Linux 6.6 and later */
    CHECK_EQ(unlink(path), 0);
    try_sizes(dir, raw >= 0);
    if (raw >= 0)
        close(raw);
    put_file(path, 4096);
    CHECK_EQ(tz_file_open(&file, path, 0), 0);
    CHECK(file.in_memory);
    tz_file_close(&file);
    CHECK_EQ(unlink(path), 0);
    CHECK_EQ(rmdir(dir), 0);
}

static void test_adopt(void)
{
    int fd = make_file(8192, O_RDWR | O_NONBLOCK), ro = make_file(100, O_RDONLY), path_only;
    int append = make_file(4096, O_RDWR | O_APPEND), wo = make_file(4096, O_WRONLY);
    int memory = memfd_create("tz", MFD_CLOEXEC);
    tz_file file = {.fd = -7};
    char name[64];

    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    path_only = open(name, O_PATH | O_CLOEXEC);
    CHECK_EQ(tz_file_adopt(&file, path_only, 0), -EBADF);
    CHECK_EQ(tz_file_adopt(&file, 9999, 0), -EBADF);
    CHECK_EQ(tz_file_adopt(&file, append, 0), -EINVAL);
    CHECK_EQ(file.fd, -7); /* untouched on failure */
    CHECK_EQ(tz_file_adopt(&file, fd, 0), 0);
    check_consistent(&file);
    CHECK(file.writable && file.fd == fd && file.size == 8192);
    check_content(&file);
    CHECK_EQ(tz_file_adopt(&file, fd, TZ_FILE_BUFFERED), 0);
    CHECK(!file.direct && !is_direct(fd));
    tz_file_close(&file);
    CHECK_EQ(tz_file_adopt(&file, ro, TZ_FILE_WRITE), 0);
    CHECK(!file.writable); /* the descriptor's own mode is kept */
    check_consistent(&file);
    tz_file_close(&file);
    CHECK_EQ(tz_file_adopt(&file, wo, 0), 0);
    check_consistent(&file);
    CHECK(file.writable);
    tz_file_close(&file);
    CHECK_EQ(ftruncate(memory, 65536), 0);
    CHECK_EQ(tz_file_adopt(&file, memory, 0), 0);
    check_consistent(&file);
    tz_file_close(&file);
    close(path_only);
    close(append);
}

static void test_refused(void)
{
    const char *parent = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    char *dir = make_dir(parent), path[300];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    tz_file file = {.fd = -7};
    int sock, ends[2];

    CHECK_EQ(tz_file_open(&file, dir, 0), -EISDIR);
    CHECK_EQ(tz_file_open(&file, dir, TZ_FILE_WRITE), -EISDIR);
    CHECK_EQ(tz_file_open(&file, "/dev/null", 0), -ENOTSUP);
    CHECK_EQ(tz_file_open(&file, "/nonexistent/file", 0), -ENOENT);
    CHECK_EQ(tz_file_open(&file, "", 0), -ENOENT);
    snprintf(path, sizeof(path), "%s/fifo", dir);
    CHECK_EQ(mkfifo(path, 0600), 0);
    alarm(20); /* it must not hang */
    CHECK_EQ(tz_file_open(&file, path, 0), -ENOTSUP);
    CHECK_EQ(tz_file_open(&file, path, TZ_FILE_WRITE), -ENOTSUP);
    alarm(0);
    CHECK_EQ(unlink(path), 0);
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/s", dir);
    CHECK_EQ(bind(sock, (struct sockaddr *)&address, sizeof(address)), 0);
    CHECK_EQ(tz_file_open(&file, address.sun_path, 0), -ENOTSUP);
    CHECK_EQ(tz_file_adopt(&file, sock, 0), -ENOTSUP);
    CHECK_EQ(unlink(address.sun_path), 0);
    close(sock);
    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    CHECK_EQ(tz_file_adopt(&file, ends[0], 0), -ENOTSUP);
    close(ends[0]);
    close(ends[1]);
    CHECK_EQ(file.fd, -7);
    CHECK_EQ(rmdir(dir), 0);
}

/* ---- as root: a loop device with 4096-byte sectors, and an ext4 on it ---- */

static char *output_of(const char *command)
{
    static char line[200];
    FILE *pipe = popen(command, "r");

    CHECK(pipe != NULL);
    line[0] = 0;
    if (fgets(line, sizeof(line), pipe))
        line[strcspn(line, "\n")] = 0;
    CHECK_EQ(pclose(pipe), 0);
    return line;
}

static void run_command(const char *format, const char *a, const char *b)
{
    char command[500];

    snprintf(command, sizeof(command), format, a, b);
    CHECK_EQ(system(command), 0);
}

static void check_block_ops(tz_io_kind kind, const tz_file *disk)
{
    tz_io *io = make_io(kind, 0, 2);
    uint8_t *data = aligned(65536);
    probe p = {0};

    memset(data, 0x77, 65536);
    tz_io_write(io, &p.op, disk->fd, data, 65536, 65536, probe_done);
    settle(io);
    CHECK_EQ(p.result, 65536);
    tz_io_write(io, &p.op, disk->fd, data, 512, 65536, probe_done); /* half a sector */
    settle(io);
    CHECK_EQ(p.result, -EINVAL);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_BLKZERO, .fd = disk->fd, .offset = 65536, .length = 32768}), 0);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_BLKTRIM, .fd = disk->fd, .offset = 65536 + 32768, .length = 4096}),
             0);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_BLKZERO, .fd = disk->fd, .offset = 1, .length = 4096}), -EINVAL);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_DATASYNC, .fd = disk->fd}), 0);
    tz_io_read(io, &p.op, disk->fd, data, 65536, 65536, probe_done);
    settle(io);
    CHECK_EQ(p.result, 65536);
    for (int i = 0; i < 65536; i++)
        CHECK_EQ(data[i], i < 36864 ? 0 : 0x77);
    /* Across the end of the device. */
    tz_io_read(io, &p.op, disk->fd, data, 65536, disk->size - 4096, probe_done);
    settle(io);
    CHECK_EQ(p.result, 4096);
    tz_io_write(io, &p.op, disk->fd, data, 8192, disk->size - 4096, probe_done);
    settle(io);
    CHECK_EQ(p.result, -ENOSPC);
    free(data);
    tz_io_destroy(io);
}

static void check_mounted(const char *device, const char *dir)
{
    char mount[220];
    tz_file file;

    snprintf(mount, sizeof(mount), "%s/mnt", dir);
    CHECK_EQ(mkdir(mount, 0700), 0);
    run_command("mkfs.ext4 -q -F %s%s", device, "");
    run_command("mount %s %s", device, mount);
    try_sizes(mount, true);
    CHECK_EQ(tz_file_open(&file, device, TZ_FILE_WRITE | TZ_FILE_EXCL), -EBUSY);
    run_command("umount %s%s", mount, "");
    CHECK_EQ(rmdir(mount), 0);
    CHECK_EQ(tz_file_open(&file, device, TZ_FILE_WRITE | TZ_FILE_EXCL), 0);
    tz_file_close(&file);
}

static void test_block_device(void)
{
    const char *parent = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    char *dir = make_dir(parent), image[300], device[200], command[500];
    tz_file file, again;
    int fd;

    snprintf(image, sizeof(image), "%s/image", dir);
    fd = open(image, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, 32 << 20), 0);
    close(fd);
    snprintf(command, sizeof(command), "losetup -f --show -b 4096 %s", image);
    snprintf(device, sizeof(device), "%s", output_of(command));
    CHECK_EQ(tz_file_open(&file, device, TZ_FILE_WRITE), 0);
    check_consistent(&file);
    CHECK(file.block_device && file.direct && file.size == 32 << 20 && file.inode == 0);
    CHECK_EQ(file.offset_align, 4096);
    CHECK_EQ(file.block_size, 4096);
    check_block_ops(TZ_IO_THREADS, &file);
    if (tz_io_probe_uring(NULL) == 0)
        check_block_ops(TZ_IO_URING, &file);
    CHECK_EQ(tz_file_reopen(&again, &file, 0), 0);
    CHECK(again.device == file.device && again.block_device && !again.writable && again.direct);
    tz_file_close(&again);
    tz_file_close(&file);
    check_mounted(device, dir);
    run_command("losetup -d %s%s", device, "");
    CHECK_EQ(unlink(image), 0);
    CHECK_EQ(rmdir(dir), 0);
}

int main(void)
{
    RUN(test_here);
    RUN(test_tmpfs);
    RUN(test_adopt);
    RUN(test_refused);
    if (geteuid() == 0)
        RUN(test_block_device);
    else
        printf("not root: no loop device, test_block_device left out\n");
    return 0;
}
