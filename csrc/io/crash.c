/* SPDX-License-Identifier: Apache-2.0
 *
 * What a crash point does in the builds that have them. The one mutable global of the core is here, and in no build that
 * is installed.
 */
#include "tz/crash.h"

#ifdef TZ_CRASH_POINTS
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void tz_crash_point(const char *name)
{
    static _Atomic unsigned long passes;
    const char *at = getenv("TIMEZERO_CRASH_AT"), *how = getenv("TIMEZERO_CRASH_HOW");
    const size_t length = strlen(name);

    if (!at || strncmp(at, name, length) != 0 || (at[length] && at[length] != ':'))
        return;
    if (atomic_fetch_add(&passes, 1) + 1 != (at[length] ? strtoul(at + length + 1, NULL, 10) : 1))
        return;
    /* To this thread, which then does not take another step; the others follow at once. */
    raise(how && strcmp(how, "stop") == 0 ? SIGSTOP : SIGKILL);
}
#endif
