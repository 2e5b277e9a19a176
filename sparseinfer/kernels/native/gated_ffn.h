#pragma once

#include "kernels.h"
#include "thread_pool.h"

namespace sparseinfer {

// Ranges that the neurons of a layer, or the inputs of a matrix, are cut into.
int64_t range_size(int64_t neurons);
int64_t range_count(int64_t neurons, int64_t range);

// Neurons that a row considers.
int64_t count_chosen(const uint16_t *chosen, int64_t neurons, int64_t row);

// Whether all gate values must be there before the first neuron goes on.
bool needs_all_gates(const FfnWeights &weights);

// y [rows, hidden] and counts [rows, 3] (rows of up, of down, of gate read) of x [rows, hidden].
// `candidates`, or null: neurons to consider in place of a chooser's, as `choose_rows` gives them.
void gated_ffn(const FfnWeights &weights, const Kernels &kernels, ThreadPool &pool, const float *x,
               const uint16_t *candidates, float *y, int64_t *counts, int64_t rows);

}  // namespace sparseinfer
