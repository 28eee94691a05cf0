// How large vectors are and what rounding leaves of them, so how much their products may be off by.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "panels.h"

#if defined(__AVX512F__)

namespace RC_ISA {

constexpr int SIDE = W;               // queries of a vector
constexpr int BLOCK_SIDE = 2 * SIDE;  // queries and keys whose products are made together
constexpr int PANELS = 8;             // of a group, which stays in the first-level cache
constexpr float SLACK = 1.01f, TINY = 1e-20f, TINIEST = 1e-35f;

// A line of the cache. (Loads that lie across two take twice as long.)
template <class Element>
struct alignas(64) Line {
    Element elements[64 / sizeof(Element)];
};

// A number for each of SIDE queries.
struct Lanes {
    Vec of_queries;
};

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
    void include(Vec x, Vec of_x) {
        all = fma(x, x, all), rest = fma(of_x, of_x, rest);
        bits = _mm512_or_si512(bits, _mm512_castps_si512(x));
    }
};

static inline Size size_of(Vec all, Vec rest, __m512i bits) {
    const bool is_zero = !_mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x7fffffff));
    return {std::sqrt(most(all)), std::sqrt(most(rest)), is_zero};
}

// W elements from d on; zeroes beyond dim.
template <class Type>
static inline Vec elements(const typename Type::Element* row, int d, int dim) {
    if (d + W <= dim) return Type::vector(row + d);
    float tail[W] = {};
    for (int e = d; e < dim; ++e) tail[e - d] = Type::scalar(row[e]);
    return load(tail);
}

// How much products of queries with keys may be off by.
class Margins {
  public:
    void reserve(int64_t queries) {
        for (auto* of : {&of_rest_, &of_norm_, &of_any_}) of->assign(queries, 0);
    }

    void set(int64_t query, const Squares& squares, int dim) {
        const Size size = size_of(broadcast(sum(squares.all)), broadcast(sum(squares.rest)), squares.bits);
        // All sums and scales are rounded, and numbers below the normal ones may be taken for zero.
        of_rest_[query] = size.norm * SLACK;
        of_norm_[query] = size.rest * SLACK + size.norm * (static_cast<float>(dim + ROUNDINGS) / (1 << 22));
        if (size.is_zero) return;
        of_norm_[query] += TINY, of_any_[query] = TINY * size.norm + TINIEST;
    }

    // Of queries first .. first + SIDE with keys of that size; not a number if products may overflow.
    Vec of(int64_t first, const Size& keys) const {
        const Vec rest = load(of_rest_.data() + first), norm = load(of_norm_.data() + first);
        const Vec any = keys.is_zero ? zero() : load(of_any_.data() + first);
        const Vec of_products = fma(rest, broadcast(keys.rest), fma(norm, broadcast(keys.norm), any));
        const Vec most = fma(rest, broadcast(4 * keys.norm), broadcast(keys.bias));
        return add(fma(broadcast(keys.bias), broadcast(1.0f / (1 << 22)), of_products), _mm512_sub_ps(most, most));
    }

  private:
    static constexpr int ROUNDINGS = 8;  // beyond those of a sum
    std::vector<float> of_rest_, of_norm_, of_any_;  // what a key's rest, its norm and any key make of it
};

}  // namespace RC_ISA

#endif
