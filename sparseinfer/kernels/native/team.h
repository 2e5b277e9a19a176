// Threads that go through the same phases together: chunks of a phase are claimed one by one, and a
// barrier separates phases. Cheaper than one pool job per phase, of which a token has hundreds.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "thread_pool.h"

namespace sparseinfer {

class Team {
public:
    // Room for `phases` claiming phases; `threads` members.
    Team(int64_t threads, int64_t phases)
        : threads_(threads), phases_(phases), counters_(new Counter[phases]) {}

    // Before each run. Needs that no member is inside.
    void reset() {
        for (int64_t i = 0; i < phases_; i++) counters_[i].next = threads_;
        arrived_.store(0, std::memory_order_relaxed);
    }

    int64_t threads() const { return threads_; }

    // The counter of a phase. It starts at the number of members: each has the chunk of its own
    // number for a start, and so knows what to ask memory for before the phase begins.
    int64_t *counter(int64_t phase) { return &counters_[phase].next; }

    // Calls body(chunk, following) for chunks of a phase until all are claimed, by this member or
    // others. `following` is the chunk this member does next, or -1.
    template <class Body>
    void claim(int64_t phase, int64_t member, int64_t chunks, const Body &body) {
        for (int64_t chunk = member, following; chunk < chunks; chunk = following) {
            following = __atomic_fetch_add(counter(phase), 1, __ATOMIC_RELAXED);
            body(chunk, following < chunks ? following : -1);
        }
    }

    // Returns when all members are here; what they wrote before is visible after.
    void meet() {
        if (threads_ == 1) return;
        const int64_t round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        // With more threads than cores the one we wait for may need our core.
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; spins++) {
            if (spins < kSpins)
                relax();
            else
                std::this_thread::yield();
        }
    }

private:
    // Some tens of microseconds: members finish a phase within a few of each other, unless another
    // process has one of their cores.
    static constexpr int kSpins = 1000;
    struct alignas(64) Counter {
        int64_t next;
    };
    int64_t threads_;
    int64_t phases_;
    std::unique_ptr<Counter[]> counters_;
    alignas(64) std::atomic<int64_t> arrived_{0};
    alignas(64) std::atomic<int64_t> round_{0};
};

}  // namespace sparseinfer
