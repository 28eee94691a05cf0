// Who asks a list, from who chose which lists: bits of each query become bits of each list.
#pragma once
#include <algorithm>
#include <cstdint>

namespace RC_ISA {

// Turns 32 words of 32 bits: bit b of word w becomes bit w of word b. Halves change places, then quarters, ...
static void turn_bits(uint32_t* words) {
    uint32_t mask = 0x0000ffffu;
    for (int apart = 16; apart; apart /= 2, mask ^= mask << apart)
        for (int w = 0; w < 32; w = (w + apart + 1) & ~apart) {
            const uint32_t crossed = ((words[w] >> apart) ^ words[w + apart]) & mask;
            words[w] ^= crossed << apart, words[w + apart] ^= crossed;
        }
}

// Those of 32 queries that chose each of 32 lists, or of fewer: words that are `apart`, to words that are `to_apart`.
static inline void turn_choices(const uint32_t* chosen, int64_t some, int64_t apart, uint32_t* to, int64_t to_apart) {
    constexpr int FEW = 24;  // bits: to set each takes no longer than to turn all
    uint32_t block[32] = {};
    int bits = 0;
    for (int64_t i = 0; i < some; ++i) block[i] = chosen[i * apart], bits += __builtin_popcount(block[i]);
    if (bits > FEW) {
        turn_bits(block);
        for (int64_t i = 0; i < 32; ++i) to[i * to_apart] = block[i];
        return;
    }
    for (int64_t i = 0; bits; ++i)
        for (; block[i]; block[i] &= block[i] - 1, --bits)
            to[__builtin_ctz(block[i]) * to_apart] |= uint32_t{1} << i;
}

static void askers_of(const uint32_t* chosen, int64_t n, int32_t lists, uint32_t* askers, int32_t* counts) {
    constexpr int64_t TOGETHER = 8;  // words of a query, which lie in one line of the cache
    const int64_t words = (lists + 31) / 32, query_words = (n + 31) / 32;
    std::fill(askers, askers + words * 32 * query_words, 0);
    for (int64_t first = 0; first < words; first += TOGETHER)
        for (int64_t q = 0; q < query_words; ++q)
            for (int64_t w = first; w < std::min(words, first + TOGETHER); ++w)
                turn_choices(chosen + q * 32 * words + w, std::min<int64_t>(32, n - q * 32), words,
                             askers + w * 32 * query_words + q, query_words);
    for (int64_t l = 0; l < lists; ++l) {
        counts[l] = 0;
        for (int64_t q = 0; q < query_words; ++q) counts[l] += __builtin_popcount(askers[l * query_words + q]);
    }
}

}  // namespace RC_ISA
