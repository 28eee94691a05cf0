// Memory that is read soon.
#pragma once
#include <algorithm>
#include <cstdint>

constexpr int64_t FETCHED_BYTES = 512;  // of a row: the processor sees the rest coming

// One line of the cache. GCC takes a function that does nothing but this for one that has no effect, and leaves calls of
// it out (seen with 12.2: no list was ever fetched ahead). The empty statement is an effect.
static inline void prefetch_line(const void* at) {
    __builtin_prefetch(at);
    asm volatile("");
}

static inline void prefetch_row(const void* at, int64_t bytes) {
    for (int64_t b = 0; b < std::min(bytes, FETCHED_BYTES); b += 64) prefetch_line(static_cast<const char*>(at) + b);
}
