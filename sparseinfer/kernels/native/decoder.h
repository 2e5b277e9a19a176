// One decode step of a whole model: every layer, for up to kMaxRows tokens, in one call.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"
#include "team.h"
#include "thread_pool.h"

namespace sparseinfer {

// What may have thresholds on its inputs, in the order of the counts.
enum class Part : int { q, k, v, o, gate, up, down };
constexpr int64_t kParts = 7;

// One linear layer in either layout.
struct ProjectionView {
    MatrixView weight;         // [outputs, inputs], or by input [inputs, outputs]
    const float *bias;         // [outputs] or null
    const float *threshold;    // [inputs] or null: every input counts
    bool by_input;

    int64_t inputs() const { return by_input ? weight.rows : weight.columns; }
    int64_t outputs() const { return by_input ? weight.columns : weight.rows; }
};

struct LayerView {
    const float *input_norm;    // [hidden]
    MatrixView qkv;             // [(heads + 2 kv_heads) head_dim, hidden]
    const float *qkv_bias;      // or null
    MatrixView o;               // [hidden, heads head_dim]
    const float *o_bias;        // or null
    const float *ffn_norm;      // [hidden]
    FfnWeights ffn;
    // Where any of q, k, v and o has thresholds or is stored by input: the four of them, in place of
    // qkv and o.
    bool apart;
    ProjectionView parts[4];
};

struct ModelView {
    MatrixView embedding;       // [vocabulary, hidden]
    MatrixView head;            // [vocabulary, hidden]
    const float *final_norm;    // [hidden]
    float eps;
    int64_t heads;
    int64_t kv_heads;
    int64_t head_dim;
    int64_t window;             // positions a token sees, itself included; 0: all
    Format cache_format;        // fp32 or bf16
    std::vector<LayerView> layers;
    bool input_relu = false;    // a ReLU after the norms of each layer
    bool counts_all = false;
};

// One token and where it goes. Rows may belong to one sequence (consecutive positions) or many.
struct TokenRow {
    int64_t token;
    int64_t position;
    uint8_t *keys;           // [layers, kv_heads, positions, head_dim]
    uint8_t *values;
    int64_t layer_stride;    // bytes
    int64_t head_stride;     // bytes
};

class Decoder {
public:
    Decoder(ModelView model, std::shared_ptr<ThreadPool> pool, const Kernels &kernels);

    // cos and sin: [positions, head_dim]. Writes logits [rows - first_logits, vocabulary] of rows
    // first_logits and later, and counts [layers, rows, 2] (rows of up and of down read), or with
    // counts_all [layers, rows, 3 + kParts], zeroed by the caller: then rows of gate read where
    // neurons are chosen before, and the inputs that count of each part. Layers that choose need it.
    // `firing` [layers, rows], or null: the neurons that fire by their gates, for which all gates are
    // read. Every layer must have a predictor then.
    void step(const TokenRow *rows, int64_t count, const float *cos, const float *sin,
              int64_t first_logits, float *logits, int32_t *counts, int32_t *firing = nullptr);

private:
    ModelView model_;
    std::shared_ptr<ThreadPool> pool_;
    const Kernels &kernels_;
    Team team_;
};

}  // namespace sparseinfer
