/* SPDX-License-Identifier: Apache-2.0
 *
 * Nowhere: for reading and checking (verify).
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

static int store(tz_sink *sink, tz_chunk *chunk)
{
    (void)sink;
    (void)chunk;
    return TZ_STEP_DONE;
}

static void destroy(tz_sink *sink)
{
    free(sink);
}

static const tz_sink_ops null_sink_ops = {.store = store, .destroy = destroy};

int tz_sink_null(tz_sink **out)
{
    tz_sink *sink = calloc(1, sizeof(*sink));

    if (!sink)
        return -ENOMEM;
    sink->ops = &null_sink_ops;
    *out = sink;
    return 0;
}
