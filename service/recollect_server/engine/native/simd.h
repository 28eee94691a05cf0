// Vectors of the instruction set that this file is compiled for: AVX-512, AVX2, or whatever the compiler makes of it.
#pragma once
#include <cstdint>
#include <cstring>
#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace RC_ISA {

#if defined(__AVX512F__)

constexpr int W = 16, MR = 8;
using Vec = __m512;
static inline Vec zero() { return _mm512_setzero_ps(); }
static inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
static inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
static inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
static inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
static inline uint32_t above(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline float sum(Vec a) { return _mm512_reduce_add_ps(a); }
static inline Vec least(Vec a, Vec b) { return _mm512_min_ps(a, b); }
static inline Vec most(Vec a, Vec b) { return _mm512_max_ps(a, b); }
static inline float least(Vec a) { return _mm512_reduce_min_ps(a); }
static inline float most(Vec a) { return _mm512_reduce_max_ps(a); }
// The sum of each of W vectors.
static inline Vec sums(const Vec* v) {
    Vec t[8], u[4];
    for (int i = 0; i < 8; ++i)
        t[i] = add(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 4; ++i) {
        const __m512d a = _mm512_castps_pd(t[2 * i]), b = _mm512_castps_pd(t[2 * i + 1]);
        u[i] = add(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const Vec x = add(_mm512_shuffle_f32x4(u[0], u[1], 0x88), _mm512_shuffle_f32x4(u[0], u[1], 0xdd));
    const Vec y = add(_mm512_shuffle_f32x4(u[2], u[3], 0x88), _mm512_shuffle_f32x4(u[2], u[3], 0xdd));
    return add(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
}
// Those of W elements whose bits are set, without gaps, to `to`, which has room for W; how many they are.
static inline int pick(uint32_t bits, const int32_t* from, int32_t* to) {
    const __m512i all = _mm512_loadu_si512(from);
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), all));
    return __builtin_popcount(bits);
}
static inline Vec load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline Vec load_brain(const uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
static inline Vec load_bytes(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

#elif defined(__AVX2__)

constexpr int W = 8, MR = 6;
using Vec = __m256;
static inline Vec zero() { return _mm256_setzero_ps(); }
static inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
static inline Vec broadcast(float x) { return _mm256_set1_ps(x); }
static inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
static inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
static inline uint32_t above(Vec a, Vec b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
}
static inline float sum(Vec a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline Vec least(Vec a, Vec b) { return _mm256_min_ps(a, b); }
static inline Vec most(Vec a, Vec b) { return _mm256_max_ps(a, b); }
static inline Vec sums(const Vec* v) {
    const Vec x = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const Vec y = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return add(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
}
static inline Vec load_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline Vec load_brain(const uint16_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
static inline Vec load_bytes(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

#else

constexpr int W = 4, MR = 4;
typedef float Vec __attribute__((vector_size(16)));
static inline Vec zero() { return Vec{0, 0, 0, 0}; }
static inline Vec load(const float* p) { Vec v; std::memcpy(&v, p, sizeof v); return v; }
static inline Vec broadcast(float x) { return Vec{x, x, x, x}; }
static inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
static inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
static inline Vec add(Vec a, Vec b) { return a + b; }
static inline uint32_t above(Vec a, Vec b) {
    uint32_t mask = 0;
    for (int i = 0; i < W; ++i) mask |= static_cast<uint32_t>(a[i] > b[i]) << i;
    return mask;
}
static inline float sum(Vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }
static inline Vec least(Vec a, Vec b) { return a < b ? a : b; }
static inline Vec most(Vec a, Vec b) { return a > b ? a : b; }
static inline Vec sums(const Vec* v) { return Vec{sum(v[0]), sum(v[1]), sum(v[2]), sum(v[3])}; }

#endif

#if !defined(__AVX512F__)
static inline float least(Vec a) {
    float lanes[W];
    store(lanes, a);
    for (int i = 1; i < W; ++i) lanes[0] = lanes[i] < lanes[0] ? lanes[i] : lanes[0];
    return lanes[0];
}
static inline float most(Vec a) {
    float lanes[W];
    store(lanes, a);
    for (int i = 1; i < W; ++i) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
    return lanes[0];
}
static inline int pick(uint32_t bits, const int32_t* from, int32_t* to) {
    int count = 0;
    for (; bits; bits &= bits - 1) to[count++] = from[__builtin_ctz(bits)];
    return count;
}
#endif
static inline int pick(uint32_t bits, const float* from, float* to) {
    return pick(bits, reinterpret_cast<const int32_t*>(from), reinterpret_cast<int32_t*>(to));
}

// Turns W vectors of W elements.
#if defined(__AVX512F__)
static inline void transpose(Vec* r) {
    __m512i a[16], b[16];
    for (int i = 0; i < 8; ++i) {
        a[2 * i] = _mm512_castps_si512(_mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]));
        a[2 * i + 1] = _mm512_castps_si512(_mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]));
    }
    for (int i = 0; i < 4; ++i) {
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        const __m512i lo = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88), hi = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
        const __m512i lo2 = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88),
                      hi2 = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
        r[i] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(lo, lo2, 0x88));
        r[i + 8] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(lo, lo2, 0xdd));
        r[i + 4] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(hi, hi2, 0x88));
        r[i + 12] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(hi, hi2, 0xdd));
    }
}
#elif defined(__AVX2__)
static inline void transpose(Vec* r) {
    __m256 a[8], b[8];
    for (int i = 0; i < 4; ++i) {
        a[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
        b[4 * i] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
        b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0xee);
        b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
        b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}
#else
static inline void transpose(Vec* r) {
    Vec t[W];
    for (int i = 0; i < W; ++i)
        for (int j = 0; j < W; ++j) t[j][i] = r[i][j];
    for (int i = 0; i < W; ++i) r[i] = t[i];
}
#endif

}  // namespace RC_ISA
