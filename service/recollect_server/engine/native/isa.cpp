// Search and attention for one instruction set (RC_ISA names it).
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "askers.h"
#include "elements.h"
#include "isa.h"
#include "kept.h"
#include "panels.h"
#include "prefetch.h"
#include "rounded.h"
#include "select.h"

namespace RC_ISA {

template <class Type, class Rows, class Filter>
static void take(const Rows& rows, const float* const* queries, const int64_t* ids, int64_t n, int dim,
                 const float* bias, const RcBest& best, const Filter& wanted) {
    if (rows.size() <= 0) return;
    switch (n) {
        case 0: return;
        case 1: return few<Type, 1>(rows, queries, ids, dim, bias, best, wanted);
        case 2: return few<Type, 2>(rows, queries, ids, dim, bias, best, wanted);
        case SCALAR_QUERIES: return few<Type, 3>(rows, queries, ids, dim, bias, best, wanted);
    }
#if defined(RC_ROUNDS)
    if (rounding_pays(rows.size(), n, best, ids))
        return many_rounded<Type>(rows, queries, ids, n, dim, bias, best, wanted);
#endif
    many<Type>(rows, queries, ids, n, dim, bias, best, wanted);
}

// ---- queries as float32 ----

static const float* widened(const void* queries, int32_t dtype, int64_t offset, int64_t count,
                            Kept<std::vector<float>>& buffer) {
    if (dtype == RC_FLOAT32) return static_cast<const float*>(queries) + offset;
    float* to = scratch(buffer, count);
    const uint16_t* from = static_cast<const uint16_t*>(queries) + offset;
    if (dtype == RC_FLOAT16) widen<Float16>(from, static_cast<int>(count), to);
    else widen<Bfloat16>(from, static_cast<int>(count), to);
    return to;
}

template <class Do>
static void with_type(int32_t dtype, const Do& call) {
    if (dtype == RC_FLOAT32) call(Float32{});
    else if (dtype == RC_FLOAT16) call(Float16{});
    else call(Bfloat16{});
}

// Values may be integers, too.
template <class Do>
static void with_value_type(int32_t dtype, const Do& call) {
    if (dtype == RC_INT8) call(Int8{});
    else with_type(dtype, call);
}

static void scan(const RcScan& s, const RcBest& best, int32_t head, int64_t first, int64_t last, int64_t begin,
                 int64_t end) {
    static thread_local Kept<std::vector<float>> buffer;
    static thread_local std::vector<const float*> pointers;
    static thread_local std::vector<int64_t> ids;
    const int64_t n = last - first, per_head = best.queries / s.heads;
    const float* rows = widened(s.queries, s.query_dtype, head * s.query_stride + first * s.dim, n * s.dim, buffer);
    pointers.resize(n), ids.resize(n);
    for (int64_t i = 0; i < n; ++i) pointers[i] = rows + i * s.dim, ids[i] = head * per_head + first + i;
    with_type(s.key_dtype, [&](auto type) {
        using Type = decltype(type);
        const auto* keys = static_cast<const typename Type::Element*>(s.keys) + head * s.key_stride;
        take<Type>(Range<Type>{keys, begin, end - begin, s.dim}, pointers.data(), ids.data(), n, s.dim, s.bias,
                   best, All{});
    });
}

static void probe(const RcProbe& p, const RcBest& best, int32_t first_list, int32_t last_list) {
    static thread_local std::vector<const float*> pointers;
    static thread_local std::vector<int64_t> ids;
    with_type(p.dtype, [&](auto type) {
        using Type = decltype(type);
        const auto* keys = static_cast<const typename Type::Element*>(p.keys);
        for (int32_t l = first_list; l < last_list; ++l) {
            const int64_t n = p.counts[l];
            const RcLists::List& list = p.lists->lists[l];
            if (!n || !list.size()) continue;
            pointers.resize(n), ids.resize(n);
            const uint32_t* askers = p.askers + l * static_cast<int64_t>(p.query_words);
            for (int64_t w = 0, i = 0; w < p.query_words; ++w)
                for (uint32_t bits = askers[w]; bits; bits &= bits - 1, ++i) {
                    ids[i] = w * 32 + __builtin_ctz(bits);
                    pointers[i] = p.queries + ids[i] * p.dim;
                }
            take<Type>(Listed<Type>{keys, list.data(), list.size(), p.dim}, pointers.data(), ids.data(), n, p.dim,
                       nullptr, best, Live{p.live});
        }
    });
}

// ---- the nearest lists ----

template <int M>
static inline void write_products(const float* const* queries, const float* panel, int dim, float* out,
                                  int64_t stride) {
    Vec low[M], high[M];
    products<M>(queries, panel, dim, low, high);
    for (int m = 0; m < M; ++m) store(out + m * stride, low[m]), store(out + m * stride + W, high[m]);
}

// The same of Q queries with rows as they lie: of few queries with large rows, turning these takes as long as that.
template <int Q>
static void write_products_of_rows(const Range<Float32>& rows, const float* const* queries, int dim, float* out,
                                   int64_t stride) {
    constexpr int R = W / Q;
    const int64_t n = rows.size();
    for (int64_t i = 0; i < n; i += R) {
        const float* row[R];
        for (int r = 0; r < R; ++r) row[r] = rows.row(std::min(i + r, n - 1)), rows.prefetch(i + r);
        int d;
        float lanes[W];
        store(lanes, products_of_rows<Float32, Q>(row, queries, dim, d));
        for (int r = 0; r < R && i + r < n; ++r)
            for (int q = 0; q < Q; ++q) {
                float score = lanes[r * Q + q];
                for (int e = d; e < dim; ++e) score += queries[q][e] * row[r][e];
                out[q * stride + i + r] = score;
            }
    }
}

static inline int64_t padded_to_panels(int64_t rows) { return (rows + NR - 1) / NR * NR; }

// Products of n queries with all centroids: [n (and some), lists, padded to panels], until this thread's next ones.
static float* centroid_scores(const Range<Float32>& rows, const float* queries, int64_t n, int dim) {
    static thread_local Kept<std::vector<float>> packed_buffer, scores_buffer;
    const int64_t padded = padded_to_panels(rows.size());
    float* panel = scratch(packed_buffer, static_cast<int64_t>(NR) * dim);
    float* scores = scratch(scores_buffer, (n + MR) * padded);
    if (n <= ROWS_QUERIES && dim >= ROWS_DIM) {
        const float* pointers[ROWS_QUERIES];
        for (int m = 0; m < ROWS_QUERIES; ++m) pointers[m] = queries + std::min<int64_t>(m, n - 1) * dim;
        write_products_of_rows<ROWS_QUERIES>(rows, pointers, dim, scores, padded);
        return scores;
    }
    for (int64_t i = 0; i < rows.size(); i += NR) {
        pack<Float32>(rows, i, dim, panel);
        for (int64_t q = 0; q < n; q += MR) {
            const float* pointers[MR];
            for (int m = 0; m < MR; ++m) pointers[m] = queries + std::min(q + m, n - 1) * dim;
            if (n - q == 1) write_products<1>(pointers, panel, dim, scores + q * padded + i, padded);
            else write_products<MR>(pointers, panel, dim, scores + q * padded + i, padded);
        }
    }
    return scores;
}

static void multiply_centroids(const float* queries, int64_t n, const float* centroids, int32_t lists, int32_t dim,
                               float* products) {
    const Range<Float32> rows{centroids, 0, lists, dim};
    const float* scores = centroid_scores(rows, queries, n, dim);
    for (int64_t q = 0; q < n; ++q) {
        const float* mine = scores + q * padded_to_panels(lists);
        std::copy(mine, mine + lists, products + q * lists);
    }
}

// The query asks its nearest lists, so many or more until it has found enough. `scores` are of the lists; returns
// what those that have not been considered are below.
template <class Type>
static float ask_nearest(const RcProbe& p, const RcBest& best, int64_t query, const float* scores, int64_t padded,
                         float reach) {
    static thread_local std::vector<std::pair<float, int32_t>> near;
    const auto* keys = static_cast<const typename Type::Element*>(p.keys);
    const auto lists = static_cast<int32_t>(p.lists->lists.size());
    const float* queries = p.queries + query * p.dim;
    const auto rows_of = [&](int32_t l) {
        const RcLists::List& list = p.lists->lists[l];
        return Listed<Type>{keys, list.data(), list.size(), p.dim};
    };
    float least_of_all, greatest, limit = INF;
    range_of(scores, lists, least_of_all, greatest);
    for (int64_t wanted = p.nearest;; wanted *= 2) {
        float low = least_of_all, high = greatest;
        if (wanted < lists) narrow(scores, padded, wanted, wanted + wanted / 2, low, high);
        near.clear();
        for (int64_t i = 0; i < padded; i += W) {
            const Vec s = load(scores + i);
            uint32_t bits = ~above(broadcast(low), s) & static_cast<uint32_t>((uint64_t{1} << W) - 1);
            for (; bits; bits &= bits - 1) {
                const auto l = static_cast<int32_t>(i + __builtin_ctz(bits));
                if (l < lists && scores[l] < limit) near.emplace_back(scores[l], l);
            }
        }
        std::sort(near.begin(), near.end(), std::greater<>());
        for (size_t i = 0; i < near.size(); ++i) {
            if (i + 1 < near.size()) {
                const auto next = rows_of(near[i + 1].second);
                for (int64_t r = 0; r < 2 * W; ++r) next.prefetch(r);
            }
            const auto [score, l] = near[i];
            if (score + reach * p.radii[l] <= best.thresholds[query]) continue;
            take<Type>(rows_of(l), &queries, &query, 1, p.dim, nullptr, best, Live{p.live});
            shrink(best, query);
        }
        limit = low;
        if (best.counts[query] >= best.top_k || wanted >= lists) return limit;
    }
}

static void probe_nearest(const RcProbe& p, const RcBest& best, int64_t first, int64_t last) {
    const auto lists = static_cast<int32_t>(p.lists->lists.size());
    const int64_t n = last - first, padded = padded_to_panels(lists);
    float* scores = centroid_scores({p.centroids, 0, lists, p.dim}, p.queries + first * p.dim, n, p.dim);
    for (int64_t q = first; q < last; ++q) {
        float* mine = scores + (q - first) * padded;
        std::fill(mine + lists, mine + padded, -INF);
        const float* query = p.queries + q * p.dim;
        const float reach = p.reach * std::sqrt(dot<Float32>(query, query, p.dim));
        float limit = 0;
        with_type(p.dtype, [&](auto type) { limit = ask_nearest<decltype(type)>(p, best, q, mine, padded, reach); });
        const Vec most_of = broadcast(limit), worst = broadcast(best.thresholds[q]), reaching = broadcast(reach);
        for (int64_t i = 0; i < padded; i += W) {
            const Vec s = load(mine + i);
            const uint32_t bits = above(fma(reaching, load(p.radii + i), s), worst) & above(most_of, s);
            p.chosen[q * p.words + i / 32] |= bits << (i % 32);
        }
    }
}

// ---- attention ----

// exp(x) for x <= 0, to within two units in the last place, 0 below LEAST; without a branch, so that it is vectorized.
static inline float exp_of(float exponent) {
    constexpr float LEAST = -87.0f;
    const float x = std::max(exponent, LEAST);
    const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    const float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float y = 1.98756915e-4f;
    y = y * f + 1.39819995e-3f;
    y = y * f + 8.33345196e-3f;
    y = y * f + 4.16657963e-2f;
    y = y * f + 1.66666654e-1f;
    y = y * f + 5.00000012e-1f;
    y = y * f * f + f + 1.0f;
    int32_t bits;
    std::memcpy(&bits, &y, 4);
    bits += static_cast<int32_t>(n) * (1 << 23);
    std::memcpy(&y, &bits, 4);
    return exponent < LEAST ? 0.0f : y;
}

// Softmax of scores in place, 0 where slot is -1; returns the log-sum-exp, -inf where there is none.
static float softmax(float* scores, const int64_t* slots, int k) {
    float top = -INF;
    for (int i = 0; i < k; ++i)
        if (slots[i] >= 0) top = std::max(top, scores[i]);
    if (top == -INF) {
        std::fill(scores, scores + k, 0.0f);
        return -INF;
    }
    for (int i = 0; i < k; ++i) scores[i] = exp_of(std::min(scores[i] - top, 0.0f));
    double total = 0;
    for (int i = 0; i < k; ++i) {
        if (slots[i] < 0) scores[i] = 0;
        total += scores[i];
    }
    const float inverse = static_cast<float>(1.0 / total);
    for (int i = 0; i < k; ++i) scores[i] *= inverse;
    return top + static_cast<float>(std::log(total));
}

template <class Type>
static inline const typename Type::Element* row_of(const typename Type::Element* rows, int64_t slot, int dim) {
    return rows + slot * Type::apart(dim);
}

template <class Type>
static inline void prefetch_rows(const typename Type::Element* rows, const int64_t* slots, int k, int dim) {
    const auto bytes = Type::apart(dim) * static_cast<int64_t>(sizeof *rows);
    for (int i = 0; i < std::min(k, 64); ++i)
        if (slots[i] >= 0) prefetch_row(row_of<Type>(rows, slots[i], dim), bytes);
}

template <class Type>
static void attend_head(const RcAttend& a, int32_t head, int64_t first, int64_t last) {
    static thread_local std::vector<float> weights;
    weights.resize(a.top_k);
    const auto* values = static_cast<const typename Type::Element*>(a.values) + head * a.value_stride;
    const int64_t* slots = a.slots + head * a.hits_stride;
    const float* scores = a.scores + head * a.hits_stride;
    for (int64_t q = first; q < last; ++q) {
        const int64_t* s = slots + q * a.top_k;
        if (q + 1 < last) prefetch_rows<Type>(values, s + a.top_k, a.top_k, a.dim);
        for (int i = 0; i < a.top_k; ++i) weights[i] = a.scale * scores[q * a.top_k + i];
        a.lse[head * a.lse_stride + q] = softmax(weights.data(), s, a.top_k);
        float* out = a.output + head * a.output_stride + q * a.dim;
        std::fill(out, out + a.dim, 0.0f);
        for (int i = 0; i < a.top_k; ++i)
            if (s[i] >= 0) add_scaled<Type>(weights[i], row_of<Type>(values, s[i], a.dim), a.dim, out);
    }
}

static void attend(const RcAttend& a, int32_t head, int64_t first, int64_t last) {
    with_value_type(a.dtype, [&](auto type) { attend_head<decltype(type)>(a, head, first, last); });
}

template <class Keys, class Values>
static void backward_head(const RcBackward& b, int32_t head, int64_t first, int64_t last) {
    static thread_local std::vector<float> p, dp;
    p.resize(b.top_k), dp.resize(b.top_k);
    const auto* keys = static_cast<const typename Keys::Element*>(b.keys) + head * b.key_stride;
    const auto* values = static_cast<const typename Values::Element*>(b.values) + head * b.value_stride;
    for (int64_t query = first; query < last; ++query) {
        const int64_t at = head * b.queries_per_head + query;
        const int64_t* s = b.slots + at * b.top_k;
        if (query + 1 < last) {
            prefetch_rows<Keys>(keys, s + b.top_k, b.top_k, b.key_dim);
            prefetch_rows<Values>(values, s + b.top_k, b.top_k, b.value_dim);
        }
        const float *q = b.queries + at * b.key_dim, *go = b.grad_output + at * b.value_dim;
        for (int i = 0; i < b.top_k; ++i) {
            p[i] = s[i] < 0 ? -INF : b.scale * dot<Keys>(q, row_of<Keys>(keys, s[i], b.key_dim), b.key_dim);
            dp[i] = s[i] < 0 ? 0 : dot<Values>(go, row_of<Values>(values, s[i], b.value_dim), b.value_dim);
        }
        softmax(p.data(), s, b.top_k);
        double shared = 0;  // go.o
        for (int i = 0; i < b.top_k; ++i) shared += static_cast<double>(p[i]) * dp[i];
        if (b.grad_lse) shared -= b.grad_lse[at];
        float* gradient = b.gradient + at * b.key_dim;
        std::fill(gradient, gradient + b.key_dim, 0.0f);
        for (int i = 0; i < b.top_k; ++i)
            if (s[i] >= 0)
                add_scaled<Keys>(b.scale * p[i] * (dp[i] - static_cast<float>(shared)),
                                 row_of<Keys>(keys, s[i], b.key_dim), b.key_dim, gradient);
    }
}

static void attend_backward(const RcBackward& b, int32_t head, int64_t first, int64_t last) {
    with_type(b.key_dtype, [&](auto type) {
        using Keys = decltype(type);
        if (b.value_dtype == RC_INT8) backward_head<Keys, Int8>(b, head, first, last);
        else backward_head<Keys, Keys>(b, head, first, last);
    });
}

template <class From, class To>
static void gather_rows(const typename From::Element* rows, const int64_t* slots, int64_t first, int64_t last, int dim,
                        typename To::Element* to) {
    constexpr int64_t AHEAD_ROWS = 8;
    static thread_local Kept<std::vector<float>> buffer;
    float* wide = scratch(buffer, dim);
    for (int64_t i = first; i < last; ++i) {
        if (i + AHEAD_ROWS < last) prefetch_rows<From>(rows, slots + i + AHEAD_ROWS, 1, dim);
        auto* mine = to + i * dim;
        if (slots[i] < 0) {
            std::fill(mine, mine + dim, typename To::Element{0});
        } else if constexpr (std::is_same_v<To, Float32>) {
            widen<From>(row_of<From>(rows, slots[i], dim), dim, mine);
        } else {
            widen<From>(row_of<From>(rows, slots[i], dim), dim, wide);
            narrow<To>(wide, dim, mine);
        }
    }
}

static void gather_as(const void* rows, int32_t dtype, const int64_t* slots, int64_t first, int64_t last, int32_t dim,
                      int32_t to_dtype, void* to) {
    with_value_type(dtype, [&](auto from_type) {
        with_type(to_dtype, [&](auto to_type) {
            using From = decltype(from_type);
            using To = decltype(to_type);
            gather_rows<From, To>(static_cast<const typename From::Element*>(rows), slots, first, last, dim,
                                  static_cast<typename To::Element*>(to));
        });
    });
}

constexpr float INT8_MOST = 127;
constexpr float STEP_MAX = 0x1.020406p+121f;  // the largest of which so many are a number still

static void row_to_int8(const float* row, int dim, int8_t* to) {
    // Without its sign, a float orders as the integer that its bits are: whose maximum needs no leave to be vectorized.
    uint32_t largest = 0;
    for (int d = 0; d < dim; ++d) {
        uint32_t bits;
        std::memcpy(&bits, row + d, sizeof bits);
        largest = std::max(largest, bits & 0x7fffffffu);
    }
    const float step = std::min(from_bits(largest) / INT8_MOST, STEP_MAX);
    std::memcpy(to + dim, &step, sizeof step);
    if (step == 0) {
        std::fill(to, to + dim, int8_t{0});
        return;
    }
    constexpr float TO_EVEN = 12582912;  // 1.5 * 2^23: a sum with it has no places behind the point
    for (int d = 0; d < dim; ++d) {
        const float steps = (row[d] / step + TO_EVEN) - TO_EVEN;
        // A step below the normal numbers is not what it should be: there may be more of them.
        to[d] = static_cast<int8_t>(std::max(-INT8_MOST, std::min(INT8_MOST, steps)));
    }
}

static void to_int8(const void* rows, int32_t dtype, int64_t first, int64_t last, int32_t dim, void* to) {
    static thread_local Kept<std::vector<float>> buffer;
    for (int64_t i = first; i < last; ++i)
        row_to_int8(widened(rows, dtype, i * dim, dim, buffer), dim,
                    static_cast<int8_t*>(to) + i * Int8::apart(dim));
}

static void accumulate(const float* rows, const int64_t* assigned, int64_t n, int32_t dim, double* sums,
                       int64_t* counts) {
    for (int64_t i = 0; i < n; ++i) {
        if (assigned[i] < 0) continue;
        double* to = sums + assigned[i] * dim;
        for (int d = 0; d < dim; ++d) to[d] += rows[i * dim + d];
        ++counts[assigned[i]];
    }
}

// They come in any order: one that is just as good as the worst that is kept may have a lower slot.
static void push_all(const RcBest& best, const RcBest& from, int64_t query) {
    const float* scores = from.scores + query * from.room;
    const int32_t* slots = from.slots + query * from.room;
    for (int32_t i = 0; i < from.counts[query]; ++i) {
        const bool is_as_good = scores[i] == best.thresholds[query];
        if (is_as_good && best.top_k == 1) {
            int32_t& kept = best.slots[query * best.room];
            kept = std::min(kept, slots[i]);
        } else if (is_as_good || scores[i] > best.thresholds[query]) {
            push(best, query, scores[i], slots[i]);
        }
    }
}

#define RC_STRING(name) #name
#define RC_NAME(name) RC_STRING(name)
extern const CodesIsa codes_isa;
extern const Isa isa = {RC_NAME(RC_ISA), scan, probe, probe_nearest, askers_of, finish, push_all, attend,
                        attend_backward, gather_as, to_int8, accumulate, multiply_centroids, &codes_isa};

}  // namespace RC_ISA
