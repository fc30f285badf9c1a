/* SPDX-License-Identifier: Apache-2.0
 *
 * A sandbox without io_uring: the probe names the step, an explicit wish is refused, the automatic choice works. Each
 * case is a child with a seccomp filter, for a filter cannot be taken off.
 */
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "test_io_common.h"

static void forbid(long number, int error)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(code) / sizeof(*code), code};

    CHECK_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    CHECK_EQ(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

static void check_fallback(int error, const char *expected_step)
{
    const char *step = NULL;
    int fd = make_file(4096, O_RDONLY);
    char data[4096];
    probe p = {0};
    tz_io *io = NULL;

    CHECK_EQ(tz_io_probe_uring(&step), -error);
    CHECK(step && strcmp(step, expected_step) == 0);
    CHECK_EQ(tz_io_create(&io, &(tz_io_config){.kind = TZ_IO_URING}), -error);
    CHECK(io == NULL); /* untouched on failure */
    CHECK_EQ(tz_io_create(&io, &(tz_io_config){.kind = TZ_IO_AUTO}), 0);
    CHECK_EQ(tz_io_engine(io), TZ_IO_THREADS);
    tz_io_read(io, &p.op, fd, data, sizeof(data), 0, probe_done);
    settle(io);
    CHECK_EQ(p.result, 4096);
    tz_io_destroy(io);
    close(fd);
}

static void in_child(long number, int error, const char *expected_step)
{
    int status;
    pid_t child = fork();

    CHECK(child >= 0);
    if (child == 0) {
        forbid(number, error);
        check_fallback(error, expected_step);
        _exit(0);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
}

static void test_setup_forbidden(void)
{
    in_child(__NR_io_uring_setup, EPERM, "io_uring_setup");
    in_child(__NR_io_uring_setup, ENOSYS, "io_uring_setup");
}

static void test_register_forbidden(void)
{
    in_child(__NR_io_uring_register, EPERM, "io_uring_register");
}

static void test_enter_forbidden(void)
{
    in_child(__NR_io_uring_enter, EPERM, "io_uring_enter");
}

int main(void)
{
    const char *step;

    if (tz_io_probe_uring(&step) < 0) {
        printf("no io_uring here (%s), so nothing to forbid\n", step);
        return 0;
    }
    RUN(test_setup_forbidden);
    RUN(test_register_forbidden);
    RUN(test_enter_forbidden);
    return 0;
}
