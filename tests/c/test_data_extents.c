/* SPDX-License-Identifier: Apache-2.0 */
#include "../../csrc/data/extents_kernels.h"
#include "check.h"

#include <errno.h>
#include <string.h>

static uint64_t seed = 1;

static uint64_t below(uint64_t n)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (seed >> 33) % n;
}

#define MOST 200

struct input {
    uint64_t logical[MOST], physical[MOST], length[MOST], count;
    uint32_t flags[MOST];
};

static void add(struct input *in, uint64_t logical, uint64_t physical, uint64_t length, uint32_t flags)
{
    CHECK(in->count < MOST);
    in->logical[in->count] = logical;
    in->physical[in->count] = physical;
    in->length[in->count] = length;
    in->flags[in->count++] = flags;
}

static int build(tz_extents **map, const struct input *in, unsigned options)
{
    return tz_extents_build(map, in->logical, in->physical, in->length, in->flags, in->count, options);
}

static void shuffle(struct input *in)
{
    for (uint64_t i = in->count; i > 1; i--) {
        uint64_t j = below(i), last = i - 1;
        struct input copy = *in;

        in->logical[last] = copy.logical[j], in->logical[j] = copy.logical[last];
        in->physical[last] = copy.physical[j], in->physical[j] = copy.physical[last];
        in->length[last] = copy.length[j], in->length[j] = copy.length[last];
        in->flags[last] = copy.flags[j], in->flags[j] = copy.flags[last];
    }
}

static void test_refuses(void)
{
    tz_extents *map = (tz_extents *)&map;
    struct input in = {.count = 0};

    add(&in, 10, 0, 5, 0);
    CHECK_EQ(build(&map, &in, 2), -EINVAL);
    add(&in, 14, 100, 1, 0);
    CHECK_EQ(build(&map, &in, 0), -EINVAL); /* the last byte of the first */
    in.logical[1] = 15;
    in.flags[1] = 2;
    CHECK_EQ(build(&map, &in, 0), -EINVAL);
    in.flags[1] = 0;
    in.length[1] = 0;
    CHECK_EQ(build(&map, &in, 0), -EINVAL);
    in.length[1] = TZ_EXTENT_END - 14;
    CHECK_EQ(build(&map, &in, 0), -EOVERFLOW);
    in.length[1] = UINT64_MAX;
    CHECK_EQ(build(&map, &in, 0), -EOVERFLOW);
    in.length[1] = 1;
    in.physical[1] = TZ_EXTENT_END;
    CHECK_EQ(build(&map, &in, 0), -EOVERFLOW);
    CHECK_EQ(tz_extents_build(&map, NULL, NULL, NULL, NULL, UINT64_MAX / 2, 0), -ENOMEM);
    CHECK(map == (tz_extents *)&map);
    in.flags[1] = TZ_EXTENT_ZERO; /* its physical address does not count */
    CHECK_EQ(build(&map, &in, 0), 0);
    CHECK_EQ(tz_extents_count(map), 2);
    CHECK_EQ(tz_extents_bytes(map), 5);
    tz_extents_destroy(map);
    tz_extents_destroy(NULL);
}

static void test_empty(void)
{
    uint64_t addresses[3] = {0, 5, UINT64_MAX};
    tz_extents *map;
    tz_extent run;

    CHECK_EQ(tz_extents_build(&map, NULL, NULL, NULL, NULL, 0, TZ_EXTENTS_REVERSE), 0);
    CHECK(!tz_extents_lookup(map, 7, &run));
    CHECK(run.logical == 7 && run.length == UINT64_MAX - 7 && run.physical == TZ_EXTENT_NONE);
    CHECK_EQ(tz_extents_reverse(map, 7, &run, 1), 0);
    tz_extents_lookup_batch(map, addresses, addresses, 2);
    tz_extents_reverse_batch(map, addresses + 2, addresses + 2, 1);
    for (int i = 0; i < 3; i++)
        CHECK(addresses[i] == TZ_EXTENT_NONE);
    tz_extents_destroy(map);
}

/* The look-up of `from`, and that every instruction set this CPU has agrees on it, in place too. */
static void batch(const tz_extents *map, const uint64_t *from, uint64_t *to, uint64_t count)
{
    void (*kernels[])(const tz_direction *, const uint64_t *, uint64_t *, uint64_t) = {
        tz_direction_lookup_base,
#if defined(__x86_64__)
        __builtin_cpu_supports("avx2") ? tz_direction_lookup_avx2 : tz_direction_lookup_base,
        __builtin_cpu_supports("avx512f") ? tz_direction_lookup_avx512 : tz_direction_lookup_base,
#endif
    };
    size_t bytes = count * sizeof(uint64_t);
    uint64_t *other = malloc(bytes + 1);

    tz_extents_lookup_batch(map, from, to, count);
    for (size_t i = 0; i < sizeof(kernels) / sizeof(kernels[0]); i++) {
        memcpy(other, from, bytes);
        kernels[i](&map->forward, other, other, count);
        CHECK(memcmp(other, to, bytes) == 0);
    }
    free(other);
}

/* The highest addresses there are. */
static void test_edge_of_addresses(void)
{
    const uint64_t end = TZ_EXTENT_END, addresses[] = {0, end - 2, end - 1, end, UINT64_MAX};
    uint64_t places[5];
    struct input in = {.count = 0};
    tz_extents *map;
    tz_extent run;

    add(&in, end - 1, end - 1, 1, 0);
    CHECK_EQ(build(&map, &in, TZ_EXTENTS_REVERSE), 0);
    for (int i = 0; i < 5; i++)
        CHECK_EQ(tz_extents_lookup(map, addresses[i], &run), i == 2);
    batch(map, addresses, places, 5);
    for (int i = 0; i < 5; i++)
        CHECK(places[i] == (i == 2 ? end - 1 : TZ_EXTENT_NONE));
    tz_extents_reverse_batch(map, addresses, places, 5);
    for (int i = 0; i < 5; i++)
        CHECK(places[i] == (i == 2 ? end - 1 : TZ_EXTENT_NONE));
    tz_extents_destroy(map);
}

static void test_coalescing(void)
{
    struct input in = {.count = 0};
    tz_extents *map;
    tz_extent run;

    add(&in, 30, 130, 10, 0);
    add(&in, 0, 100, 10, 0);
    add(&in, 20, 120, 10, 0);
    add(&in, 10, 110, 10, 0);
    add(&in, 40, 200, 10, 0); /* logically next, physically not */
    add(&in, 50, 0, 10, TZ_EXTENT_ZERO);
    add(&in, 60, 999, 10, TZ_EXTENT_ZERO); /* zeros continue zeros wherever they lie */
    add(&in, 71, 210, 10, 0);              /* physically next, logically not */
    CHECK_EQ(build(&map, &in, 0), 0);
    CHECK(!tz_extents_has_reverse(map));
    CHECK_EQ(tz_extents_count(map), 4);
    CHECK_EQ(tz_extents_bytes(map), 60);
    CHECK_EQ(tz_extents_at(map, 0).length, 40);
    CHECK(tz_extents_at(map, 2).physical == TZ_EXTENT_NONE);
    CHECK(tz_extents_lookup(map, 12, &run));
    CHECK(run.logical == 12 && run.physical == 112 && run.length == 28 && run.flags == 0);
    CHECK(tz_extents_lookup(map, 65, &run));
    CHECK(run.physical == TZ_EXTENT_NONE && run.length == 5 && run.flags == TZ_EXTENT_ZERO);
    CHECK(!tz_extents_lookup(map, 70, &run));
    CHECK(run.physical == TZ_EXTENT_NONE && run.length == 1 && run.flags == TZ_EXTENT_ZERO);
    tz_extents_destroy(map);
}

/* The first extent has nothing before it to continue; zeros are nowhere, not at the address that stands for it. */
static void test_nothing_is_at_no_address(void)
{
    const uint64_t addresses[] = {0, TZ_EXTENT_NONE, TZ_EXTENT_NONE - 5};
    uint64_t places[3];
    struct input in = {.count = 0};
    tz_extents *map;

    add(&in, 0, 0, 10, 0);
    for (uint64_t i = 1; i < 20; i++)
        add(&in, i * 20, i, 10, TZ_EXTENT_ZERO);
    CHECK_EQ(build(&map, &in, TZ_EXTENTS_REVERSE), 0);
    CHECK_EQ(tz_extents_count(map), 20);
    CHECK_EQ(tz_extents_at(map, 0).length, 10);
    CHECK_EQ(tz_extents_reverse(map, 3, NULL, 0), 1);
    CHECK_EQ(tz_extents_reverse(map, TZ_EXTENT_NONE, NULL, 0), 0);
    tz_extents_reverse_batch(map, addresses, places, 3);
    CHECK(places[0] == 0 && places[1] == TZ_EXTENT_NONE && places[2] == TZ_EXTENT_NONE);
    tz_extents_destroy(map);
}

/* ---- against a table with an entry for every byte ---- */

#define SPACE 600

struct model {
    uint64_t place[SPACE]; /* physical address, or NONE */
    uint8_t kind[SPACE];   /* 0 hole, 1 data, 2 zero */
};

static void random_input(struct input *in, struct model *model, bool shared)
{
    uint64_t at = below(20), physical = SPACE;

    in->count = 0;
    for (uint64_t i = 0; i < SPACE; i++)
        model->place[i] = TZ_EXTENT_NONE, model->kind[i] = 0;
    while (at + 20 < SPACE) {
        uint64_t length = 1 + below(8), kind = 1 + (below(5) == 0);

        physical = shared ? below(SPACE - 8) : below(3) ? physical : physical + below(5);
        if (!shared)
            physical -= length;
        add(in, at, physical, length, kind == 2 ? TZ_EXTENT_ZERO : 0);
        for (uint64_t i = 0; i < length; i++) {
            model->kind[at + i] = (uint8_t)kind;
            model->place[at + i] = kind == 1 ? physical + i : TZ_EXTENT_NONE;
        }
        if (!shared && physical < 100)
            break;
        at += length + (below(2) ? below(6) : 0);
    }
    shuffle(in);
}

static void check_forward(const tz_extents *map, const struct model *model)
{
    uint64_t from[SPACE], to[SPACE];
    tz_extent run;

    for (uint64_t i = 0; i < SPACE; i++) {
        CHECK_EQ(tz_extents_lookup(map, i, &run), model->kind[i] != 0);
        CHECK(run.logical == i && run.physical == model->place[i] && run.length > 0);
        CHECK_EQ(run.flags, model->kind[i] == 1 ? 0 : TZ_EXTENT_ZERO);
        for (uint64_t j = 0; j < run.length && i + j < SPACE; j++) {
            CHECK_EQ(model->kind[i + j], model->kind[i]);
            CHECK(model->kind[i] != 1 || model->place[i + j] == model->place[i] + j);
        }
    }
    for (int ascending = 0; ascending < 2; ascending++) {
        uint64_t count = below(SPACE), at = 0;

        for (uint64_t i = 0; i < count; i++)
            from[i] = ascending ? (at = tz_min_u64(at + below(4), SPACE - 1)) : below(SPACE);
        batch(map, from, to, count);
        for (uint64_t i = 0; i < count; i++)
            CHECK(to[i] == model->place[from[i]]);
    }
}

static void check_reverse(const tz_extents *map, const struct model *model)
{
    uint64_t address[SPACE + 20], lowest[SPACE + 20];
    tz_extent runs[MOST];

    for (uint64_t p = 0; p < SPACE + 20; p++) {
        uint64_t found = 0, count = tz_extents_reverse(map, p, runs, MOST);

        address[p] = lowest[p] = TZ_EXTENT_NONE;
        for (uint64_t i = SPACE; i-- > 0;)
            if (model->place[i] == p)
                lowest[p] = i, found++;
        CHECK_EQ(count, found);
        CHECK_EQ(tz_extents_reverse(map, p, NULL, 0), found);
        for (uint64_t i = 0; i < count; i++) {
            CHECK(runs[i].physical == p && runs[i].flags == 0);
            for (uint64_t j = 0; j < runs[i].length; j++)
                CHECK(model->place[runs[i].logical + j] == p + j);
            for (uint64_t j = 0; j < i; j++)
                CHECK(runs[i].logical != runs[j].logical);
        }
    }
    for (int round = 0; round < 2; round++) {
        for (uint64_t i = 0; i < SPACE + 20; i++)
            address[i] = round ? i : below(SPACE + 20);
        uint64_t was[SPACE + 20];
        memcpy(was, address, sizeof(was));
        tz_extents_reverse_batch(map, address, address, SPACE + 20); /* in place */
        for (uint64_t i = 0; i < SPACE + 20; i++)
            CHECK(address[i] == lowest[was[i]]);
    }
}

static void check_tracks(const tz_extents *map, const struct model *model)
{
    uint64_t words[SPACE / 64 + 2] = {0}, expected[SPACE / 64 + 2] = {0}, last = 0, size = UINT64_C(1) << below(6);
    tz_bitmap tracks;

    for (uint64_t i = 0; i < SPACE; i++) {
        if (model->kind[i] == 1) {
            uint64_t track = model->place[i] / size;

            expected[track / 64] |= UINT64_C(1) << track % 64;
            last = tz_max_u64(last, track + 1);
        }
    }
    if (last) {
        tz_bitmap_init(&tracks, words, last - 1);
        CHECK_EQ(tz_extents_tracks(map, size, &tracks), -ERANGE);
        CHECK_EQ(words[0], 0);
    }
    tz_bitmap_init(&tracks, words, last);
    CHECK_EQ(tz_extents_tracks(map, size, &tracks), 0);
    CHECK(memcmp(words, expected, sizeof(words)) == 0);
}

static void test_agrees_with_a_table(void)
{
    struct model model;
    struct input in;
    tz_extents *map;

    for (int round = 0; round < 120; round++) {
        random_input(&in, &model, round % 2);
        CHECK_EQ(build(&map, &in, TZ_EXTENTS_REVERSE), 0);
        check_forward(map, &model);
        check_reverse(map, &model);
        check_tracks(map, &model);
        tz_extents_destroy(map);
    }
}

/* Ascending addresses at every density, from many an extent to many extents an address: [i * 1000 + 7, + 500) again. */
static void check_ascending(const tz_extents *map, uint64_t n, uint64_t *from, uint64_t *to)
{
    for (uint64_t step = 1; step < 400000; step *= 3) {
        uint64_t count = 0;

        for (uint64_t at = below(1000); at < n * 1000 && count < n; at += below(2 * step))
            from[count++] = at;
        batch(map, from, to, count);
        for (uint64_t i = 0; i < count; i++) {
            bool hole = from[i] % 1000 < 7 || from[i] % 1000 >= 507;

            CHECK(to[i] == (hole ? TZ_EXTENT_NONE : (n - from[i] / 1000) * 4096 + from[i] % 1000 - 7));
        }
    }
}

/* Stretches of addresses in order between addresses in none: a walk starts wherever the last address lay, and
 * ends before blocks do. */
static void check_stretches(const tz_extents *map, uint64_t n, uint64_t *from, uint64_t *to)
{
    uint64_t count = 0;
    tz_extent run;

    while (count < n) {
        uint64_t at = below(n * 1000), step = below(3) ? 1 + below(3000) : 0, end = tz_min_u64(count + below(60), n);

        for (; count < end; at += below(step + 1))
            from[count++] = step ? at : below(n * 1000);
    }
    batch(map, from, to, count);
    for (uint64_t i = 0; i < count; i++)
        CHECK(to[i] == (tz_extents_lookup(map, from[i], &run) ? run.physical : TZ_EXTENT_NONE));
}

/* Many extents: several layers of the search tree, sorting by several digits. Extent i is [i * 1000 + 7, + 500),
 * shuffled. */
static void test_many(void)
{
    static const uint64_t sizes[] = {1, 7, 8, 9, 71, 72, 73, 647, 648, 649, 50000};

    for (unsigned s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        uint64_t n = sizes[s], *column = malloc(5 * n * sizeof(uint64_t)), *from = column + 3 * n, *to = from + n;
        tz_extents *map;

        for (uint64_t i = 0; i < n; i++)
            column[i] = i * 1000 + 7;
        for (uint64_t i = n; i > 1; i--) {
            uint64_t j = below(i), swap = column[j];

            column[j] = column[i - 1];
            column[i - 1] = swap;
        }
        for (uint64_t i = 0; i < n; i++) {
            column[n + i] = (n - column[i] / 1000) * 4096;
            column[2 * n + i] = 500;
        }
        CHECK_EQ(tz_extents_build(&map, column, column + n, column + 2 * n, NULL, n, TZ_EXTENTS_REVERSE), 0);
        CHECK_EQ(tz_extents_count(map), n);
        check_ascending(map, n, from, to);
        check_stretches(map, n, from, to);
        for (uint64_t i = 0; i < n; i++)
            from[i] = below(n * 1000);
        batch(map, from, to, n);
        for (uint64_t i = 0; i < n; i++) {
            bool hole = from[i] % 1000 < 7 || from[i] % 1000 >= 507;

            CHECK(to[i] == (hole ? TZ_EXTENT_NONE : (n - from[i] / 1000) * 4096 + from[i] % 1000 - 7));
            to[i] = hole ? 1 : to[i];
            from[i] = hole ? TZ_EXTENT_NONE : from[i];
        }
        tz_extents_reverse_batch(map, to, to, n);
        for (uint64_t i = 0; i < n; i++)
            CHECK(to[i] == from[i]);
        tz_extents_destroy(map);
        free(column);
    }
}

int main(void)
{
    RUN(test_refuses);
    RUN(test_empty);
    RUN(test_edge_of_addresses);
    RUN(test_coalescing);
    RUN(test_nothing_is_at_no_address);
    RUN(test_agrees_with_a_table);
    RUN(test_many);
    return 0;
}
