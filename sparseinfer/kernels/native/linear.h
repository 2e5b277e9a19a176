// y = x @ weight.T + bias on a thread pool, for few rows of x. It does not own the weights.
#pragma once

#include "kernels.h"
#include "thread_pool.h"

namespace sparseinfer {

// x [rows, inputs], y [rows, outputs]
void linear(const LinearWeights &weights, const Kernels &kernels, ThreadPool &pool, const float *x,
            float *y, int64_t rows);

}  // namespace sparseinfer
