/* SPDX-License-Identifier: Apache-2.0
 *
 * The domain of a session of files: set between prepare and install, copied, and constant from install on.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>

#include "session_rig.h"

static int domain_fd(void)
{
    tz_session_handles h;

    tz_session_handles_get(rig.session, &h);
    return h.domain_fd;
}

static void prepare(void)
{
    tz_session_config c = usual();

    c.domain = true;
    setup();
    CHECK_EQ(tz_session_prepare(&rig.session, rig.volume, &c), 0);
}

static void put(uint64_t word)
{
    CHECK_EQ(pwrite(domain_fd(), &word, sizeof(word), 0), sizeof(word));
}

static int install_now(void)
{
    int rc;

    close_gate();
    step_until(&rig.drained);
    rc = tz_gate_install(rig.volume, rig.session);
    open_gate();
    return rc;
}

static uint64_t images(void)
{
    return atomic_load(&tz_session_header_of(rig.session)->images);
}

static void the_client_gets_memory_of_a_fixed_size(void)
{
    const int all = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    struct stat st;

    prepare();
    CHECK_EQ(fstat(domain_fd(), &st), 0);
    CHECK_EQ(st.st_size, 8);
    CHECK_EQ(st.st_blocks, 0);
    CHECK_EQ(fcntl(domain_fd(), F_GET_SEALS) & all, all);
    CHECK(ftruncate(domain_fd(), 0) < 0 && ftruncate(domain_fd(), 4096) < 0);
    CHECK(fcntl(domain_fd(), F_GETFD) & FD_CLOEXEC);
    end(rig.session, true, TZ_SESSION_PUNCTURED, TZ_PUNCTURE_MOVER);
    teardown();
}

static void the_whole_volume_has_no_domain_to_set(void)
{
    tz_session_config c = usual();

    setup();
    CHECK_EQ(tz_session_prepare(&rig.session, rig.volume, &c), 0);
    CHECK_EQ(domain_fd(), -1);
    CHECK_EQ(tz_session_set_domain(rig.session), -EINVAL);
    CHECK(!tz_session_lacks_domain(rig.session));
    CHECK_EQ(install_now(), 0);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

/* What was written counts only once it was set; without that there is nothing to back up, and no T0. */
static void without_a_domain_there_is_no_t0(void)
{
    prepare();
    put(0xff);
    CHECK(tz_session_lacks_domain(rig.session));
    CHECK_EQ(install_now(), -ENODATA);
    CHECK_EQ(state(), TZ_SESSION_PREPARED);
    CHECK_EQ(tz_session_set_domain(rig.session), 0);
    CHECK(!tz_session_lacks_domain(rig.session));
    CHECK_EQ(install_now(), 0);
    CHECK_EQ(state(), TZ_SESSION_ACTIVE);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

static void designated_tracks_are_protected_and_no_others(void)
{
    prepare();
    put(UINT64_C(0x8000000100000f00)); /* tracks 8 to 11, 32, 63 */
    CHECK_EQ(tz_session_set_domain(rig.session), 0);
    put(UINT64_MAX); /* too late */
    CHECK_EQ(install_now(), 0);
    write_tracks(4, 16);
    CHECK_EQ(images(), 4);
    write_tracks(30, 4);
    CHECK_EQ(images(), 5);
    write_tracks(60, 4);
    CHECK_EQ(images(), 6);
    CHECK(tz_session_find(tz_session_header_of(rig.session), 8) != TZ_SLOT_NONE);
    CHECK(tz_session_find(tz_session_header_of(rig.session), 12) == TZ_SLOT_NONE);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

static void the_last_word_before_install_counts(void)
{
    prepare();
    put(0xff);
    CHECK_EQ(tz_session_set_domain(rig.session), 0);
    CHECK_EQ(fallocate(domain_fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 8), 0);
    CHECK_EQ(tz_session_set_domain(rig.session), 0);
    CHECK_EQ(install_now(), 0);
    put(0xff);
    CHECK_EQ(tz_session_set_domain(rig.session), -EBUSY);
    write_tracks(0, 8);
    CHECK_EQ(images(), 0);
    end(rig.session, false, TZ_SESSION_ENDED, TZ_PUNCTURE_NONE);
    teardown();
}

/* The copy is counted with all the other memory, and the tables stay within their cap. */
static void the_cap_counts_the_domain(void)
{
    setup();
    for (uint64_t memory = 64 * 1024; memory <= 1 << 20; memory += 50000) {
        tz_session_config c = usual();
        tz_session_header *h;

        c.domain = true;
        c.memory_bytes = memory;
        if (tz_session_prepare(&rig.session, rig.volume, &c) == -ENOSPC)
            continue;
        h = tz_session_header_of(rig.session);
        CHECK(h->owned_bytes + h->shared_bytes + rig.session->private_bytes <= memory);
        CHECK((char *)rig.session->domain > (char *)rig.session->private_memory);
        CHECK((char *)rig.session->domain + 8 <= (char *)rig.session->private_memory + rig.session->private_bytes);
        tz_session_destroy(rig.session);
    }
    teardown();
}

/* ---- many pages ---- */

#define LARGE_TRACKS UINT64_C(1000003)
#define LARGE_WORDS  ((LARGE_TRACKS + 63) / 64)

static void setup_large(tz_session_config *c)
{
    *c = usual();
    c->domain = true;
    c->memory_bytes = 8 << 20;
    setup();
    tz_volume_close(rig.volume);
    CHECK_EQ(truncate(rig.path, LARGE_TRACKS * TRACK), 0);
    CHECK_EQ(tz_volume_open(&rig.volume, rig.io, &(tz_volume_config){.path = rig.path}), 0);
    CHECK_EQ(tz_session_prepare(&rig.session, rig.volume, c), 0);
}

static void every_word_arrives(void)
{
    uint64_t *words = calloc(LARGE_WORDS, 8), state = 99;
    tz_session_config c;

    CHECK(words);
    setup_large(&c);
    for (int i = 0; i < 300; i++) {
        uint64_t w = (state = state * UINT64_C(6364136223846793005) + 1) % LARGE_WORDS;

        words[w] = state | 1;
        CHECK_EQ(pwrite(domain_fd(), &words[w], 8, (off_t)(w * 8)), 8);
    }
    CHECK_EQ(tz_session_set_domain(rig.session), 0);
    CHECK(memcmp(rig.session->domain, words, LARGE_WORDS * 8) == 0);
    free(words);
    tz_session_destroy(rig.session);
    teardown();
}

static _Atomic bool stop;

static void *scribble(void *arg)
{
    int fd = *(int *)arg;
    uint64_t state = 5, word = UINT64_MAX;

    while (!atomic_load(&stop)) {
        off_t at = (off_t)((state = state * UINT64_C(6364136223846793005) + 1442695040888963407) % (LARGE_WORDS * 8));

        if (state >> 40 & 1)
            CHECK(pwrite(fd, &word, 8, at & ~7) == 8);
        else
            CHECK_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at & ~4095, 4096), 0);
        lseek(fd, at, SEEK_SET);
    }
    return NULL;
}

/* Pages come and go, and the position moves, while the domain is copied: whatever arrives, it comes to an end. */
static void a_client_that_writes_meanwhile(void)
{
    tz_session_config c;
    pthread_t thread;
    int fd;

    setup_large(&c);
    fd = domain_fd();
    atomic_store(&stop, false);
    CHECK_EQ(pthread_create(&thread, NULL, scribble, &fd), 0);
    for (int i = 0; i < 200; i++)
        CHECK_EQ(tz_session_set_domain(rig.session), 0);
    atomic_store(&stop, true);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    tz_session_destroy(rig.session);
    teardown();
}

int main(void)
{
    RUN(the_client_gets_memory_of_a_fixed_size);
    RUN(the_whole_volume_has_no_domain_to_set);
    RUN(without_a_domain_there_is_no_t0);
    RUN(designated_tracks_are_protected_and_no_others);
    RUN(the_last_word_before_install_counts);
    RUN(the_cap_counts_the_domain);
    RUN(every_word_arrives);
    RUN(a_client_that_writes_meanwhile);
    return 0;
}
