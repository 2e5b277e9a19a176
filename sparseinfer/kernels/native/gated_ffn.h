#pragma once

#include "kernels.h"
#include "thread_pool.h"

namespace sparseinfer {

// Ranges that the neurons of a layer, or the inputs of a matrix, are cut into.
int64_t range_size(int64_t neurons);
int64_t range_count(int64_t neurons, int64_t range);

// Whether all gate values must be there before the first neuron goes on.
bool needs_all_gates(const FfnWeights &weights);

// y [rows, hidden] and counts [rows, 2] (rows of up, rows of down read) of x [rows, hidden].
void gated_ffn(const FfnWeights &weights, const Kernels &kernels, ThreadPool &pool, const float *x,
               float *y, int64_t *counts, int64_t rows);

}  // namespace sparseinfer
