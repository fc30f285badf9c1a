/* SPDX-License-Identifier: Apache-2.0
 *
 * How many of a sorted array's keys are at most a query: a static B+ tree, a cache line a node.
 *
 *   layer 0            [k k k k k k k k]                  8 keys, 9 children: key j is the first key under child j + 1
 *   layer 1      [........] [........]  ...  9            children of node n: 9n .. 9n + 8, no pointers
 *   leaves       [ all keys, sorted, 8 a node ]           padded with INT64_MAX, which no query reaches
 *
 * A million keys are 7 layers, of which the first five stay in the first-level caches; a plain binary search
 * visits 20 places. Keys are signed because that is the comparison that vector units have.
 *
 * Errors   -ENOMEM.   Threads  constant once built.
 */
#ifndef TZ_DATA_SEARCH_H
#define TZ_DATA_SEARCH_H

#include "tz/common.h"

#define TZ_SEARCH_KEYS   8
#define TZ_SEARCH_LAYERS 21 /* 9^20 x 8 keys are more than 2^64 */

typedef struct tz_search_node {
    _Alignas(TZ_CACHE_LINE) int64_t keys[TZ_SEARCH_KEYS];
} tz_search_node;

typedef struct tz_search {
    tz_search_node *layer[TZ_SEARCH_LAYERS]; /* the last one is the leaves; all are one allocation, owned by layer[0] */
    unsigned layers;
    uint64_t leaves;
} tz_search;

/* `keys`: every `stride` bytes a uint64_t below INT64_MAX, ascending. */
int tz_search_build(tz_search *out, const uint64_t *keys, size_t stride, uint64_t count);
void tz_search_clear(tz_search *search);

static inline const tz_search_node *tz_search_leaf(const tz_search *search, uint64_t at)
{
    return &search->layer[search->layers - 1][at];
}

/* All keys, in order. */
static inline const int64_t *tz_search_keys(const tz_search *search)
{
    return tz_search_leaf(search, 0)->keys;
}

/* Any address as a query: those that no key can have count as the last possible one. */
static inline int64_t tz_search_query(uint64_t address)
{
    return (int64_t)tz_min_u64(address, (uint64_t)INT64_MAX - 1);
}

/* How many of a node's keys are at most the query. A file compiled for a better instruction set says so with
 * TZ_SEARCH_AVX2 or TZ_SEARCH_AVX512: comparisons make a mask, whose bits are counted. */
static inline __attribute__((always_inline)) uint64_t tz_search_node_rank(const tz_search_node *node, int64_t query)
{
#if defined(TZ_SEARCH_AVX512)
    __m512i keys = _mm512_load_si512(node->keys);

    return (uint64_t)__builtin_popcount(_mm512_cmple_epi64_mask(keys, _mm512_set1_epi64(query)));
#elif defined(TZ_SEARCH_AVX2)
    const __m256i *keys = (const __m256i *)node->keys, queries = _mm256_set1_epi64x(query);
    __m256i low = _mm256_cmpgt_epi64(keys[0], queries), high = _mm256_cmpgt_epi64(keys[1], queries);
    unsigned above = (unsigned)_mm256_movemask_epi8(_mm256_packs_epi32(low, high)); /* four bits for each */

    return TZ_SEARCH_KEYS - (uint64_t)__builtin_popcount(above) / 4;
#else
    typedef int64_t quad __attribute__((vector_size(32), may_alias));
    const quad *keys = (const quad *)node->keys;
    quad above = (keys[0] > query) + (keys[1] > query); /* -1 for each */

    return (uint64_t)(TZ_SEARCH_KEYS + above[0] + above[1] + above[2] + above[3]);
#endif
}

/* The leaf that each of n queries ends in, layer by layer: the cache misses of one layer overlap. Its first key is at
 * most the query, unless it is the first leaf. */
static inline __attribute__((always_inline)) void tz_search_leaves(const tz_search *search, const int64_t *query,
                                                                   uint64_t *leaf, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        leaf[i] = 0;
    for (unsigned layer = 0; layer + 1 < search->layers; layer++) {
        const tz_search_node *nodes = search->layer[layer], *below = search->layer[layer + 1];

        for (unsigned i = 0; i < n; i++) {
            leaf[i] = leaf[i] * (TZ_SEARCH_KEYS + 1) + tz_search_node_rank(&nodes[leaf[i]], query[i]);
            __builtin_prefetch(&below[leaf[i]]);
        }
    }
}

#endif
