// The compiled half of the CPU engine, as C functions that `engine/kernels.py` calls through ctypes.
//
// Words are those of the wire: queries, keys, values, top_k, scores, lse. A slot is a row of a bank's buffer.
// Nothing here allocates for its caller, keeps a pointer after it returns (lists apart) or throws.
#pragma once
#include <cstdint>

#pragma GCC visibility push(default)
extern "C" {

// A row of RC_INT8, of values alone, is `dim` integers of 8 bits and then the float32 that they are times, its step:
// dim + 4 elements of a byte each.
enum RcDtype : int32_t { RC_FLOAT32 = 0, RC_FLOAT16 = 1, RC_BFLOAT16 = 2, RC_INT8 = 3 };

// The best rows so far of N queries. `scores` and `slots` hold up to `room` candidates of each, unordered;
// `counts` says how many, `thresholds` what a further one must exceed.
struct RcBest {
    float* scores;      // [N, room]
    int32_t* slots;     // [N, room]
    int32_t* counts;    // [N], 0 at first
    float* thresholds;  // [N], -inf at first
    int64_t queries;    // N
    int32_t room;       // > top_k, and a multiple of 16
    int32_t top_k;
};

// Heads x queries against a range of each head's keys.
struct RcScan {
    const void* queries;       // [heads, N / heads, dim], contiguous but for its heads
    const void* keys;          // slot 0 of the first head
    const float* bias;         // [slots] added to each product, or null; of one head
    int64_t query_stride;      // elements from a head's queries to the next one's
    int64_t key_stride;        // elements from a head's keys to the next one's
    int64_t begin, end;        // slots
    int32_t heads, dim;
    int32_t query_dtype, key_dtype;
};

void rc_scan(const RcScan* scan, const RcBest* best);

// Orders what was found: scores [N, top_k] descending (-inf where there are fewer), slots [N, top_k] (-1 there).
// Of equal scores the lower slot comes first.
void rc_finish(const RcBest* best, float* scores, int64_t* slots);

// softmax(scale * scores) v: of heads x N / heads queries, over the slots that a search found.
struct RcAttend {
    const float* scores;   // [heads, n, top_k]
    const int64_t* slots;  // [heads, n, top_k]; -1 for none
    const void* values;    // slot 0 of the first head
    int64_t value_stride;  // elements from a head's values to the next one's
    float* output;         // [heads, n, dim]
    float* lse;            // [heads, n]
    int64_t output_stride, lse_stride, hits_stride;  // elements from a head to the next one
    int64_t queries;       // n
    int32_t heads, top_k, dim, dtype;
    float scale;
};

void rc_attend(const RcAttend* attend);

// One of several banks that are read together.
struct RcRow {
    const void *keys, *values;  // slot 0 of the first head
    int64_t key_stride, value_stride;  // elements from a head to the next one
    int64_t live[4];  // begin, end, begin, end
};

// Each row has queries of its own, as many as the others.
struct RcRows {
    const void* queries;  // [rows, heads, n, dim], contiguous
    float* output;        // [rows, heads, n, value_dim]: 0 where there is no entry
    float* lse;           // [rows, heads, n]: -inf where there is no entry
    int64_t* slots;       // [rows, heads, n, top_k], as of rc_finish
    int64_t rows, queries_per_head;  // and n
    int32_t heads, dim, value_dim, top_k, room;  // see RcBest
    int32_t query_dtype, key_dtype, value_dtype;
    float scale;
};

// Exact search and attention over what it finds, of small banks: what a head found is still near when it is used.
void rc_attend_rows(const RcRows* asked, const RcRow* rows);

// ds_i = p_i (go.v_i - go.o + glse); dq = scale sum_i ds_i k_i, over slots [heads, n, top_k].
struct RcBackward {
    const float* queries;      // [heads, n, key_dim]
    const float* grad_output;  // [heads, n, value_dim]
    const float* grad_lse;     // [heads, n], or null
    const int64_t* slots;      // [heads, n, top_k]
    const void *keys, *values;
    int64_t key_stride, value_stride;
    float* gradient;           // [heads, n, key_dim]
    int64_t queries_per_head;  // n, which is also what heads are apart
    int32_t heads, top_k, key_dim, value_dim, key_dtype, value_dtype;
    float scale;
};

void rc_attend_backward(const RcBackward* backward);

// Copies rows of `row_bytes` at `slots` [n] to `rows` [n, row_bytes]; zeroes for -1.
void rc_gather(const void* from, const int64_t* slots, int64_t n, int64_t row_bytes, void* rows);
// The same of rows of `dim` elements, which become elements of another dtype, not RC_INT8.
void rc_gather_as(const void* from, int32_t dtype, const int64_t* slots, int64_t n, int32_t dim, int32_t to_dtype,
                  void* rows);
// Rows [n, dim] of any other dtype as RC_INT8: to the nearest multiples of a step, of which the largest element is 127.
void rc_to_int8(const void* rows, int32_t dtype, int64_t n, int32_t dim, void* to);

// sums[assigned[i]] += rows[i], counts[assigned[i]] += 1, over n rows; where assigned[i] >= 0.
void rc_accumulate(const float* rows, const int64_t* assigned, int64_t n, int32_t dim, double* sums,
                   int64_t* counts);

// ---- inverted lists: which slots belong to which centroid ----

struct RcLists;

RcLists* rc_lists_new(int32_t lists, int64_t slots);
void rc_lists_free(RcLists* lists);
// There are `slots` now; new ones are in no list.
void rc_lists_extend(RcLists* lists, int64_t slots);
// Puts slots begin .. begin + n into lists `assigned` [n], each taken out of the one it was in; -1: into none.
void rc_lists_put(RcLists* lists, int64_t begin, int64_t n, const int64_t* assigned);
// Bytes held, sizes of the lists [lists], and the list of each slot [slots].
int64_t rc_lists_bytes(const RcLists* lists);
void rc_lists_sizes(const RcLists* lists, int32_t* sizes);
void rc_lists_of(const RcLists* lists, int32_t* of_slot);

// One head's queries against the lists that are worth a look. A query asks its nearest lists (by the product with
// their centroids) one after another, each by itself: so it learns how good a candidate has to be, the threshold t.
// Then it chooses, of all others, those with  query . centroid + reach |query| radius > t , which are looked into list by
// list, for all that ask them. Slots outside of both live ranges are left out.
struct RcProbe {
    const RcLists* lists;
    const float *queries, *centroids;  // [N, dim], [lists, dim]
    const float* radii;                // [words * 32], of the lists; above 0
    const void* keys;                  // slot 0
    uint32_t* chosen;                  // [N, words]: bits of the lists that each query chose, 0 at first
    const uint32_t* askers;            // [words * 32, query_words]: the same, bits of the queries that chose each list
    const int32_t* counts;             // [lists], of askers
    int64_t live[4];                   // begin, end, begin, end
    int32_t dim, dtype;
    int32_t nearest, words;            // how many lists are asked singly; lists / 32, rounded up
    int32_t query_words;               // N / 32, rounded up
    float reach;                       // infinite: all are chosen
};

// The first part, of some queries.
void rc_probe_nearest(const RcProbe* probe, const RcBest* best, int64_t first_query, int64_t last_query);
// From what N queries chose, who chose each list: askers, and how many they are. No bit beyond `lists` is set.
void rc_askers(const uint32_t* chosen, int64_t n, int32_t lists, uint32_t* askers, int32_t* counts);
// The second part, of some lists.
void rc_probe(const RcProbe* probe, const RcBest* best, int32_t first_list, int32_t last_list);

// Products of n queries with all centroids [lists, dim]: [n, lists]. On this thread alone.
void rc_multiply_centroids(const float* queries, int64_t n, const float* centroids, int32_t lists, int32_t dim,
                           float* products);

// ---- the library ----

void rc_set_threads(int32_t threads);
// Lets go what threads keep to calculate in, unless a call is using it now.
void rc_give_back();
const char* rc_isa();
// For tests: the variant of that name, "" for the best; 0 if the processor cannot run it.
int32_t rc_use_isa(const char* name);
}
#pragma GCC visibility pop
