// Search by codes for one instruction set (RC_ISA names it).
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "elements.h"
#include "kept.h"
#include "prefetch.h"
#include "select.h"

namespace RC_ISA {

constexpr int PLANES = 4, QUERY_MAX = 7;  // a query's elements are integers of so many bits, at most so large
constexpr int CHUNK = 8;                  // words of a vector
constexpr int64_t AHEAD = 64;             // so many codes ahead are fetched from memory

// ---- rotation ----

static void hadamard(float* x, int n) {
    for (int half = 1; half < n; half *= 2) {
        for (int i = 0; i < n; i += 2 * half) {
            for (int j = i; j < i + half; ++j) {
                const float a = x[j], b = x[j + half];
                x[j] = a + b, x[j + half] = a - b;
            }
        }
    }
    const float scale = 1.0f / std::sqrt(static_cast<float>(n));
    for (int i = 0; i < n; ++i) x[i] *= scale;
}

static void rotate(const RcCodes& c, float* x) {
    int power = 1;
    while (2 * power <= c.dim) power *= 2;
    for (int round = 0; round < c.rounds; ++round) {
        const float* signs = c.signs + static_cast<int64_t>(round) * c.dim;
        for (int d = 0; d < c.dim; ++d) x[d] *= signs[d];
        hadamard(round % 2 ? x + c.dim - power : x, power);
    }
}

// ---- codes of entries ----

static inline int words_of(const RcCodes& c) { return (c.dim + 63) / 64; }
static inline float factor_of(const RcCodes& c, const uint64_t* row) {
    return from_bits(static_cast<uint32_t>(row[words_of(c)]));
}

// Of the difference r of a key from its centroid, which is turned.
static void write_code(const RcCodes& c, float* r, uint64_t* row) {
    float squares = 0, absolute = 0;
    for (int d = 0; d < c.dim; ++d) squares += r[d] * r[d];
    rotate(c, r);
    std::fill(row, row + c.stride, 0);
    for (int d = 0; d < c.dim; ++d) {
        absolute += std::fabs(r[d]);
        row[d / 64] |= static_cast<uint64_t>(r[d] >= 0) << d % 64;
    }
    const float factor = absolute > 0 ? squares / absolute : 0.0f;
    uint32_t bits;
    std::memcpy(&bits, &factor, 4);
    row[words_of(c)] = bits;
}

static void codes_put(const RcCodes& c, int64_t begin, int64_t n, const int64_t* assigned) {
    std::vector<float> r(c.dim);
    const auto with = [&](auto type) {
        using Type = decltype(type);
        const auto* keys = static_cast<const typename Type::Element*>(c.keys);
        for (int64_t i = 0; i < n; ++i) {
            if (assigned[i] < 0) continue;
            widen<Type>(keys + (begin + i) * c.dim, c.dim, r.data());
            const float* centroid = c.centroids + assigned[i] * c.dim;
            for (int d = 0; d < c.dim; ++d) r[d] -= centroid[d];
            write_code(c, r.data(), c.rows + (begin + i) * c.stride);
        }
    };
    if (c.dtype == RC_FLOAT32) with(Float32{});
    else if (c.dtype == RC_FLOAT16) with(Float16{});
    else with(Bfloat16{});
}

// ---- queries ----

// A turned query as integers times `scale`, these as planes of bits: the last one counts -8.
struct CodedQuery {
    std::vector<float> turned;
    std::vector<uint64_t> planes;  // [words / CHUNK, PLANES, CHUNK]
    float scale, norm;
    int32_t total;
    int words;  // a multiple of CHUNK

    void set(const RcCodes& c, const float* query) {
        turned.assign(query, query + c.dim);
        rotate(c, turned.data());
        float largest = 0, squares = 0;
        for (float x : turned) largest = std::max(largest, std::fabs(x)), squares += x * x;
        norm = std::sqrt(squares);
        scale = largest / QUERY_MAX;
        const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
        words = (c.dim + 64 * CHUNK - 1) / (64 * CHUNK) * CHUNK;
        planes.assign(static_cast<size_t>(words) * PLANES, 0);
        total = 0;
        for (int d = 0; d < c.dim; ++d) {
            const int value = std::min(QUERY_MAX, std::max(-QUERY_MAX, static_cast<int>(std::lrint(turned[d] * inverse))));
            total += value;
            const int word = d / 64;
            uint64_t* to = planes.data() + word / CHUNK * CHUNK * PLANES + word % CHUNK;
            for (int p = 0; p < PLANES; ++p) to[p * CHUNK] |= static_cast<uint64_t>(value >> p & 1) << d % 64;
        }
    }
    // Of the sum over dimensions whose bit is set: the sum with signs.
    float sum_of(int64_t set) const { return scale * static_cast<float>(2 * set - total); }
};

// ---- sums over the bits that are set ----

static inline void prefetch_code(const RcCodes& c, int32_t slot) {
    const char* at = reinterpret_cast<const char*>(c.rows + slot * c.stride);
    const int64_t last = words_of(c) * 8;
    for (int64_t b = 0; b < last; b += 64) prefetch_line(at + b);
    prefetch_line(at + last);
}

static inline int64_t ones(uint64_t x) {
#if defined(__POPCNT__)
    return __builtin_popcountll(x);
#else
    x -= x >> 1 & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return static_cast<int64_t>(x * 0x0101010101010101u >> 56);
#endif
}

static void sums_by_word(const RcCodes& c, const CodedQuery& q, const int32_t* slots, int64_t n, float* sums,
                         float* factors) {
    const int words = words_of(c);
    for (int64_t i = 0; i < n; ++i) {
        if (i + AHEAD < n) prefetch_code(c, slots[i + AHEAD]);
        const uint64_t* row = c.rows + slots[i] * c.stride;
        int64_t set = 0;
        for (int w = 0; w < words; ++w) {
            const uint64_t* planes = q.planes.data() + w / CHUNK * CHUNK * PLANES + w % CHUNK;
            const uint64_t bits = row[w];
            set += ones(bits & planes[0]) + 2 * ones(bits & planes[CHUNK]) + 4 * ones(bits & planes[2 * CHUNK]) -
                   8 * ones(bits & planes[3 * CHUNK]);
        }
        sums[i] = q.sum_of(set), factors[i] = factor_of(c, row);
    }
}

#if defined(__AVX512F__)
#define RC_POPCNT __attribute__((target("avx512vpopcntdq")))

template <int CHUNKS>
RC_POPCNT static void sums_by_vector(const RcCodes& c, const CodedQuery& q, const int32_t* slots, int64_t n,
                                     float* sums, float* factors) {
    const int chunks = CHUNKS ? CHUNKS : q.words / CHUNK, last = words_of(c) - (chunks - 1) * CHUNK;
    const __mmask8 rest = static_cast<__mmask8>((1u << last) - 1);
    __m512i kept[CHUNKS ? CHUNKS * PLANES : 1];
    for (int k = 0; k < CHUNKS * PLANES; ++k) kept[k] = _mm512_loadu_si512(q.planes.data() + k * CHUNK);
    for (int64_t i = 0; i < n; ++i) {
        if (i + AHEAD < n) prefetch_code(c, slots[i + AHEAD]);
        const uint64_t* row = c.rows + slots[i] * c.stride;
        __m512i set[PLANES];
        for (int p = 0; p < PLANES; ++p) set[p] = _mm512_setzero_si512();
        for (int k = 0; k < chunks; ++k) {
            const uint64_t* at = row + k * CHUNK;
            // A load that reaches into a line that was not fetched waits for it, whatever its mask is.
            const __m512i bits = k + 1 < chunks  ? _mm512_loadu_si512(at)
                                 : last <= CHUNK / 2 ? _mm512_zextsi256_si512(_mm256_maskz_loadu_epi64(rest, at))
                                                     : _mm512_maskz_loadu_epi64(rest, at);
            for (int p = 0; p < PLANES; ++p) {
                const __m512i plane =
                    CHUNKS ? kept[k * PLANES + p] : _mm512_loadu_si512(q.planes.data() + (k * PLANES + p) * CHUNK);
                set[p] = _mm512_add_epi64(set[p], _mm512_popcnt_epi64(_mm512_and_si512(bits, plane)));
            }
        }
        const __m512i low = _mm512_add_epi64(set[0], _mm512_slli_epi64(set[1], 1));
        const __m512i high = _mm512_sub_epi64(_mm512_slli_epi64(set[2], 2), _mm512_slli_epi64(set[3], 3));
        sums[i] = q.sum_of(_mm512_reduce_add_epi64(_mm512_add_epi64(low, high)));
        factors[i] = factor_of(c, row);
    }
}
#endif

static void sums_of(const RcCodes& c, const CodedQuery& q, const int32_t* slots, int64_t n, float* sums,
                    float* factors) {
#if defined(__AVX512F__)
    static const bool has_popcnt = __builtin_cpu_supports("avx512vpopcntdq");
    if (has_popcnt) {
        if (q.words == CHUNK) return sums_by_vector<1>(c, q, slots, n, sums, factors);
        if (q.words == 2 * CHUNK) return sums_by_vector<2>(c, q, slots, n, sums, factors);
        return sums_by_vector<0>(c, q, slots, n, sums, factors);
    }
#endif
    sums_by_word(c, q, slots, n, sums, factors);
}

static void codes_sums(const RcCodes& c, const float* queries, int64_t n, const int64_t* slots, int32_t k,
                       float* sums, float* factors) {
    CodedQuery query;
    for (int64_t i = 0; i < n; ++i) {
        query.set(c, queries + i * c.dim);
        for (int64_t j = i * k; j < (i + 1) * k; ++j) {
            const int32_t slot = static_cast<int32_t>(slots[j]);
            if (slot < 0) sums[j] = factors[j] = 0;
            else sums_of(c, query, &slot, 1, sums + j, factors + j);
        }
    }
}

// ---- search ----

// What one query may find, and what is known of it.
struct Found {
    std::vector<int32_t> slots;
    std::vector<float> estimates, factors, products;  // products: with the centroid of the entry's list
    int64_t count = 0;

    void reserve(int64_t size) {
        if (static_cast<int64_t>(slots.size()) >= size) return;
        slots.resize(size), estimates.resize(size), factors.resize(size), products.resize(size);
    }
};

template <class Do>
static void each_chosen(const RcCodesProbe& p, int64_t id, Do with) {
    for (int32_t word = 0; word < p.words; ++word)
        for (uint32_t bits = p.chosen[id * p.words + word]; bits; bits &= bits - 1)
            with(32 * word + __builtin_ctz(bits));
}

// The live slots of the lists that a query chose.
static void collect(const RcCodesProbe& p, int64_t id, Found& found) {
    int64_t size = W;
    each_chosen(p, id, [&](int32_t list) { size += p.lists->lists[list].size(); });
    found.reserve(size);
    int64_t count = 0;
    each_chosen(p, id, [&](int32_t at) {
        const RcLists::List& list = p.lists->lists[at];
        const int64_t dim = p.codes.dim;
        const float product = dot<Float32>(p.queries + id * dim, p.codes.centroids + at * dim, p.codes.dim);
        for (int32_t j = 0; j < list.size(); ++j) {
            const int32_t slot = list.data()[j];
            found.slots[count] = slot, found.products[count] = product;
            count += (slot >= p.live[0] && slot < p.live[1]) || (slot >= p.live[2] && slot < p.live[3]);
        }
    });
    found.count = count;
}

// A handful of candidates of one query: by estimate.
struct Highest {
    std::vector<float> scores;
    std::vector<int32_t> slots;
    int32_t count = 0;
    float threshold = -std::numeric_limits<float>::infinity();
    RcBest best;

    explicit Highest(const RcBest& of) : scores(of.room), slots(of.room) {
        best = {scores.data(), slots.data(), &count, &threshold, 1, of.room, of.top_k};
    }
    void take(const Found& found) {
        for (int64_t i = 0; i < found.count; i += W) {
            uint32_t higher = above(load(found.estimates.data() + i), broadcast(threshold));
            if (found.count - i < W) higher &= (1u << (found.count - i)) - 1;
            for (; higher; higher &= higher - 1) {
                const int64_t at = i + __builtin_ctz(higher);
                if (found.estimates[at] <= threshold) continue;
                scores[count] = found.estimates[at], slots[count] = found.slots[at];
                if (++count == best.room) shrink(best, 0);
            }
        }
        shrink(best, 0);
        std::sort(slots.begin(), slots.begin() + count);
    }
    bool has(int32_t slot) const { return std::binary_search(slots.begin(), slots.begin() + count, slot); }
};

// Multiplies a query with keys of slots, and keeps the best.
template <class Type>
static void multiply_slots(const RcCodes& c, const float* query, const int32_t* slots, int64_t n, const RcBest& best,
                           int64_t id) {
    const auto* keys = static_cast<const typename Type::Element*>(c.keys);
    const auto row = [&](int64_t i) { return keys + static_cast<int64_t>(slots[i]) * c.dim; };
    const int64_t ahead = 3;
    const auto prefetch = [&](int64_t i) {
        if (i < n) prefetch_row(row(i), c.dim * sizeof(typename Type::Element));
    };
    for (int64_t i = 0; i < ahead; ++i) prefetch(i);
    for (int64_t i = 0; i < n; ++i) {
        prefetch(i + ahead);
        const float score = dot<Type>(query, row(i), c.dim);
        if (score > best.thresholds[id]) push(best, id, score, slots[i]);
    }
}

template <class Type>
static void probe_one(const RcCodesProbe& p, const RcBest& best, int64_t id, CodedQuery& coded, Found& found) {
    const float* query = p.queries + id * p.codes.dim;
    coded.set(p.codes, query);
    collect(p, id, found);
    sums_of(p.codes, coded, found.slots.data(), found.count, found.estimates.data(), found.factors.data());
    for (int64_t i = 0; i < found.count; ++i)
        found.estimates[i] = found.products[i] + found.factors[i] * found.estimates[i];
    Highest highest(best);
    highest.take(found);
    multiply_slots<Type>(p.codes, query, highest.slots.data(), highest.count, best, id);
    shrink(best, id);  // so that the threshold is that of the top_k so far
    const Vec threshold = broadcast(best.thresholds[id]), margin = broadcast(p.margin * coded.norm);
    static thread_local std::vector<int32_t> further;
    further.clear();
    for (int64_t i = 0; i < found.count; i += W) {
        const Vec upper = fma(load(found.factors.data() + i), margin, load(found.estimates.data() + i));
        uint32_t good = above(upper, threshold);
        if (found.count - i < W) good &= (1u << (found.count - i)) - 1;
        for (; good; good &= good - 1) {
            const int32_t slot = found.slots[i + __builtin_ctz(good)];
            if (!highest.has(slot)) further.push_back(slot);
        }
    }
    multiply_slots<Type>(p.codes, query, further.data(), static_cast<int64_t>(further.size()), best, id);
    p.multiplied[id] = highest.count + static_cast<int64_t>(further.size());
}

static void codes_probe(const RcCodesProbe& p, const RcBest& best, int64_t first, int64_t last) {
    static thread_local CodedQuery coded;
    static thread_local Kept<Found> kept;
    Found& found = *kept;
    for (int64_t id = first; id < last; ++id) {
        if (p.codes.dtype == RC_FLOAT32) probe_one<Float32>(p, best, id, coded, found);
        else if (p.codes.dtype == RC_FLOAT16) probe_one<Float16>(p, best, id, coded, found);
        else probe_one<Bfloat16>(p, best, id, coded, found);
    }
}

extern const CodesIsa codes_isa = {codes_put, codes_sums, codes_probe};

}  // namespace RC_ISA
