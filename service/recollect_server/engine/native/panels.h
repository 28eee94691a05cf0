// Keys and queries multiplied in float32, and the candidates among the products.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "elements.h"
#include "kept.h"
#include "prefetch.h"
#include "select.h"

namespace RC_ISA {

constexpr int NR = 2 * W;               // keys of a panel: two vectors of products for each query
constexpr int64_t BLOCK_FLOATS = 65536;  // of packed keys: they stay in the second-level cache
constexpr int64_t AHEAD = 4096;          // bytes
constexpr int SCALAR_QUERIES = 3;       // so few are multiplied with keys as they lie, without packing

// ---- which rows are multiplied: neighbours in the buffer, or those of a list ----

template <class Type>
struct Range {
    using Element = typename Type::Element;
    const Element* keys;
    int64_t begin, count;
    int dim;
    int64_t size() const { return count; }
    int32_t slot(int64_t i) const { return static_cast<int32_t>(begin + i); }
    const Element* row(int64_t i) const { return keys + (begin + i) * dim; }
    // The processor sees it coming, but not beyond a page, and only so far ahead.
    void prefetch(int64_t i) const {
        const char* at = reinterpret_cast<const char*>(row(i)) + AHEAD;
        if (i < count)
            for (int64_t b = 0; b < static_cast<int64_t>(dim * sizeof(Element)); b += 64) prefetch_line(at + b);
    }
};

template <class Type>
struct Listed {
    using Element = typename Type::Element;
    const Element* keys;
    const int32_t* slots;
    int64_t count;
    int dim;
    int64_t size() const { return count; }
    int32_t slot(int64_t i) const { return slots[i]; }
    const Element* row(int64_t i) const { return keys + static_cast<int64_t>(slots[i]) * dim; }
    void prefetch(int64_t i) const {
        if (i < count) prefetch_row(row(i), dim * sizeof(Element));
    }
};

struct All {
    bool operator()(int32_t) const { return true; }
};

struct Live {
    const int64_t* live;
    bool operator()(int32_t slot) const {
        return (slot >= live[0] && slot < live[1]) || (slot >= live[2] && slot < live[3]);
    }
};

// ---- few queries: rows as they lie ----

// Products of Q queries with W / Q rows: of the elements before `end`, the last that fills a vector.
template <class Type, int Q>
__attribute__((always_inline)) static inline Vec products_of_rows(const typename Type::Element* const* row,
                                                                  const float* const* queries, int dim, int& end) {
    constexpr int R = W / Q;
    Vec total[W];
    for (int e = 0; e < W; ++e) total[e] = zero();
    int d = 0;
    for (; d + W <= dim; d += W) {
        Vec x[Q];
        for (int q = 0; q < Q; ++q) x[q] = load(queries[q] + d);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Vec key = Type::vector(row[r] + d);
            for (int q = 0; q < Q; ++q) total[r * Q + q] = fma(key, x[q], total[r * Q + q]);
        }
    }
    end = d;
    return sums(total);
}

template <class Type, int Q, class Rows, class Filter>
static void few(const Rows& rows, const float* const* queries, const int64_t* ids, int dim, const float* bias,
                const RcBest& best, const Filter& wanted) {
    constexpr int R = W / Q;  // rows whose products with all queries make one vector of scores
    const int64_t n = rows.size();
    float limits[W];
    const auto read_limits = [&] {
        for (int r = 0; r < R; ++r)
            for (int q = 0; q < Q; ++q) limits[r * Q + q] = best.thresholds[ids[q]];
    };
    for (int e = R * Q; e < W; ++e) limits[e] = INF;
    read_limits();
    for (int64_t i = 0; i < n; i += R) {
        const typename Type::Element* row[R];
        for (int r = 0; r < R; ++r) {
            row[r] = rows.row(std::min(i + r, n - 1));
            rows.prefetch(i + r + 2 * R);
        }
        int d;
        Vec scores = products_of_rows<Type, Q>(row, queries, dim, d);
        float lanes[W];
        if (d < dim || bias) {
            store(lanes, scores);
            for (int r = 0; r < R && i + r < n; ++r)
                for (int q = 0; q < Q; ++q) {
                    float& score = lanes[r * Q + q];
                    for (int e = d; e < dim; ++e) score += queries[q][e] * Type::scalar(row[r][e]);
                    if (bias) score += bias[rows.slot(i + r)];
                }
            scores = load(lanes);
        }
        const int64_t there = std::min<int64_t>(R, n - i) * Q;
        uint32_t found = above(scores, load(limits)) & static_cast<uint32_t>((uint64_t{1} << there) - 1);
        if (!found) continue;
        store(lanes, scores);
        for (; found; found &= found - 1) {
            const int e = __builtin_ctz(found);
            const int32_t slot = rows.slot(i + e / Q);
            const int64_t query = ids[e % Q];
            if (lanes[e] > best.thresholds[query] && wanted(slot)) push(best, query, lanes[e], slot);
        }
        read_limits();
    }
}

// ---- many queries: panels of NR keys, turned so that a vector holds one element of W keys ----

// Rows first .. first + NR to panel [dim][NR]; beyond the end the last row again.
template <class Type, class Rows>
static void pack(const Rows& rows, int64_t first, int dim, float* panel) {
    const int64_t last = rows.size() - 1;
    for (int half = 0; half < NR; half += W) {
        const typename Type::Element* row[W];
        for (int r = 0; r < W; ++r) {
            row[r] = rows.row(std::min(first + half + r, last));
            rows.prefetch(first + half + r + NR);
        }
        int d = 0;
        for (; d + W <= dim; d += W) {
            Vec v[W];
            for (int r = 0; r < W; ++r) v[r] = Type::vector(row[r] + d);
            transpose(v);
            for (int r = 0; r < W; ++r) store(panel + (d + r) * NR + half, v[r]);
        }
        for (; d < dim; ++d)
            for (int r = 0; r < W; ++r) panel[d * NR + half + r] = Type::scalar(row[r][d]);
    }
}

// Products of M queries with a panel: those with its first W keys, and with the others.
// (Inlined wherever it is used, or the sums would not stay in registers.)
template <int M>
__attribute__((always_inline)) static inline void products(const float* const* queries, const float* panel, int dim, Vec* low, Vec* high) {
    const float* q[M];
    for (int m = 0; m < M; ++m) q[m] = queries[m], low[m] = high[m] = zero();
    for (int d = 0; d < dim; ++d) {
        const Vec a = load(panel + d * NR), b = load(panel + d * NR + W);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const Vec x = broadcast(q[m][d]);
            low[m] = fma(x, a, low[m]);
            high[m] = fma(x, b, high[m]);
        }
    }
}

// The candidates among them.
template <int M, class Rows, class Filter>
static inline void multiply(const float* const* queries, const int64_t* ids, const float* panel, int dim,
                            const Rows& rows, int64_t first, const float* bias, const RcBest& best,
                            const Filter& wanted) {
    Vec low[M], high[M];
    products<M>(queries, panel, dim, low, high);
    const int64_t left = rows.size() - first;
    const uint64_t there = left >= NR ? ~0ull : (1ull << left) - 1;
    Vec bias_low = zero(), bias_high = zero();
    if (bias) {
        float lanes[NR];
        for (int r = 0; r < NR; ++r) lanes[r] = bias[rows.slot(std::min(first + r, rows.size() - 1))];
        bias_low = load(lanes), bias_high = load(lanes + W);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        if (bias) low[m] = add(low[m], bias_low), high[m] = add(high[m], bias_high);
        const Vec threshold = broadcast(best.thresholds[ids[m]]);
        uint64_t found = (above(low[m], threshold) | static_cast<uint64_t>(above(high[m], threshold)) << W) & there;
        if (__builtin_expect(found != 0, 0)) {
            float lanes[NR];
            store(lanes, low[m]), store(lanes + W, high[m]);
            for (; found; found &= found - 1) {
                const int r = __builtin_ctzll(found);
                const int32_t slot = rows.slot(first + r);
                if (lanes[r] > best.thresholds[ids[m]] && wanted(slot)) push(best, ids[m], lanes[r], slot);
            }
        }
    }
}

template <class Rows, class Filter>
static void multiply_some(int queries_left, const float* const* queries, const int64_t* ids, const float* panel,
                          int dim, const Rows& rows, int64_t first, const float* bias, const RcBest& best,
                          const Filter& wanted) {
    switch (queries_left) {
        case 1: return multiply<1>(queries, ids, panel, dim, rows, first, bias, best, wanted);
        case 2: return multiply<2>(queries, ids, panel, dim, rows, first, bias, best, wanted);
        case 3: return multiply<3>(queries, ids, panel, dim, rows, first, bias, best, wanted);
        case 4: return multiply<4>(queries, ids, panel, dim, rows, first, bias, best, wanted);
        case 5: return multiply<5>(queries, ids, panel, dim, rows, first, bias, best, wanted);
        case 6: return multiply<6>(queries, ids, panel, dim, rows, first, bias, best, wanted);
        case 7: return multiply<7>(queries, ids, panel, dim, rows, first, bias, best, wanted);
        default: return multiply<MR>(queries, ids, panel, dim, rows, first, bias, best, wanted);
    }
}

static float* scratch(Kept<std::vector<float>>& kept, int64_t floats) {
    std::vector<float>& buffer = *kept;
    if (static_cast<int64_t>(buffer.size()) < floats + 16) buffer.resize(floats + 16);
    // To a line of the cache.
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) & ~uintptr_t{63});
}

template <class Type, class Rows, class Filter>
static void many(const Rows& rows, const float* const* queries, const int64_t* ids, int64_t n, int dim,
                 const float* bias, const RcBest& best, const Filter& wanted) {
    static thread_local Kept<std::vector<float>> buffer;
    const int64_t block = std::max<int64_t>(1, BLOCK_FLOATS / (static_cast<int64_t>(dim) * NR)) * NR;
    float* packed = scratch(buffer, std::min(block, (rows.size() + NR - 1) / NR * NR) * dim);
    for (int64_t start = 0; start < rows.size(); start += block) {
        const int64_t stop = std::min(start + block, rows.size());
        for (int64_t p = start; p < stop; p += NR) pack<Type>(rows, p, dim, packed + (p - start) * dim);
        for (int64_t q = 0; q < n; q += MR) {
            const int some = static_cast<int>(std::min<int64_t>(MR, n - q));
            for (int64_t p = start; p < stop; p += NR)
                multiply_some(some, queries + q, ids + q, packed + (p - start) * dim, dim, rows, p, bias, best,
                              wanted);
        }
    }
}

}  // namespace RC_ISA
