// Products of elements that are rounded to bfloat16: a matrix unit (AMX) makes sixteen times as many of them as vectors
// make in float32.
#pragma once
#include <cstdint>
#include <vector>

#include "rounded_sizes.h"

#if defined(__AMX_BF16__)

namespace RC_ISA {

constexpr int DEPTH = 32;            // elements of a tile's row
constexpr int64_t ROUNDED_MIN = 24;  // queries: for fewer, it takes longer to lay out keys than to multiply them

using TileRow = Line<uint16_t>;

static inline int64_t depth_of(int dim) { return (dim + DEPTH - 1) / DEPTH; }

// 32 elements from d on, as bfloat16; zeroes beyond dim.
template <class Type>
static inline __m512i rounded(const typename Type::Element* row, int d, int dim, Squares& of) {
    const Vec low = elements<Type>(row, d, dim), high = elements<Type>(row, d + W, dim);
    const __m512i pairs = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    const __m512i wide_low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(pairs));
    const __m512i wide_high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(pairs, 1));
    of.include(low, _mm512_sub_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32(wide_low, 16))));
    of.include(high, _mm512_sub_ps(high, _mm512_castsi512_ps(_mm512_slli_epi32(wide_high, 16))));
    return pairs;
}

// Queries as tiles [n / BLOCK_SIDE, depth, 2, SIDE], of pairs of elements x queries.
struct RoundedQueries {
    std::vector<TileRow> rows;
    Margins margins;

    void set(const float* const* queries, int64_t n, int dim) {
        const int64_t blocks = (n + BLOCK_SIDE - 1) / BLOCK_SIDE, depth = depth_of(dim);
        rows.assign(blocks * depth * BLOCK_SIDE, TileRow{});
        margins.reserve(blocks * BLOCK_SIDE);
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
            for (int r = 0; r < some; ++r) margins.set(first + r, squares[r], dim);
        }
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
class Unit {
  public:
    Unit() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } config;
        for (int tile = 0; tile < 8; ++tile) config.row_bytes[tile] = 64, config.rows[tile] = SIDE;
        _tile_loadconfig(&config);
    }
    ~Unit() { _tile_release(); }
    Unit(const Unit&) = delete;
    Unit& operator=(const Unit&) = delete;
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

// A group of panels.
struct RoundedKeys {
    std::vector<TileRow> tiles;  // [PANELS, NR, depth]

    void reserve(int dim) { tiles.resize(PANELS * NR * depth_of(dim)); }

    template <class Type, class Rows>
    Size set(int panel, const Rows& rows, int64_t first, int dim) {
        return pack_rounded<Type>(rows, first, dim, tiles.data() + panel * NR * depth_of(dim));
    }

    // The bests of the first panels for queries q .. q + BLOCK_SIDE: to [2, apart].
    void find_bests(int count, const RoundedQueries& queries, int64_t q, int dim, const float* biases, Lanes* to,
                    int64_t apart) const {
        const int64_t depth = depth_of(dim);
        bests_of_panels(tiles.data(), count, queries.rows.data() + q * depth, depth, biases, to, apart);
    }
};

}  // namespace RC_ISA

#endif
