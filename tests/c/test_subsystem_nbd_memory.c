/* SPDX-License-Identifier: Apache-2.0
 *
 * Payloads for which there is no memory: the client waits, and is told so only when it has waited long. With both engines.
 */
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "nbd_client.h"

#define SIZE  (4 * TZ_MIB)
#define LARGE 200000 /* a receive and a socket hold it together, so that no client is kept in its send */

static tz_io_kind engine;

/* What the pool allocates with: refuses `refusals` times what is as large as a payload of LARGE, and counts it. */
static _Atomic int refusals, refused;

void *aligned_alloc(size_t alignment, size_t size)
{
    void *memory;

    if (size == 256 * TZ_KIB && alignment == 4096 && atomic_load(&refusals) > 0) {
        atomic_fetch_sub(&refusals, 1);
        atomic_fetch_add(&refused, 1);
        return NULL;
    }
    return posix_memalign(&memory, alignment, size) ? NULL : memory;
}

/* The server has looked for memory in vain so often since. */
static void wait_refused(int times)
{
    int before = atomic_load(&refused);

    for (int i = 0; atomic_load(&refused) < before + times; i++) {
        CHECK(i < TIMEOUT_S * 1000);
        usleep(1000);
    }
}

static void no_memory(bool none)
{
    atomic_store(&refusals, none ? INT32_MAX : 0);
}

static void expect_nothing(int fd)
{
    char byte;

    CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
}

static void a_request_waits_until_there_is_memory(void)
{
    served server = serve(engine, SIZE, false);
    int fd = attach(&server, 0), other = attach(&server, 0);
    static uint8_t wrote[LARGE], got[LARGE];

    pattern(wrote, 8192, LARGE, 1);
    no_memory(true);
    ask(fd, 0, WRITE, 1, 8192, LARGE, wrote);
    wait_refused(5);
    expect_nothing(fd);
    read_ok(other, 1, 0, got, 4096); /* what needs less is served */
    no_memory(false);
    expect_simple(fd, 1, 0);

    no_memory(true); /* for one of these there is the payload that the write has given back */
    for (uint64_t cookie = 3; cookie < 6; cookie++)
        ask(fd, 0, READ, cookie, 8192, LARGE, NULL);
    wait_refused(1);
    no_memory(false);
    for (int i = 0; i < 3; i++) {
        uint64_t cookie;

        CHECK_EQ(simple(fd, &cookie), 0);
        recv_bytes(fd, got, LARGE);
        CHECK(memcmp(got, wrote, LARGE) == 0);
    }
    close(fd);
    close(other);
    unserve(&server);
}

static void nobody_waits_for_ever(void)
{
    served server = serve(engine, SIZE, false);
    int fd = attach_as(&server, (tz_nbd_config){.patience_ns = 300 * 1000 * 1000});
    static uint8_t wrote[LARGE], got[LARGE];

    pattern(wrote, 0, LARGE, 2);
    no_memory(true);
    for (uint64_t cookie = 0; cookie < 3; cookie++) {
        ask(fd, 0, WRITE, cookie, 0, LARGE, wrote);
        expect_simple(fd, cookie, ENOMEM);
    }
    ask(fd, 0, FLUSH, 4, 0, 0, NULL); /* in step */
    expect_simple(fd, 4, 0);
    no_memory(false);
    write_ok(fd, 5, 0, wrote, LARGE);
    read_ok(fd, 6, 0, got, LARGE);
    CHECK(memcmp(got, wrote, LARGE) == 0);
    close(fd);
    unserve(&server);
}

/* After a refusal and some quiet there is as much patience as ever. */
static void patience_comes_back(void)
{
    served server = serve(engine, SIZE, false);
    int fd = attach_as(&server, (tz_nbd_config){.patience_ns = 300 * 1000 * 1000});
    static uint8_t wrote[LARGE];

    no_memory(true);
    ask(fd, 0, WRITE, 1, 0, LARGE, wrote);
    expect_simple(fd, 1, ENOMEM);
    usleep(400 * 1000);
    atomic_store(&refusals, 2);
    write_ok(fd, 2, 0, wrote, LARGE);
    CHECK_EQ(atomic_load(&refusals), 0);
    close(fd);
    unserve(&server);
}

static void what_is_kept_idle_is_given_up_first(void)
{
    served server = serve(engine, SIZE, false);
    int fd = attach_as(&server, (tz_nbd_config){.patience_ns = 1});
    static uint8_t wrote[LARGE];

    write_ok(fd, 1, 0, wrote, 4096); /* its payload is idle now */
    atomic_store(&refusals, 2);      /* before and after it is freed; the second look, the last there is, succeeds */
    write_ok(fd, 2, 0, wrote, LARGE);
    CHECK_EQ(atomic_load(&refusals), 0);
    close(fd);
    unserve(&server);
}

static void one_that_waits_can_go_and_be_closed(void)
{
    served server = serve(engine, SIZE, false);
    static uint8_t wrote[LARGE];
    int fd = attach_as(&server, (tz_nbd_config){.patience_ns = 300 * 1000 * 1000});

    no_memory(true);
    ask(fd, 0, WRITE, 1, 0, LARGE, wrote);
    wait_refused(2);
    close(fd);
    wait_connections(&server, 0);
    fd = attach(&server, 0);
    ask(fd, 0, READ, 1, 0, LARGE, NULL);
    wait_refused(2);
    CHECK_EQ(tz_nbd_close_all(server.reactor, server.volume, UINT64_C(1000000000) * TIMEOUT_S), 0);
    expect_end(fd);
    no_memory(false);
    unserve(&server);
}

int main(void)
{
    alarm(240);
    for (engine = TZ_IO_URING; engine <= TZ_IO_THREADS; engine++) {
        if (!engine_here(engine))
            continue;
        RUN(a_request_waits_until_there_is_memory);
        RUN(nobody_waits_for_ever);
        RUN(patience_comes_back);
        RUN(what_is_kept_idle_is_given_up_first);
        RUN(one_that_waits_can_go_and_be_closed);
    }
    return 0;
}
