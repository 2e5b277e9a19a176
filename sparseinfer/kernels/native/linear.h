#pragma once

#include "kernels.h"
#include "thread_pool.h"

namespace sparseinfer {

// Rows of a matrix that one thread takes at a time: a multiple of 16.
int64_t rows_per_chunk(const MatrixView &weight, int64_t threads);

// y [rows, outputs] = x [rows, inputs] @ weight.T + bias
void linear(const MatrixView &weight, const float *bias, const Kernels &kernels, ThreadPool &pool,
            const float *x, float *y, int64_t rows);

// y [rows, outputs] and reads [rows] of x [rows, inputs]; reads: rows of the weight used.
void sparse_input_linear(const SparseInputWeights &weights, const Kernels &kernels,
                         ThreadPool &pool, const float *x, float *y, int64_t *reads, int64_t rows);

}  // namespace sparseinfer
