// A small thread pool: the caller works too, chunks are claimed one by one from a counter.
//
// It knows nothing of kernels. Results must not depend on which thread runs which chunk.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sparseinfer {

// Tells the core that it is inside a waiting loop.
inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class ThreadPool {
public:
    // `threads` counts the caller: 1 starts no thread. Throws std::invalid_argument below 1.
    explicit ThreadPool(int64_t threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool &) = delete;
    ThreadPool &operator=(const ThreadPool &) = delete;

    int64_t threads() const { return threads_; }

    // The right to run jobs and to use the scratch memory. Callers from several threads take turns.
    // Throws std::runtime_error in a process forked after the pool was made: its threads are gone.
    std::unique_lock<std::mutex> exclusive();

    // Calls body(chunk) once for each chunk in [0, chunks), from any thread, and returns when all
    // are done. Needs `exclusive`. `body` must not throw.
    template <class Body>
    void run(int64_t chunks, const Body &body) {
        run_job(chunks, [](const void *ctx, int64_t chunk) {
            (*static_cast<const Body *>(ctx))(chunk);
        }, &body);
    }

    // Uninitialised memory, valid until the next call. Needs `exclusive`. 64-byte aligned.
    void *scratch(size_t bytes);

private:
    using Job = void (*)(const void *ctx, int64_t chunk);
    struct Shared;
    struct Free {
        void operator()(void *p) const;
    };

    void run_job(int64_t chunks, Job job, const void *ctx);

    int64_t threads_;
    uint64_t fork_count_;
    std::unique_ptr<Shared> shared_;
    std::unique_ptr<void, Free> scratch_;
    size_t scratch_bytes_ = 0;
};

}  // namespace sparseinfer
