/* SPDX-License-Identifier: Apache-2.0
 *
 * Devices that do not answer: what an onlooker is told of them (tz_mover_waiting), and whom they keep. A pipe that nobody
 * writes to, or reads, stands for such a device, as source and as sink.
 */
#include "../../csrc/mover/internal.h"
#include "mover_fixture.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

#define MS    INT64_C(1000000)
#define DEPTH 24 /* chunks in flight: more than there are workers for one file */

/* ---- a file system that may be mute about holes: before the C library's lseek() ---- */

static _Atomic bool mute_about_holes;
static _Atomic uint32_t asked_for_holes;

off_t lseek(int fd, off_t offset, int whence)
{
    if (whence == SEEK_DATA && atomic_load(&mute_about_holes)) {
        atomic_fetch_add(&asked_for_holes, 1);
        while (atomic_load(&mute_about_holes))
            usleep(1000);
    }
    return syscall(SYS_lseek, fd, offset, whence);
}

/* ---- ends of a transfer that may be mute ---- */

typedef struct pipe_end {
    tz_source source;
    tz_sink sink;
    tz_file file;
    int other; /* closed: every operation ends */
    int later; /* an eventfd: nothing is asked of the pipe before it is written to; -1: at once */
    _Atomic uint32_t asked;
} pipe_end;

enum {
    BEGIN,
    LATER,
    ASKED
};

static int prepare(tz_source *source, uint32_t chunk_size)
{
    (void)source;
    (void)chunk_size;
    return 0;
}

static int load(tz_source *base, tz_chunk *chunk)
{
    pipe_end *pipe = tz_container_of(base, pipe_end, source);

    if (chunk->phase == BEGIN && pipe->later >= 0) {
        chunk->phase = LATER;
        tz_chunk_poll(chunk, pipe->later, POLLIN);
        return TZ_STEP_PENDING;
    }
    if (chunk->phase != ASKED) {
        chunk->phase = ASKED;
        atomic_fetch_add(&pipe->asked, 1);
        tz_chunk_read(chunk, &pipe->file, chunk->frame, chunk->length, TZ_IO_AT_POSITION);
        return TZ_STEP_PENDING;
    }
    chunk->at = chunk->length;
    return TZ_STEP_DONE; /* zeros */
}

static int store(tz_sink *base, tz_chunk *chunk)
{
    pipe_end *pipe = tz_container_of(base, pipe_end, sink);

    if (chunk->phase != ASKED) {
        chunk->phase = ASKED;
        atomic_fetch_add(&pipe->asked, 1);
        tz_chunk_materialize(chunk, 1);
        tz_chunk_write(chunk, &pipe->file, chunk->frame, chunk->length, TZ_IO_AT_POSITION);
        return TZ_STEP_PENDING;
    }
    return chunk->result < 0 ? (int)chunk->result : TZ_STEP_DONE;
}

static void keep_source(tz_source *source)
{
    (void)source;
}

static void keep_sink(tz_sink *sink)
{
    (void)sink;
}

static const tz_source_ops pipe_source_ops = {.prepare = prepare, .load = load, .destroy = keep_source};
static const tz_sink_ops pipe_sink_ops = {.store = store, .destroy = keep_sink};

static void pipe_make(pipe_end *end, uint64_t size, bool reads)
{
    int fds[2];

    CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
    *end = (pipe_end){.source = {.ops = &pipe_source_ops, .size = size},
                      .sink = {.ops = &pipe_sink_ops},
                      .file = {.fd = fds[!reads], .memory_align = 1, .offset_align = 1},
                      .other = fds[reads],
                      .later = -1};
}

/* ---- a mover with one worker ---- */

static tz_bufspace *space;
static tz_mover *mover;

static void mover_make(tz_io_kind engine)
{
    tz_mover_config config = {.io = engine, .depth = DEPTH, .chunk_size = CHUNK};

    CHECK_EQ(tz_bufspace_create(&space, CHUNK, 2 * DEPTH, 2, 0), 0);
    CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
}

static void mover_end(void)
{
    check_space_empty(space);
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
}

static uint64_t waiting(uint32_t *transfer, enum tz_transfer_side *side)
{
    *transfer = UINT32_MAX;
    *side = TZ_SIDE_NONE;
    return tz_mover_waiting(mover, transfer, side);
}

static bool nobody_waits(void)
{
    enum tz_transfer_side side;
    uint32_t transfer;
    uint64_t ns = waiting(&transfer, &side);

    /* Outputs are left alone then. */
    CHECK(ns > 0 || (transfer == UINT32_MAX && side == TZ_SIDE_NONE));
    return ns == 0;
}

static void wait_for(const _Atomic uint32_t *count, uint32_t least)
{
    for (int i = 0; i < 20000 && atomic_load(count) < least; i++)
        usleep(1000);
    CHECK(atomic_load(count) >= least);
}

static tz_sink *null_sink(void)
{
    tz_sink *sink;

    CHECK_EQ(tz_sink_null(&sink), 0);
    return sink;
}

/* Transfer 0 ends, and does not wait for the mute one, which is 1. */
static void the_other_ends(void)
{
    tz_transfer_report report = {.done = false};

    for (int i = 0; i < 20000 && !report.done; i++) {
        usleep(1000);
        tz_mover_report_get(mover, 0, &report);
    }
    CHECK(report.done);
    CHECK_EQ(report.error, 0);
    tz_mover_report_get(mover, 1, &report);
    CHECK(!report.done);
}

static void told_of(enum tz_transfer_side expected)
{
    enum tz_transfer_side side;
    uint32_t transfer;
    uint64_t first = waiting(&transfer, &side), later;

    CHECK(first > 0);
    CHECK_EQ(transfer, 1);
    CHECK_EQ(side, expected);
    usleep(50000);
    later = waiting(&transfer, &side);
    CHECK(later >= first + 50 * MS); /* the oldest stays the oldest */
}

/* ---- the tests ---- */

/* Two transfers and one worker. The mute one has as many operations under way as it may; those on the other's file have
 * threads of their own. */
static void a_mute_end(bool reads)
{
    for (size_t n = 0; n < LENGTH_OF(engines); n++) {
        scratch s;
        pipe_end pipe;
        int plain;

        scratch_make(&s, "/var/tmp");
        plain = make_file(&s, "plain", 60 * CHUNK, 1);
        pipe_make(&pipe, 60 * CHUNK, reads);
        mover_make(engines[n]);
        CHECK_EQ(tz_mover_add(mover, file_source_of(plain, 0), null_sink(), NULL), 0);
        if (reads)
            CHECK_EQ(tz_mover_add(mover, &pipe.source, null_sink(), NULL), 1);
        else
            CHECK_EQ(tz_mover_add(mover, file_source_of(plain, 0), &pipe.sink, NULL), 1);
        CHECK(nobody_waits());
        CHECK_EQ(tz_mover_start(mover), 0);
        the_other_ends();
        wait_for(&pipe.asked, DEPTH - 1);
        told_of(reads ? TZ_SIDE_SOURCE : TZ_SIDE_SINK);
        close(pipe.other);
        CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
        CHECK(nobody_waits());
        mover_end();
        close(pipe.file.fd);
        close(plain);
        scratch_remove(&s);
    }
}

static void a_mute_source(void)
{
    a_mute_end(true);
}

static void a_mute_sink(void)
{
    a_mute_end(false);
}

/* Of several the oldest is told, whoever came first in the table. */
static void the_oldest_is_told(void)
{
    for (size_t n = 0; n < LENGTH_OF(engines); n++) {
        enum tz_transfer_side side;
        pipe_end young, old;
        uint32_t transfer;
        uint64_t one = 1;

        pipe_make(&young, 60 * CHUNK, true);
        young.later = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        CHECK(young.later >= 0);
        pipe_make(&old, 60 * CHUNK, true);
        mover_make(engines[n]);
        CHECK_EQ(tz_mover_add(mover, &young.source, null_sink(), NULL), 0);
        CHECK_EQ(tz_mover_add(mover, &old.source, null_sink(), NULL), 1);
        CHECK_EQ(tz_mover_start(mover), 0);
        wait_for(&old.asked, 1);
        usleep(20000);
        CHECK_EQ(write(young.later, &one, sizeof(one)), sizeof(one));
        wait_for(&young.asked, 1);
        told_of(TZ_SIDE_SOURCE);
        close(old.other);
        for (int i = 0; i < 20000 && waiting(&transfer, &side) && transfer == 1; i++)
            usleep(1000);
        CHECK(waiting(&transfer, &side) > 0);
        CHECK_EQ(transfer, 0); /* whose turn it is now */
        close(young.other);
        CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
        mover_end();
        close(young.later);
        close(young.file.fd);
        close(old.file.fd);
    }
}

static void a_look_for_holes(void)
{
    enum tz_transfer_side side;
    uint32_t transfer;
    uint64_t first;
    scratch s;
    int plain;

    scratch_make(&s, "/var/tmp");
    plain = make_file(&s, "plain", 60 * CHUNK, 1);
    mover_make(TZ_IO_THREADS);
    CHECK_EQ(tz_mover_add(mover, file_source_of(plain, 0), null_sink(), NULL), 0);
    atomic_store(&mute_about_holes, true);
    CHECK_EQ(tz_mover_start(mover), 0);
    wait_for(&asked_for_holes, 1);
    first = waiting(&transfer, &side);
    CHECK(first > 0);
    CHECK(transfer == 0 && side == TZ_SIDE_SOURCE);
    usleep(20000);
    CHECK(waiting(&transfer, &side) >= first + 20 * MS);
    atomic_store(&mute_about_holes, false);
    CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
    CHECK(nobody_waits());
    mover_end();
    close(plain);
    scratch_remove(&s);
}

/* The reader of a stream may take its time: that is no device that does not answer. */
static void a_streams_reader_is_not_waited_for(void)
{
    for (size_t n = 0; n < LENGTH_OF(engines); n++) {
        tz_transfer_report report = {.touched = false};
        int source, pipes[2];
        tz_sink *stream;
        scratch s;

        scratch_make(&s, "/var/tmp");
        source = make_file(&s, "source", 0, 1);
        CHECK_EQ(ftruncate(source, 60 * CHUNK), 0); /* a hole: nothing is read */
        CHECK_EQ(pipe2(pipes, O_CLOEXEC), 0);
        CHECK_EQ(tz_sink_stream(&stream, pipes[1]), 0);
        mover_make(engines[n]);
        CHECK_EQ(tz_mover_add(mover, file_source_of(source, 0), stream, NULL), 0);
        CHECK_EQ(tz_mover_start(mover), 0);
        for (int i = 0; i < 20000 && !report.touched; i++) {
            usleep(1000);
            tz_mover_report_get(mover, 0, &report);
        }
        CHECK(report.touched);
        usleep(50000);
        CHECK(nobody_waits());
        tz_mover_cancel(mover);
        CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
        mover_end();
        close(pipes[0]);
        close(pipes[1]);
        close(source);
        scratch_remove(&s);
    }
}

int main(void)
{
    RUN(a_mute_source);
    RUN(a_mute_sink);
    RUN(the_oldest_is_told);
    RUN(a_look_for_holes);
    RUN(a_streams_reader_is_not_waited_for);
    return 0;
}
