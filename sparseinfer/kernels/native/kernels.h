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

enum class Format : int { fp32, bf16, int8, int4 };
enum class Phi : int { silu, relu, relu2 };
enum class Psi : int { id, relu };

// Batch rows that one pass over the weights serves. It bounds the scratch memory.
constexpr int64_t kMaxRows = 16;

// Columns of a sum of ranges are dealt out in multiples of this: whole blocks of int4 codes.
constexpr int64_t kSumColumns = 128;

// Weights along a row that share one scale.
constexpr int64_t kGroup = 32;

// Rows of weights, each readable on its own (layouts: matrix.py).
struct MatrixView {
    const uint8_t *data;
    int64_t rows;
    int64_t columns;
    int64_t stride;    // bytes from one row to the next
    Format format;
};

// One vector as the dot products of a format want it. For fp32 and bf16 weights that is `x`. For
// int8 ones x = scale[group] * x16, where x16 = 256 hi + lo; for int4 ones x = scale[group] * hi.
struct Input {
    const float *x;
    int8_t *hi;
    int8_t *lo;
    int16_t *x16;
    float *scale;
    float *offset;    // what the zero point of unsigned codes adds: -zero_point * sum of x
    const uint64_t *signs;    // of choosers by sign bits
};

// What decides which neurons are computed before a row of the gate is read.
enum class Choice : int { none, lowrank, sign, sketch, planes };

struct ChooserView {
    Choice kind;
    int64_t hidden;
    int64_t neurons;
    // lowrank: candidate where not outward . (inward . x) + bias < 0
    MatrixView inward;     // [rank, hidden]
    MatrixView outward;    // [neurons, rank]
    const float *bias;     // [neurons]
    // sign: candidate where at most so many products with the gate's row have a negative sign
    const uint8_t *bits;    // [neurons, whole 64-bit words]
    int64_t most;
    // sketch, planes: candidate where the estimate is not below the threshold. Rows of both are
    // `stride` bytes apart; those of planes are the high halves of int8 codes with their scales.
    const uint8_t *gate;
    const uint8_t *up;
    int64_t stride;
    int code_bits;    // of a sketch: 2, 3 or 4
    const float *threshold;    // [neurons]
    const float *gate_bias;    // [neurons] or null
    const float *up_bias;      // [neurons] or null
    Phi phi;
    Psi psi;
};

struct ChooseCall {
    const Input *inputs;    // [rows]; of lowrank: of inward . x
    int64_t rows;           // 1 to kMaxRows
    uint16_t *chosen;       // [neurons]: bit b says whether row b considers the neuron
    float *g;               // [rows, neurons] or null: what planes estimate before the bias
    float *u;
};

struct FfnWeights {
    MatrixView gate;           // [intermediate, hidden]
    MatrixView up;             // [intermediate, hidden]
    MatrixView down;           // [intermediate, hidden]: neuron-major
    const float *threshold;    // [intermediate]
    const float *gate_bias;    // [intermediate] or null
    const float *up_bias;      // [intermediate] or null
    const float *down_bias;    // [hidden] or null
    int64_t hidden;
    int64_t intermediate;
    // Neurons per range. Each range has an accumulator of its own, so this number decides the order
    // of additions: it may not depend on the batch or on the number of threads.
    int64_t range;
    Phi phi;
    Psi psi;
    // Thresholds on inputs, or null: on the values that gate and up multiply [hidden], and on neuron
    // outputs h [intermediate], which down multiplies.
    const float *gate_input;
    const float *up_input;
    const float *down_input;
    bool gate_by_input;        // gate is stored [hidden, intermediate]
    bool up_by_input;          // up is
    int64_t top_k;             // neurons kept at most; 0: all that reach their threshold
    ChooserView chooser;
    // Where the chooser's planes hold the high halves of gate and up, their rows above are the low
    // halves alone.
};

struct FfnCall {
    const Input *inputs;    // [rows]
    float *y;               // [rows, hidden]
    bool add;               // to what y holds
    int64_t rows;           // 1 to kMaxRows
    float *partial;         // [ranges, rows, width], written only where `reads` says so
    int64_t width;          // columns of down in accumulator order (accumulator_width)
    int32_t *reads;         // [ranges, rows, 2]: rows of up, rows of down
    const Input *up_inputs; // [rows] of up; null: those of gate
    const float *a;         // ffn_given: [rows, intermediate], 0 where a neuron is not kept
    const uint16_t *chosen; // ffn_chosen: [intermediate], bit b: row b considers the neuron
    const float *g;         // of planes: [rows, intermediate], what the high halves add up to
    const float *u;
    void *scratch;          // ffn_scratch() bytes of the calling thread's own
};

// y = x[rows, inputs] restricted to kept inputs, times a matrix stored by inputs.
struct SparseInputWeights {
    MatrixView weight;         // [inputs, outputs]: input-major
    const float *threshold;    // [inputs] or null: 0
    const float *bias;         // [outputs] or null
    int64_t range;             // inputs per range, as in FfnWeights
};

struct SparseInputCall {
    const float *x;      // [rows, inputs]
    float *y;            // [rows, at least outputs], `y_stride` apart
    int64_t y_stride;
    bool add;            // to what y holds
    int64_t rows;
    float *partial;      // [ranges, rows, width]
    int64_t width;
    int32_t *reads;      // [ranges, rows]
};

// One range of inputs of one product.
struct SparseInputRange {
    const SparseInputWeights *weights;    // null: none
    const SparseInputCall *call;
    int64_t range;
};

// Keys or values of one sequence in one layer: [kv_heads, positions, head_dim].
struct CacheView {
    uint8_t *data;
    int64_t head_stride;    // bytes from one head to the next
    Format format;          // fp32 or bf16
};

struct AttentionHead {
    const float *query;    // [head_dim], rotated
    CacheView keys;        // of this head's layer
    CacheView values;
    int64_t kv_head;
    int64_t begin;         // first visible position
    int64_t end;           // one past the last
    int64_t head_dim;
    float *scores;         // [end - begin, rounded up to 16] scratch
    float *out;            // [head_dim]
};

// One token's row of the middle of the gated FFN: h = phi(g) psi(u) where the mask keeps it, else 0.
struct GateRow {
    const void *g;             // [neurons] fp32 or bf16, as `format` says
    const void *u;
    void *h;                   // may be g
    Format format;
    const float *threshold;    // [neurons]
    const float *down_input;   // [neurons], threshold on abs(h); or null
    const float *gate_bias;    // [neurons] or null
    const float *up_bias;      // [neurons] or null
    int64_t neurons;
    Phi phi;
    Psi psi;
    int64_t *reads;            // [2] added to: rows of up, rows of down
};

// Queries of consecutive tokens of one sequence that share one key-value head.
struct PromptAttention {
    const float *query;      // rotated; heads of token t at query + t * query_stride
    int64_t query_stride;    // floats
    float *out;              // heads of token t at out + t * out_stride
    int64_t out_stride;      // floats
    CacheView keys;          // of this layer
    CacheView values;
    int64_t kv_head;
    int64_t group;           // query heads of the key-value head
    int64_t head_dim;
    int64_t start;           // position of token 0
    int64_t begin;           // tokens
    int64_t end;
    int64_t window;          // positions a token sees, itself included; 0: all
};

struct Kernels {
    const char *isa;
    // Bytes that `fill_input` needs for one vector against rows of that format.
    int64_t (*input_bytes)(Format, int64_t columns);
    // Lays `input` out in `memory` (64-byte aligned) and fills it from x[columns].
    void (*fill_input)(Format, const float *x, int64_t columns, void *memory, Input *input);
    // The same view of memory that another thread has filled.
    void (*view_input)(Format, const float *x, int64_t columns, void *memory, Input *input);
    // out[b * stride + r - begin] = bias[r] + row r . input b, for r in [begin, end). `following`:
    // the row at which the thread goes on afterwards, or -1.
    void (*dot_rows)(const MatrixView &, const float *bias, const Input *, int64_t rows,
                     int64_t begin, int64_t end, int64_t following, float *out, int64_t stride);
    int64_t (*ffn_scratch)();
    // Works on range `first`, then on ranges claimed from the shared counter `next` until none is
    // left.
    void (*ffn_ranges)(const FfnWeights &, const FfnCall &, int64_t first, int64_t *next);
    // In place: g[begin:end] of one row becomes phi(g), and 0 where the threshold drops a neuron.
    void (*activate_neurons)(const FfnWeights &, float *g, int64_t begin, int64_t end);
    // In place: a[begin:end] of one row becomes the neurons' outputs h, given u [intermediate] with
    // its bias. Returns how many neurons of them are kept.
    int64_t (*neuron_outputs)(const FfnWeights &, float *a, const float *u, int64_t begin,
                              int64_t end);
    // As ffn_ranges, of neurons whose activations `a` are known.
    void (*ffn_given)(const FfnWeights &, const FfnCall &, int64_t first, int64_t *next);
    // As ffn_ranges, of the neurons in `chosen`. Without a sketch thresholds apply to them too.
    void (*ffn_chosen)(const FfnWeights &, const FfnCall &, int64_t first, int64_t *next);
    // As input_bytes, fill_input and view_input for what a chooser multiplies first.
    int64_t (*choice_bytes)(const ChooserView &);
    void (*fill_choice)(const ChooserView &, const float *x, void *memory, Input *input);
    void (*view_choice)(const ChooserView &, const float *x, void *memory, Input *input);
    // Chooses among neurons begin..end-1; `begin` is a multiple of 16. `following`: the neuron at
    // which the thread goes on afterwards, or -1.
    void (*choose)(const ChooserView &, const ChooseCall &, int64_t begin, int64_t end,
                   int64_t following);
    // y[:, begin:end] from the ranges' accumulators, added in order of range; `begin` is a multiple
    // of kSumColumns.
    void (*ffn_sum)(const FfnWeights &, const FfnCall &, int64_t begin, int64_t end);
    // Fills the accumulators of a range. `following`: where the thread goes on afterwards.
    void (*sparse_input_range)(const SparseInputRange &, const SparseInputRange &following);
    void (*sparse_input_sum)(const SparseInputWeights &, const SparseInputCall &, int64_t begin,
                             int64_t end);
    // One row of a matrix as fp32 [columns].
    void (*widen_row)(const MatrixView &, int64_t row, float *out);
    // out = x / rms(x) * weight (1910.07467)
    void (*rms_norm)(const float *x, const float *weight, float eps, int64_t n, float *out);
    // Rotates x[head_dim] in place; cos and sin [head_dim] of its position.
    void (*rotate)(float *x, const float *cos, const float *sin, int64_t head_dim);
    void (*store_cache)(const CacheView &, int64_t kv_head, int64_t position, const float *x,
                        int64_t head_dim);
    void (*attend)(const AttentionHead &);
    // One row of a matrix as fp32 or bf16 [columns].
    void (*unpack_row)(const MatrixView &, int64_t row, Format to, void *out);
    void (*gate_row)(const GateRow &);
    // Bytes that `attend_prompt` needs for (end - begin) * group queries.
    int64_t (*prompt_scratch)(int64_t queries, int64_t head_dim);
    void (*attend_prompt)(const PromptAttention &, void *memory);
};

extern const Kernels kernels_portable;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_vnni;

// Accumulators of quantised rows are padded to whole pairs of groups; those of int4 rows are also
// in the order in which codes come out of a register.
int64_t accumulator_width(const MatrixView &);

}  // namespace sparseinfer
