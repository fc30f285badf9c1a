/* SPDX-License-Identifier: Apache-2.0
 *
 * A reactor: one thread with one engine, which runs many volumes and their NBD connections.
 *
 * Errors   create: what thread and engine creation say.
 * Memory   destroy ends the thread; volumes and connections must be gone before.
 * Threads  create, destroy and call: any thread but the reactor's own.
 */
#ifndef TZ_REACTOR_H
#define TZ_REACTOR_H

#include "tz/io.h"

typedef struct tz_reactor tz_reactor;

int tz_reactor_create(tz_reactor **out, const tz_io_config *config);
void tz_reactor_destroy(tz_reactor *reactor);
tz_io *tz_reactor_io(const tz_reactor *reactor);

/* Runs fn(arg) on the reactor's thread and waits for it; returns what fn returns. */
int tz_reactor_call(tz_reactor *reactor, int (*fn)(void *arg), void *arg);

#endif
