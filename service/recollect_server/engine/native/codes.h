// Codes of entries: one bit for each dimension, from which products with queries are estimated.
//
// Of a key k in the list of centroid c, r = P(k - c) with P orthogonal and random. Its code is the signs of r and
// the factor f = |r|^2 / |r|_1. For a query q, q.k is about q.c + f S, S = sum_i sign(r_i) (Pq)_i: right on average
// over P, with an error of about 0.6 f |q|, whatever the keys are like (RaBitQ, Gao and Long 2024).
#pragma once
#include "kernels.h"

#pragma GCC visibility push(default)
extern "C" {

// Where codes are, and what they are made of. The orthogonal matrix is made of `rounds` times signs and a Hadamard
// matrix over the first or, in every second round, the last power of two of dimensions.
struct RcCodes {
    uint64_t* rows;          // [slots, stride]: a bit for each dimension, then a word with the factor as a float
    const float* signs;      // [rounds, dim], 1 or -1
    const float* centroids;  // [lists, dim]
    const void* keys;        // slot 0
    int64_t stride;          // >= 1 + ceil(dim / 64)
    int32_t dim, dtype, rounds;
};

// Makes the codes of slots begin .. begin + n, which are in lists `assigned` [n]; none for -1.
void rc_codes_put(const RcCodes* codes, int64_t begin, int64_t n, const int64_t* assigned);

// S of queries [n, dim], as searches know it, and f, of slots [n, k]; 0 for -1.
void rc_codes_sums(const RcCodes* codes, const float* queries, int64_t n, const int64_t* slots, int32_t k,
                   float* sums, float* factors);

// Queries against the lists that each of them chose. Multiplied with their keys are the top_k entries with the
// highest estimates, and those that may be better: whose estimate and `margin` times f |q| reach the least of the best.
struct RcCodesProbe {
    RcCodes codes;
    const RcLists* lists;
    const float* queries;    // [N, dim]
    const uint32_t* chosen;  // [N, words]: lists, as bits
    int64_t* multiplied;     // [N], how many keys were
    int64_t live[4];         // begin, end, begin, end
    int64_t first, last;     // queries
    int32_t words;
    float margin;
};

void rc_codes_probe(const RcCodesProbe* probe, const RcBest* best);
}
#pragma GCC visibility pop
