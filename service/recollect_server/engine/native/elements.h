// Elements as they are stored, and rows of them: to float32 and back, products and sums.
#pragma once
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace RC_ISA {

// One element, wherever vectors do not reach.
static inline float from_bits(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
static inline float widen_brain(uint16_t bits) { return from_bits(static_cast<uint32_t>(bits) << 16); }
static inline float widen_half(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, rest = h & 0x7fffu;
    // Moved into place the exponent is too small by 127 - 15; a product with a power of two mends it,
    // subnormals too.
    return from_bits(sign | 0x3f800000u) * (from_bits(rest << 13) * from_bits((254u - 15u) << 23));
}

static inline uint32_t bits_of(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }
static inline uint16_t narrow_brain(float x) {
    const uint32_t bits = bits_of(x);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
static inline uint16_t narrow_half(float x) {
    constexpr uint32_t INFINITE = 0x7c00u, BEYOND = (127u + 16u) << 23, NORMAL = (127u - 14u) << 23;
    const uint32_t sign = (bits_of(x) >> 16) & 0x8000u, size = bits_of(x) & 0x7fffffffu;
    if (size >= BEYOND) return static_cast<uint16_t>(sign | INFINITE | (size > 0x7f800000u ? 0x200u : 0u));
    if (size < NORMAL) {
        // The sum has no places below those of a subnormal half: it is rounded to them.
        constexpr uint32_t AND_NO_MORE = (127u - 1u) << 23;
        return static_cast<uint16_t>(sign | (bits_of(from_bits(size) + from_bits(AND_NO_MORE)) - AND_NO_MORE));
    }
    return static_cast<uint16_t>(sign | ((size - ((127u - 15u) << 23) + 0xfffu + ((size >> 13) & 1u)) >> 13));
}

#if defined(__AVX512F__)
static inline void store_half(uint16_t* p, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
static inline void store_brain(uint16_t* p, Vec v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
#elif defined(__AVX2__)
static inline void store_half(uint16_t* p, Vec v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
static inline void store_brain(uint16_t* p, Vec v) {
    float lanes[W];
    store(lanes, v);
    for (int i = 0; i < W; ++i) p[i] = narrow_brain(lanes[i]);
}
#else
static inline void store_half(uint16_t* p, Vec v) { for (int i = 0; i < W; ++i) p[i] = narrow_half(v[i]); }
static inline void store_brain(uint16_t* p, Vec v) { for (int i = 0; i < W; ++i) p[i] = narrow_brain(v[i]); }
#endif

#if !defined(__AVX2__)
static inline Vec load_half(const uint16_t* p) {
    return Vec{widen_half(p[0]), widen_half(p[1]), widen_half(p[2]), widen_half(p[3])};
}
static inline Vec load_brain(const uint16_t* p) {
    return Vec{widen_brain(p[0]), widen_brain(p[1]), widen_brain(p[2]), widen_brain(p[3])};
}
static inline Vec load_bytes(const int8_t* p) {
    return Vec{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}
#endif

// Rows of a dtype: how many elements they are apart, and what their elements are times.
struct WithoutStep {
    static inline int64_t apart(int dim) { return dim; }
    static inline float step(const void*, int) { return 1; }
};
struct Float32 : WithoutStep {
    using Element = float;
    static inline Vec vector(const float* p) { return load(p); }
    static inline float scalar(float x) { return x; }
    static inline void put(float* p, Vec v) { store(p, v); }
    static inline float narrowed(float x) { return x; }
};
struct Float16 : WithoutStep {
    using Element = uint16_t;
    static inline Vec vector(const uint16_t* p) { return load_half(p); }
    static inline float scalar(uint16_t x) { return widen_half(x); }
    static inline void put(uint16_t* p, Vec v) { store_half(p, v); }
    static inline uint16_t narrowed(float x) { return narrow_half(x); }
};
struct Bfloat16 : WithoutStep {
    using Element = uint16_t;
    static inline Vec vector(const uint16_t* p) { return load_brain(p); }
    static inline float scalar(uint16_t x) { return widen_brain(x); }
    static inline void put(uint16_t* p, Vec v) { store_brain(p, v); }
    static inline uint16_t narrowed(float x) { return narrow_brain(x); }
};

struct Int8 {
    using Element = int8_t;
    static inline Vec vector(const int8_t* p) { return load_bytes(p); }
    static inline float scalar(int8_t x) { return x; }
    static inline int64_t apart(int dim) { return dim + static_cast<int64_t>(sizeof(float)); }
    static inline float step(const int8_t* row, int dim) {
        float step;
        std::memcpy(&step, row + dim, sizeof step);
        return step;
    }
};

template <class Type>
static inline void widen(const typename Type::Element* from, int dim, float* to) {
    int d = 0;
    for (; d + W <= dim; d += W) store(to + d, Type::vector(from + d));
    for (; d < dim; ++d) to[d] = Type::scalar(from[d]);
}
template <>
inline void widen<Int8>(const int8_t* from, int dim, float* to) {
    const float step = Int8::step(from, dim);
    int d = 0;
    for (; d + W <= dim; d += W) store(to + d, fma(broadcast(step), load_bytes(from + d), zero()));
    for (; d < dim; ++d) to[d] = step * from[d];
}

// float32 as elements of a dtype: to the nearest, ties to even; what is too large becomes infinite.
template <class Type>
static inline void narrow(const float* from, int dim, typename Type::Element* to) {
    int d = 0;
    for (; d + W <= dim; d += W) Type::put(to + d, load(from + d));
    for (; d < dim; ++d) to[d] = Type::narrowed(from[d]);
}

template <class Type>
static inline float dot(const float* a, const typename Type::Element* b, int dim) {
    Vec total = zero(), other = zero();
    int d = 0;
    for (; d + 2 * W <= dim; d += 2 * W) {
        total = fma(load(a + d), Type::vector(b + d), total);
        other = fma(load(a + d + W), Type::vector(b + d + W), other);
    }
    for (; d + W <= dim; d += W) total = fma(load(a + d), Type::vector(b + d), total);
    float rest = 0;
    for (; d < dim; ++d) rest += a[d] * Type::scalar(b[d]);
    return (sum(add(total, other)) + rest) * Type::step(b, dim);
}

// to += weight * from
template <class Type>
static inline void add_scaled(float weight, const typename Type::Element* from, int dim, float* to) {
    const float each = weight * Type::step(from, dim);
    const Vec w = broadcast(each);
    int d = 0;
    for (; d + W <= dim; d += W) store(to + d, fma(w, Type::vector(from + d), load(to + d)));
    for (; d < dim; ++d) to[d] += each * Type::scalar(from[d]);
}

}  // namespace RC_ISA
