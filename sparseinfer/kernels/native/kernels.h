// What a kernel variant (one per instruction set) has to provide, and the arguments it gets.
//
// Everything here is plain data: the sources that include this file are compiled with different
// instruction sets, and an inline function shared between them could be linked from the wrong one.
#pragma once

#include <cstdint>

namespace sparseinfer {

struct bf16 {
    uint16_t bits;
};

enum class Phi : int { silu, relu, relu2 };
enum class Psi : int { id, relu };

// Neurons per range. Each range has an accumulator of its own, so this number decides the order of
// additions: it may not depend on the batch or on the number of threads.
constexpr int64_t kRange = 64;

// Batch rows that one pass over the weights serves. It bounds the scratch memory.
constexpr int64_t kMaxRows = 16;

struct FfnWeights {
    const void *gate;          // [intermediate, hidden]
    const void *up;            // [intermediate, hidden]
    const void *down;          // [intermediate, hidden]: neuron-major
    const float *threshold;    // [intermediate]
    const float *gate_bias;    // [intermediate] or null
    const float *up_bias;      // [intermediate] or null
    const float *down_bias;    // [hidden] or null
    int64_t hidden;
    int64_t intermediate;
    bool is_bf16;
    Phi phi;
    Psi psi;
};

struct FfnCall {
    const float *x;        // [rows, hidden]
    float *y;              // [rows, hidden]
    int64_t rows;          // 1 to kMaxRows
    float *partial;        // [ranges, rows, hidden], written only where `reads` says so
    int32_t *reads;        // [ranges, rows, 2]: rows of up, rows of down
};

struct LinearWeights {
    const void *weight;    // [outputs, inputs]
    const float *bias;     // [outputs] or null
    int64_t inputs;
    int64_t outputs;
    bool is_bf16;
};

struct Kernels {
    const char *isa;
    // Neurons of one range: fills that range's part of `partial` and of `reads`.
    void (*ffn_range)(const FfnWeights &, const FfnCall &, int64_t range);
    // y[:, begin:end] from the ranges' accumulators, added in order of range.
    void (*ffn_sum)(const FfnWeights &, const FfnCall &, int64_t begin, int64_t end);
    // y[:, begin:end] of y[rows, outputs] = x[rows, inputs] @ weight.T + bias
    void (*linear)(const LinearWeights &, const float *x, float *y, int64_t rows, int64_t begin,
                   int64_t end);
};

extern const Kernels kernels_portable;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

}  // namespace sparseinfer
