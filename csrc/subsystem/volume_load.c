/* SPDX-License-Identifier: Apache-2.0
 *
 * Measuring the application's load: the volume's own, and that of every session installed on it.
 *
 * The volume's histograms say what is usual when nothing is backed up, so they rest while a session is installed: a
 * backup that looked back upon the harm of the one before would find its own harm usual. They fade: counts are halved
 * whenever there are FADE of them, so that they tell of the last 65,000 to 130,000 requests (seconds of a busy volume, an
 * hour of a quiet one), not of last month. What sessions publish only grows, since install.
 *
 * Cost: two looks at the clock a request, and some stores to lines that nobody else writes.
 */
#include "volume_private.h"

#include "clock.h"
#include "session_private.h"

#define FADE (UINT64_C(1) << 17)

static tz_load *load_of(tz_session *session)
{
    return &tz_session_header_of(session)->load;
}

static bool is_measured(const tz_request *request)
{
    switch (request->kind) {
    case TZ_REQUEST_READ:
    case TZ_REQUEST_WRITE:
    case TZ_REQUEST_TRIM:
    case TZ_REQUEST_ZERO:
        return true;
    default:
        return false;
    }
}

static void publish_presence(const tz_volume *volume, tz_load *load, uint64_t now)
{
    const tz_load *own = &volume->load;

    atomic_store_explicit(&load->last_ns, now, memory_order_relaxed);
    atomic_store_explicit(&load->reads_in_flight, atomic_load_explicit(&own->reads_in_flight, memory_order_relaxed),
                          memory_order_relaxed);
    atomic_store_explicit(&load->updates_in_flight, atomic_load_explicit(&own->updates_in_flight, memory_order_relaxed),
                          memory_order_relaxed);
}

static void change_in_flight(tz_volume *volume, const tz_request *request, uint32_t by)
{
    tz_load *own = &volume->load;
    _Atomic uint32_t *count = request->kind == TZ_REQUEST_READ ? &own->reads_in_flight : &own->updates_in_flight;

    atomic_store_explicit(count, atomic_load_explicit(count, memory_order_relaxed) + by, memory_order_relaxed);
}

static void add(tz_volume *volume, enum tz_load_measure measure, uint64_t ns)
{
    tz_load_histogram *usual = &volume->load.histograms[measure];

    for (tz_session *s = volume->gate.sessions; s; s = tz_gate_next_session(s))
        tz_load_add(&load_of(s)->histograms[measure], ns);
    if (volume->gate.sessions)
        return;
    tz_load_add(usual, ns);
    if (tz_load_get(&usual->count) >= FADE)
        tz_load_fade(usual);
}

void tz_volume_load_arrived(tz_volume *volume, tz_request *request)
{
    uint64_t now;

    if (!is_measured(request))
        return;
    request->volume.arrived_ns = now = tz_now_ns();
    change_in_flight(volume, request, 1);
    atomic_store_explicit(&volume->load.last_ns, now, memory_order_relaxed);
    tz_load_bump(&volume->load.arrived, 1);
    for (tz_session *s = volume->gate.sessions; s; s = tz_gate_next_session(s)) {
        publish_presence(volume, load_of(s), now);
        tz_load_bump(&load_of(s)->arrived, 1);
    }
}

static void count_bytes(tz_load *load, const tz_request *request)
{
    if (request->kind == TZ_REQUEST_READ)
        tz_load_bump(&load->read_bytes, request->length);
    else if (request->kind == TZ_REQUEST_WRITE)
        tz_load_bump(&load->written_bytes, request->length);
}

void tz_volume_load_ended(tz_volume *volume, tz_request *request, bool good)
{
    uint64_t now;

    if (!request->volume.arrived_ns)
        return;
    now = tz_now_ns();
    change_in_flight(volume, request, UINT32_MAX); /* one less */
    atomic_store_explicit(&volume->load.last_ns, now, memory_order_relaxed);
    for (tz_session *s = volume->gate.sessions; s; s = tz_gate_next_session(s))
        publish_presence(volume, load_of(s), now);
    if (!good)
        return;
    count_bytes(&volume->load, request);
    for (tz_session *s = volume->gate.sessions; s; s = tz_gate_next_session(s))
        count_bytes(load_of(s), request);
    if (request->kind == TZ_REQUEST_READ)
        add(volume, TZ_LOAD_READS, now - request->volume.arrived_ns);
    else if (request->kind == TZ_REQUEST_WRITE)
        add(volume, TZ_LOAD_UPDATES, now - request->volume.arrived_ns);
}

void tz_volume_load_stats(const tz_volume *volume, tz_volume_stats *out)
{
    const tz_load_histogram *reads = &volume->load.histograms[TZ_LOAD_READS];
    const tz_load_histogram *updates = &volume->load.histograms[TZ_LOAD_UPDATES];

    out->reads_in_flight = atomic_load(&volume->load.reads_in_flight);
    out->updates_in_flight = atomic_load(&volume->load.updates_in_flight);
    out->usual_read_p50_ns = tz_load_quantile(reads, 0.5);
    out->usual_read_p99_ns = tz_load_quantile(reads, 0.99);
    out->usual_update_p50_ns = tz_load_quantile(updates, 0.5);
    out->usual_update_p99_ns = tz_load_quantile(updates, 0.99);
}
