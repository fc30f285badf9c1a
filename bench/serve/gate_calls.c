/* SPDX-License-Identifier: Apache-2.0
 *
 * What the gate itself takes of an update: judging it, and counting it in and out, without a session and with one whose
 * tracks are all copied. Updates of 4 KiB at random places, a volume of the size in GiB that is given. Prints JSON:
 * [[who, nanoseconds an update], ...], medians of ROUNDS alternating rounds. gate.py builds and runs it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/subsystem/clock.h"
#include "../../csrc/subsystem/session_private.h"

#define UPDATES ((uint32_t)1 << 16)
#define ROUNDS  41
#define BLOCK   UINT64_C(4096)

static struct rig {
    tz_io *io;
    tz_volume *volume;
    tz_session *session;
    tz_gate_closer closer;
    bool settled;
    uint64_t places[UPDATES];
} rig;

static void fail(const char *what)
{
    fprintf(stderr, "%s failed\n", what);
    exit(1);
}

static void on_drained(tz_gate_closer *closer)
{
    (void)closer;
    if (tz_gate_install(rig.volume, rig.session) < 0)
        fail("install");
}

static void on_broken(tz_gate_closer *closer)
{
    (void)closer;
    fail("the suspension");
}

static void on_settled(tz_gate_closer *closer)
{
    (void)closer;
    rig.settled = true;
}

static void open_volume(uint64_t bytes)
{
    char path[64];
    tz_io_config io = {.kind = TZ_IO_THREADS, .threads = 1};
    tz_volume_config config = {.path = path};
    int fd = memfd_create("volume", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
        fail("memfd");
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (tz_io_create(&rig.io, &io) < 0 || tz_volume_open(&rig.volume, rig.io, &config) < 0)
        fail("opening the volume");
}

/* A session of which everything is copied. Its memory: half a byte of bitmaps a track, and room for a sidefile. */
static void arm(uint64_t bytes)
{
    tz_session_config config = {.track_size = BLOCK, .memory_bytes = bytes / BLOCK + 64 * TZ_MIB, .file_fd = -1};
    tz_session_handles handles;
    const tz_session_header *header;
    _Atomic uint64_t *words;
    char *shared;

    if (tz_session_prepare(&rig.session, rig.volume, &config) < 0)
        fail("prepare");
    rig.closer = (tz_gate_closer){on_drained, on_broken, on_settled, 0};
    if (tz_gate_close(rig.volume, &rig.closer, tz_now_ns() + UINT64_C(10000000000)) < 0)
        fail("close");
    tz_gate_open(rig.volume, &rig.closer);
    while (!rig.settled)
        tz_io_run(rig.io, 1000000);

    tz_session_handles_get(rig.session, &handles);
    shared = mmap(NULL, handles.shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, handles.shared_fd, 0);
    if (shared == MAP_FAILED)
        fail("mmap");
    header = tz_session_header_of(rig.session);
    words = (_Atomic uint64_t *)(uintptr_t)(shared + header->words_offset);
    for (uint64_t i = 0; i < (header->tracks + TZ_TRACKS_A_WORD - 1) / TZ_TRACKS_A_WORD; i++)
        tz_tracks_copied(&words[i], UINT32_MAX);
    munmap(shared, handles.shared_bytes);
}

static double round_ns(void)
{
    tz_request request = {.kind = TZ_REQUEST_WRITE, .length = BLOCK};
    uint64_t begin = tz_now_ns();

    for (uint32_t i = 0; i < UPDATES; i++) {
        request.volume.from = request.volume.at = request.offset = rig.places[i];
        request.volume.to = request.volume.end = rig.places[i] + BLOCK;
        if (!tz_gate_pass(rig.volume, &request))
            fail("an update was held, which");
        tz_gate_completed(rig.volume);
    }
    return (double)(tz_now_ns() - begin) / UPDATES;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    static double took[2][ROUNDS];
    uint64_t bytes = (argc > 1 ? strtoull(argv[1], NULL, 10) : 1) * TZ_GIB, seed = 1;
    tz_session *session;

    for (uint32_t i = 0; i < UPDATES; i++) {
        seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        rig.places[i] = (seed >> 20) % (bytes / BLOCK) * BLOCK;
    }
    open_volume(bytes);
    arm(bytes);
    session = rig.volume->gate.sessions;
    for (int i = 0; i < 2 * ROUNDS; i++) {
        rig.volume->gate.sessions = i % 2 ? session : NULL;
        took[i % 2][i / 2] = round_ns();
    }
    for (int i = 0; i < 2; i++)
        qsort(took[i], ROUNDS, sizeof(double), by_value);
    printf("[[\"no session\", %.2f], [\"session, all copied\", %.2f]]\n", took[0][ROUNDS / 2], took[1][ROUNDS / 2]);
    return 0;
}
