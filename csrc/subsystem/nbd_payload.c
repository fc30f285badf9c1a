/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd_payload.h"

#include <stdlib.h>

/* Direct I/O and copying by pages both want this. */
#define PAYLOAD_ALIGN 4096

static unsigned class_of(uint64_t length)
{
    unsigned size_class = 0;

    while (TZ_NBD_PAYLOAD_MIN << size_class < length)
        size_class++;
    assert(size_class < TZ_NBD_PAYLOAD_CLASSES);
    return size_class;
}

uint64_t tz_nbd_payload_bytes(uint64_t length)
{
    return TZ_NBD_PAYLOAD_MIN << class_of(length);
}

void *tz_nbd_payload_take(tz_nbd_payloads *payloads, uint64_t length)
{
    unsigned size_class = class_of(length);
    void **buffer = payloads->idle[size_class];

    if (!buffer) {
        buffer = aligned_alloc(PAYLOAD_ALIGN, TZ_NBD_PAYLOAD_MIN << size_class);
        if (buffer || !payloads->idle_bytes)
            return buffer;
        tz_nbd_payloads_destroy(payloads);
        return aligned_alloc(PAYLOAD_ALIGN, TZ_NBD_PAYLOAD_MIN << size_class);
    }
    payloads->idle[size_class] = *buffer;
    payloads->idle_bytes -= TZ_NBD_PAYLOAD_MIN << size_class;
    return buffer;
}

void tz_nbd_payload_give(tz_nbd_payloads *payloads, void *buffer, uint64_t length)
{
    unsigned size_class = class_of(length);
    uint64_t bytes = TZ_NBD_PAYLOAD_MIN << size_class;

    if (payloads->idle_bytes + bytes > TZ_NBD_PAYLOAD_IDLE) {
        free(buffer);
        return;
    }
    *(void **)buffer = payloads->idle[size_class];
    payloads->idle[size_class] = buffer;
    payloads->idle_bytes += bytes;
}

void tz_nbd_payloads_destroy(tz_nbd_payloads *payloads)
{
    for (unsigned size_class = 0; size_class < TZ_NBD_PAYLOAD_CLASSES; size_class++) {
        void **buffer;

        while ((buffer = payloads->idle[size_class]) != NULL) {
            payloads->idle[size_class] = *buffer;
            free(buffer);
        }
    }
    payloads->idle_bytes = 0;
}
