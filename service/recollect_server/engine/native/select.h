// The best candidates of each query, for the instruction set that this file is compiled for.
#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "isa.h"
#include "simd.h"

namespace RC_ISA {

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr int32_t COUNTED_MAX = 128;  // so many are ordered by counting for each how many are better

// Of scores [padded, to whole vectors], how many are at least the threshold.
static inline int32_t count_from(const float* scores, int64_t padded, float threshold) {
    int32_t count = 0;
    const Vec t = broadcast(threshold);
    for (int64_t i = 0; i < padded; i += W) count += W - __builtin_popcount(above(t, load(scores + i)));
    return count;
}

static inline void range_of(const float* scores, int64_t n, float& low, float& high) {
    Vec lows = broadcast(INF), highs = broadcast(-INF);
    int64_t i = 0;
    for (; i + W <= n; i += W) lows = least(lows, load(scores + i)), highs = most(highs, load(scores + i));
    low = least(lows), high = most(highs);
    for (; i < n; ++i) low = std::min(low, scores[i]), high = std::max(high, scores[i]);
}

// Moves the bounds, as halves between them, until between `fewest` and `most` of the scores reach `low`; less
// than that reach `high`, and `fewest` or more reach `low`, if it was so before. False: equal scores prevent it.
static inline bool narrow(const float* scores, int64_t padded, int32_t fewest, int32_t most, float& low, float& high) {
    for (int round = 0; round < 32; ++round) {
        const float middle = low + 0.5f * (high - low);
        if (!(middle > low && middle < high)) return false;
        const int32_t count = count_from(scores, padded, middle);
        if (count >= fewest) low = middle;
        else high = middle;
        if (count >= fewest && count <= most) return true;
    }
    return false;
}

// Those of n scores that are at least the threshold, to `to`, which has room for all n and a vector; and what else
// belongs to them. They may be written over those that they are taken from.
static inline int32_t pick_from(float threshold, int64_t n, const float* scores, const int32_t* others, float* to,
                                int32_t* others_to) {
    const Vec t = broadcast(threshold);
    int32_t count = 0;
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        const uint32_t bits = ~above(t, load(scores + i)) & static_cast<uint32_t>((uint64_t{1} << W) - 1);
        pick(bits, scores + i, to + count);
        count += pick(bits, others + i, others_to + count);
    }
    for (; i < n; ++i)
        if (scores[i] >= threshold) to[count] = scores[i], others_to[count++] = others[i];
    return count;
}

// Keeps the candidates that are better than `low`, and as many that are just as good, of the lowest slots, as make them
// top_k. False, and nothing is changed, where these would be too many or too few. Scores are padded to whole vectors.
__attribute__((noinline)) static bool keep_lowest_slots(const RcBest& best, int64_t query, float low) {
    static thread_local std::vector<int32_t> equals;
    float* scores = best.scores + query * best.room;
    int32_t* slots = best.slots + query * best.room;
    const int32_t count = best.counts[query];
    const Vec t = broadcast(low);
    int32_t better = 0, good = 0;
    for (int32_t i = 0; i < count; i += W) {
        better += __builtin_popcount(above(load(scores + i), t));
        good += W - __builtin_popcount(above(t, load(scores + i)));
    }
    if (better >= best.top_k || good < best.top_k) return false;
    equals.resize(good - better + W);
    constexpr auto THERE = static_cast<uint32_t>((uint64_t{1} << W) - 1);
    int32_t kept = 0, same = 0;
    for (int32_t i = 0; i < count; i += W) {
        const Vec s = load(scores + i);
        const uint32_t above_it = above(s, t);
        same += pick(~above_it & ~above(t, s) & THERE, slots + i, equals.data() + same);
        pick(above_it, scores + i, scores + kept);
        kept += pick(above_it, slots + i, slots + kept);
    }
    const int32_t wanted = best.top_k - kept;
    std::nth_element(equals.begin(), equals.begin() + wanted - 1, equals.begin() + same);
    std::fill(scores + kept, scores + best.top_k, low);
    std::copy(equals.begin(), equals.begin() + wanted, slots + kept);
    best.counts[query] = best.top_k, best.thresholds[query] = low;
    return true;
}

// Lets all but the best candidates of a query go; what follows must be better than the worst of them.
static inline void shrink(const RcBest& best, int64_t query) {
    const int32_t count = best.counts[query], padded = (count + W - 1) / W * W;
    if (count < best.top_k) return;
    float* scores = best.scores + query * best.room;
    int32_t* slots = best.slots + query * best.room;
    float low, high;
    range_of(scores, count, low, high);
    if (count > best.top_k) {
        std::fill(scores + count, scores + padded, -INF);  // there is room: it is a multiple of vectors
        if (!narrow(scores, padded, best.top_k, best.top_k, low, high)) {
            if (!keep_lowest_slots(best, query, low)) keep_best(best, query);
            return;
        }
        pick_from(low, count, scores, slots, scores, slots);
        best.counts[query] = best.top_k;
        range_of(scores, best.top_k, low, high);
    }
    best.thresholds[query] = low;
}

static inline void push(const RcBest& best, int64_t query, float score, int32_t slot) {
    int32_t& count = best.counts[query];
    if (best.top_k == 1) count = 0, best.thresholds[query] = score;  // it is better than the one there is
    best.scores[query * best.room + count] = score;
    best.slots[query * best.room + count] = slot;
    if (++count == best.room) shrink(best, query);
}

static inline void finish(const RcBest& best, int64_t first, int64_t last, float* scores, int64_t* slots) {
    static thread_local std::vector<uint64_t> ranks;
    const int32_t k = best.top_k;
    ranks.resize(k);
    for (int64_t q = first; q < last; ++q) {
        shrink(best, q);
        const int32_t found = best.counts[q];
        for (int32_t i = 0; i < found; ++i)
            ranks[i] = rank_of(best.scores[q * best.room + i], best.slots[q * best.room + i]);
        float* to = scores + q * k;
        int64_t* slots_to = slots + q * k;
        std::fill(to, to + k, -INF);
        std::fill(slots_to, slots_to + k, int64_t{-1});
        if (found > COUNTED_MAX) std::sort(ranks.begin(), ranks.begin() + found, std::greater<>());
        for (int32_t i = 0; i < found; ++i) {
            uint64_t at = i;
            if (found <= COUNTED_MAX) {
                at = 0;
                const uint64_t mine = ranks[i];
                for (int32_t j = 0; j < found; ++j) at += ranks[j] > mine;
            }
            to[at] = score_of(ranks[i]), slots_to[at] = slot_of(ranks[i]);
        }
    }
}

}  // namespace RC_ISA
