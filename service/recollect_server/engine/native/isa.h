// What is compiled once for each instruction set; `library.cpp` takes the best that the processor has.
#pragma once
#include <vector>

#include "kernels.h"

struct RcLists {
    // One list is a queue: the oldest slots leave at its front.
    struct List {
        std::vector<int32_t> slots;
        int32_t head = 0;
        int32_t size() const { return static_cast<int32_t>(slots.size()) - head; }
        const int32_t* data() const { return slots.data() + head; }
    };
    std::vector<List> lists;
    std::vector<int32_t> of_slot;  // -1: in none
};

struct Isa {
    const char* name;
    // Queries first .. last of one head against slots begin .. end; `best` is of all heads.
    void (*scan)(const RcScan&, const RcBest& best, int32_t head, int64_t first, int64_t last, int64_t begin,
                 int64_t end);
    void (*probe)(const RcProbe&, const RcBest& best, int32_t first_list, int32_t last_list);
    void (*nearest)(const float* queries, int64_t n, const float* centroids, int32_t lists, int32_t dim,
                    int32_t probes, int32_t width, int64_t* nearest);
    void (*attend)(const RcAttend&, int32_t head, int64_t first, int64_t last);
    void (*attend_backward)(const RcBackward&, int32_t head, int64_t first, int64_t last);
    void (*accumulate)(const float* rows, const int64_t* assigned, int64_t n, int32_t dim, double* sums,
                       int64_t* counts);
};

void keep_best(const RcBest& best, int64_t query);
