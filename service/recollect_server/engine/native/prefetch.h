// Memory that is read soon.
#pragma once

// One line of the cache. GCC takes a function that does nothing but this for one that has no effect, and leaves calls of
// it out (seen with 12.2: no list was ever fetched ahead). The empty statement is an effect.
static inline void prefetch_line(const void* at) {
    __builtin_prefetch(at);
    asm volatile("");
}
