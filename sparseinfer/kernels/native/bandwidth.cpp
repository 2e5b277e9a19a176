#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>

namespace sparseinfer {
namespace {

constexpr int64_t kChunk = 1 << 20;
constexpr int64_t kAhead = 8 << 10;    // as in rows.inl

// Keeps the compiler from dropping the reads.
std::atomic<uint64_t> sink{0};

}  // namespace

double read_bandwidth(ThreadPool &pool, uintptr_t address, int64_t bytes) {
    const auto lock = pool.exclusive();
    const auto began = std::chrono::steady_clock::now();
    pool.run((bytes + kChunk - 1) / kChunk, [&](int64_t chunk) {
        const uint64_t *p = reinterpret_cast<const uint64_t *>(address + chunk * kChunk);
        const int64_t words = std::min(kChunk, bytes - chunk * kChunk) / 8;
        uint64_t sums[16] = {};
        for (int64_t i = 0; i + 16 <= words; i += 16) {
            __builtin_prefetch(p + i + kAhead / 8, 0, 2);
            __builtin_prefetch(p + i + kAhead / 8 + 8, 0, 2);
            for (int j = 0; j < 16; j++) sums[j] += p[i + j];
        }
        uint64_t total = 0;
        for (uint64_t s : sums) total += s;
        sink.fetch_add(total, std::memory_order_relaxed);
    });
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

}  // namespace sparseinfer
