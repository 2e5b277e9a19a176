#include "decoder.h"

#include <algorithm>
#include <utility>

#include "arena.h"
#include "decode_step.h"
#include "gated_ffn.h"
#include "openmp.h"

namespace sparseinfer {
namespace {

int64_t all_phases(const ModelView &model) {
    int64_t phases = 1;    // the head
    for (const LayerView &layer : model.layers) phases += StepMember::phases(layer);
    return phases;
}

void measure_choice(const ChooserView &chooser, const Kernels &kernels, StepWork &work) {
    if (chooser.kind == Choice::none) return;
    work.slots = kSlots;
    work.input_bytes = std::max(work.input_bytes, kernels.choice_bytes(chooser));
    work.candidates = std::max(work.candidates, chooser.neurons);
    if (chooser.kind == Choice::planes) work.neurons = std::max(work.neurons, chooser.neurons);
    if (chooser.kind != Choice::lowrank) return;
    const int64_t rank = chooser.inward.rows;
    work.rank = std::max(work.rank, rank);
    work.input_bytes =
        std::max(work.input_bytes, kernels.input_bytes(chooser.outward.format, rank));
}

// What the widest layer needs.
void measure_layer(const ModelView &model, const LayerView &layer, const Kernels &kernels,
                   StepWork &work) {
    const FfnWeights &ffn = layer.ffn;
    const int64_t hidden = model.head.columns, q = model.heads * model.head_dim;
    const auto row_wise = [&](const MatrixView &m, int64_t columns, const float *threshold,
                              int slot) {
        work.input_bytes = std::max(work.input_bytes, kernels.input_bytes(m.format, columns));
        work.slots = std::max(work.slots, slot + 1);
        if (threshold) work.widest = std::max(work.widest, columns);
    };
    const auto by_input = [&](const MatrixView &m, int slot) {
        const int64_t ranges = range_count(m.rows, range_size(m.rows));
        work.by_input_ranges[slot] = std::max(work.by_input_ranges[slot], ranges);
        work.by_input_floats[slot] =
            std::max(work.by_input_floats[slot], ranges * accumulator_width(m));
    };
    if (layer.apart) {
        for (int p = 0; p < 4; p++) {
            const ProjectionView &part = layer.parts[p];
            if (part.by_input)
                by_input(part.weight, p % 3);
            else
                row_wise(part.weight, part.inputs(), part.threshold, p % 3);
        }
    } else {
        row_wise(layer.qkv, hidden, nullptr, 0);
        row_wise(layer.o, q, nullptr, 0);
    }
    if (ffn.gate_by_input)
        by_input(ffn.gate, 0);
    else
        row_wise(ffn.gate, hidden, ffn.gate_input, 0);
    if (ffn.up_by_input)
        by_input(ffn.up, 1);
    else
        row_wise(ffn.up, hidden, ffn.up_input,
                 ffn.gate_by_input || ffn.gate_input || ffn.up_input ? 1 : 0);
    work.ranges = std::max(work.ranges, range_count(ffn.intermediate, ffn.range));
    work.width = std::max(work.width, accumulator_width(ffn.down));
    if (needs_all_gates(ffn) || work.firing) work.neurons = std::max(work.neurons, ffn.intermediate);
    measure_choice(ffn.chooser, kernels, work);
    if (ffn.up_by_input) by_input(ffn.down, 0);
}

}  // namespace

Decoder::Decoder(ModelView model, std::shared_ptr<ThreadPool> pool, const Kernels &kernels)
    : model_(std::move(model)), pool_(std::move(pool)), kernels_(kernels),
      team_(pool_->threads(), all_phases(model_)) {}

void Decoder::step(const TokenRow *rows, int64_t count, const float *cos, const float *sin,
                   int64_t first_logits, float *logits, int32_t *counts, int32_t *firing) {
    const int64_t hidden = model_.head.columns, threads = pool_->threads();
    const int64_t q = model_.heads * model_.head_dim;
    rest_openmp();    // of the prompt before
    const auto lock = pool_->exclusive();
    StepWork work{};
    work.rows = rows;
    work.count = count;
    work.cos = cos;
    work.sin = sin;
    work.first_logits = first_logits;
    work.logits = logits;
    work.counts = counts;
    work.firing = firing;
    work.slots = 1;
    work.input_bytes = kernels_.input_bytes(model_.head.format, hidden);
    for (const LayerView &layer : model_.layers) measure_layer(model_, layer, kernels_, work);
    for (int64_t b = 0; b < count; b++)
        work.longest = std::max(work.longest, (rows[b].position + 1 + 15) / 16 * 16);
    const int64_t copies = count == 1 ? threads : 1;
    const auto lay_out = [&](Arena &arena) {
        work.hidden = arena.take<float>(count * hidden);
        work.normed = arena.take<float>(copies * count * hidden);
        work.masked = arena.take<float>(copies * work.slots * count * work.widest);
        work.qkv = arena.take<float>(count * (q + 2 * model_.kv_heads * model_.head_dim));
        work.attended = arena.take<float>(count * q);
        work.inputs = arena.take<uint8_t>(copies * work.slots * count * work.input_bytes);
        work.partial = arena.take<float>(work.ranges * count * work.width);
        work.reads = arena.take<int32_t>(work.ranges * count * 2);
        work.ffn_scratch = arena.take<uint8_t>(threads * kernels_.ffn_scratch());
        work.scores = arena.take<float>(threads * work.longest);
        for (int slot = 0; slot < kSlots; slot++) {
            work.by_input_partial[slot] = arena.take<float>(count * work.by_input_floats[slot]);
            work.by_input_reads[slot] = arena.take<int32_t>(count * work.by_input_ranges[slot]);
        }
        work.g = arena.take<float>(count * work.neurons);
        work.u = arena.take<float>(count * work.neurons);
        work.chosen = arena.take<uint16_t>(work.candidates);
        work.z = arena.take<float>(count * work.rank);
        work.kept = arena.take<int32_t>(count * (work.neurons / kActivateChunk + 1));
    };
    Arena measure;
    lay_out(measure);
    Arena arena(pool_->scratch(measure.bytes()));
    lay_out(arena);
    team_.reset();
    pool_->run(threads, [&](int64_t thread) {
        StepMember(model_, kernels_, team_, work, thread).run();
    });
}

}  // namespace sparseinfer
