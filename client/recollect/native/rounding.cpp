// Floats as they travel and back, many at a time. For ../_rounding.py, which says what each function does.
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#define RC_VECTORS __attribute__((target("avx2,f16c")))
#else
#define RC_VECTORS
#endif

#define RC_API extern "C" __attribute__((visibility("default")))

namespace {

#if defined(__x86_64__)
bool can_round() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2");  // no processor has that and not F16C
}

constexpr std::int64_t AT_A_TIME = 8;

RC_VECTORS void to_halves(const float* from, std::uint16_t* to) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), halves);
}

RC_VECTORS void from_halves(const std::uint16_t* from, float* to) {
    _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
#elif defined(__aarch64__)
bool can_round() { return true; }

constexpr std::int64_t AT_A_TIME = 8;

void to_halves(const float* from, std::uint16_t* to) {
    __fp16 halves[AT_A_TIME];
    for (int i = 0; i < AT_A_TIME; ++i) halves[i] = static_cast<__fp16>(from[i]);
    std::memcpy(to, halves, sizeof halves);
}

void from_halves(const std::uint16_t* from, float* to) {
    __fp16 halves[AT_A_TIME];
    std::memcpy(halves, from, sizeof halves);
    for (int i = 0; i < AT_A_TIME; ++i) to[i] = static_cast<float>(halves[i]);
}
#else
bool can_round() { return false; }

constexpr std::int64_t AT_A_TIME = 1;

void to_halves(const float*, std::uint16_t*) {}
void from_halves(const std::uint16_t*, float*) {}
#endif

// `convert` for all; the last ones in room of their own, for less than it does at a time.
template <typename From, typename To>
RC_VECTORS inline void for_all(
    const From* from, std::int64_t size, To* to, void (*convert)(const From*, To*)
) {
    std::int64_t i = 0;
    for (; i + AT_A_TIME <= size; i += AT_A_TIME) convert(from + i, to + i);
    if (i == size) return;
    From rest[AT_A_TIME] = {};
    To converted[AT_A_TIME];
    std::memcpy(rest, from + i, (size - i) * sizeof(From));
    convert(rest, converted);
    std::memcpy(to + i, converted, (size - i) * sizeof(To));
}

}  // namespace

// Rows of `dim` elements as so many integers of 8 bits each, and then the float32 that they are times, its step. Returns
// whether all are numbers. The server's kernels make the same of values, bit for bit.
RC_API RC_VECTORS int rc_to_int8(const float* from, std::int64_t rows, std::int64_t dim, std::int8_t* to) {
    constexpr float MOST = 127, STEP_MAX = 0x1.020406p+121f;  // the largest of which so many are a number still
    constexpr float TO_EVEN = 12582912;  // 1.5 * 2^23: a sum with it has no places behind the point
    std::uint32_t largest_of_all = 0;
    for (std::int64_t row = 0; row < rows; ++row, from += dim, to += dim + sizeof(float)) {
        // Without its sign, a float orders as the integer that its bits are.
        std::uint32_t largest = 0;
        for (std::int64_t d = 0; d < dim; ++d) {
            std::uint32_t bits;
            std::memcpy(&bits, from + d, sizeof bits);
            bits &= 0x7FFFFFFF;
            largest = bits > largest ? bits : largest;
        }
        largest_of_all = largest > largest_of_all ? largest : largest_of_all;
        float step;
        std::memcpy(&step, &largest, sizeof step);
        step = step / MOST < STEP_MAX ? step / MOST : STEP_MAX;
        std::memcpy(to + dim, &step, sizeof step);
        if (step == 0) {
            std::memset(to, 0, dim);
            continue;
        }
        for (std::int64_t d = 0; d < dim; ++d) {
            float steps = (from[d] / step + TO_EVEN) - TO_EVEN;
            steps = steps < MOST ? steps : MOST;  // of a step below the normal numbers there may be more
            to[d] = static_cast<std::int8_t>(steps > -MOST ? steps : -MOST);
        }
    }
    return largest_of_all < 0x7F800000;
}

RC_API int rc_can_round() { return can_round(); }

RC_API RC_VECTORS void rc_to_float16(const float* from, std::int64_t size, std::uint16_t* to) {
    for_all(from, size, to, to_halves);
}

RC_API RC_VECTORS void rc_from_float16(const std::uint16_t* from, std::int64_t size, float* to) {
    for_all(from, size, to, from_halves);
}

RC_API RC_VECTORS void rc_to_bfloat16(const std::uint32_t* from, std::int64_t size, std::uint16_t* to) {
    for (std::int64_t i = 0; i < size; ++i) {
        const std::uint32_t bits = from[i];
        const std::uint32_t rounded = bits + 0x7FFF + ((bits >> 16) & 1);
        // A carry of what is not a number may run over the sign.
        const bool is_nan = (bits & 0x7FFFFFFF) > 0x7F800000;
        to[i] = static_cast<std::uint16_t>(is_nan ? 0x7FC0 : rounded >> 16);
    }
}
