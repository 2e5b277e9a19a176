#include <algorithm>

#include "decode_step.h"
#include "gated_ffn.h"
#include "linear.h"
#include "top_k.h"

namespace sparseinfer {
namespace {

constexpr int64_t kActivateChunk = 256;    // neurons

int64_t chunks(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace

void StepMember::ffn(const LayerView &layer) {
    const FfnWeights &ffn = layer.ffn;
    Want wants[2];
    int wanted = 0;
    if (!ffn.gate_by_input) wants[wanted++] = {ffn.gate.format, ffn.gate_input, Part::gate, 0};
    // Gate and up share an input where neither has thresholds.
    const bool shared = !ffn.gate_by_input && !ffn.gate_input && !ffn.up_input;
    if (!ffn.up_by_input && !shared)
        wants[wanted++] = {ffn.up.format, ffn.up_input, Part::up, 1};
    prepare(w_.hidden, hidden_, Norm::layer, layer.ffn_norm, wants, wanted);

    FfnCall call{};
    call.inputs = inputs_[0];
    call.up_inputs = inputs_[shared ? 0 : 1];
    call.y = w_.hidden;
    call.add = true;
    call.rows = w_.count;
    call.partial = w_.partial;
    call.width = accumulator_width(ffn.down);
    call.reads = w_.reads;
    call.scratch = w_.ffn_scratch + thread_ * kernels_.ffn_scratch();
    if (needs_all_gates(ffn))
        ffn_from_all_gates(ffn, call);
    else
        kernels_.ffn_ranges(ffn, call, thread_, team_.counter(phase_++));

    if (layer_ + 1 == static_cast<int64_t>(model_.layers.size()))
        fetch_start(model_.head, thread_ * rows_per_chunk(model_.head, team_.threads()));
    else if (const LayerView &next = model_.layers[layer_ + 1]; !next.apart)
        fetch_start(next.qkv, thread_ * model_.head_dim);
    team_.meet();

    const int64_t sums = chunks(hidden_, kSumColumns);
    team_.claim(phase_++, thread_, sums + 1, [&](int64_t chunk, int64_t) {
        if (chunk < sums) {
            const int64_t begin = chunk * kSumColumns;
            kernels_.ffn_sum(ffn, call, begin, std::min(begin + kSumColumns, hidden_));
            return;
        }
        const int64_t ranges = range_count(ffn.intermediate, ffn.range);
        const int64_t columns = model_.counts_inputs ? 2 + kParts : 2;
        for (int64_t b = 0; b < w_.count; b++) {
            int32_t *out = w_.counts + (layer_ * w_.count + b) * columns;
            out[0] = out[1] = 0;
            for (int64_t s = 0; s < ranges; s++) {
                out[0] += w_.reads[(s * w_.count + b) * 2];
                out[1] += w_.reads[(s * w_.count + b) * 2 + 1];
            }
            if (ffn.down_input) count_inputs(b, Part::down, out[1]);
        }
    });
}

// Where a neuron cannot go on alone: its gate or up value is a sum over inputs, or the mask depends
// on all gate values of its row.
void StepMember::ffn_from_all_gates(const FfnWeights &ffn, FfnCall &call) {
    const int64_t n = ffn.intermediate;
    ByInput products[2]{};
    if (ffn.gate_by_input) {
        const ProjectionView gate{ffn.gate, ffn.gate_bias, ffn.gate_input, true};
        products[0] = by_input(gate, Part::gate, normed_, w_.g, n, false, 0);
    }
    if (ffn.up_by_input) {
        const ProjectionView up{ffn.up, ffn.up_bias, ffn.up_input, true};
        products[1] = by_input(up, Part::up, normed_, w_.u, n, false, 1);
    }
    const int64_t step = rows_per_chunk(ffn.gate, team_.threads());
    const int64_t gates = ffn.gate_by_input ? products[0].ranges : chunks(n, step);
    team_.claim(phase_++, thread_, gates + products[1].ranges, [&](int64_t unit, int64_t) {
        if (unit >= gates || ffn.gate_by_input) {
            const ByInput &product = products[unit >= gates];
            kernels_.sparse_input_range(product.weights, product.call,
                                        unit < gates ? unit : unit - gates);
            return;
        }
        const int64_t begin = unit * step;
        kernels_.dot_rows(ffn.gate, ffn.gate_bias, inputs_[0], w_.count, begin,
                          std::min(begin + step, n), -1, w_.g + begin, n);
    });
    team_.meet();
    const int64_t gate_sums = ffn.gate_by_input ? products[0].chunks + 1 : 0;
    const int64_t up_sums = ffn.up_by_input ? products[1].chunks + 1 : 0;
    team_.claim(phase_++, thread_, gate_sums + up_sums, [&](int64_t unit, int64_t) {
        sum_by_input(products[unit >= gate_sums], unit < gate_sums ? unit : unit - gate_sums);
    });
    team_.meet();
    team_.claim(phase_++, thread_, chunks(n, kActivateChunk), [&](int64_t chunk, int64_t) {
        const int64_t begin = chunk * kActivateChunk, end = std::min(begin + kActivateChunk, n);
        for (int64_t b = 0; b < w_.count; b++)
            kernels_.activate_neurons(ffn, w_.g + b * n, begin, end);
    });
    team_.meet();
    if (ffn.top_k > 0) {
        team_.claim(phase_++, thread_, w_.count, [&](int64_t b, int64_t) {
            keep_largest(w_.g + b * n, n, ffn.top_k);
        });
        team_.meet();
    }
    call.a = w_.g;
    call.u = ffn.up_by_input ? w_.u : nullptr;
    kernels_.ffn_given(ffn, call, thread_, team_.counter(phase_++));
}

}  // namespace sparseinfer
