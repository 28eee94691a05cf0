// Which keys are out of the question, by products of elements that are rounded to bfloat16: a matrix unit (AMX) makes
// sixteen times as many of them as vectors make in float32.
//
// A query q and a key k are rounded to q' and k', so q.k is within |q| |k - k'| + |q - q'| |k'| of q'.k' (and what
// sums are off by). What is below a query's threshold by more than that is left out; the others are multiplied in
// float32, as they are without such a unit. So the same is found, bit for bit.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "kept.h"
#include "panels.h"

#if defined(__AMX_BF16__)

namespace RC_ISA {

constexpr int SIDE = 16;                // rows of a tile
constexpr int DEPTH = 32;               // elements of a row
constexpr int BLOCK_SIDE = 2 * SIDE;    // queries and keys whose products are made together
constexpr int64_t ROUNDED_MIN = 24;     // queries: for fewer, it takes longer to lay out keys than to multiply them
constexpr int64_t PANELS_MIN = 4;       // times top_k, where thresholds are not known yet
constexpr int PANELS = 8;               // of a group, which stays in the first-level cache
constexpr int64_t BESTS_MAX = 1 << 19;  // of panels, for all queries: they stay in the second-level cache
constexpr int HALVINGS = 10;            // of the range that a threshold is looked for in
constexpr float SLACK = 1.01f, TINY = 1e-20f;

// A row of a tile. (Loads of rows that lie across two lines of the cache take twice as long.)
struct alignas(64) TileRow {
    uint16_t elements[DEPTH];
};

// A number for each of SIDE queries.
struct Lanes {
    Vec of_queries;
};

static inline int64_t depth_of(int dim) { return (dim + DEPTH - 1) / DEPTH; }

// The largest of the norms of a few vectors, and of what rounding leaves of them.
struct Size {
    float norm = 0, rest = 0;
    bool is_zero = true;
    float bias = 0;  // the largest that is added to products
    void include(const Size& other) {
        bias = std::max(bias, other.bias);
        norm = std::max(norm, other.norm), rest = std::max(rest, other.rest), is_zero &= other.is_zero;
    }
};

// The same, while it is found out: sums of squares, and all bits.
struct Squares {
    Vec all = zero(), rest = zero();
    __m512i bits = _mm512_setzero_si512();
};

static inline Size size_of(Vec all, Vec rest, __m512i bits) {
    const bool is_zero = !_mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x7fffffff));
    return {std::sqrt(most(all)), std::sqrt(most(rest)), is_zero};
}

// 32 elements from d on, as bfloat16; zeroes beyond dim.
template <class Type>
static inline __m512i rounded(const typename Type::Element* row, int d, int dim, Squares& of) {
    Vec low, high;
    if (d + DEPTH <= dim) {
        low = Type::vector(row + d), high = Type::vector(row + d + W);
    } else {
        float tail[DEPTH] = {};
        for (int e = d; e < dim; ++e) tail[e - d] = Type::scalar(row[e]);
        low = load(tail), high = load(tail + W);
    }
    const __m512i pairs = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    of.all = fma(high, high, fma(low, low, of.all));
    of.bits = _mm512_or_si512(of.bits, _mm512_or_si512(_mm512_castps_si512(low), _mm512_castps_si512(high)));
    const __m512i wide_low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(pairs));
    const __m512i wide_high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(pairs, 1));
    low = _mm512_sub_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32(wide_low, 16)));
    high = _mm512_sub_ps(high, _mm512_castsi512_ps(_mm512_slli_epi32(wide_high, 16)));
    of.rest = fma(high, high, fma(low, low, of.rest));
    return pairs;
}

// Queries as tiles [n / BLOCK_SIDE, depth, 2, SIDE], of pairs of elements x queries.
struct RoundedQueries {
    std::vector<TileRow> rows;
    std::vector<float> of_rest, of_norm, of_any;  // what a key's rest, its norm and any key make a product be off by

    void set(const float* const* queries, int64_t n, int dim) {
        const int64_t blocks = (n + BLOCK_SIDE - 1) / BLOCK_SIDE, depth = depth_of(dim);
        rows.assign(blocks * depth * BLOCK_SIDE, TileRow{});
        for (auto* of : {&of_rest, &of_norm, &of_any}) of->assign(blocks * BLOCK_SIDE, 0);
        for (int64_t first = 0; first < n; first += SIDE) {
            const int64_t some = std::min<int64_t>(SIDE, n - first);
            Squares squares[SIDE];
            for (int64_t d = 0; d < depth; ++d) {
                Vec pairs[SIDE];
                for (int r = 0; r < SIDE; ++r) pairs[r] = zero();
                for (int r = 0; r < some; ++r)
                    pairs[r] = _mm512_castsi512_ps(rounded<Float32>(queries[first + r], d * DEPTH, dim, squares[r]));
                transpose(pairs);
                TileRow* tile = rows.data() + (first / BLOCK_SIDE * depth + d) * BLOCK_SIDE + first % BLOCK_SIDE;
                for (int r = 0; r < SIDE; ++r) _mm512_store_ps(tile + r, pairs[r]);
            }
            for (int r = 0; r < some; ++r) set_margin(first + r, squares[r], dim);
        }
    }

    // How much products of queries first .. first + SIDE with keys of that size may be off; not a number if they may
    // overflow.
    Vec margins(int64_t first, const Size& keys) const {
        const Vec rest = load(of_rest.data() + first), norm = load(of_norm.data() + first);
        const Vec any = keys.is_zero ? zero() : load(of_any.data() + first);
        const Vec of_products = fma(rest, broadcast(keys.rest), fma(norm, broadcast(keys.norm), any));
        const Vec most = fma(rest, broadcast(4 * keys.norm), broadcast(keys.bias));
        return add(fma(broadcast(keys.bias), broadcast(1.0f / (1 << 22)), of_products), _mm512_sub_ps(most, most));
    }

  private:
    void set_margin(int64_t query, const Squares& squares, int dim) {
        const Size size = size_of(broadcast(sum(squares.all)), broadcast(sum(squares.rest)), squares.bits);
        // Both sums are rounded, and numbers below the normal ones are taken for zero.
        of_rest[query] = size.norm * SLACK;
        of_norm[query] = size.rest * SLACK + size.norm * (static_cast<float>(dim) / (1 << 22));
        if (size.is_zero) return;
        of_norm[query] += TINY, of_any[query] = TINY * size.norm + TINY * TINY;
    }
};

// Rows first .. first + BLOCK_SIDE as tiles [BLOCK_SIDE, depth]; beyond the end the last again.
template <class Type, class Rows>
static Size pack_rounded(const Rows& rows, int64_t first, int dim, TileRow* panel) {
    const int64_t last = rows.size() - 1, depth = depth_of(dim);
    Vec all = zero(), rest = zero();
    __m512i bits = _mm512_setzero_si512();
    for (int half = 0; half < BLOCK_SIDE; half += SIDE) {
        Vec of_all[SIDE], of_rest[SIDE];
        for (int r = 0; r < SIDE; ++r, panel += depth) {
            const typename Type::Element* row = rows.row(std::min(first + half + r, last));
            rows.prefetch(first + half + r + BLOCK_SIDE);
            Squares squares;
            for (int64_t d = 0; d < depth; ++d)
                _mm512_store_si512(panel + d, rounded<Type>(row, d * DEPTH, dim, squares));
            of_all[r] = squares.all, of_rest[r] = squares.rest, bits = _mm512_or_si512(bits, squares.bits);
        }
        all = most(sums(of_all), all), rest = most(sums(of_rest), rest);  // the second, if the first is no number
    }
    return size_of(all, rest, bits);
}

// The unit is configured for a thread while one of these lives.
class Tiles {
  public:
    Tiles() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } config;
        for (int tile = 0; tile < 8; ++tile) config.row_bytes[tile] = 64, config.rows[tile] = SIDE;
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

// Products of a panel with a block of queries: [BLOCK_SIDE keys, BLOCK_SIDE queries].
static inline void tile_products(const TileRow* panel, const TileRow* queries, int64_t depth, float* to) {
    asm volatile("" ::: "memory");  // GCC does not know that tiles are loaded from memory
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t d = 0; d < depth; ++d, queries += BLOCK_SIDE) {
        _tile_loadd(4, panel + d, depth * sizeof(TileRow));
        _tile_loadd(6, queries, sizeof(TileRow));
        _tile_loadd(7, queries + SIDE, sizeof(TileRow));
        _tile_loadd(5, panel + SIDE * depth + d, depth * sizeof(TileRow));
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    constexpr int row = BLOCK_SIDE * sizeof(float);
    _tile_stored(0, to, row);
    _tile_stored(1, to + SIDE, row);
    _tile_stored(2, to + SIDE * BLOCK_SIDE, row);
    _tile_stored(3, to + SIDE * BLOCK_SIDE + SIDE, row);
    asm volatile("" ::: "memory");
}

// The best of a panel for each of SIDE queries: `products` are the first column of theirs; `biases`, of the keys, may
// be null.
static inline Vec best_of_panel(const float* products, const float* biases) {
    Vec best[4];
    for (int k = 0; k < 4; ++k) best[k] = broadcast(-INF);
    for (int key = 0; key < BLOCK_SIDE; key += 4)
        for (int k = 0; k < 4; ++k) {
            Vec of_key = load(products + (key + k) * BLOCK_SIDE);
            if (biases) of_key = add(of_key, broadcast(biases[key + k]));
            best[k] = most(of_key, best[k]);  // the second, if the first is not a number
        }
    return most(most(best[0], best[1]), most(best[2], best[3]));
}

// The bests of panels, laid out one after the other, for a block of queries: to [2, apart].
static void bests_of_panels(const TileRow* panels, int count, const TileRow* queries, int64_t depth,
                            const float* biases, Lanes* to, int64_t apart) {
    alignas(64) float made[2][BLOCK_SIDE * BLOCK_SIDE];
    // One block is looked through while the next one is made.
    for (int p = 0; p <= count; ++p) {
        if (p < count) tile_products(panels + p * BLOCK_SIDE * depth, queries, depth, made[p % 2]);
        if (p == 0) continue;
        const float *products = made[(p - 1) % 2], *of_keys = biases ? biases + (p - 1) * BLOCK_SIDE : nullptr;
        to[p - 1].of_queries = best_of_panel(products, of_keys);
        to[apart + p - 1].of_queries = best_of_panel(products + SIDE, of_keys);
    }
}

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
    std::vector<TileRow> tiles;      // [PANELS, NR, depth]
    std::vector<float> biases;       // [PANELS, NR]
    std::vector<Size> sizes;         // of groups
    std::vector<Lanes> bests;        // [n / SIDE, panels]
    std::vector<uint16_t> may;       // [panels, n / SIDE]: which queries may have something better there
    std::vector<float> panel;        // [dim, NR]
    std::vector<const float*> some;  // [n]
    std::vector<int64_t> some_ids;   // [n]

    void reserve(int64_t n, int64_t panels, int dim) {
        const int64_t sides = (n + BLOCK_SIDE - 1) / BLOCK_SIDE * 2;
        tiles.resize(PANELS * NR * depth_of(dim)), biases.resize(PANELS * NR), panel.resize(dim * NR);
        bests.resize(sides * panels), may.resize(panels * sides), sizes.resize(panels / PANELS + 1);
        some.resize(n), some_ids.resize(n);
    }
};

// Finds the best of each panel from `start` on, for all queries.
template <class Type, class Rows>
static void find_bests(RoundedScratch& own, const Rows& rows, int64_t start, int64_t panels, int dim, const float* bias,
                       int64_t n) {
    const int64_t depth = depth_of(dim);
    const Tiles use;
    for (int64_t group = 0; group < panels; group += PANELS) {
        const int some = static_cast<int>(std::min<int64_t>(PANELS, panels - group));
        const int64_t at = start + group * NR;
        Size size;
        for (int p = 0; p < some; ++p)
            size.include(pack_rounded<Type>(rows, at + p * NR, dim, own.tiles.data() + p * NR * depth));
        for (int r = 0; bias && r < some * NR; ++r) {
            own.biases[r] = bias[rows.slot(std::min(at + r, rows.size() - 1))];
            size.bias = std::max(size.bias, std::fabs(own.biases[r]));
        }
        own.sizes[group / PANELS] = size;
        for (int64_t q = 0; q < n; q += BLOCK_SIDE)
            bests_of_panels(own.tiles.data(), some, own.queries.rows.data() + q * depth, depth,
                            bias ? own.biases.data() : nullptr, own.bests.data() + q / SIDE * panels + group, panels);
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
            Vec reached = _mm512_sub_ps(reached_by(bests, panels, best.top_k), own.queries.margins(first, all));
            reached = _mm512_sub_ps(reached, fma(broadcast(1e-6f), _mm512_abs_ps(reached), broadcast(1e-37f)));
            bound = most(reached, bound);  // the second, if the first is not a number
        }
        const auto there = static_cast<__mmask16>((1u << some) - 1);
        for (int64_t group = 0; group < panels; group += PANELS) {
            const Vec limit = _mm512_sub_ps(bound, own.queries.margins(first, own.sizes[group / PANELS]));
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
