/* SPDX-License-Identifier: Apache-2.0
 *
 * The body of batched look-up, compiled once per instruction set: a file that includes this one first says for which
 * set (a target pragma, TZ_SEARCH_...) and defines TZ_LOOKUP, the name of its function.
 *
 * Addresses go through three stages, a block at a time. What a stage asks the memory for is used a stage later, while
 * the misses of the blocks before and after are under way:
 *
 *     leaves   which leaf of the search tree: down from the root, or, addresses in order, a walk on from the last one
 *     places   which of the leaf's keys, and how far beyond it
 *     answers  what the extent's place says
 *
 *     step       leaves   places   answers
 *      b         b        b - 1    b - 2
 *
 * Nothing here branches on an address or an answer: whether an address is mapped is as good as a coin.
 */
#include "extents_kernels.h"

/* Measured, 1e6 extents, AVX-512: random, blocks of 8 20 ns an address, 12 17, 16 16, 24 24, 32 26, two stages
 * without overlap 25; in order 6.0, 5.0, 4.9, 4.5, 4.3. */
#define BLOCK 16

/* Blocks in the three stages, and one to make it a power of two. */
#define BLOCKS 4

struct block {
    int64_t query[BLOCK];
    uint64_t leaf[BLOCK];
    uint64_t at[BLOCK], skip[BLOCK]; /* the extent, and how far into it, or beyond */
};

/* The leaves of a non-decreasing block that lie in *last or the eight after it: the first keys of those eight make a
 * node. False when they lie elsewhere. */
static inline __attribute__((always_inline)) bool walk_leaves(const tz_search *search, struct block *block, unsigned n,
                                                              uint64_t *last)
{
    const tz_search_node *leaves = tz_search_leaf(search, *last);
    uint64_t first_leaf = *last;
    tz_search_node after;

    if (search->leaves - first_leaf <= TZ_SEARCH_KEYS + 1 || block->query[0] < leaves[0].keys[0] ||
        block->query[n - 1] >= leaves[TZ_SEARCH_KEYS + 1].keys[0])
        return false;
    for (unsigned i = 0; i < TZ_SEARCH_KEYS; i++)
        after.keys[i] = leaves[1 + i].keys[0];
    for (unsigned i = 0; i < n; i++)
        block->leaf[i] = first_leaf + tz_search_node_rank(&after, block->query[i]);
    return true;
}

/* `last`: the leaf of the address before. */
static inline __attribute__((always_inline)) void find_leaves(const tz_search *search, const uint64_t *from,
                                                              struct block *block, unsigned n, uint64_t *last)
{
    bool ascending = true;

    for (unsigned i = 0; i < n; i++)
        block->query[i] = tz_search_query(from[i]);
    for (unsigned i = 1; i < n; i++)
        ascending &= block->query[i - 1] <= block->query[i];
    if (!ascending || !walk_leaves(search, block, n, last))
        tz_search_leaves(search, block->query, block->leaf, n);
    *last = block->leaf[n - 1];
}

/* Before the first extent, the first does as well: it does not cover the address. */
static inline __attribute__((always_inline)) void find_places(const tz_direction *direction, const uint64_t *from,
                                                              struct block *block, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        const tz_search_node *leaf = tz_search_leaf(&direction->search, block->leaf[i]);
        uint64_t rank = tz_search_node_rank(leaf, block->query[i]);

        rank -= rank > 0;
        block->at[i] = block->leaf[i] * TZ_SEARCH_KEYS + rank;
        block->skip[i] = from[i] - (uint64_t)leaf->keys[rank];
        __builtin_prefetch(&direction->places[block->at[i]]);
    }
}

static inline __attribute__((always_inline)) void answer(const tz_direction *direction, uint64_t *to,
                                                         const struct block *block, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        const tz_place *place = &direction->places[block->at[i]];
        uint64_t nowhere = (block->skip[i] >= place->length) | (place->to == TZ_EXTENT_NONE);

        to[i] = (place->to + block->skip[i]) | -nowhere; /* or with all bits: TZ_EXTENT_NONE */
    }
}

void TZ_LOOKUP(const tz_direction *direction, const uint64_t *from, uint64_t *to, uint64_t count)
{
    const tz_search *search = &direction->search;
    uint64_t whole = count / BLOCK, rest = count % BLOCK, last = 0;
    struct block blocks[BLOCKS];

    /* Whole blocks with a constant size, for the compiler's sake. */
    for (uint64_t b = 0; b < whole + 2; b++) {
        if (b < whole)
            find_leaves(search, from + b * BLOCK, &blocks[b % BLOCKS], BLOCK, &last);
        if (b >= 1 && b < whole + 1)
            find_places(direction, from + (b - 1) * BLOCK, &blocks[(b - 1) % BLOCKS], BLOCK);
        if (b >= 2)
            answer(direction, to + (b - 2) * BLOCK, &blocks[(b - 2) % BLOCKS], BLOCK);
    }
    if (rest) {
        from += whole * BLOCK;
        find_leaves(search, from, &blocks[0], (unsigned)rest, &last);
        find_places(direction, from, &blocks[0], (unsigned)rest);
        answer(direction, to + whole * BLOCK, &blocks[0], (unsigned)rest);
    }
}
