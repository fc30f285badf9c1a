/* SPDX-License-Identifier: Apache-2.0
 *
 * Load histograms: their buckets leave out nothing and are as narrow as they say; quantiles; fading.
 */
#include "check.h"
#include "tz/load.h"

static void buckets_follow_one_another(void)
{
    CHECK_EQ(tz_load_bucket(0), 0);
    CHECK_EQ(tz_load_bucket(UINT64_MAX), TZ_LOAD_BUCKETS - 1);
    CHECK_EQ(tz_load_bucket_from(TZ_LOAD_BUCKETS), UINT64_C(1) << TZ_LOAD_TOP_SHIFT);
    for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++) {
        uint64_t from = tz_load_bucket_from(i), to = tz_load_bucket_from(i + 1);

        CHECK(from < to);
        CHECK_EQ(tz_load_bucket(from), i);
        CHECK_EQ(tz_load_bucket(to - 1), i);
        CHECK(from < 2048 || (to - from) * 8 <= from); /* an eighth */
    }
}

static void quantiles_are_near(void)
{
    static tz_load_histogram h;
    static const double shares[] = {0.01, 0.5, 0.9, 0.99, 0.999};

    CHECK_EQ(tz_load_quantile(&h, 0.99), 0);
    for (uint64_t us = 1; us <= 100000; us++)
        tz_load_add(&h, us * 1000);
    CHECK_EQ(tz_load_get(&h.count), 100000);
    for (size_t i = 0; i < sizeof(shares) / sizeof(shares[0]); i++) {
        double found = (double)tz_load_quantile(&h, shares[i]) / (shares[i] * 1e8);

        CHECK(found > 0.98 && found < 1.02);
    }
    CHECK(tz_load_quantile(&h, 1.0) >= 100000000);
    CHECK(tz_load_quantile(&h, 0.0) <= 1024);
}

static void fading_keeps_the_shape(void)
{
    static tz_load_histogram h;

    for (int i = 0; i < 1000; i++)
        tz_load_add(&h, i < 900 ? 50000 : 5000000);
    tz_load_fade(&h);
    CHECK_EQ(tz_load_get(&h.count), 500);
    CHECK(tz_load_quantile(&h, 0.5) < 60000 && tz_load_quantile(&h, 0.95) > 4000000);
    for (int i = 0; i < 20; i++)
        tz_load_fade(&h);
    CHECK_EQ(tz_load_get(&h.count), 0);
}

static void a_copy_is_a_copy(void)
{
    static tz_load from, to;

    tz_load_bump(&from.arrived, 7);
    tz_load_add(&from.histograms[TZ_LOAD_UPDATES], 1234567);
    atomic_store(&from.reads_in_flight, 3);
    tz_load_copy(&to, &from);
    CHECK_EQ(tz_load_get(&to.arrived), 7);
    CHECK_EQ(atomic_load(&to.reads_in_flight), 3);
    CHECK_EQ(tz_load_get(&to.histograms[TZ_LOAD_UPDATES].buckets[tz_load_bucket(1234567)]), 1);
}

int main(void)
{
    RUN(buckets_follow_one_another);
    RUN(quantiles_are_near);
    RUN(fading_keeps_the_shape);
    RUN(a_copy_is_a_copy);
    return 0;
}
