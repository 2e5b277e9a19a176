#include "thread_pool.h"

#include <pthread.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

namespace sparseinfer {
namespace {

// Between two tokens the caller spends a tenth of a millisecond or two on choosing the next one.
// Waiting that long awake is cheaper than a sleep and a wake-up per token; longer would burn a core
// for nothing.
constexpr auto kSpin = std::chrono::microseconds(300);

// Spins until `ready` or until the time is up; says which.
template <class Ready>
bool spin(const Ready &ready) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 64; i++) {
            if (ready()) return true;
            relax();
        }
    } while (std::chrono::steady_clock::now() < deadline);
    return ready();
}

std::atomic<uint64_t> forks{0};

void watch_forks() {
    static const int registered =
        pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
    (void)registered;
}

}  // namespace

// `unclaimed` alone hands out the work. A chunk is claimed by lowering it from a positive value,
// and the job cannot end before every claimed chunk is finished, so a thread that has claimed may
// read the plain fields; one that comes late finds 0 and touches nothing.
struct ThreadPool::Shared {
    alignas(64) std::atomic<int64_t> unclaimed{0};
    alignas(64) std::atomic<int64_t> finished{0};
    alignas(64) Job job = nullptr;
    const void *ctx = nullptr;
    int64_t chunks = 0;

    std::mutex exclusive;
    std::mutex sleep;
    std::condition_variable wake;
    std::atomic<int> sleepers{0};
    std::atomic<bool> stop{false};
    std::vector<std::thread> workers;

    bool work() {
        int64_t left = unclaimed.load(std::memory_order_acquire);
        bool any = false;
        while (left > 0) {
            if (!unclaimed.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel,
                                                 std::memory_order_acquire))
                continue;
            job(ctx, chunks - left);
            finished.fetch_add(1, std::memory_order_acq_rel);
            any = true;
            left = unclaimed.load(std::memory_order_acquire);
        }
        return any;
    }

    void serve() {
        const auto called = [this] {
            return unclaimed.load(std::memory_order_seq_cst) > 0 ||
                   stop.load(std::memory_order_relaxed);
        };
        while (!stop.load(std::memory_order_relaxed)) {
            if (work() || spin(called)) continue;
            std::unique_lock<std::mutex> lock(sleep);
            // Counted before the last look at `unclaimed`, and the caller looks at the count after
            // publishing: one of the two sees the other, so no wake-up is lost.
            sleepers.fetch_add(1, std::memory_order_seq_cst);
            wake.wait(lock, called);
            sleepers.fetch_sub(1, std::memory_order_relaxed);
        }
    }

    void wake_all() {
        { std::lock_guard<std::mutex> lock(sleep); }
        wake.notify_all();
    }

    void join() {
        stop.store(true, std::memory_order_relaxed);
        wake_all();
        for (std::thread &worker : workers) worker.join();
    }
};

ThreadPool::ThreadPool(int64_t threads) : threads_(threads) {
    if (threads < 1)
        throw std::invalid_argument("threads must be at least 1, not " + std::to_string(threads));
    watch_forks();
    fork_count_ = forks.load(std::memory_order_relaxed);
    shared_ = std::make_unique<Shared>();
    try {
        for (int64_t i = 1; i < threads; i++)
            shared_->workers.emplace_back([shared = shared_.get()] { shared->serve(); });
    } catch (...) {
        shared_->join();
        throw;
    }
}

ThreadPool::~ThreadPool() {
    if (forks.load(std::memory_order_relaxed) != fork_count_) {
        // The threads live in the parent process: they can be neither joined nor destroyed here.
        (void)shared_.release();
        return;
    }
    shared_->join();
}

std::unique_lock<std::mutex> ThreadPool::exclusive() {
    // Looked at before the lock, which the parent may have held while it forked.
    if (forks.load(std::memory_order_relaxed) != fork_count_)
        throw std::runtime_error(
            "this thread pool belongs to the parent process: after fork(), make a new one");
    return std::unique_lock<std::mutex>(shared_->exclusive);
}

void ThreadPool::run_job(int64_t chunks, Job job, const void *ctx) {
    if (threads_ == 1 || chunks <= 1) {
        for (int64_t chunk = 0; chunk < chunks; chunk++) job(ctx, chunk);
        return;
    }
    Shared &s = *shared_;
    s.job = job;
    s.ctx = ctx;
    s.chunks = chunks;
    s.finished.store(0, std::memory_order_relaxed);
    s.unclaimed.store(chunks, std::memory_order_seq_cst);
    if (s.sleepers.load(std::memory_order_seq_cst) > 0) s.wake_all();
    s.work();
    const auto done = [&] { return s.finished.load(std::memory_order_acquire) == chunks; };
    // With more threads than cores the thread we wait for may need our core.
    while (!spin(done)) std::this_thread::yield();
}

void ThreadPool::Free::operator()(void *p) const { std::free(p); }

void *ThreadPool::scratch(size_t bytes) {
    if (bytes > scratch_bytes_) {
        const size_t rounded = (bytes + 4095) / 4096 * 4096;
        scratch_.reset();
        scratch_bytes_ = 0;
        scratch_.reset(std::aligned_alloc(64, rounded));
        if (!scratch_) throw std::bad_alloc();
        scratch_bytes_ = rounded;
    }
#if defined(SPARSEINFER_POISON_SCRATCH)
    if (scratch_) std::memset(scratch_.get(), 0xff, scratch_bytes_);    // fp32 NaN
#endif
    return scratch_.get();
}

}  // namespace sparseinfer
