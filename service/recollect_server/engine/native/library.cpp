// The functions that Python calls: they cut work into tasks for a few threads.
#include <pthread.h>
#include <unistd.h>

#if defined(RC_HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "isa.h"
#include "kept.h"
#include "prefetch.h"

namespace generic { extern const Isa isa; }
#if defined(RC_HAS_AVX2)
namespace avx2 { extern const Isa isa; }
#endif
#if defined(RC_HAS_AVX512)
namespace avx512 { extern const Isa isa; }
#endif
#if defined(RC_HAS_VNNI)
namespace vnni { extern const Isa isa; }
#endif
#if defined(RC_HAS_AMX)
namespace amx { extern const Isa isa; }
#endif

namespace {

#if defined(RC_HAS_AMX)
// Whether there is a matrix unit for bfloat16, and the kernel lets this process use it.
bool has_amx() {
    constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & AMX_BF16) || !(d & AMX_TILE)) return false;
    return __builtin_cpu_supports("avx512bf16") && !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
}
#endif

#if defined(RC_HAS_AVX512)
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const Isa* isa_named(const char* name) {
    const auto is_wanted = [name](const Isa& isa) { return !*name || !std::strcmp(name, isa.name); };
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#if defined(RC_HAS_AMX)
    if (is_wanted(amx::isa) && has_avx512() && has_amx()) return &amx::isa;
#endif
#if defined(RC_HAS_VNNI)
    if (is_wanted(vnni::isa) && has_avx512() && __builtin_cpu_supports("avx512vnni")) return &vnni::isa;
#endif
#if defined(RC_HAS_AVX512)
    if (is_wanted(avx512::isa) && has_avx512()) return &avx512::isa;
#endif
#if defined(RC_HAS_AVX2)
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
    explicit Pool(int workers) {
        threads_.reserve(workers);
        try {
            for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { work(); });
        } catch (const std::system_error&) {
            // No more are to be had: those that there are share the work with whoever brings it.
        }
    }
    ~Pool() {
        {
            std::lock_guard lock(mutex_);
            ending_ = true;
        }
        wake_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

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
std::atomic<int> wanted_threads{1};  // calls read it while somebody else may set it

constexpr int64_t SHARED_WORK = 400'000;  // multiply-adds below which waking a thread costs more than it saves

void run(int64_t tasks, int64_t work, const Task& task) {
    std::unique_lock lock(pool_mutex, std::try_to_lock);
    if (tasks <= 1 || work < SHARED_WORK || wanted_threads <= 1 || !lock.owns_lock()) {
        for (int64_t i = 0; i < tasks; ++i) task(i);
        return;
    }
    if (!pool) pool = new Pool(wanted_threads - 1);
    pool->run(tasks, task);
}

int64_t divided(int64_t n, int64_t by) { return (n + by - 1) / by; }

// ---- what threads keep ----

std::shared_mutex calling;  // shared by calls that use what their threads keep; alone has it who lets that go
std::mutex kept_mutex;

std::vector<KeptOfThread*>& kept_of_all() {
    static auto* all = new std::vector<KeptOfThread*>;  // never ended: threads may end later
    return *all;
}

using Calling = std::shared_lock<std::shared_mutex>;

// ---- forks ----

// A forked process has the one thread that forked, and locks as others held them. Their pool is left alone, and what
// they kept is forgotten: its memory will be given to new threads.
void before_fork() { kept_mutex.lock(); }
void after_fork_in_parent() { kept_mutex.unlock(); }
void after_fork_in_child() {
    new (&kept_mutex) std::mutex;
    new (&pool_mutex) std::mutex;
    new (&calling) std::shared_mutex;
    pool = nullptr;
    auto& all = kept_of_all();
    const auto is_gone = [](const KeptOfThread* kept) { return !kept->is_of_this_thread(); };
    all.erase(std::remove_if(all.begin(), all.end(), is_gone), all.end());
}
[[maybe_unused]] const int forks_noticed = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

// ---- candidates ----

std::vector<uint64_t>& ranks_of(const RcBest& best, int64_t query) {
    static thread_local std::vector<uint64_t> ranks;
    const int32_t count = best.counts[query];
    ranks.resize(count);
    const float* scores = best.scores + query * best.room;
    const int32_t* slots = best.slots + query * best.room;
    for (int32_t i = 0; i < count; ++i) ranks[i] = rank_of(scores[i], slots[i]);
    return ranks;
}

// Candidates of their own for tasks that share queries with others; merged when these are done.
class Shares {
  public:
    // They are better than what is known already.
    Shares(const RcBest& of, int64_t count) : of_(of), parts_(count), kept_(of_thread()) {
        const int64_t each = of.queries * of.room;
        if (static_cast<int64_t>(kept_.scores.size()) < count * each) {
            kept_.scores.resize(count * each), kept_.slots.resize(count * each);
        }
        counts_.assign(count * of.queries, 0);
        thresholds_.resize(count * of.queries);
        for (int64_t i = 0; i < count; ++i) {
            std::copy(of.thresholds, of.thresholds + of.queries, thresholds_.begin() + i * of.queries);
            parts_[i] = {kept_.scores.data() + i * each, kept_.slots.data() + i * each, counts_.data() + i * of.queries,
                         thresholds_.data() + i * of.queries, of.queries, of.room, of.top_k};
        }
    }
    ~Shares() {
        if (kept_.scores.size() > KEPT_MAX) kept_ = Candidates{};
    }
    const RcBest& operator[](int64_t i) const { return parts_[i]; }

    void merge(const Isa& isa) const {
        const int64_t grain = 64;
        run(divided(of_.queries, grain), of_.queries * of_.top_k * 64, [&](int64_t task) {
            for (int64_t q = task * grain; q < std::min(of_.queries, (task + 1) * grain); ++q)
                for (const RcBest& part : parts_) isa.push_all(of_, part, q);
        });
    }

  private:
    struct Candidates {
        std::vector<float> scores;
        std::vector<int32_t> slots;
    };
    static constexpr size_t KEPT_MAX = 1 << 20;
    static Candidates& of_thread() {
        static thread_local Kept<Candidates> kept;
        return *kept;
    }
    const RcBest& of_;
    std::vector<RcBest> parts_;
    std::vector<int32_t> counts_;
    std::vector<float> thresholds_;
    Candidates& kept_;
};

// ---- rows ----

int64_t bytes_of(int32_t dtype) { return dtype == RC_FLOAT32 ? 4 : dtype == RC_INT8 ? 1 : 2; }

// What is found for one head of a row.
struct Found {
    std::vector<float> candidates, thresholds, scores;
    std::vector<int32_t> slots, counts;
};

// One head of one row; it is number `task` of all rows' heads.
void attend_row(const Isa& isa, const RcRows& asked, const RcRow& row, int64_t task, int64_t head) {
    static thread_local Kept<Found> kept;
    Found& found = *kept;
    const int64_t n = asked.queries_per_head, first = task * n;
    found.candidates.resize(n * asked.room), found.slots.resize(n * asked.room), found.scores.resize(n * asked.top_k);
    found.counts.assign(n, 0), found.thresholds.assign(n, -std::numeric_limits<float>::infinity());
    const RcBest best{found.candidates.data(), found.slots.data(), found.counts.data(), found.thresholds.data(), n,
                      asked.room, asked.top_k};
    const char* queries = static_cast<const char*>(asked.queries) + first * asked.dim * bytes_of(asked.query_dtype);
    const char* keys = static_cast<const char*>(row.keys) + head * row.key_stride * bytes_of(asked.key_dtype);
    for (const int64_t* live = row.live; live < row.live + 4; live += 2) {
        if (live[0] >= live[1]) continue;
        const RcScan scan{queries,   keys, nullptr,   0,                 0,              live[0],
                          live[1],   1,    asked.dim, asked.query_dtype, asked.key_dtype};
        isa.scan(scan, best, 0, 0, n, live[0], live[1]);
    }
    int64_t* slots = asked.slots + first * asked.top_k;
    isa.finish(best, 0, n, found.scores.data(), slots);
    const char* values = static_cast<const char*>(row.values) + head * row.value_stride * bytes_of(asked.value_dtype);
    const RcAttend attend{found.scores.data(), slots, values, 0, asked.output + first * asked.value_dim,
                          asked.lse + first, 0, 0, 0, n, 1, asked.top_k, asked.value_dim, asked.value_dtype, asked.scale};
    isa.attend(attend, 0, 0, n);
}

constexpr int64_t GATHERED_ROWS = 1024;  // of a task
constexpr int64_t QUERY_GRAIN = 64;  // a task has at least so many queries, where it has them to itself

}  // namespace

KeptOfThread::KeptOfThread() : owner_(pthread_self()) {
    std::lock_guard lock(kept_mutex);
    kept_of_all().push_back(this);
}

void KeptOfThread::forget() {
    std::lock_guard lock(kept_mutex);
    auto& all = kept_of_all();
    all.erase(std::find(all.begin(), all.end(), this));
}

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
    delete pool;
    pool = nullptr;
    wanted_threads = std::max<int32_t>(1, threads);
}

void rc_give_back() {
    const std::unique_lock lock(calling, std::try_to_lock);
    if (!lock.owns_lock()) return;
    std::lock_guard known(kept_mutex);
    for (KeptOfThread* kept : kept_of_all()) kept->let_go();
}

const char* rc_isa() { return best_isa().name; }

int32_t rc_use_isa(const char* name) {
    const Isa* named = isa_named(name);
    if (named) chosen_isa = named;
    return named != nullptr;
}

void rc_scan(const RcScan* scan, const RcBest* best) {
    const Calling call(calling);
    const Isa& isa = best_isa();
    const int64_t n = best->queries / scan->heads, rows = scan->end - scan->begin;
    const int64_t work = best->queries * rows * scan->dim;
    if (rows <= 0 || n <= 0) return;
    const int64_t wanted = std::min(divided(n, QUERY_GRAIN), divided(wanted_threads, scan->heads));
    if (scan->heads * wanted >= wanted_threads || work < SHARED_WORK) {
        // Of whole vectors: so there may be fewer parts than were wanted.
        const int64_t size = divided(divided(n, wanted), 8) * 8, parts = divided(n, size);
        run(scan->heads * parts, work, [&](int64_t task) {
            const int64_t first = task % parts * size;
            isa.scan(*scan, *best, static_cast<int32_t>(task / parts), first, std::min(n, first + size), scan->begin,
                     scan->end);
        });
        return;
    }
    // Too few queries for all threads: these share out the keys.
    const int64_t shares = wanted_threads, size = divided(divided(rows, shares), 64) * 64;
    Shares own(*best, shares);
    run(shares, work, [&](int64_t task) {
        const int64_t begin = scan->begin + task * size, end = std::min(scan->end, begin + size);
        if (begin >= end) return;
        for (int32_t head = 0; head < scan->heads; ++head) isa.scan(*scan, own[task], head, 0, n, begin, end);
    });
    own.merge(isa);
}

void rc_probe_nearest(const RcProbe* probe, const RcBest* best, int64_t first_query, int64_t last_query) {
    const Calling call(calling);
    const Isa& isa = best_isa();
    const auto lists = static_cast<int64_t>(probe->lists->lists.size());
    const int64_t n = last_query - first_query, each = static_cast<int64_t>(probe->lists->of_slot.size()) / lists + 1;
    // Each task lays out the centroids anew: few tasks, but so many that threads end together.
    const int64_t least = probe->dim >= ROWS_DIM ? ROWS_QUERIES : 8;
    const int64_t grain = std::max(std::min<int64_t>(128, divided(n, wanted_threads)), least);
    run(divided(n, grain), n * (lists + probe->nearest * each * 2) * probe->dim, [&](int64_t task) {
        const int64_t first = first_query + task * grain;
        isa.probe_nearest(*probe, *best, first, std::min(last_query, first + grain));
    });
}

void rc_probe(const RcProbe* probe, const RcBest* best, int32_t first_list, int32_t last_list) {
    const Calling call(calling);
    const Isa& isa = best_isa();
    int64_t work = 0;
    for (int32_t l = first_list; l < last_list; ++l)
        work += (probe->counts[l] + int64_t{8}) * probe->lists->lists[l].size() * probe->dim;
    if (wanted_threads <= 1 || work < SHARED_WORK) {
        isa.probe(*probe, *best, first_list, last_list);
        return;
    }
    // Lists are taken a few at a time, since they differ in size; each thread has candidates of its own.
    const int64_t shares = wanted_threads, grain = 16;
    Shares own(*best, shares);
    std::atomic<int64_t> next{first_list};
    run(shares, work, [&](int64_t task) {
        for (int64_t first; (first = next.fetch_add(grain)) < last_list;)
            isa.probe(*probe, own[task], static_cast<int32_t>(first),
                      static_cast<int32_t>(std::min<int64_t>(last_list, first + grain)));
    });
    own.merge(isa);
}

void rc_finish(const RcBest* best, float* scores, int64_t* slots) {
    const Isa& isa = best_isa();
    const int64_t grain = 64;
    run(divided(best->queries, grain), best->queries * best->top_k * 64, [&](int64_t task) {
        isa.finish(*best, task * grain, std::min(best->queries, (task + 1) * grain), scores, slots);
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

void rc_attend_rows(const RcRows* asked, const RcRow* rows) {
    const Calling call(calling);
    const Isa& isa = best_isa();
    int64_t entries = 0;
    for (int64_t i = 0; i < asked->rows; ++i)
        entries += rows[i].live[1] - rows[i].live[0] + rows[i].live[3] - rows[i].live[2];
    run(asked->rows * asked->heads, asked->heads * asked->queries_per_head * entries * asked->dim, [&](int64_t task) {
        attend_row(isa, *asked, rows[task / asked->heads], task, task % asked->heads);
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
    const int64_t ahead = 8;
    run(divided(n, GATHERED_ROWS), n * row_bytes * 8, [&](int64_t task) {
        const int64_t last = std::min(n, (task + 1) * GATHERED_ROWS);
        for (int64_t i = task * GATHERED_ROWS; i < last; ++i) {
            if (i + ahead < last && slots[i + ahead] >= 0)
                prefetch_row(source + slots[i + ahead] * row_bytes, row_bytes);
            if (slots[i] >= 0) std::memcpy(to + i * row_bytes, source + slots[i] * row_bytes, row_bytes);
            else std::memset(to + i * row_bytes, 0, row_bytes);
        }
    });
}

void rc_gather_as(const void* from, int32_t dtype, const int64_t* slots, int64_t n, int32_t dim, int32_t to_dtype,
                  void* rows) {
    const Calling call(calling);
    const Isa& isa = best_isa();
    run(divided(n, GATHERED_ROWS), n * dim * 16, [&](int64_t task) {
        const int64_t first = task * GATHERED_ROWS;
        isa.gather_as(from, dtype, slots, first, std::min(n, first + GATHERED_ROWS), dim, to_dtype, rows);
    });
}

void rc_to_int8(const void* rows, int32_t dtype, int64_t n, int32_t dim, void* to) {
    const Calling call(calling);
    const Isa& isa = best_isa();
    run(divided(n, GATHERED_ROWS), n * dim * 16, [&](int64_t task) {
        const int64_t first = task * GATHERED_ROWS;
        isa.to_int8(rows, dtype, first, std::min(n, first + GATHERED_ROWS), dim, to);
    });
}

void rc_accumulate(const float* rows, const int64_t* assigned, int64_t n, int32_t dim, double* sums,
                   int64_t* counts) {
    best_isa().accumulate(rows, assigned, n, dim, sums, counts);
}

void rc_multiply_centroids(const float* queries, int64_t n, const float* centroids, int32_t lists, int32_t dim,
                           float* products) {
    const Calling call(calling);
    best_isa().multiply_centroids(queries, n, centroids, lists, dim, products);
}

// ---- inverted lists ----

RcLists* rc_lists_new(int32_t lists, int64_t slots) {
    return new RcLists{std::vector<RcLists::List>(lists), ListOfSlot(slots, lists)};
}

void rc_lists_free(RcLists* lists) { delete lists; }

void rc_lists_extend(RcLists* lists, int64_t slots) { lists->of_slot.extend(slots); }

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

void rc_askers(const uint32_t* chosen, int64_t n, int32_t lists, uint32_t* askers, int32_t* counts) {
    best_isa().askers(chosen, n, lists, askers, counts);
}

// ---- codes ----

void rc_codes_put(const RcCodes* codes, int64_t begin, int64_t n, const int64_t* assigned) {
    const int64_t grain = 64;
    run(divided(n, grain), n * codes->dim * 32, [&](int64_t task) {
        const int64_t first = task * grain;
        best_isa().codes->put(*codes, begin + first, std::min(grain, n - first), assigned + first);
    });
}

void rc_codes_sums(const RcCodes* codes, const float* queries, int64_t n, const int64_t* slots, int32_t k,
                   float* sums, float* factors) {
    run(n, n * k * codes->dim, [&](int64_t i) {
        best_isa().codes->sums(*codes, queries + i * codes->dim, 1, slots + i * k, k, sums + i * k, factors + i * k);
    });
}

void rc_codes_probe(const RcCodesProbe* probe, const RcBest* best) {
    const Calling call(calling);
    const int64_t n = probe->last - probe->first, work = n * probe->words * probe->codes.dim * 64;
    run(n, work, [&](int64_t i) {
        best_isa().codes->probe(*probe, *best, probe->first + i, probe->first + i + 1);
    });
}
}
