/* SPDX-License-Identifier: Apache-2.0
 *
 * A pool of threads that serve file ops with blocking calls and put them into the owner's inbox: all file ops of
 * the threads engine, and what io_uring has no request for (block ioctls).
 *
 * `limit` threads work for one file: when its device does not answer, they wait there, and the ops of other files get
 * threads of their own, up to WORKERS_FILES times as many in all.
 *
 * Errors   an op always gets a result. When no thread can be started at all, the op is served on the spot.
 * Memory   all of it at create, but for the stacks of threads, which start as they are needed.
 * Threads  submit, cancel and destroy: the engine's owner.
 */
#ifndef TZ_IO_WORKERS_H
#define TZ_IO_WORKERS_H

#include "engine.h"

typedef struct tz_workers tz_workers;

int tz_workers_create(tz_workers **out, tz_inbox *inbox, uint32_t limit);

/* Joins the threads; nothing may be queued. */
void tz_workers_destroy(tz_workers *workers);

void tz_workers_submit(tz_workers *workers, tz_io_op *op);

/* True when no worker had taken the op: it is out of the queue and the caller's again. */
bool tz_workers_cancel(tz_workers *workers, tz_io_op *op);

#endif
