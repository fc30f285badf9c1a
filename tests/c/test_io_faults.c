/* SPDX-License-Identifier: Apache-2.0
 *
 * A disk that fails for real: nbdfuse serves a file of 1 MiB whose second half cannot be read or written, and whose
 * every request takes a moment. An error in the middle of a transfer must end it as an error, never as a short success.
 */
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "test_io_common.h"
#include "tz/file.h"

#define SIZE (1 << 20)
#define HALF (SIZE / 2)

static char dir[200], path[300];
static pid_t server;

/* eval's scripts get: handle, count, offset (pread); handle, count, offset (pwrite, data on stdin). */
static void serve(void)
{
    const char *read_half = "pread=if [ $(($4 + $3)) -gt 524288 ]; then echo EIO bad >&2; exit 1; fi; "
                            "head -c $3 /dev/zero | tr '\\0' x";
    const char *write_half =
        "pwrite=if [ $(($4 + $3)) -gt 524288 ]; then echo EIO bad >&2; exit 1; fi; cat > /dev/null";

    prctl(PR_SET_PDEATHSIG, SIGTERM);                             /* a failed test leaves no mount behind */
    dup2(open("/dev/null", O_WRONLY | O_CLOEXEC), STDERR_FILENO); /* it tells of every error it makes */
    execlp("nbdfuse", "nbdfuse", path, "--command", "nbdkit", "-s", "--exit-with-parent", "eval",
           "get_size=echo 1048576", read_half, write_half, "can_write=exit 0", "flush=exit 0", "can_flush=exit 0",
           "block_size=echo 1 4096 131072", "--filter=delay", "rdelay=2ms", "wdelay=2ms", (char *)NULL);
    _exit(127);
}

/* False where there is no nbdfuse or no right to mount. In CI nothing may be left out. */
static bool start(void)
{
    const char *parent = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    struct stat st = {0};

    snprintf(dir, sizeof(dir), "%s/tz-test-XXXXXX", parent);
    CHECK(mkdtemp(dir) != NULL);
    snprintf(path, sizeof(path), "%s/disk", dir);
    close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    server = fork();
    CHECK(server >= 0);
    if (server == 0)
        serve();
    for (int i = 0; i < 1000 && st.st_size != SIZE; i++) {
        if (waitpid(server, NULL, WNOHANG) != 0) {
            CHECK(!getenv("CI"));
            CHECK_EQ(unlink(path) + rmdir(dir), 0);
            return false;
        }
        usleep(10000);
        CHECK_EQ(stat(path, &st), 0);
    }
    CHECK_EQ(st.st_size, SIZE);
    return true;
}

static void stop(void)
{
    CHECK_EQ(kill(server, SIGTERM), 0); /* nbdfuse takes its mount away */
    CHECK_EQ(waitpid(server, NULL, 0), server);
    CHECK_EQ(unlink(path), 0);
    CHECK_EQ(rmdir(dir), 0);
}

static int64_t transfer(tz_io *io, tz_io_opcode opcode, int fd, uint8_t *data, size_t length, uint64_t offset)
{
    struct iovec iov[2] = {{data, length / 2}, {data + length / 2, length - length / 2}};

    return finish(io, (tz_io_op){.opcode = opcode, .fd = fd, .iov = iov, .iovs = 2, .offset = offset});
}

static void with_mode(tz_io_kind kind, unsigned flags)
{
    tz_io *io = make_io(kind, 0, 2);
    uint8_t *data = aligned(SIZE);
    tz_file file;

    CHECK_EQ(tz_file_open(&file, path, TZ_FILE_WRITE | flags), 0);
    CHECK_EQ(transfer(io, TZ_IO_READ, file.fd, data, 65536, 4096), 65536);
    CHECK(data[0] == 'x' && data[65535] == 'x');
    CHECK_EQ(transfer(io, TZ_IO_READ, file.fd, data, 65536, HALF), -EIO);
    CHECK_EQ(transfer(io, TZ_IO_READ, file.fd, data, SIZE, 0), -EIO); /* good at first */
    CHECK_EQ(transfer(io, TZ_IO_READ, file.fd, data, 8192, HALF - 8192), 8192);
    if (file.direct) {
        CHECK_EQ(transfer(io, TZ_IO_WRITE, file.fd, data, 65536, 0), 65536);
        CHECK_EQ(transfer(io, TZ_IO_WRITE, file.fd, data, SIZE, 0), -EIO);
    }
    tz_file_close(&file);
    free(data);
    tz_io_destroy(io);
}

static void test_errors_in_the_middle(tz_io_kind kind)
{
    with_mode(kind, 0);
    with_mode(kind, TZ_FILE_BUFFERED);
}

/* Every op calls back once, whether its cancel came in time or not. */
static void test_cancel_on_a_slow_disk(tz_io_kind kind)
{
    enum {
        OPS = 16
    };
    tz_io *io = make_io(kind, 0, 2);
    uint8_t *data = aligned(OPS * 4096);
    probe p[OPS] = {0};
    tz_file file;

    CHECK_EQ(tz_file_open(&file, path, 0), 0);
    for (int i = 0; i < OPS; i++)
        tz_io_read(io, &p[i].op, file.fd, data + i * 4096, 4096, (uint64_t)i * 4096, probe_done);
    CHECK(tz_io_run(io, 1 * MS) >= 0);
    for (int i = 0; i < OPS; i += 2)
        tz_io_cancel(io, &p[i].op);
    settle(io);
    for (int i = 0; i < OPS; i++) {
        CHECK_EQ(p[i].calls, 1);
        CHECK(p[i].result == 4096 || (i % 2 == 0 && p[i].result == -ECANCELED));
    }
    tz_file_close(&file);
    free(data);
    tz_io_destroy(io);
}

int main(void)
{
    if (!start()) {
        printf("nbdfuse is missing or may not mount: the failing disk is left out\n");
        return 0;
    }
    RUN_BOTH(test_errors_in_the_middle);
    RUN_BOTH(test_cancel_on_a_slow_disk);
    stop();
    return 0;
}
