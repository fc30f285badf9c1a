/* SPDX-License-Identifier: Apache-2.0 */
#include "tz/nbd.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <time.h>

#include "nbd_connection.h"

#define REQUESTS_MAX 4096

/* How long a shutdown waits for clients to take their last replies before it cuts them off. */
#define GRACE_NS UINT64_C(1000000000)

uint16_t tz_nbd_transmission_flags(const tz_volume *volume, bool read_only)
{
    uint16_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_DF |
                     NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE;

    if (read_only || !tz_volume_file(volume)->writable)
        return flags | NBD_FLAG_READ_ONLY;
    return flags | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
}

/* ---- the hub ---- */

int tz_nbd_hub_create(tz_nbd_hub **out)
{
    tz_nbd_hub *hub = calloc(1, sizeof(*hub));
    pthread_condattr_t attributes;

    if (!hub)
        return -ENOMEM;
    pthread_mutex_init(&hub->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&hub->gone, &attributes);
    pthread_condattr_destroy(&attributes);
    *out = hub;
    return 0;
}

void tz_nbd_hub_destroy(tz_nbd_hub *hub)
{
    tz_nbd_export *export;

    if (!hub)
        return;
    while ((export = hub->exports) != NULL) {
        assert(!export->connections);
        hub->exports = export->next;
        free(export);
    }
    tz_nbd_payloads_destroy(&hub->payloads);
    pthread_cond_destroy(&hub->gone);
    pthread_mutex_destroy(&hub->lock);
    free(hub);
}

/* Under the lock: where the export of a volume is linked, or would be. */
static tz_nbd_export **find(tz_nbd_hub *hub, const tz_volume *volume)
{
    tz_nbd_export **at = &hub->exports;

    while (*at && (*at)->volume != volume)
        at = &(*at)->next;
    return at;
}

static int join(tz_nbd_hub *hub, tz_nbd_connection *connection)
{
    tz_nbd_export **at = find(hub, connection->volume), *export = *at;

    if (!export) {
        export = *at = calloc(1, sizeof(*export));
        if (!export)
            return -ENOMEM;
        export->volume = connection->volume;
    }
    if (export->closing)
        return -ESHUTDOWN;
    connection->export = export;
    connection->previous = &export->connections;
    connection->next = export->connections;
    if (connection->next)
        connection->next->previous = &connection->next;
    export->connections = connection;
    export->count++;
    return 0;
}

void tz_nbd_hub_leave(tz_nbd_hub *hub, tz_nbd_connection *connection)
{
    pthread_mutex_lock(&hub->lock);
    *connection->previous = connection->next;
    if (connection->next)
        connection->next->previous = connection->previous;
    connection->export->count--;
    pthread_cond_broadcast(&hub->gone);
    pthread_mutex_unlock(&hub->lock);
}

/* ---- adopting ---- */

static int prepare_socket(int fd)
{
    int type, one = 1, flags;
    socklen_t size = sizeof(type);

    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 || type != SOCK_STREAM)
        return -EINVAL;
    /* The engines wait for readiness themselves; on a non-blocking socket io_uring would not. Python makes every
     * socket with a timeout non-blocking. */
    flags = fcntl(fd, F_GETFL);
    if (flags < 0 || (flags & O_NONBLOCK && fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0))
        return -EINVAL;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* fails on a Unix socket: no matter */
    return 0;
}

static int start(void *arg)
{
    tz_nbd_connection *connection = arg;
    tz_nbd_hub *hub = connection->reactor->nbd;
    int error;

    pthread_mutex_lock(&hub->lock);
    error = join(hub, connection);
    pthread_mutex_unlock(&hub->lock);
    if (error == 0) {
        tz_nbd_peer_watch(connection);
        tz_nbd_connection_schedule(connection);
    }
    return error;
}

int tz_nbd_adopt(tz_reactor *reactor, tz_volume *volume, int fd, const tz_nbd_config *config)
{
    tz_nbd_connection *connection;
    int error;

    if (tz_volume_io(volume) != tz_reactor_io(reactor) || config->max_requests > REQUESTS_MAX)
        return -EINVAL;
    if ((config->flags & TZ_NBD_BASE_ALLOCATION) && !(config->flags & TZ_NBD_STRUCTURED))
        return -EINVAL;
    error = prepare_socket(fd);
    if (error < 0)
        return error;
    error = tz_nbd_connection_create(&connection, reactor, volume, fd, config);
    if (error < 0)
        return error;
    error = tz_reactor_call(reactor, start, connection);
    if (error < 0)
        tz_nbd_connection_free(connection);
    return error;
}

/* ---- ending ---- */

typedef struct stop_order {
    tz_nbd_hub *hub;
    tz_volume *volume;
    bool broken;
} stop_order;

static int stop_all(void *arg)
{
    stop_order *order = arg;
    tz_nbd_export *export;

    pthread_mutex_lock(&order->hub->lock);
    export = *find(order->hub, order->volume);
    for (tz_nbd_connection *c = export ? export->connections : NULL; c; c = c->next)
        tz_nbd_connection_stop(c, order->broken);
    pthread_mutex_unlock(&order->hub->lock);
    return 0;
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Under the lock: until no connection of the volume is left, or until the time has come. */
static bool wait_gone(tz_nbd_hub *hub, const tz_volume *volume, uint64_t until_ns)
{
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000), .tv_nsec = (long)(until_ns % 1000000000)};
    tz_nbd_export *export;

    while ((export = *find(hub, volume)) != NULL && export->count)
        if (pthread_cond_timedwait(&hub->gone, &hub->lock, &until) == ETIMEDOUT)
            return (export = *find(hub, volume)) == NULL || !export->count;
    return true;
}

/* Under the lock: a volume that comes later may lie at the same address. */
static void forget(tz_nbd_hub *hub, const tz_volume *volume)
{
    tz_nbd_export **at = find(hub, volume), *export = *at;

    if (export) {
        *at = export->next;
        free(export);
    }
}

int tz_nbd_close_all(tz_reactor *reactor, tz_volume *volume, uint64_t timeout_ns)
{
    tz_nbd_hub *hub = reactor->nbd;
    stop_order order = {.hub = hub, .volume = volume};
    uint64_t now = now_ns(), until[2];
    tz_nbd_export *export;
    bool gone = false;

    timeout_ns = tz_min_u64(timeout_ns, UINT64_MAX / 2 - now);
    until[0] = now + tz_min_u64(timeout_ns / 2, GRACE_NS);
    until[1] = now + timeout_ns;
    pthread_mutex_lock(&hub->lock);
    if ((export = *find(hub, volume)) != NULL)
        export->closing = true;
    for (int i = 0; export && i < 2 && !gone; i++) {
        pthread_mutex_unlock(&hub->lock);
        order.broken = i == 1;
        (void)tz_reactor_call(reactor, stop_all, &order);
        pthread_mutex_lock(&hub->lock);
        gone = wait_gone(hub, volume, until[i]);
    }
    if (gone)
        forget(hub, volume);
    pthread_mutex_unlock(&hub->lock);
    return !export || gone ? 0 : -ETIMEDOUT;
}

void tz_nbd_stats_get(tz_reactor *reactor, const tz_volume *volume, tz_nbd_stats *out)
{
    tz_nbd_hub *hub = reactor->nbd;
    tz_nbd_export *export;

    pthread_mutex_lock(&hub->lock);
    export = *find(hub, volume);
    *out = (tz_nbd_stats){0};
    if (export) {
        out->connections = export->count;
        out->requests = atomic_load_explicit(&export->requests, memory_order_relaxed);
        out->protocol_errors = atomic_load_explicit(&export->protocol_errors, memory_order_relaxed);
    }
    pthread_mutex_unlock(&hub->lock);
}
