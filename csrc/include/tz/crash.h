/* SPDX-License-Identifier: Apache-2.0
 *
 * Crash points: named steps of a session, for the sweep that kills a process at each of them (proof/crash). Only builds with
 * -DTZ_CRASH_POINTS have them; in every other build TZ_CRASH_POINT is nothing, and the environment is not looked at.
 *
 * TIMEZERO_CRASH_AT=NAME[:N] says where: at the N-th pass (counting from 1) of the point NAME.
 * TIMEZERO_CRASH_HOW says how: "kill" (default), or "stop", so that somebody else may be killed while this process is at
 * this step.
 *
 * A name is a string literal, in one place of the source: proof/crash/steps.py lists them all, and a test compares.
 *
 * Errors   none.   Memory   none.   Threads  any: passes of all threads are counted together.
 */
#ifndef TZ_CRASH_H
#define TZ_CRASH_H

#ifdef TZ_CRASH_POINTS
#define TZ_CRASH_POINT(name) tz_crash_point(name)
void tz_crash_point(const char *name);
#else
#define TZ_CRASH_POINT(name) ((void)0)
#endif

#endif
