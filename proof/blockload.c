/* SPDX-License-Identifier: Apache-2.0
 *
 * blockload: an application that writes self-describing blocks over NBD and logs what it did.
 *
 * It shares no code with timezero: the proof that a backup is the state of one instant must not rest on
 * the code that made the backup. One process is one connection. It writes only inside its own region and never
 * has two overlapping updates in flight, so the updates of each cell have one order; the log holds
 * start and acknowledgement of each (CLOCK_MONOTONIC, the same for all processes of a machine).
 *
 * Cell (512 bytes, little-endian): magic u64 | volume u32 | connection u32 | offset u64 | sequence u64 |
 * fill of words derived from the sequence | CRC-32 of the first 508 bytes.
 * Log record (40 bytes): sequence u64 | start ns u64 | acknowledged ns u64 (all ones: never) | offset u64 |
 * length u32 | kind u32 (0 write, 1 zeroes, 2 trim).
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { CELL = 512, MAX_DEPTH = 256 };
#define CELL_MAGIC UINT64_C(0x4c4c454330544b42)
#define NEVER UINT64_MAX
#define FILL_CONNECTION UINT32_MAX

struct cell {
    uint64_t magic;
    uint32_t volume, connection;
    uint64_t offset, sequence;
    uint64_t fill[59];
    uint32_t pad, crc;
};
_Static_assert(sizeof(struct cell) == CELL, "a cell is a sector");

struct record {
    uint64_t sequence, start, acknowledged, offset;
    uint32_t length, kind;
};

struct options {
    const char *socket, *export, *log, *fill;
    uint32_t volume, connection, depth, min, max, grain, zero, trim, fua, survive;
    uint64_t from, to, rate, seed;
    double seconds;
};

struct flight {
    bool busy;
    uint64_t record, planned;
    uint64_t offset, end;
};

static volatile sig_atomic_t stopping;
static bool survive, lost; /* the server is going to be killed: its end is ours, and the log is kept */
static uint32_t crc_table[8][256];

static void die(const char *what)
{
    fprintf(stderr, "blockload: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void on_signal(int number)
{
    (void)number;
    stopping = 1;
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* ---- cells ---- */

static void crc_prepare(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;

        for (int k = 0; k < 8; k++)
            c = c & 1 ? UINT32_C(0xedb88320) ^ (c >> 1) : c >> 1;
        crc_table[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int t = 1; t < 8; t++)
            crc_table[t][i] = crc_table[0][crc_table[t - 1][i] & 255] ^ (crc_table[t - 1][i] >> 8);
}

/* The CRC-32 of zlib, eight bytes a step; length is CELL - 4 here. */
static uint32_t crc32_of(const unsigned char *p, size_t length)
{
    uint32_t c = UINT32_MAX;

    for (; length >= 8; p += 8, length -= 8) {
        uint64_t w;

        memcpy(&w, p, 8);
        w = le64toh(w) ^ c;
        c = crc_table[7][w & 255] ^ crc_table[6][w >> 8 & 255] ^ crc_table[5][w >> 16 & 255] ^
            crc_table[4][w >> 24 & 255] ^ crc_table[3][w >> 32 & 255] ^ crc_table[2][w >> 40 & 255] ^
            crc_table[1][w >> 48 & 255] ^ crc_table[0][w >> 56];
    }
    while (length--)
        c = crc_table[0][(c ^ *p++) & 255] ^ (c >> 8);
    return ~c;
}

static void stamp(unsigned char *buffer, const struct options *o, uint32_t connection, uint64_t offset, uint32_t length,
                  uint64_t sequence)
{
    for (uint32_t at = 0; at < length; at += CELL) {
        struct cell *cell = (struct cell *)(buffer + at);
        uint64_t word = (sequence + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ (offset + at);

        cell->magic = htole64(CELL_MAGIC);
        cell->volume = htole32(o->volume);
        cell->connection = htole32(connection);
        cell->offset = htole64(offset + at);
        cell->sequence = htole64(sequence);
        for (int i = 0; i < 59; i++)
            cell->fill[i] = htole64(word += UINT64_C(0x632be59bd9b4e019));
        cell->pad = 0;
        cell->crc = htole32(crc32_of((unsigned char *)cell, CELL - 4));
    }
}

/* Writes sequence 0 of a connection that never lives to all of a file: content before the first update. */
static int fill_file(const struct options *o)
{
    enum { PIECE = 1 << 20 };
    unsigned char *buffer = aligned_alloc(4096, PIECE);
    int fd = open(o->fill, O_WRONLY | O_CLOEXEC);

    if (!buffer || fd < 0)
        die(o->fill);
    for (uint64_t at = o->from; at < o->to;) {
        uint32_t n = o->to - at < PIECE ? (uint32_t)(o->to - at) : PIECE;

        stamp(buffer, o, FILL_CONNECTION, at, n, 0);
        if (pwrite(fd, buffer, n, (off_t)at) != (ssize_t)n)
            die(o->fill);
        at += n;
    }
    if (fsync(fd) < 0 || close(fd) < 0)
        die(o->fill);
    free(buffer);
    return 0;
}

/* ---- NBD ---- */

static void send_all(int fd, const void *data, size_t length)
{
    const char *p = data;

    while (length) {
        ssize_t n = send(fd, p, length, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0 && survive) {
            lost = true;
            return;
        }
        if (n <= 0)
            die("send");
        p += n;
        length -= (size_t)n;
    }
}

static void recv_all(int fd, void *data, size_t length)
{
    char *p = data;

    while (length) {
        ssize_t n = recv(fd, p, length, 0);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0 && survive) {
            lost = true;
            return;
        }
        if (n <= 0) {
            if (n == 0)
                errno = ECONNRESET;
            die("the server ended the connection");
        }
        p += n;
        length -= (size_t)n;
    }
}

static int connect_export(const struct options *o)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    unsigned char hello[18], ready[10], option[16];
    uint32_t flags = htobe32(3), word;

    if (strlen(o->socket) >= sizeof(address.sun_path)) {
        errno = ENAMETOOLONG;
        die(o->socket);
    }
    strcpy(address.sun_path, o->socket);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        die(o->socket);
    recv_all(fd, hello, sizeof(hello));
    if (memcmp(hello, "NBDMAGICIHAVEOPT", 16) != 0) {
        errno = EPROTO;
        die("not an NBD server");
    }
    send_all(fd, &flags, 4); /* fixed newstyle, no zeroes */
    memcpy(option, "IHAVEOPT", 8);
    word = htobe32(1); /* NBD_OPT_EXPORT_NAME */
    memcpy(option + 8, &word, 4);
    word = htobe32((uint32_t)strlen(o->export));
    memcpy(option + 12, &word, 4);
    send_all(fd, option, sizeof(option));
    send_all(fd, o->export, strlen(o->export));
    recv_all(fd, ready, sizeof(ready));
    return fd;
}

static void send_request(int fd, unsigned char *buffer, const struct record *r, uint64_t cookie, bool fua)
{
    /* request header and payload lie side by side, so that one send carries both */
    unsigned char *h = buffer + 4096 - 28;
    static const uint16_t commands[] = {1, 6, 4};
    uint32_t magic = htobe32(UINT32_C(0x25609513)), length = htobe32(r->length);
    uint16_t flags = htobe16(fua ? 1 : 0), command = htobe16(commands[r->kind]);
    uint64_t offset = htobe64(r->offset);

    memcpy(h, &magic, 4);
    memcpy(h + 4, &flags, 2);
    memcpy(h + 6, &command, 2);
    memcpy(h + 8, &cookie, 8);
    memcpy(h + 16, &offset, 8);
    memcpy(h + 24, &length, 4);
    send_all(fd, h, 28 + (r->kind == 0 ? r->length : 0));
}

/* ---- the load ---- */

static bool overlaps(const struct flight *flights, uint32_t depth, uint64_t from, uint64_t to)
{
    for (uint32_t i = 0; i < depth; i++)
        if (flights[i].busy && flights[i].offset < to && from < flights[i].end)
            return true;
    return false;
}

static bool choose(const struct options *o, const struct flight *flights, uint64_t *random, struct record *r)
{
    uint64_t grains = (o->to - o->from) / o->grain;

    for (int tries = 0; tries < 64; tries++) {
        uint64_t n = (o->min + next_random(random) % (o->max - o->min + 1)) / o->grain, at;
        uint32_t dice = (uint32_t)(next_random(random) % 100);

        n = n ? n : 1;
        at = o->from + next_random(random) % (grains - n + 1) * o->grain;
        r->kind = dice < o->zero ? 1 : dice < o->zero + o->trim ? 2 : 0;
        if (r->kind) { /* whole blocks: a trim of less is allowed to do nothing */
            n = (n * o->grain + 4095) / 4096 * 4096 / o->grain;
            at = at / 4096 * 4096;
            if (at < o->from || at + n * o->grain > o->to)
                continue;
        }
        r->offset = at;
        r->length = (uint32_t)(n * o->grain);
        if (!overlaps(flights, o->depth, at, at + r->length))
            return true;
    }
    return false;
}

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static void summarize(const struct record *log, const uint64_t *planned, uint64_t count, uint64_t errors, uint64_t t0,
                      uint64_t t1)
{
    uint32_t *us = malloc((count ? count : 1) * sizeof(*us));
    uint64_t n = 0;

    if (!us)
        die("summary");
    for (uint64_t i = 0; i < count; i++)
        if (log[i].acknowledged != NEVER)
            us[n++] = (uint32_t)((log[i].acknowledged - planned[i]) / 1000);
    qsort(us, n, sizeof(*us), compare_u32);
    printf("{\"updates\": %" PRIu64 ", \"acknowledged\": %" PRIu64 ", \"errors\": %" PRIu64
           ", \"seconds\": %.3f, \"p50_us\": %u, \"p99_us\": %u, \"max_us\": %u}\n",
           count, n, errors, (double)(t1 - t0) / 1e9, n ? us[n / 2] : 0, n ? us[n - 1 - n / 100] : 0, n ? us[n - 1] : 0);
    free(us);
}

static int run(const struct options *o)
{
    static struct flight flights[MAX_DEPTH];
    uint64_t random = o->seed, count = 0, room = 1 << 16, errors = 0, t0, until;
    unsigned char *buffer = aligned_alloc(4096, 4096 + (o->max + 4095) / 4096 * 4096 + 4096);
    struct record *log = malloc(room * sizeof(*log));
    uint64_t *planned = malloc(room * sizeof(*planned));
    uint32_t inflight = 0;
    int fd = connect_export(o), out;

    if (!buffer || !log || !planned)
        die("memory");
    survive = o->survive;
    printf("connected\n");
    fflush(stdout);
    prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
    t0 = now_ns();
    until = t0 + (uint64_t)(o->seconds * 1e9);
    for (;;) {
        uint64_t now = now_ns(), due = o->rate ? t0 + count * (1000000000u / o->rate) : now;
        bool over = stopping || lost || now >= until;
        struct pollfd p = {.fd = fd, .events = POLLIN};

        while (!over && inflight < o->depth && due <= now) {
            uint32_t i = 0;
            struct record r = {.sequence = count + 1, .acknowledged = NEVER};

            if (!choose(o, flights, &random, &r))
                break;
            while (flights[i].busy)
                i++;
            if (count == room) {
                room *= 2;
                log = realloc(log, room * sizeof(*log));
                planned = realloc(planned, room * sizeof(*planned));
                if (!log || !planned)
                    die("memory");
            }
            if (r.kind == 0)
                stamp(buffer + 4096, o, o->connection, r.offset, r.length, r.sequence);
            flights[i] = (struct flight){true, count, due, r.offset, r.offset + r.length};
            inflight++;
            r.start = now_ns();
            planned[count] = o->rate ? due : r.start;
            log[count++] = r;
            send_request(fd, buffer, &r, i, next_random(&random) % 100 < o->fua);
            due = o->rate ? t0 + count * (1000000000u / o->rate) : now;
        }
        if (lost || (over && inflight == 0))
            break;
        if (now > until + UINT64_C(60000000000)) {
            errno = ETIMEDOUT;
            die("updates without an answer");
        }
        /* To the nanosecond: with poll's milliseconds the rest of each wait would be spun away, on a CPU that server
         * and mover need. */
        uint64_t wait_ns = inflight < o->depth && !over ? (due > now ? due - now : 0) : 1000000000;
        struct timespec wait = {(time_t)(wait_ns / 1000000000), (long)(wait_ns % 1000000000)};
        int ready = ppoll(&p, 1, &wait, NULL);

        while (ready > 0 && inflight) {
            unsigned char reply[16];
            uint64_t cookie;
            uint32_t error;

            recv_all(fd, reply, sizeof(reply));
            if (lost)
                break;
            memcpy(&cookie, reply + 8, 8);
            memcpy(&error, reply + 4, 4);
            if (memcmp(reply, "\x67\x44\x66\x98", 4) != 0 || cookie >= o->depth || !flights[cookie].busy) {
                errno = EPROTO;
                die("reply");
            }
            if (error)
                errors++;
            else
                log[flights[cookie].record].acknowledged = now_ns();
            flights[cookie].busy = false;
            inflight--;
            ready = poll(&p, 1, 0);
        }
    }
    uint64_t t1 = now_ns();
    unsigned char disconnect[28] = {0};

    memcpy(disconnect, "\x25\x60\x95\x13\0\0\0\2", 8);
    if (!lost)
        send_all(fd, disconnect, 28);
    close(fd);

    if (o->log) {
        size_t bytes = count * sizeof(*log);

        out = open(o->log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        for (size_t done = 0; out >= 0 && done < bytes;) {
            ssize_t n = write(out, (char *)log + done, bytes - done);

            if (n <= 0)
                die(o->log);
            done += (size_t)n;
        }
        if (out < 0 || close(out) < 0)
            die(o->log);
    }
    summarize(log, planned, count, errors, t0, t1);
    return errors ? 1 : 0;
}

int main(int argc, char **argv)
{
    struct options o = {.depth = 8, .min = 4096, .max = 4096, .grain = 4096, .seconds = 5, .seed = 1, .export = ""};
    static const struct option names[] = {
        {"socket", 1, 0, 's'}, {"export", 1, 0, 'e'}, {"log", 1, 0, 'l'},     {"fill", 1, 0, 'F'},
        {"volume", 1, 0, 'v'}, {"connection", 1, 0, 'c'}, {"depth", 1, 0, 'd'}, {"min", 1, 0, 'm'},
        {"max", 1, 0, 'M'},    {"grain", 1, 0, 'g'},  {"zero", 1, 0, 'z'},    {"trim", 1, 0, 't'},
        {"fua", 1, 0, 'u'},    {"from", 1, 0, 'f'},   {"to", 1, 0, 'T'},      {"rate", 1, 0, 'r'},
        {"seed", 1, 0, 'S'},   {"seconds", 1, 0, 'n'}, {"survive", 1, 0, 'k'}, {0, 0, 0, 0},
    };
    int option;

    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        uint64_t number = optarg ? strtoull(optarg, NULL, 0) : 0;

        switch (option) {
        case 's': o.socket = optarg; break;
        case 'e': o.export = optarg; break;
        case 'l': o.log = optarg; break;
        case 'F': o.fill = optarg; break;
        case 'v': o.volume = (uint32_t)number; break;
        case 'c': o.connection = (uint32_t)number; break;
        case 'd': o.depth = (uint32_t)number; break;
        case 'm': o.min = (uint32_t)number; break;
        case 'M': o.max = (uint32_t)number; break;
        case 'g': o.grain = (uint32_t)number; break;
        case 'z': o.zero = (uint32_t)number; break;
        case 't': o.trim = (uint32_t)number; break;
        case 'u': o.fua = (uint32_t)number; break;
        case 'f': o.from = number; break;
        case 'T': o.to = number; break;
        case 'r': o.rate = number; break;
        case 'S': o.seed = number; break;
        case 'k': o.survive = (uint32_t)number; break;
        case 'n': o.seconds = strtod(optarg, NULL); break;
        default: return 2;
        }
    }
    if (o.to <= o.from || o.depth == 0 || o.depth > MAX_DEPTH || o.grain % CELL || o.grain == 0 || o.min > o.max ||
        o.max > o.to - o.from || o.max < o.grain || o.from % CELL || o.to % CELL || (!o.fill && !o.socket)) {
        fprintf(stderr, "blockload: options make no sense together\n");
        return 2;
    }
    crc_prepare();
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    return o.fill ? fill_file(&o) : run(&o);
}
