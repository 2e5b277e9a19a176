// One thread's share of a decode step. Reading order: decode_step.cpp (the layers, attention, head),
// decode_projections.cpp (q, k, v and o), decode_ffn.cpp.
#pragma once

#include <cstdint>

#include "decoder.h"

namespace sparseinfer {

// Matrices of one input that are multiplied in the same phase: q, k and v, or gate and up.
constexpr int kSlots = 3;

// What the members of one step share.
struct StepWork {
    const TokenRow *rows;
    int64_t count;
    const float *cos;
    const float *sin;
    int64_t first_logits;
    float *logits;
    int32_t *counts;
    int32_t *firing;    // [layers, count] or null

    float *hidden;      // [count, hidden]
    float *normed;      // [threads or 1, count, hidden]
    float *masked;      // [threads or 1, kSlots, count, widest]: inputs that count, 0 for the others
    int64_t widest;     // 0 where no row-wise matrix has thresholds
    float *qkv;         // [count, qkv rows]
    float *attended;    // [count, heads head_dim]
    uint8_t *inputs;    // [threads or 1, kSlots, count, input_bytes]
    int64_t input_bytes;
    int slots;          // in use
    float *partial;
    int32_t *reads;
    uint8_t *ffn_scratch;
    float *scores;      // [threads, longest]
    int64_t longest;
    int64_t ranges;
    int64_t width;
    // Of matrices stored by input: [ranges, count, width] and [ranges, count].
    float *by_input_partial[kSlots];
    int32_t *by_input_reads[kSlots];
    int64_t by_input_floats[kSlots];    // of a row
    int64_t by_input_ranges[kSlots];
    // [count, intermediate], where all gates must be there first, or firing neurons are counted. Of g
    // become activations, then neuron outputs where all of u is there too.
    float *g;
    float *u;
    int64_t neurons;    // 0 where no layer needs them
    int32_t *kept;      // [chunks of neurons, count]
    // Where neurons are chosen before their gates are read.
    uint16_t *chosen;    // [intermediate]
    float *z;            // [count, rank]
    int64_t candidates;  // the most of intermediate, 0 where no layer chooses
    int64_t rank;        // the largest
};

// Neurons that are activated together.
constexpr int64_t kActivateChunk = 256;

class StepMember {
public:
    StepMember(const ModelView &model, const Kernels &kernels, Team &team, StepWork &work,
               int64_t thread);

    void run();

    // Claiming phases of a layer.
    static int64_t phases(const LayerView &layer);

private:
    // What a matrix with rows of outputs, or a chooser, takes as its input.
    struct Want {
        Format format;
        const float *threshold;
        Part part;
        int slot;
        const ChooserView *chooser = nullptr;    // in place of a matrix
    };
    // A product with a matrix stored by input: units of two phases, with a meeting between them.
    struct ByInput {
        SparseInputWeights weights;
        SparseInputCall call;
        Part part;
        int64_t ranges;
        int64_t chunks;    // of the sum; one more unit counts
    };
    enum class Norm { none, layer, last };

    void prepare(const float *x, int64_t n, Norm norm, const float *weight, const Want *wants,
                 int wanted, int64_t from = 0);
    float *masked(int slot, int64_t row) const;
    void *input_memory(int slot, int64_t row) const;
    int32_t *counts(int64_t row) const;
    void count_inputs(int64_t row, Part part, int64_t used);
    void count_neurons(const FfnWeights &ffn, int64_t row, int64_t up, int64_t down);
    void fill(const Want &want, const float *x, int64_t n, int64_t row);
    void view(const Want &want, const float *x, int64_t n, int64_t row);

    ByInput by_input(const ProjectionView &projection, Part part, const float *x, float *y,
                     int64_t y_stride, bool add, int slot) const;
    static SparseInputRange range_of(const ByInput &product, int64_t range);
    void claim_ranges(const ByInput &product);
    void sum_by_input(const ByInput &product, int64_t unit);

    void project_together(const LayerView &layer);
    void project_apart(const LayerView &layer);
    void finish_head(int64_t head);
    void attend();
    static ProjectionView out_of(const LayerView &layer);
    int64_t out_step(const ProjectionView &o) const;    // rows per chunk
    void add_out_rows(const ProjectionView &o);
    void add_out_by_input(const ProjectionView &o);
    void ffn(const LayerView &layer);
    void choose(const FfnWeights &ffn);
    void all_gates(const FfnWeights &ffn);
    void activate_all(const FfnWeights &ffn);
    void count_firing(const FfnWeights &ffn);
    void down_by_input(const FfnWeights &ffn);
    void fetch_next_layer() const;
    void head();

    CacheView cache(const TokenRow &row, uint8_t *base) const;
    // Asks for the start of what this member reads first in its next phase.
    void fetch_start(const MatrixView &m, int64_t row) const;
    void fetch_ffn(const FfnWeights &ffn) const;
    void fetch_bytes(const uint8_t *data, int64_t bytes) const;

    const ModelView &model_;
    const Kernels &kernels_;
    Team &team_;
    StepWork &w_;
    const int64_t thread_;
    const int64_t hidden_;
    const int64_t q_;           // heads head_dim
    const int64_t qkv_rows_;
    const bool alone_;          // a single row's input is prepared by each member for itself
    float *const normed_;
    int64_t layer_ = 0;
    int64_t phase_ = 0;
    Input inputs_[kSlots][kMaxRows];
};

}  // namespace sparseinfer
