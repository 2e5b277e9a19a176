// One gated FFN of one layer, run on a thread pool. It does not own the weights.
#pragma once

#include "kernels.h"
#include "thread_pool.h"

namespace sparseinfer {

// x, y [rows, hidden]; counts [rows, 2]: rows of up read, rows of down read.
void gated_ffn(const FfnWeights &weights, const Kernels &kernels, ThreadPool &pool, const float *x,
               float *y, int64_t *counts, int64_t rows);

}  // namespace sparseinfer
