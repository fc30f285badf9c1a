/* SPDX-License-Identifier: Apache-2.0
 *
 * Deliberate breaches of the rules that make a backup sound, for the tests that prove each rule is
 * needed. Never set outside tests; there is no option for them on the command line.
 */
#ifndef TZ_FAULTS_H
#define TZ_FAULTS_H

enum {
    /* gate */
    TZ_FAULT_PASS_ALL = 1 << 0,      /* updates are never held */
    TZ_FAULT_ISSUE_EARLY = 1 << 1,   /* the update is issued before preserved is set */
    TZ_FAULT_LATE_PUNCTURE = 1 << 2, /* the state turns to punctured only at the end of the session */
    TZ_FAULT_STALE_NEED = 1 << 3,    /* updates held across T0 are not judged again */
    TZ_FAULT_NO_DRAIN = 1 << 4,      /* the gate says drained while updates are in flight */
    TZ_FAULT_DOUBLE_FREE = 1 << 5,   /* the gate frees a slot although the mover will take it */
    TZ_FAULT_NO_BLOCK_LOCK = 1 << 6, /* unaligned updates of one block are not serialized */
    /* mover */
    TZ_FAULT_NO_VALIDATION = 1 << 16, /* preserved is not looked at after the read */
    TZ_FAULT_IGNORE_PUNCTURE = 1 << 17,
    TZ_FAULT_NO_USES = 1 << 18, /* the first who needs a track sets copied, whoever else needs it */
};

#endif
