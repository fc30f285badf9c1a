/* SPDX-License-Identifier: Apache-2.0 */
#include "tz/reactor.h"

#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>

#include "nbd_hub.h"
#include "reactor_private.h"

typedef struct tz_reactor_order {
    tz_io_message message;
    int (*fn)(void *arg);
    void *arg;
    int result;
    sem_t finished;
} tz_reactor_order;

void tz_reactor_defer(tz_reactor *reactor, tz_deferred *deferred)
{
    if (deferred->queued)
        return;
    deferred->queued = true;
    deferred->next = NULL;
    *reactor->last = deferred;
    reactor->last = &deferred->next;
}

static void run_deferred(tz_reactor *reactor)
{
    tz_deferred *deferred;

    while ((deferred = reactor->first) != NULL) {
        reactor->first = deferred->next;
        if (!reactor->first)
            reactor->last = &reactor->first;
        deferred->queued = false;
        deferred->run(deferred);
    }
}

static void *reactor_main(void *arg)
{
    static const struct timespec breath = {.tv_nsec = 1000 * 1000};
    tz_reactor *reactor = arg;

    /* Our volumes may lie under a file system of this machine: memory reclaim must not wait for it on our behalf.
     * Needs CAP_SYS_RESOURCE; without it the risk is that of any userspace block server. */
    (void)prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
    while (!reactor->stopping) {
        /* An engine that cannot run now (-EAGAIN, -ENOMEM) gets another chance; the applications behind our
         * connections are waiting either way. */
        if (tz_io_run(reactor->io, -1) < 0)
            nanosleep(&breath, NULL);
        run_deferred(reactor);
    }
    return NULL;
}

/* Signals are for the program's own threads: a handler (Python's) must never run on a reactor. */
static int start_thread(tz_reactor *reactor)
{
    sigset_t all, before;
    int error;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&reactor->thread, NULL, reactor_main, reactor);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        return -error;
    (void)pthread_setname_np(reactor->thread, "tz-reactor");
    return 0;
}

int tz_reactor_create(tz_reactor **out, const tz_io_config *config)
{
    tz_reactor *reactor = calloc(1, sizeof(*reactor));
    int error;

    if (!reactor)
        return -ENOMEM;
    reactor->last = &reactor->first;
    error = tz_nbd_hub_create(&reactor->nbd);
    if (error < 0)
        goto fail;
    error = tz_io_create(&reactor->io, config);
    if (error < 0)
        goto fail_hub;
    error = start_thread(reactor);
    if (error < 0)
        goto fail_io;
    *out = reactor;
    return 0;

fail_io:
    tz_io_destroy(reactor->io);
fail_hub:
    tz_nbd_hub_destroy(reactor->nbd);
fail:
    free(reactor);
    return error;
}

static int stop(void *arg)
{
    ((tz_reactor *)arg)->stopping = true;
    return 0;
}

void tz_reactor_destroy(tz_reactor *reactor)
{
    if (!reactor)
        return;
    (void)tz_reactor_call(reactor, stop, reactor);
    pthread_join(reactor->thread, NULL);
    tz_io_destroy(reactor->io);
    tz_nbd_hub_destroy(reactor->nbd);
    free(reactor);
}

tz_io *tz_reactor_io(const tz_reactor *reactor)
{
    return reactor->io;
}

static void run_order(tz_io_message *message)
{
    tz_reactor_order *order = tz_container_of(message, tz_reactor_order, message);

    order->result = order->fn(order->arg);
    sem_post(&order->finished);
}

int tz_reactor_call(tz_reactor *reactor, int (*fn)(void *arg), void *arg)
{
    tz_reactor_order order = {.message.run = run_order, .fn = fn, .arg = arg};

    assert(!pthread_equal(pthread_self(), reactor->thread));
    sem_init(&order.finished, 0, 0);
    tz_io_post(reactor->io, &order.message);
    while (sem_wait(&order.finished) < 0)
        assert(errno == EINTR);
    sem_destroy(&order.finished);
    return order.result;
}
