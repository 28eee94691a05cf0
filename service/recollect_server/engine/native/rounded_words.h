// Products of elements that are rounded to integers of 16 bits: vectors make twice as many of them (VNNI) as they make in
// float32.
//
// A query's elements are integers times a step of its own, those of a panel's keys times a step that they share; so of
// a panel's products the largest is found among integers. The more elements there are, the smaller the integers: so
// that no sum of products overflows.
#pragma once
#include <cstdint>
#include <vector>

#include "rounded_sizes.h"

#if defined(__AVX512VNNI__) && !defined(__AMX_BF16__)

#define RC_INLINE __attribute__((always_inline)) inline

namespace RC_ISA {

constexpr int PAIR = 2;              // elements whose products one instruction adds up
constexpr int SUMS = 8;              // keys whose sums with a block of queries stay in registers
constexpr int64_t ROUNDED_MIN = 48;  // queries: for fewer, it takes longer to lay out keys than to multiply them
constexpr float LEAST = 1e-30f;      // what is smaller is taken for zero: its step could not be divided by

using Pairs = Line<int32_t>;  // of SIDE rows

static inline int64_t pairs_of(int dim) { return (dim + PAIR - 1) / PAIR; }

// How large integers may be, on either side of zero.
static inline float levels_of(int dim) {
    return static_cast<float>(std::min<double>(INT16_MAX, std::floor(std::sqrt(INT32_MAX / static_cast<double>(dim)))));
}

// A step, and what elements are multiplied with to be counted in it.
struct Step {
    float size = 0, inverse = 0;
    Step(float largest, float levels) {
        if (largest >= LEAST) size = largest / levels, inverse = 1 / size;
    }
};

template <class Type>
static inline Vec largest_of(const typename Type::Element* row, int dim, Vec largest) {
    for (int d = 0; d < dim; d += W)
        largest = most(_mm512_abs_ps(elements<Type>(row, d, dim)), largest);  // the second, if the first is no number
    return largest;
}

static inline __m512i in_steps(Vec x, const Step& step, Squares& of) {
    const __m512i steps = _mm512_cvtps_epi32(_mm512_mul_ps(x, broadcast(step.inverse)));
    of.include(x, _mm512_fnmadd_ps(_mm512_cvtepi32_ps(steps), broadcast(step.size), x));
    return steps;
}

// 32 elements from d on, as pairs, in the order that write_pairs() knows.
template <class Type>
static inline Vec in_pairs(const typename Type::Element* row, int d, int dim, const Step& step, Squares& of) {
    const __m512i low = in_steps(elements<Type>(row, d, dim), step, of);
    const __m512i high = d + W < dim ? in_steps(elements<Type>(row, d + W, dim), step, of) : _mm512_setzero_si512();
    return _mm512_castsi512_ps(_mm512_packs_epi32(low, high));
}

// Turns pairs of SIDE rows, from element d on, so that each vector has one of each row: to [pairs, 2].
static inline void write_pairs(Vec* rows, int d, int dim, Pairs* to) {
    transpose(rows);
    for (int r = 0; r < SIDE; ++r) {
        const int64_t pair = d / PAIR + r % 4 / 2 * 8 + r / 4 * 2 + r % 2;
        if (pair < pairs_of(dim)) _mm512_store_ps(to + pair * 2, rows[r]);
    }
}

// Queries [n / BLOCK_SIDE, pairs, 2] of SIDE each.
struct RoundedQueries {
    std::vector<Pairs> pairs;
    std::vector<float> steps;
    Margins margins;

    void set(const float* const* queries, int64_t n, int dim) {
        const int64_t blocks = (n + BLOCK_SIDE - 1) / BLOCK_SIDE;
        pairs.assign(blocks * pairs_of(dim) * 2, Pairs{}), steps.assign(blocks * BLOCK_SIDE, 0);
        margins.reserve(blocks * BLOCK_SIDE);
        for (int64_t first = 0; first < n; first += SIDE) {
            Pairs* to = pairs.data() + first / BLOCK_SIDE * pairs_of(dim) * 2 + first / SIDE % 2;
            set_side(queries, first, static_cast<int>(std::min<int64_t>(SIDE, n - first)), dim, to);
        }
    }

  private:
    void set_side(const float* const* queries, int64_t first, int some, int dim, Pairs* to) {
        Squares squares[SIDE];
        const float levels = levels_of(dim);
        float largest[SIDE];
        for (int r = 0; r < some; ++r) largest[r] = most(largest_of<Float32>(queries[first + r], dim, zero()));
        for (int d = 0; d < dim; d += PAIR * SIDE) {
            Vec rows[SIDE];
            for (int r = 0; r < SIDE; ++r) rows[r] = zero();
            for (int r = 0; r < some; ++r)
                rows[r] = in_pairs<Float32>(queries[first + r], d, dim, Step(largest[r], levels), squares[r]);
            write_pairs(rows, d, dim, to);
        }
        for (int r = 0; r < some; ++r) {
            margins.set(first + r, squares[r], dim);
            steps[first + r] = Step(largest[r], levels).size;
        }
    }
};

// Nothing has to be set for a thread.
struct Unit {};

// The largest products so far of a block of queries: as integers, unless each has a bias.
struct Bests {
    Vec steps[2], best[2] = {broadcast(-INF), broadcast(-INF)};
    __m512i largest[2] = {_mm512_set1_epi32(INT32_MIN), _mm512_set1_epi32(INT32_MIN)};

    RC_INLINE void include(__m512i low, __m512i high) {
        largest[0] = _mm512_max_epi32(largest[0], low), largest[1] = _mm512_max_epi32(largest[1], high);
    }
    RC_INLINE void include(__m512i low, __m512i high, float bias) {
        best[0] = most(fma(_mm512_cvtepi32_ps(low), steps[0], broadcast(bias)), best[0]);
        best[1] = most(fma(_mm512_cvtepi32_ps(high), steps[1], broadcast(bias)), best[1]);
    }
    void take_largest() {
        for (int side = 0; side < 2; ++side)
            best[side] = _mm512_mul_ps(_mm512_cvtepi32_ps(largest[side]), steps[side]);
    }
};

// As _mm512_dpwssd_epi32, in place: of that one GCC makes as many moves between registers as products.
RC_INLINE void add_products(__m512i& to, __m512i a, __m512i b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(to) : "v"(a), "v"(b));
}

// Sums of KEYS keys with a block of queries. (An array would not stay in registers.)
template <int KEYS>
struct Sums {
    Sums<KEYS - 1> others;
    __m512i low = _mm512_setzero_si512(), high = low;

    RC_INLINE void add(const int32_t* keys, __m512i a, __m512i b) {
        others.add(keys, a, b);
        const __m512i key = _mm512_set1_epi32(keys[KEYS - 1]);
        add_products(low, a, key), add_products(high, b, key);
    }
    RC_INLINE void find_best(Bests& bests) const { others.find_best(bests), bests.include(low, high); }
    RC_INLINE void find_best(const float* biases, Bests& bests) const {
        others.find_best(biases, bests), bests.include(low, high, biases[KEYS - 1]);
    }
};
template <>
struct Sums<0> {
    void add(const int32_t*, __m512i, __m512i) {}
    void find_best(Bests&) const {}
    void find_best(const float*, Bests&) const {}
};

// A group of panels.
class RoundedKeys {
  public:
    void reserve(int dim) { pairs_.resize(PANELS * pairs_of(dim) * 2); }

    template <class Type, class Rows>
    Size set(int panel, const Rows& rows, int64_t first, int dim) {
        const int64_t last = rows.size() - 1;
        const typename Type::Element* row[NR];
        Vec largest = zero();
        for (int r = 0; r < NR; ++r) {
            row[r] = rows.row(std::min(first + r, last));
            rows.prefetch(first + r + NR);
            largest = largest_of<Type>(row[r], dim, largest);
        }
        const Step step(most(largest), levels_of(dim));
        steps_[panel] = step.size;
        Pairs* to = pairs_.data() + panel * pairs_of(dim) * 2;
        Size size = set_half<Type>(row, step, dim, to);
        size.include(set_half<Type>(row + SIDE, step, dim, to + 1));
        // Of a key that is small beside the step, rounding may make one twice as large.
        const float norm = size.norm + size.rest;
        size.norm = norm < INF ? norm : INF;  // what is left of a key that is not finite may be no number
        return size;
    }

    // The bests of the first panels for queries q .. q + BLOCK_SIDE: to [2, apart]; `biases` may be null.
    void find_bests(int count, const RoundedQueries& queries, int64_t q, int dim, const float* biases, Lanes* to,
                    int64_t apart) const {
        const int64_t pairs = pairs_of(dim);
        const Pairs* block = queries.pairs.data() + q / BLOCK_SIDE * pairs * 2;
        const Vec low = load(queries.steps.data() + q), high = load(queries.steps.data() + q + SIDE);
        for (int p = 0; p < count; ++p) {
            const Vec step = broadcast(steps_[p]);
            Bests bests{{_mm512_mul_ps(low, step), _mm512_mul_ps(high, step)}};
            multiply(reinterpret_cast<const int32_t*>(pairs_.data() + p * pairs * 2), block, pairs,
                     biases ? biases + p * NR : nullptr, bests);
            to[p].of_queries = bests.best[0], to[apart + p].of_queries = bests.best[1];
        }
    }

  private:
    std::vector<Pairs> pairs_;  // [PANELS, pairs, 2]
    float steps_[PANELS];

    template <class Type>
    static Size set_half(const typename Type::Element* const* row, const Step& step, int dim, Pairs* to) {
        Squares squares[SIDE];
        for (int d = 0; d < dim; d += PAIR * SIDE) {
            Vec rows[SIDE];
            for (int r = 0; r < SIDE; ++r) rows[r] = in_pairs<Type>(row[r], d, dim, step, squares[r]);
            write_pairs(rows, d, dim, to);
        }
        Vec all[SIDE], rest[SIDE];
        __m512i bits = _mm512_setzero_si512();
        for (int r = 0; r < SIDE; ++r) {
            all[r] = squares[r].all, rest[r] = squares[r].rest;
            bits = _mm512_or_si512(bits, squares[r].bits);
        }
        const Vec norms = sums(all);
        // An integer cannot say that it is no number: a panel that has such a key may have anything.
        const bool are_numbers = !_mm512_cmp_ps_mask(norms, norms, _CMP_UNORD_Q);
        return size_of(are_numbers ? norms : broadcast(INF), sums(rest), bits);
    }

    // A panel with a block of queries.
    static void multiply(const int32_t* keys, const Pairs* queries, int64_t pairs, const float* biases, Bests& bests) {
        for (int first = 0; first < NR; first += SUMS) {
            Sums<SUMS> sums;
            for (int64_t i = 0; i < pairs; ++i)
                sums.add(keys + i * NR + first, _mm512_load_si512(queries + 2 * i),
                         _mm512_load_si512(queries + 2 * i + 1));
            if (biases) sums.find_best(biases + first, bests);
            else sums.find_best(bests);
        }
        if (!biases) bests.take_largest();
    }
};

}  // namespace RC_ISA

#endif
