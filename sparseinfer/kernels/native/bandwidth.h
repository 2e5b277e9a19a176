// How fast memory can be read, with the threads and the access pattern of the kernels.
#pragma once

#include <cstdint>

#include "thread_pool.h"

namespace sparseinfer {

// Reads `bytes` from `address` once, with all threads of the pool; returns seconds.
double read_bandwidth(ThreadPool &pool, uintptr_t address, int64_t bytes);

}  // namespace sparseinfer
