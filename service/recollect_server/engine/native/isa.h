// What is compiled once for each instruction set; `library.cpp` takes the best that the processor has.
#pragma once
#include <cstring>
#include <vector>

#include "codes.h"
#include "kernels.h"

// So few queries are multiplied with centroids of so many elements as these lie.
constexpr int ROWS_QUERIES = 4, ROWS_DIM = 128;

// Which list each slot is in, -1 for none: in two bytes, unless there are more lists than these can name.
class ListOfSlot {
  public:
    ListOfSlot(int64_t slots, int32_t lists) {
        if (lists < NONE) narrow_.assign(slots, NONE);
        else wide_.assign(slots, -1);
    }
    int32_t operator[](int64_t slot) const {
        if (!wide_.empty()) return wide_[slot];
        return narrow_[slot] == NONE ? -1 : narrow_[slot];
    }
    void set(int64_t slot, int32_t list) {
        if (!wide_.empty()) wide_[slot] = list;
        else narrow_[slot] = static_cast<uint16_t>(list);  // -1 is NONE
    }
    void extend(int64_t slots) {
        if (!wide_.empty()) wide_.resize(slots, -1);
        else narrow_.resize(slots, NONE);
    }
    size_t size() const { return wide_.size() + narrow_.size(); }
    int64_t bytes() const { return static_cast<int64_t>(wide_.capacity() * 4 + narrow_.capacity() * 2); }

  private:
    static constexpr uint16_t NONE = 0xffff;
    std::vector<uint16_t> narrow_;
    std::vector<int32_t> wide_;
};

struct RcLists {
    // One list is a queue: the oldest slots leave at its front.
    struct List {
        std::vector<int32_t> slots;
        int32_t head = 0;
        int32_t size() const { return static_cast<int32_t>(slots.size()) - head; }
        const int32_t* data() const { return slots.data() + head; }
    };
    std::vector<List> lists;
    ListOfSlot of_slot;
};

// The part of it that is about codes.
struct CodesIsa {
    void (*put)(const RcCodes&, int64_t begin, int64_t n, const int64_t* assigned);
    void (*sums)(const RcCodes&, const float* queries, int64_t n, const int64_t* slots, int32_t k, float* sums,
                 float* factors);
    void (*probe)(const RcCodesProbe&, const RcBest& best, int64_t first, int64_t last);
};

struct Isa {
    const char* name;
    // Queries first .. last of one head against slots begin .. end; `best` is of all heads.
    void (*scan)(const RcScan&, const RcBest& best, int32_t head, int64_t first, int64_t last, int64_t begin,
                 int64_t end);
    void (*probe)(const RcProbe&, const RcBest& best, int32_t first_list, int32_t last_list);
    void (*probe_nearest)(const RcProbe&, const RcBest& best, int64_t first, int64_t last);
    void (*askers)(const uint32_t* chosen, int64_t n, int32_t lists, uint32_t* askers, int32_t* counts);
    // Ends with what is best: see rc_finish. `push_all` takes the candidates of another set.
    void (*finish)(const RcBest& best, int64_t first, int64_t last, float* scores, int64_t* slots);
    void (*push_all)(const RcBest& best, const RcBest& from, int64_t query);
    void (*attend)(const RcAttend&, int32_t head, int64_t first, int64_t last);
    void (*attend_backward)(const RcBackward&, int32_t head, int64_t first, int64_t last);
    // Rows of slots first .. last as another dtype, each at its place in `to`; 0 for -1.
    void (*gather_as)(const void* rows, int32_t dtype, const int64_t* slots, int64_t first, int64_t last, int32_t dim,
                      int32_t to_dtype, void* to);
    // Rows first .. last, each to its place in `to`.
    void (*to_int8)(const void* rows, int32_t dtype, int64_t first, int64_t last, int32_t dim, void* to);
    void (*accumulate)(const float* rows, const int64_t* assigned, int64_t n, int32_t dim, double* sums,
                       int64_t* counts);
    void (*multiply_centroids)(const float* queries, int64_t n, const float* centroids, int32_t lists, int32_t dim,
                               float* products);
    const CodesIsa* codes;
};

// Where no threshold is found that just so many reach; of equal scores the lower slots stay.
void keep_best(const RcBest& best, int64_t query);

// Orders as the score does, and among equals puts the lower slot first; the largest is the best.
inline uint64_t rank_of(float score, int32_t slot) {
    uint32_t bits;
    std::memcpy(&bits, &score, 4);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(slot));
}
inline float score_of(uint64_t rank) {
    uint32_t bits = static_cast<uint32_t>(rank >> 32);
    bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
    float score;
    std::memcpy(&score, &bits, 4);
    return score;
}
inline int32_t slot_of(uint64_t rank) { return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(rank)); }
