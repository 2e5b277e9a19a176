// The parts of a prompt that are no matrix products, shared out over a pool.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "thread_pool.h"

namespace sparseinfer {

// Rows begin..end-1 of a matrix as fp32 or bf16, one after the other in `out`.
void unpack_rows(const MatrixView &matrix, int64_t begin, int64_t end, Format to, void *out,
                 const Kernels &kernels, ThreadPool &pool);

// Rows of g, u and h [rows, neurons]; `first` describes row 0. Adds to reads [rows, 2].
void gate_rows(const GateRow &first, int64_t rows, const Kernels &kernels, ThreadPool &pool);

// keep_largest of each row of a [rows, n].
void keep_largest_rows(float *a, int64_t rows, int64_t n, int64_t k, ThreadPool &pool);

// Rotates the queries and keys of qkv [tokens, (heads + 2 kv_heads) head_dim] in place, stores keys
// and values at positions start and on, and writes attended [tokens, heads head_dim].
struct PromptLayer {
    float *qkv;
    float *attended;
    const float *cos;    // [tokens, head_dim], of the tokens' positions
    const float *sin;
    CacheView keys;
    CacheView values;
    int64_t tokens;
    int64_t start;
    int64_t heads;
    int64_t kv_heads;
    int64_t head_dim;
    int64_t window;      // 0: all
};
void attend_prompt(const PromptLayer &layer, const Kernels &kernels, ThreadPool &pool);

}  // namespace sparseinfer
