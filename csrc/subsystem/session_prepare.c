/* SPDX-License-Identifier: Apache-2.0
 *
 * Making a session: everything that a held update may need is allocated, touched, locked and sealed here.
 *
 *   memory_bytes  =  owned (header, slots, zero bitmap | memory tier)  +  shared (ring, track words)
 *                    +  private (read buffers, saved, pending, domain, free slots, preservations)
 *
 * The memory tier gets what the others leave.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "session_private.h"
#include "tz/crash.h"

/* One preservation reads up to PRESERVE_BYTES at once; of the memory, an eighth is for such reads, up to
 * MOST_PRESERVES. */
#define PRESERVE_BYTES (128 * TZ_KIB)
#define MOST_PRESERVES 64

#define LOW_PERCENT  25
#define HIGH_PERCENT 80
#define MAX_DELAY_US 2000

/* A disk that spins up or retries a sector takes seconds, one that has not answered after half a minute is not going to;
 * its user waits there anyway. The file tier's disk is one that he has nothing to do with: he waits for it once. */
#define VOLUME_ANSWER_MS 30000
#define TIER_ANSWER_MS   5000

/* Sizes of all parts, in bytes; offsets in the private mapping. */
struct plan {
    tz_session_header header;
    uint64_t buffer_bytes;
    uint32_t preserves;
    uint64_t saved, pending, domain, free_slots, preserve; /* offsets behind the buffers */
    uint64_t private_bytes;
};

/* ---- planning ---- */

static uint64_t plan_buffers(struct plan *plan, uint64_t memory_bytes, uint64_t track)
{
    const uint64_t budget = memory_bytes / 8;
    const uint64_t wanted = tz_align_down(tz_min_u64(PRESERVE_BYTES, budget / 8), track);

    plan->buffer_bytes = tz_max_u64(wanted, track);
    plan->preserves = (uint32_t)tz_max_u64(1, tz_min_u64(MOST_PRESERVES, budget / plan->buffer_bytes));
    return plan->buffer_bytes * plan->preserves;
}

static int plan_slots(struct plan *plan, const tz_session_config *config, uint64_t size, uint64_t memory_slots)
{
    const uint64_t slots = memory_slots + config->file_bytes / config->track_size;
    uint64_t words, at;
    int rc;

    plan->header.track_shift = (uint32_t)__builtin_ctzll(config->track_size);
    plan->header.volume_size = size;
    plan->header.slots = (uint32_t)tz_min_u64(slots, UINT32_MAX);
    plan->header.memory_slots = (uint32_t)tz_min_u64(memory_slots, UINT32_MAX);
    rc = tz_session_layout_plan(&plan->header);
    if (rc < 0)
        return rc;
    words = tz_align_up((plan->header.tracks + TZ_TRACKS_A_WORD - 1) / TZ_TRACKS_A_WORD * 4, TZ_CACHE_LINE);
    plan->saved = plan_buffers(plan, config->memory_bytes, config->track_size);
    plan->pending = plan->saved + words;
    plan->domain = plan->pending + words;
    plan->free_slots = plan->domain + (config->domain ? words : 0);
    at = plan->free_slots + (uint64_t)plan->header.slots * sizeof(uint32_t);
    plan->preserve = tz_align_up(at, TZ_CACHE_LINE);
    plan->private_bytes = tz_align_up(plan->preserve + plan->preserves * sizeof(tz_preserve), 4096);
    return 0;
}

/* What the client writes its domain into. */
static uint64_t domain_bytes(uint64_t tracks)
{
    return (tracks + 63) / 64 * 8;
}

static bool plan_fits(struct plan *plan, const tz_session_config *config, uint64_t size, uint64_t memory_slots)
{
    if (plan_slots(plan, config, size, memory_slots) < 0)
        return false;
    return plan->header.owned_bytes + plan->header.shared_bytes + plan->private_bytes +
               (config->domain ? domain_bytes(plan->header.tracks) : 0) <=
           config->memory_bytes;
}

/* The most slots that the cap holds: found by bisection, for tables grow in steps. */
static int plan_session(struct plan *plan, const tz_session_config *config, uint64_t size)
{
    uint64_t low = 0, high = config->memory_bytes / config->track_size + 1;

    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;

        *(plan_fits(plan, config, size, middle) ? &low : &high) = middle;
    }
    return plan_fits(plan, config, size, low) ? 0 : -ENOSPC;
}

static uint32_t percent(uint32_t given, uint32_t usual)
{
    return given ? given : usual;
}

static uint32_t part_of(uint32_t slots, uint32_t percents)
{
    return (uint32_t)((uint64_t)slots * percents / 100);
}

static bool marks_make_sense(const tz_session_config *config)
{
    const uint32_t low = percent(config->low_percent, LOW_PERCENT);
    const uint32_t high = percent(config->high_percent, HIGH_PERCENT);

    return low < high && high <= 100;
}

static bool config_makes_sense(const tz_session_config *config, const tz_volume *volume)
{
    const uint64_t track = config->track_size;

    return tz_is_pow2(track) && track >= TZ_TRACK_MIN && track <= TZ_TRACK_MAX && track >= volume->zero_align &&
           marks_make_sense(config) && config->max_delay_us <= 1000000;
}

/* ---- memory ---- */

/* Touched now; locked where this process may. */
static void *map_all(size_t bytes, int flags, int fd)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_POPULATE, fd, 0);

    if (memory != MAP_FAILED)
        (void)mlock(memory, bytes);
    return memory;
}

static int make_memfd(int *fd, size_t bytes)
{
    *fd = memfd_create("timezero-session", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    return *fd < 0 || ftruncate(*fd, (off_t)bytes) < 0 ? -errno : 0;
}

static int seal(int fd, int seals)
{
    return fcntl(fd, F_ADD_SEALS, seals | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0 ? -errno : 0;
}

/* A memfd, mapped and then sealed; its mapping stays writable for us. */
static int make_memory(int *fd, void **memory, size_t bytes, int seals)
{
    int rc = make_memfd(fd, bytes);

    if (rc < 0)
        return rc;
    *memory = map_all(bytes, MAP_SHARED, *fd);
    if (*memory == MAP_FAILED) {
        *memory = NULL;
        return -errno;
    }
    return seal(*fd, seals);
}

/* Where the client writes the domain: untouched memory, so that what is not designated costs nothing. */
static int make_domain(tz_session *session, uint64_t tracks)
{
    int rc;

    session->domain_bytes = domain_bytes(tracks);
    rc = make_memfd(&session->domain_fd, session->domain_bytes);
    return rc < 0 ? rc : seal(session->domain_fd, 0);
}

static int make_shared_memory(tz_session *session, const struct plan *plan, void **owned, void **shared)
{
    int rc = make_memory(&session->owned_fd, owned, plan->header.owned_bytes, F_SEAL_FUTURE_WRITE);

    return rc < 0 ? rc : make_memory(&session->shared_fd, shared, plan->header.shared_bytes, 0);
}

static void fill_header(tz_session_header *h, const struct plan *plan, const tz_session_config *config)
{
    memcpy(h, &plan->header, offsetof(tz_session_header, state));
    h->magic = TZ_SESSION_MAGIC;
    h->layout = TZ_SESSION_LAYOUT;
    h->low_mark = part_of(h->slots, percent(config->low_percent, LOW_PERCENT));
    h->high_mark = part_of(h->slots, percent(config->high_percent, HIGH_PERCENT));
}

static void cut_private_memory(tz_session *session, const struct plan *plan, const tz_session_config *config)
{
    char *base = session->private_memory;
    tz_preserve *preserves = (tz_preserve *)(base + plan->preserve);

    session->saved = (uint32_t *)(base + plan->saved);
    session->pending = (uint32_t *)(base + plan->pending);
    if (config->domain)
        session->domain = (uint32_t *)(base + plan->domain);
    session->preserves = preserves;
    session->preserves_count = plan->preserves;
    for (uint32_t i = 0; i < plan->preserves; i++) {
        preserves[i].session = session;
        preserves[i].op.user = &preserves[i];
        preserves[i].buffer = base + i * plan->buffer_bytes;
        preserves[i].next = session->free_preserves;
        session->free_preserves = &preserves[i];
    }
}

static int make_memories(tz_session *session, const struct plan *plan, const tz_session_config *config)
{
    void *owned = NULL, *shared = NULL, *private;
    int rc = make_shared_memory(session, plan, &owned, &shared);

    /* From here on the sidefile knows its memory, so that destroy finds it. */
    session->sidefile.header = owned;
    session->sidefile.ring = shared;
    if (rc < 0)
        return rc;
    private = map_all(plan->private_bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    if (private == MAP_FAILED)
        return -ENOMEM;
    session->private_memory = private;
    fill_header(owned, plan, config);
    session->high = tz_mark_high(tz_session_header_of(session)->low_mark, tz_session_header_of(session)->high_mark);
    cut_private_memory(session, plan, config);
    tz_sidefile_init(&session->sidefile, owned, shared, (uint32_t *)((char *)private + plan->free_slots),
                     session->faults);
    return config->domain ? make_domain(session, plan->header.tracks) : 0;
}

/* ---- files ---- */

/* Room for the whole tier now, so that a full disk is told at prepare and not behind a held update. */
static int reserve(int fd, uint64_t bytes)
{
    if (ftruncate(fd, (off_t)bytes) < 0)
        return -errno;
    if (fallocate(fd, 0, 0, (off_t)bytes) < 0 && errno != EOPNOTSUPP && errno != ENOSYS)
        return -errno;
    return 0;
}

/* The caller's descriptor is duplicated, for it stays the caller's when something fails. */
static int open_file_tier(tz_session *session, const tz_session_config *config)
{
    uint64_t bytes = tz_align_down(config->file_bytes, config->track_size);
    int fd, rc;

    if (config->file_fd < 0)
        return 0;
    rc = reserve(config->file_fd, bytes);
    if (rc < 0)
        return rc;
    TZ_CRASH_POINT("session.tier");
    fd = fcntl(config->file_fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    rc = tz_file_adopt(&session->file_tier, fd, TZ_FILE_WRITE);
    if (rc < 0) {
        close(fd);
        session->file_tier.fd = -1;
        return rc;
    }
    if (session->file_tier.offset_align > config->track_size || session->file_tier.size < bytes)
        return -EINVAL;
    rc = tz_file_reopen(&session->file_reader, &session->file_tier, 0);
    if (rc < 0)
        session->file_reader.fd = -1;
    return rc;
}

static int open_files(tz_session *session, const tz_session_config *config)
{
    int rc = tz_file_reopen(&session->volume_reader, &session->volume->file, 0);

    if (rc < 0) {
        session->volume_reader.fd = -1;
        return rc;
    }
    session->drain_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return session->drain_fd < 0 ? -errno : open_file_tier(session, config);
}

/* ---- prepare, destroy ---- */

static tz_session *new_session(tz_volume *volume, const tz_session_config *config, const struct plan *plan)
{
    tz_session *session = calloc(1, sizeof(*session));

    if (!session)
        return NULL;
    session->owned_bytes = plan->header.owned_bytes;
    session->shared_bytes = plan->header.shared_bytes;
    session->private_bytes = plan->private_bytes;
    session->volume = volume;
    session->track_size = config->track_size;
    session->track_shift = plan->header.track_shift;
    session->preserve_tracks = (uint32_t)(plan->buffer_bytes >> plan->header.track_shift);
    session->faults = config->faults;
    session->max_delay_us = config->exempt ? 0 : config->max_delay_us ? config->max_delay_us : MAX_DELAY_US;
    session->volume_answer_ns =
        UINT64_C(1000000) * (config->volume_answer_ms ? config->volume_answer_ms : VOLUME_ANSWER_MS);
    session->tier_answer_ns = UINT64_C(1000000) * (config->tier_answer_ms ? config->tier_answer_ms : TIER_ANSWER_MS);
    session->owned_fd = session->shared_fd = session->drain_fd = session->domain_fd = -1;
    session->file_tier.fd = session->volume_reader.fd = session->file_reader.fd = -1;
    return session;
}

static int plan_checked(struct plan *plan, const tz_volume *volume, const tz_session_config *config)
{
    return config_makes_sense(config, volume) ? plan_session(plan, config, volume->file.size) : -EINVAL;
}

int tz_session_check(const tz_volume *volume, const tz_session_config *config)
{
    struct plan plan = {0};

    return plan_checked(&plan, volume, config);
}

int tz_session_prepare(tz_session **out, tz_volume *volume, const tz_session_config *config)
{
    struct plan plan = {0};
    tz_session *session;
    int rc;

    if ((config->file_fd >= 0) != (config->file_bytes > 0))
        return -EINVAL;
    TZ_CRASH_POINT("session.prepare");
    rc = plan_checked(&plan, volume, config);
    if (rc < 0)
        return rc;
    session = new_session(volume, config, &plan);
    if (!session)
        return -ENOMEM;
    rc = open_files(session, config);
    if (rc == 0)
        rc = make_memories(session, &plan, config);
    if (rc < 0) {
        tz_session_destroy(session);
        return rc;
    }
    TZ_CRASH_POINT("session.memory");
    if (config->file_fd >= 0)
        close(config->file_fd);
    *out = session;
    return 0;
}

static void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
}

void tz_session_destroy(tz_session *session)
{
    if (!session)
        return;
    assert(!session->installed && !session->preserving && !session->watching && !session->waiting);
    tz_file *files[] = {&session->file_tier, &session->volume_reader, &session->file_reader};

    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
        if (files[i]->fd >= 0)
            tz_file_close(files[i]);
    close_fd(session->drain_fd);
    if (session->sidefile.ring)
        munmap(session->sidefile.ring, session->shared_bytes);
    if (session->sidefile.header)
        munmap(session->sidefile.header, session->owned_bytes);
    if (session->private_memory)
        munmap(session->private_memory, session->private_bytes);
    close_fd(session->owned_fd);
    close_fd(session->shared_fd);
    close_fd(session->domain_fd);
    free(session);
}
