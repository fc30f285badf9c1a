/* SPDX-License-Identifier: Apache-2.0 */
#include "search.h"

#include <errno.h>

#include "table.h"

#define CHILDREN (TZ_SEARCH_KEYS + 1)

static uint64_t divide_up(uint64_t n, uint64_t by)
{
    return n / by + (n % by != 0);
}

static void fill_leaves(tz_search *search, const uint64_t *keys, size_t stride, uint64_t count)
{
    int64_t *leaf = search->layer[search->layers - 1]->keys;
    const uint8_t *at = (const uint8_t *)keys;

    for (uint64_t i = 0; i < count; i++, at += stride)
        leaf[i] = (int64_t) * (const uint64_t *)at;
    for (uint64_t i = count; i < search->leaves * TZ_SEARCH_KEYS; i++)
        leaf[i] = INT64_MAX;
}

/* `span`: leaves under one child of this layer. */
static void fill_layer(tz_search *search, unsigned layer, uint64_t nodes, uint64_t span)
{
    const tz_search_node *leaves = search->layer[search->layers - 1];

    for (uint64_t node = 0; node < nodes; node++) {
        for (uint64_t key = 0; key < TZ_SEARCH_KEYS; key++) {
            uint64_t leaf = (node * CHILDREN + key + 1) * span;

            search->layer[layer][node].keys[key] = leaf < search->leaves ? leaves[leaf].keys[0] : INT64_MAX;
        }
    }
}

int tz_search_build(tz_search *out, const uint64_t *keys, size_t stride, uint64_t count)
{
    uint64_t nodes[TZ_SEARCH_LAYERS], total = 0, span = 1; /* nodes: from the leaves up */
    tz_search search = {.leaves = tz_max_u64(divide_up(count, TZ_SEARCH_KEYS), 1)};
    tz_search_node *table;

    for (uint64_t n = search.leaves;; n = divide_up(n, CHILDREN)) {
        nodes[search.layers++] = n;
        total += n;
        if (n == 1)
            break;
    }
    table = tz_table_alloc(total, sizeof(*table));
    if (!table)
        return -ENOMEM;
    for (unsigned layer = 0; layer < search.layers; layer++) {
        search.layer[layer] = table;
        table += nodes[search.layers - 1 - layer];
    }
    fill_leaves(&search, keys, stride, count);
    for (unsigned up = 1; up < search.layers; up++, span *= CHILDREN)
        fill_layer(&search, search.layers - 1 - up, nodes[up], span);
    *out = search;
    return 0;
}

void tz_search_clear(tz_search *search)
{
    free(search->layer[0]);
    *search = (tz_search){0};
}
