// Which keys are out of the question, by products of elements that are rounded: processors make many more of them than
// in float32 (`rounded_tiles.h`, `rounded_words.h`).
//
// A query q and a key k are rounded to q' and k', so q.k is within |q| |k - k'| + |q - q'| |k'| of q'.k' (and what
// sums are off by). What is below a query's threshold by more than that is left out; the others are multiplied in
// float32, as they are without such products. So the same is found, bit for bit.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "kept.h"
#include "panels.h"
#include "rounded_words.h"
#include "rounded_tiles.h"

#if defined(__AMX_BF16__) || defined(__AVX512VNNI__)
#define RC_ROUNDS

namespace RC_ISA {

constexpr int64_t PANELS_MIN = 4;       // times top_k, where thresholds are not known yet
constexpr int64_t BESTS_MAX = 1 << 19;  // of panels, for all queries: they stay in the second-level cache
constexpr int HALVINGS = 10;            // of the range that a threshold is looked for in

// For each element, how many of the vectors reach a threshold.
static inline __m512i count_reaching(const Lanes* of, int64_t count, Vec threshold) {
    __m512i some = _mm512_setzero_si512(), others = some;
    const __m512i minus_one = _mm512_set1_epi32(-1);
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) {
        const __mmask16 one = _mm512_cmp_ps_mask(of[i].of_queries, threshold, _CMP_GE_OQ);
        const __mmask16 other = _mm512_cmp_ps_mask(of[i + 1].of_queries, threshold, _CMP_GE_OQ);
        some = _mm512_mask_sub_epi32(some, one, some, minus_one);
        others = _mm512_mask_sub_epi32(others, other, others, minus_one);
    }
    if (i < count)
        some = _mm512_mask_sub_epi32(some, _mm512_cmp_ps_mask(of[i].of_queries, threshold, _CMP_GE_OQ), some,
                                     minus_one);
    return _mm512_add_epi32(some, others);
}

// For each element, nearly the largest number that at least `wanted` of the vectors reach; -inf if they are fewer.
static inline Vec reached_by(const Lanes* of, int64_t count, int64_t wanted) {
    if (count < wanted) return broadcast(-INF);
    Vec low = of[0].of_queries, high = low;
    for (int64_t i = 1; i < count; ++i) low = least(low, of[i].of_queries), high = most(high, of[i].of_queries);
    const __m512i enough = _mm512_set1_epi32(static_cast<int32_t>(wanted));
    for (int round = 0; round < HALVINGS; ++round) {
        const Vec middle = fma(broadcast(0.5f), _mm512_sub_ps(high, low), low);
        const __mmask16 is_low = _mm512_cmpge_epi32_mask(count_reaching(of, count, middle), enough);
        low = _mm512_mask_mov_ps(low, is_low, middle), high = _mm512_mask_mov_ps(middle, is_low, high);
    }
    return low;
}

// What many_rounded() calculates in.
struct RoundedScratch {
    RoundedQueries queries;
    RoundedKeys keys;                // of a group
    std::vector<float> biases;       // [PANELS, NR]
    std::vector<Size> sizes;         // of groups
    std::vector<Lanes> bests;        // [n / SIDE, panels]
    std::vector<uint16_t> may;       // [panels, n / SIDE]: which queries may have something better there
    std::vector<float> panel;        // [dim, NR]
    std::vector<const float*> some;  // [n]
    std::vector<int64_t> some_ids;   // [n]

    void reserve(int64_t n, int64_t panels, int dim) {
        const int64_t sides = (n + BLOCK_SIDE - 1) / BLOCK_SIDE * 2;
        keys.reserve(dim), biases.resize(PANELS * NR), panel.resize(dim * NR);
        bests.resize(sides * panels), may.resize(panels * sides), sizes.resize(panels / PANELS + 1);
        some.resize(n), some_ids.resize(n);
    }
};

// Finds the best of each panel from `start` on, for all queries.
template <class Type, class Rows>
static void find_bests(RoundedScratch& own, const Rows& rows, int64_t start, int64_t panels, int dim, const float* bias,
                       int64_t n) {
    [[maybe_unused]] const Unit use;
    for (int64_t group = 0; group < panels; group += PANELS) {
        const int some = static_cast<int>(std::min<int64_t>(PANELS, panels - group));
        const int64_t at = start + group * NR;
        Size size;
        for (int p = 0; p < some; ++p)
            size.include(own.keys.set<Type>(p, rows, at + p * NR, dim));
        for (int r = 0; bias && r < some * NR; ++r) {
            own.biases[r] = bias[rows.slot(std::min(at + r, rows.size() - 1))];
            size.bias = std::max(size.bias, std::fabs(own.biases[r]));
        }
        own.sizes[group / PANELS] = size;
        for (int64_t q = 0; q < n; q += BLOCK_SIDE)
            own.keys.find_bests(some, own.queries, q, dim, bias ? own.biases.data() : nullptr,
                                own.bests.data() + q / SIDE * panels + group, panels);
    }
}

// Marks the panels where queries may have something better; all their keys count, or some may be passed over.
static void mark_panels(RoundedScratch& own, int64_t panels, const RcBest& best, const int64_t* ids, int64_t n,
                        bool all_count) {
    Size all;
    for (int64_t group = 0; group < panels; group += PANELS) all.include(own.sizes[group / PANELS]);
    const int64_t sides = (n + SIDE - 1) / SIDE;
    for (int64_t side = 0; side < sides; ++side) {
        const int64_t first = side * SIDE, some = std::min<int64_t>(SIDE, n - first);
        const Lanes* bests = own.bests.data() + side * panels;
        float known[SIDE] = {};
        for (int64_t i = 0; i < some; ++i) known[i] = best.thresholds[ids[first + i]];
        Vec bound = load(known);
        if (all_count) {
            // So many panels have a key that is at least so good. (A bit less: what is just so good is to be found.)
            Vec reached = _mm512_sub_ps(reached_by(bests, panels, best.top_k), own.queries.margins.of(first, all));
            reached = _mm512_sub_ps(reached, fma(broadcast(1e-6f), _mm512_abs_ps(reached), broadcast(1e-37f)));
            bound = most(reached, bound);  // the second, if the first is not a number
        }
        const auto there = static_cast<__mmask16>((1u << some) - 1);
        for (int64_t group = 0; group < panels; group += PANELS) {
            const Vec limit = _mm512_sub_ps(bound, own.queries.margins.of(first, own.sizes[group / PANELS]));
            for (int64_t p = group; p < std::min(panels, group + PANELS); ++p)
                // What is not a number may be anything.
                own.may[p * sides + side] = _mm512_mask_cmp_ps_mask(there, bests[p].of_queries, limit, _CMP_NLE_UQ);
        }
    }
}

// The queries that may have something better in a panel; how many.
static int marked(RoundedScratch& own, int64_t panel, int64_t n, const float* const* queries, const int64_t* ids) {
    const int64_t sides = (n + SIDE - 1) / SIDE;
    int count = 0;
    for (int64_t side = 0; side < sides; ++side)
        for (uint32_t bits = own.may[panel * sides + side]; bits; bits &= bits - 1) {
            const int64_t query = side * SIDE + __builtin_ctz(bits);
            own.some[count] = queries[query], own.some_ids[count++] = ids[query];
        }
    return count;
}

static inline int64_t panels_together(int64_t rows, int64_t n) {
    return std::min((rows + NR - 1) / NR, std::max<int64_t>(BESTS_MAX / n, PANELS));
}

static inline bool rounding_pays(int64_t rows, int64_t n, const RcBest& best, const int64_t* ids) {
    const int64_t wanted = best.thresholds[ids[0]] > -INF ? 1 : best.top_k;
    return n >= ROUNDED_MIN && panels_together(rows, n) >= PANELS_MIN * wanted;
}

// As many(), with few products in float32: of panels with the queries that may have something better there.
template <class Type, class Rows, class Filter>
static void many_rounded(const Rows& rows, const float* const* queries, const int64_t* ids, int64_t n, int dim,
                         const float* bias, const RcBest& best, const Filter& wanted) {
    static thread_local Kept<RoundedScratch> kept;
    RoundedScratch& own = *kept;
    const int64_t together = panels_together(rows.size(), n);
    own.queries.set(queries, n, dim);
    own.reserve(n, together, dim);
    for (int64_t start = 0; start < rows.size(); start += together * NR) {
        const int64_t panels = std::min(together, (rows.size() - start + NR - 1) / NR);
        find_bests<Type>(own, rows, start, panels, dim, bias, n);
        mark_panels(own, panels, best, ids, n, std::is_same_v<Filter, All>);
        for (int64_t p = 0; p < panels; ++p) {
            const int count = marked(own, p, n, queries, ids);
            if (!count) continue;
            pack<Type>(rows, start + p * NR, dim, own.panel.data());
            for (int i = 0; i < count; i += MR)
                multiply_some(std::min(MR, count - i), own.some.data() + i, own.some_ids.data() + i, own.panel.data(),
                              dim, rows, start + p * NR, bias, best, wanted);
        }
        // The better thresholds are, the fewer products in float32.
        for (int64_t q = 0; q < n; ++q) shrink(best, ids[q]);
    }
}

}  // namespace RC_ISA

#endif
