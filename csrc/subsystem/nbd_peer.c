/* SPDX-License-Identifier: Apache-2.0
 *
 * Peers that have vanished: a machine without power, a cable that was pulled.
 *
 * Keepalive, set where a connection is accepted, ends one that is idle. It rests while something that was sent is not
 * acknowledged, and then the kernel retransmits for a quarter of an hour. So a timer a connection looks at what the
 * kernel knows of the peer; it costs a system call in LOOKS-th parts of the time that a peer may be silent.
 *
 * TCP_USER_TIMEOUT would be less to write, but it also cuts off (Linux 5.11 and later) a peer that answers every probe of
 * its closed window: an application that was stopped, or waits for its own disk, and must find its connection when it
 * goes on.
 */
#include "nbd_connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>

#define LOOKS 8

/* Retransmissions, or probes of a closed window, unanswered in a row: a bad line loses some. */
#define UNANSWERED 3

static void looked(tz_io_op *op, int64_t result);

/* -1: not TCP, and so on this machine. */
static int is_silent(const tz_nbd_connection *connection)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof(info);

    if (getsockopt(connection->fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0)
        return -1;
    return (info.tcpi_retransmits >= UNANSWERED || info.tcpi_probes >= UNANSWERED) &&
           info.tcpi_last_ack_recv >= connection->silent_ms;
}

static void look_later(tz_nbd_connection *connection)
{
    connection->looking = true;
    connection->look = (tz_io_op){
        .opcode = TZ_IO_TIMEOUT,
        .length = (uint64_t)connection->silent_ms * 1000000 / LOOKS,
        .done = looked,
        .user = connection,
    };
    tz_io_submit(tz_reactor_io(connection->reactor), &connection->look);
}

static void looked(tz_io_op *op, int64_t result)
{
    tz_nbd_connection *connection = op->user;

    connection->looking = false;
    if (result == 0 && is_silent(connection) == 1)
        tz_nbd_connection_stop(connection, true);
    /* One that is stopping may still wait for its peer to take replies. */
    if (result == 0 && !connection->broken)
        look_later(connection);
    tz_nbd_connection_schedule(connection);
}

void tz_nbd_peer_watch(tz_nbd_connection *connection)
{
    if (is_silent(connection) >= 0)
        look_later(connection);
}

bool tz_nbd_peer_forget(tz_nbd_connection *connection)
{
    if (connection->looking)
        tz_io_cancel(tz_reactor_io(connection->reactor), &connection->look);
    return !connection->looking;
}
