/* SPDX-License-Identifier: Apache-2.0
 *
 * A domain that is set by one thread while another suspends, with a real reactor. Under TSan: the words are plain memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "../../csrc/subsystem/session_private.h"
#include "check.h"
#include "tz/reactor.h"

#define TRACKS   64
#define TRACK    4096
#define DEADLINE (UINT64_C(20) * 1000000000)

static void *set_often(void *arg)
{
    tz_session *session = arg;
    uint64_t word = 0;

    for (int i = 0; i < 100; i++) {
        int rc;

        word = ~word;
        CHECK_EQ(pwrite(session->domain_fd, &word, sizeof(word), 0), sizeof(word));
        rc = tz_session_set_domain(session);
        CHECK(rc == 0 || rc == -EBUSY);
        usleep(200);
    }
    return NULL;
}

/* It counts until the session is installed, whole as it was set, and not afterwards. */
static void suspend_meanwhile(tz_volume *volume)
{
    tz_session_config config = {.track_size = TRACK, .memory_bytes = 1 << 20, .file_fd = -1, .domain = true};
    tz_suspension *suspension;
    tz_session_report report;
    tz_session *session;
    pthread_t thread;
    uint64_t word;
    int rc;

    CHECK_EQ(tz_session_prepare(&session, volume, &config), 0);
    CHECK_EQ(tz_suspension_create(&suspension, &session, 1), 0);
    CHECK_EQ(tz_suspension_run(suspension, DEADLINE), -ENODATA);
    CHECK_EQ(pthread_create(&thread, NULL, set_often, session), 0);
    do
        rc = tz_suspension_run(suspension, DEADLINE);
    while (rc == -EBUSY || rc == -ENODATA);
    CHECK_EQ(rc, 0);
    memcpy(&word, session->domain, sizeof(word));
    CHECK(word == 0 || word == UINT64_MAX);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(memcmp(&word, session->domain, sizeof(word)), 0);
    CHECK_EQ(tz_session_set_domain(session), -EBUSY);
    tz_suspension_destroy(suspension);
    CHECK_EQ(tz_session_end(session, false, &report), 0);
    CHECK_EQ(report.state, TZ_SESSION_ENDED);
    tz_session_destroy(session);
}

static int close_volume(void *volume)
{
    tz_volume_close(volume);
    return 0;
}

static void a_domain_is_handed_over(void)
{
    char path[] = "./handover-XXXXXX";
    tz_volume_config config = {.path = path};
    tz_io_config io = {.kind = TZ_IO_AUTO};
    tz_reactor *reactor;
    tz_volume *volume;
    int fd = mkstemp(path);

    CHECK(fd >= 0 && ftruncate(fd, TRACKS * TRACK) == 0);
    close(fd);
    CHECK_EQ(tz_reactor_create(&reactor, &io), 0);
    CHECK_EQ(tz_volume_open(&volume, tz_reactor_io(reactor), &config), 0);
    for (int i = 0; i < 5; i++)
        suspend_meanwhile(volume);
    CHECK_EQ(tz_reactor_call(reactor, close_volume, volume), 0);
    tz_reactor_destroy(reactor);
    unlink(path);
}

int main(void)
{
    RUN(a_domain_is_handed_over);
    return 0;
}
