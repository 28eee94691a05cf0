// The functions that Python calls: they cut work into tasks for a few threads.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "isa.h"

namespace generic { extern const Isa isa; }
#if defined(RC_X86)
namespace avx2 { extern const Isa isa; }
namespace avx512 { extern const Isa isa; }
#endif

namespace {

const Isa* isa_named(const char* name) {
    const auto is_wanted = [name](const Isa& isa) { return !*name || !std::strcmp(name, isa.name); };
#if defined(RC_X86)
    __builtin_cpu_init();
    if (is_wanted(avx512::isa) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &avx512::isa;
    if (is_wanted(avx2::isa) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2::isa;
#endif
    return is_wanted(generic::isa) ? &generic::isa : nullptr;
}

std::atomic<const Isa*> chosen_isa{isa_named("")};

const Isa& best_isa() { return *chosen_isa.load(std::memory_order_relaxed); }

// ---- threads ----

using Task = std::function<void(int64_t)>;

// Workers sleep between calls: they would take the processor from the server's other threads.
class Pool {
  public:
    explicit Pool(int workers) : owner_(getpid()) {
        for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { work(); });
    }
    ~Pool() {
        {
            std::lock_guard lock(mutex_);
            ending_ = true;
        }
        wake_.notify_all();
        for (auto& thread : threads_) thread.join();
    }
    bool is_of_this_process() const { return owner_ == getpid(); }

    void run(int64_t tasks, const Task& task) {
        {
            std::lock_guard lock(mutex_);
            task_ = &task, tasks_ = tasks, next_ = 0, busy_ = static_cast<int>(threads_.size());
            ++round_;
        }
        wake_.notify_all();
        drain(task, tasks);
        std::unique_lock lock(mutex_);
        done_.wait(lock, [this] { return busy_ == 0; });
        task_ = nullptr;
    }

  private:
    void drain(const Task& task, int64_t tasks) {
        for (int64_t i; (i = next_.fetch_add(1)) < tasks;) task(i);
    }
    void work() {
        uint64_t seen = 0;
        std::unique_lock lock(mutex_);
        while (true) {
            wake_.wait(lock, [&] { return ending_ || round_ != seen; });
            if (ending_) return;
            seen = round_;
            const Task* task = task_;
            const int64_t tasks = tasks_;
            lock.unlock();
            drain(*task, tasks);
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }

    const pid_t owner_;
    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const Task* task_ = nullptr;
    int64_t tasks_ = 0;
    std::atomic<int64_t> next_{0};
    int busy_ = 0;
    uint64_t round_ = 0;
    bool ending_ = false;
};

std::mutex pool_mutex;  // one call at a time has the threads; another one that comes meanwhile does without
Pool* pool = nullptr;
int wanted_threads = 1;

constexpr int64_t SHARED_WORK = 400'000;  // multiply-adds below which waking a thread costs more than it saves

void run(int64_t tasks, int64_t work, const Task& task) {
    std::unique_lock lock(pool_mutex, std::try_to_lock);
    if (tasks <= 1 || work < SHARED_WORK || wanted_threads <= 1 || !lock.owns_lock()) {
        for (int64_t i = 0; i < tasks; ++i) task(i);
        return;
    }
    // After a fork there are no threads behind the pool that was copied: it is left alone.
    if (pool && !pool->is_of_this_process()) pool = nullptr;
    if (!pool) pool = new Pool(wanted_threads - 1);
    pool->run(tasks, task);
}

int64_t divided(int64_t n, int64_t by) { return (n + by - 1) / by; }

// ---- candidates ----

// Orders as the score does, and among equals puts the lower slot first; the largest is the best.
uint64_t rank_of(float score, int32_t slot) {
    uint32_t bits;
    std::memcpy(&bits, &score, 4);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(slot));
}
float score_of(uint64_t rank) {
    uint32_t bits = static_cast<uint32_t>(rank >> 32);
    bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
    float score;
    std::memcpy(&score, &bits, 4);
    return score;
}
int32_t slot_of(uint64_t rank) { return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(rank)); }

std::vector<uint64_t>& ranks_of(const RcBest& best, int64_t query) {
    static thread_local std::vector<uint64_t> ranks;
    const int32_t count = best.counts[query];
    ranks.resize(count);
    const float* scores = best.scores + query * best.room;
    const int32_t* slots = best.slots + query * best.room;
    for (int32_t i = 0; i < count; ++i) ranks[i] = rank_of(scores[i], slots[i]);
    return ranks;
}

void finish_one(const RcBest& best, int64_t query, float* scores, int64_t* slots) {
    std::vector<uint64_t>& ranks = ranks_of(best, query);
    const int32_t found = std::min<int32_t>(best.top_k, static_cast<int32_t>(ranks.size()));
    std::partial_sort(ranks.begin(), ranks.begin() + found, ranks.end(), std::greater<>());
    for (int32_t i = 0; i < found; ++i) scores[i] = score_of(ranks[i]), slots[i] = slot_of(ranks[i]);
    for (int32_t i = found; i < best.top_k; ++i) scores[i] = -std::numeric_limits<float>::infinity(), slots[i] = -1;
}

// Candidates of its own for a task that shares its queries with others; merged when it is done.
struct OwnBest {
    explicit OwnBest(const RcBest& of)
        : scores(new float[of.queries * of.room]), slots(new int32_t[of.queries * of.room]), counts(of.queries, 0),
          thresholds(of.thresholds, of.thresholds + of.queries),
          best{scores.get(), slots.get(), counts.data(), thresholds.data(), of.queries, of.room, of.top_k} {}

    void merge_into(const RcBest& to) const {
        for (int64_t q = 0; q < to.queries; ++q) {
            for (int32_t i = 0; i < counts[q]; ++i) {
                if (scores[q * to.room + i] <= to.thresholds[q]) continue;
                const int32_t at = to.counts[q]++;
                to.scores[q * to.room + at] = scores[q * to.room + i];
                to.slots[q * to.room + at] = slots[q * to.room + i];
                if (to.counts[q] == to.room) keep_best(to, q);
            }
        }
    }

    std::unique_ptr<float[]> scores;  // as they come: only what was counted is read
    std::unique_ptr<int32_t[]> slots;
    std::vector<int32_t> counts;
    std::vector<float> thresholds;
    RcBest best;
};

constexpr int64_t QUERY_GRAIN = 64;  // a task has at least so many queries, where it has them to itself

}  // namespace

void keep_best(const RcBest& best, int64_t query) {
    std::vector<uint64_t>& ranks = ranks_of(best, query);
    if (static_cast<int32_t>(ranks.size()) < best.top_k) return;
    std::nth_element(ranks.begin(), ranks.begin() + best.top_k - 1, ranks.end(), std::greater<>());
    for (int32_t i = 0; i < best.top_k; ++i) {
        best.scores[query * best.room + i] = score_of(ranks[i]);
        best.slots[query * best.room + i] = slot_of(ranks[i]);
    }
    best.counts[query] = best.top_k;
    best.thresholds[query] = score_of(ranks[best.top_k - 1]);
}

extern "C" {

void rc_set_threads(int32_t threads) {
    std::lock_guard lock(pool_mutex);
    if (threads == wanted_threads) return;
    if (pool && pool->is_of_this_process()) delete pool;
    pool = nullptr;
    wanted_threads = std::max<int32_t>(1, threads);
}

const char* rc_isa() { return best_isa().name; }

int32_t rc_use_isa(const char* name) {
    const Isa* named = isa_named(name);
    if (named) chosen_isa = named;
    return named != nullptr;
}

void rc_scan(const RcScan* scan, const RcBest* best) {
    const Isa& isa = best_isa();
    const int64_t n = best->queries / scan->heads, rows = scan->end - scan->begin;
    const int64_t work = best->queries * rows * scan->dim;
    if (rows <= 0 || n <= 0) return;
    const int64_t parts = std::min(divided(n, QUERY_GRAIN), divided(wanted_threads, scan->heads));
    if (scan->heads * parts >= wanted_threads || work < SHARED_WORK) {
        const int64_t size = divided(divided(n, parts), 8) * 8;
        run(scan->heads * parts, work, [&](int64_t task) {
            const int64_t first = task % parts * size;
            isa.scan(*scan, *best, static_cast<int32_t>(task / parts), first, std::min(n, first + size), scan->begin,
                     scan->end);
        });
        return;
    }
    // Too few queries for all threads: these share out the keys.
    const int64_t shares = wanted_threads, size = divided(divided(rows, shares), 64) * 64;
    std::vector<std::unique_ptr<OwnBest>> own(shares);
    run(shares, work, [&](int64_t task) {
        own[task] = std::make_unique<OwnBest>(*best);
        const int64_t begin = scan->begin + task * size, end = std::min(scan->end, begin + size);
        if (begin >= end) return;
        for (int32_t head = 0; head < scan->heads; ++head) isa.scan(*scan, own[task]->best, head, 0, n, begin, end);
    });
    for (const auto& each : own) each->merge_into(*best);
}

void rc_probe(const RcProbe* probe, const RcBest* best) {
    const Isa& isa = best_isa();
    int64_t work = 0;
    for (int32_t l = probe->first_list; l < probe->last_list; ++l)
        work += (probe->offsets[l + 1] - probe->offsets[l] + 8) * probe->lists->lists[l].size() * probe->dim;
    if (wanted_threads <= 1 || work < SHARED_WORK) {
        isa.probe(*probe, *best, probe->first_list, probe->last_list);
        return;
    }
    // More shares than threads, since lists differ in size; each of them has candidates of its own.
    const int64_t lists = probe->last_list - probe->first_list, shares = wanted_threads, grain = 16;
    std::vector<std::unique_ptr<OwnBest>> own(shares);
    std::atomic<int64_t> next{0};
    run(shares, work, [&](int64_t task) {
        own[task] = std::make_unique<OwnBest>(*best);
        for (int64_t first; (first = next.fetch_add(grain)) < lists;)
            isa.probe(*probe, own[task]->best, static_cast<int32_t>(probe->first_list + first),
                      static_cast<int32_t>(probe->first_list + std::min(lists, first + grain)));
    });
    for (const auto& each : own) each->merge_into(*best);
}

void rc_finish(const RcBest* best, float* scores, int64_t* slots) {
    const int64_t grain = 64;
    run(divided(best->queries, grain), best->queries * best->room * 64, [&](int64_t task) {
        const int64_t last = std::min(best->queries, (task + 1) * grain);
        for (int64_t q = task * grain; q < last; ++q)
            finish_one(*best, q, scores + q * best->top_k, slots + q * best->top_k);
    });
}

void rc_attend(const RcAttend* attend) {
    const Isa& isa = best_isa();
    const int64_t grain = 64, parts = divided(attend->queries, grain);
    run(attend->heads * parts, attend->heads * attend->queries * attend->top_k * attend->dim * 8, [&](int64_t task) {
        const int64_t first = task % parts * grain;
        isa.attend(*attend, static_cast<int32_t>(task / parts), first, std::min(attend->queries, first + grain));
    });
}

void rc_attend_backward(const RcBackward* backward) {
    const Isa& isa = best_isa();
    const int64_t n = backward->queries_per_head, grain = 64, parts = divided(n, grain);
    const int64_t dims = backward->key_dim + backward->value_dim;
    run(backward->heads * parts, backward->heads * n * backward->top_k * dims * 8, [&](int64_t task) {
        const int64_t first = task % parts * grain;
        isa.attend_backward(*backward, static_cast<int32_t>(task / parts), first, std::min(n, first + grain));
    });
}

void rc_gather(const void* from, const int64_t* slots, int64_t n, int64_t row_bytes, void* rows) {
    const char* source = static_cast<const char*>(from);
    char* to = static_cast<char*>(rows);
    const int64_t grain = 1024, ahead = 8;
    run(divided(n, grain), n * row_bytes * 8, [&](int64_t task) {
        const int64_t last = std::min(n, (task + 1) * grain);
        for (int64_t i = task * grain; i < last; ++i) {
            if (i + ahead < last && slots[i + ahead] >= 0)
                for (int64_t b = 0; b < std::min<int64_t>(row_bytes, 256); b += 64)
                    __builtin_prefetch(source + slots[i + ahead] * row_bytes + b);
            if (slots[i] >= 0) std::memcpy(to + i * row_bytes, source + slots[i] * row_bytes, row_bytes);
            else std::memset(to + i * row_bytes, 0, row_bytes);
        }
    });
}

void rc_accumulate(const float* rows, const int64_t* assigned, int64_t n, int32_t dim, double* sums,
                   int64_t* counts) {
    best_isa().accumulate(rows, assigned, n, dim, sums, counts);
}

// ---- inverted lists ----

RcLists* rc_lists_new(int32_t lists, int64_t slots) {
    return new RcLists{std::vector<RcLists::List>(lists), ListOfSlot(slots, lists)};
}

void rc_lists_free(RcLists* lists) { delete lists; }

static void take_out(RcLists::List& list, int32_t slot) {
    // The oldest leaves first, as a rule; a slot that is written anew out of turn may be anywhere.
    auto& slots = list.slots;
    const auto at = std::find(slots.begin() + list.head, slots.end(), slot);
    if (at == slots.end()) return;
    if (at == slots.begin() + list.head) {
        if (++list.head > 16 && list.head > list.size()) {
            slots.erase(slots.begin(), slots.begin() + list.head);
            list.head = 0;
        }
    } else {
        slots.erase(at);
    }
}

void rc_lists_put(RcLists* lists, int64_t begin, int64_t n, const int64_t* assigned) {
    for (int64_t i = 0; i < n; ++i) {
        const int64_t slot = begin + i;
        const int32_t before = lists->of_slot[slot], of = static_cast<int32_t>(assigned[i]);
        if (before >= 0) take_out(lists->lists[before], static_cast<int32_t>(slot));
        lists->of_slot.set(slot, of);
        if (of < 0) continue;
        auto& slots = lists->lists[of].slots;
        // By an eighth at a time: doubling would leave half of it empty.
        if (slots.size() == slots.capacity()) slots.reserve(slots.size() + slots.size() / 8 + 8);
        slots.push_back(static_cast<int32_t>(slot));
    }
}

int64_t rc_lists_bytes(const RcLists* lists) {
    int64_t bytes = lists->of_slot.bytes();
    for (const auto& list : lists->lists)
        bytes += static_cast<int64_t>(sizeof list) + static_cast<int64_t>(list.slots.capacity()) * 4;
    return bytes;
}

void rc_lists_sizes(const RcLists* lists, int32_t* sizes) {
    for (size_t i = 0; i < lists->lists.size(); ++i) sizes[i] = lists->lists[i].size();
}

void rc_lists_of(const RcLists* lists, int32_t* of_slot) {
    for (size_t slot = 0; slot < lists->of_slot.size(); ++slot) of_slot[slot] = lists->of_slot[slot];
}

void rc_nearest(const float* queries, int64_t n, const float* centroids, int32_t lists, int32_t dim,
                int32_t probes, int32_t width, int64_t* nearest) {
    const int64_t grain = n >= 64 ? 64 : std::max<int64_t>(1, divided(n, wanted_threads));
    run(divided(n, grain), n * lists * dim, [&](int64_t task) {
        const int64_t first = task * grain;
        best_isa().nearest(queries + first * dim, std::min(grain, n - first), centroids, lists, dim, probes, width,
                           nearest + first * width);
    });
}

void rc_invert(const int64_t* probes, int64_t n, int32_t width, int32_t lists, int64_t* offsets,
               int32_t* askers) {
    std::fill(offsets, offsets + lists + 1, 0);
    for (int64_t i = 0; i < n * width; ++i)
        if (probes[i] >= 0) ++offsets[probes[i] + 1];
    for (int32_t l = 0; l < lists; ++l) offsets[l + 1] += offsets[l];
    std::vector<int64_t> next(offsets, offsets + lists);
    for (int64_t i = 0; i < n * width; ++i)
        if (probes[i] >= 0) askers[next[probes[i]]++] = static_cast<int32_t>(i / width);
}
}
