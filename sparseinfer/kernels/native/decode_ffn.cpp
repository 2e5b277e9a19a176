#include <algorithm>

#include "choose.h"
#include "decode_step.h"
#include "gated_ffn.h"
#include "linear.h"
#include "top_k.h"

namespace sparseinfer {
namespace {

int64_t chunks(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace

void StepMember::ffn(const LayerView &layer) {
    const FfnWeights &ffn = layer.ffn;
    const bool chooses = ffn.chooser.kind != Choice::none;
    Want wants[3];
    int wanted = 0;
    if (!ffn.gate_by_input) wants[wanted++] = {ffn.gate.format, ffn.gate_input, Part::gate, 0};
    // Gate and up share an input where neither has thresholds.
    const bool shared = !ffn.gate_by_input && !ffn.gate_input && !ffn.up_input;
    if (!ffn.up_by_input && !shared)
        wants[wanted++] = {ffn.up.format, ffn.up_input, Part::up, 1};
    if (chooses) wants[wanted++] = {ffn.gate.format, nullptr, Part::gate, 1, &ffn.chooser};
    prepare(w_.hidden, hidden_, Norm::layer, layer.ffn_norm, wants, wanted);
    if (chooses) choose(ffn);
    if (w_.firing) count_firing(ffn);
    if (needs_all_gates(ffn)) {
        all_gates(ffn);
        activate_all(ffn);
        if (ffn.up_by_input) return down_by_input(ffn);
    }

    FfnCall call{};
    call.inputs = inputs_[0];
    call.up_inputs = inputs_[shared ? 0 : 1];
    call.y = w_.hidden;
    call.add = true;
    call.rows = w_.count;
    call.partial = w_.partial;
    call.width = accumulator_width(ffn.down);
    call.reads = w_.reads;
    call.a = w_.g;
    call.chosen = w_.chosen;
    call.g = w_.g;
    call.u = w_.u;
    call.scratch = w_.ffn_scratch + thread_ * kernels_.ffn_scratch();
    const auto work = chooses                ? kernels_.ffn_chosen
                      : needs_all_gates(ffn) ? kernels_.ffn_given
                                             : kernels_.ffn_ranges;
    work(ffn, call, thread_, team_.counter(phase_++));
    fetch_next_layer();
    team_.meet();

    const int64_t sums = chunks(hidden_, kSumColumns);
    team_.claim(phase_++, thread_, sums + 1, [&](int64_t chunk, int64_t) {
        if (chunk < sums) {
            const int64_t begin = chunk * kSumColumns;
            kernels_.ffn_sum(ffn, call, begin, std::min(begin + kSumColumns, hidden_));
            return;
        }
        const int64_t ranges = range_count(ffn.intermediate, ffn.range);
        for (int64_t b = 0; b < w_.count; b++) {
            int64_t up = 0, down = 0;
            for (int64_t s = 0; s < ranges; s++) {
                up += w_.reads[(s * w_.count + b) * 2];
                down += w_.reads[(s * w_.count + b) * 2 + 1];
            }
            count_neurons(ffn, b, up, down);
        }
    });
}

// Decides which neurons are computed, by what is in slot 1.
void StepMember::choose(const FfnWeights &ffn) {
    const ChooserView &chooser = ffn.chooser;
    const Input *inputs = inputs_[1];
    if (chooser.kind == Choice::lowrank) {
        const MatrixView &inward = chooser.inward;
        const int64_t rank = inward.rows, step = rows_per_chunk(inward, team_.threads());
        team_.claim(phase_++, thread_, chunks(rank, step), [&](int64_t chunk, int64_t following) {
            const int64_t begin = chunk * step;
            kernels_.dot_rows(inward, nullptr, inputs_[1], w_.count, begin,
                              std::min(begin + step, rank), following < 0 ? -1 : following * step,
                              w_.z + begin, rank);
        });
        team_.meet();
        const Want want{chooser.outward.format, nullptr, Part::gate, 2};
        prepare(w_.z, rank, Norm::none, nullptr, &want, 1);
        inputs = inputs_[2];
    }
    const bool planes = chooser.kind == Choice::planes;
    const ChooseCall call{inputs, w_.count, w_.chosen, planes ? w_.g : nullptr,
                          planes ? w_.u : nullptr};
    const int64_t step = neurons_per_choice(chooser, team_.threads());
    team_.claim(phase_++, thread_, chunks(chooser.neurons, step), [&](int64_t chunk,
                                                                     int64_t following) {
        const int64_t begin = chunk * step;
        kernels_.choose(chooser, call, begin, std::min(begin + step, chooser.neurons),
                        following < 0 ? -1 : following * step);
    });
    team_.meet();
}

// Asks for the start of what this member reads first.
void StepMember::fetch_ffn(const FfnWeights &ffn) const {
    const ChooserView &chooser = ffn.chooser;
    if (chooser.kind == Choice::none) {
        if (!ffn.gate_by_input) fetch_start(ffn.gate, thread_ * ffn.range);
    } else if (chooser.kind == Choice::lowrank) {
        fetch_start(chooser.inward, thread_ * rows_per_chunk(chooser.inward, team_.threads()));
    } else if (chooser.kind != Choice::sign) {
        const int64_t first = thread_ * neurons_per_choice(chooser, team_.threads());
        if (first < chooser.neurons)
            fetch_bytes(chooser.gate + first * chooser.stride,
                        (chooser.neurons - first) * chooser.stride);
    }
}

void StepMember::fetch_next_layer() const {
    if (layer_ + 1 == static_cast<int64_t>(model_.layers.size()))
        fetch_start(model_.head, thread_ * rows_per_chunk(model_.head, team_.threads()));
    else if (const LayerView &next = model_.layers[layer_ + 1]; !next.apart)
        fetch_start(next.qkv, thread_ * model_.head_dim);
}

void StepMember::count_neurons(const FfnWeights &ffn, int64_t row, int64_t up, int64_t down) {
    int32_t *out = counts(row);
    out[0] = static_cast<int32_t>(up);
    out[1] = static_cast<int32_t>(down);
    if (ffn.chooser.kind != Choice::none)
        out[2] = static_cast<int32_t>(count_chosen(w_.chosen, ffn.intermediate, row));
    if (ffn.down_input) count_inputs(row, Part::down, down);
}

// Where a neuron cannot go on alone: its gate or up value is a sum over inputs, or the mask depends
// on all gate values of its row.
void StepMember::all_gates(const FfnWeights &ffn) {
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
    const auto range = [&](int64_t unit) {
        const bool by_input = unit >= gates || (unit >= 0 && ffn.gate_by_input);
        if (!by_input) return SparseInputRange{};
        return range_of(products[unit >= gates], unit < gates ? unit : unit - gates);
    };
    team_.claim(phase_++, thread_, gates + products[1].ranges, [&](int64_t unit,
                                                                  int64_t following) {
        if (unit >= gates || ffn.gate_by_input) {
            kernels_.sparse_input_range(range(unit), range(following));
            return;
        }
        const bool on = following >= 0 && following < gates;
        const int64_t begin = unit * step;
        kernels_.dot_rows(ffn.gate, ffn.gate_bias, inputs_[0], w_.count, begin,
                          std::min(begin + step, n), on ? following * step : -1, w_.g + begin, n);
    });
    team_.meet();
    const int64_t gate_sums = ffn.gate_by_input ? products[0].chunks + 1 : 0;
    const int64_t up_sums = ffn.up_by_input ? products[1].chunks + 1 : 0;
    if (gate_sums + up_sums == 0) return;
    team_.claim(phase_++, thread_, gate_sums + up_sums, [&](int64_t unit, int64_t) {
        sum_by_input(products[unit >= gate_sums], unit < gate_sums ? unit : unit - gate_sums);
    });
    team_.meet();
}

// Makes activations of gate values, and neuron outputs of these where up values are there.
void StepMember::activate_all(const FfnWeights &ffn) {
    const int64_t n = ffn.intermediate;
    const auto outputs = [&](int64_t chunk, int64_t b, int64_t begin, int64_t end) {
        if (ffn.up_by_input)
            w_.kept[chunk * w_.count + b] = static_cast<int32_t>(
                kernels_.neuron_outputs(ffn, w_.g + b * n, w_.u + b * n, begin, end));
    };
    team_.claim(phase_++, thread_, chunks(n, kActivateChunk), [&](int64_t chunk, int64_t) {
        const int64_t begin = chunk * kActivateChunk, end = std::min(begin + kActivateChunk, n);
        for (int64_t b = 0; b < w_.count; b++) {
            kernels_.activate_neurons(ffn, w_.g + b * n, begin, end);
            if (ffn.top_k == 0) outputs(chunk, b, begin, end);
        }
    });
    team_.meet();
    if (ffn.top_k == 0) return;
    team_.claim(phase_++, thread_, w_.count, [&](int64_t b, int64_t) {
        keep_largest(w_.g + b * n, n, ffn.top_k);
        outputs(0, b, 0, n);
    });
    team_.meet();
}

// How many neurons of each row fire by their gates, whichever were chosen. A dot product has the same
// bits alone and among others: those that are computed are some of these.
void StepMember::count_firing(const FfnWeights &ffn) {
    const int64_t n = ffn.intermediate;
    all_gates(ffn);
    team_.claim(phase_++, thread_, w_.count, [&](int64_t b, int64_t) {
        float *g = w_.g + b * n;
        kernels_.activate_neurons(ffn, g, 0, n);
        w_.firing[layer_ * w_.count + b] =
            static_cast<int32_t>(n - std::count(g, g + n, 0.0f));    // NaN fires
    });
}

// Neuron outputs are known: down is stored by them.
void StepMember::down_by_input(const FfnWeights &ffn) {
    const ProjectionView down{ffn.down, ffn.down_bias, nullptr, true};
    const ByInput product = by_input(down, Part::down, w_.g, w_.hidden, hidden_, true, 0);
    claim_ranges(product);
    fetch_next_layer();
    team_.meet();
    const int64_t counted = ffn.top_k > 0 ? 1 : chunks(ffn.intermediate, kActivateChunk);
    team_.claim(phase_++, thread_, product.chunks + 1, [&](int64_t unit, int64_t) {
        if (unit < product.chunks) return sum_by_input(product, unit);
        for (int64_t b = 0; b < w_.count; b++) {
            int64_t kept = 0, read = 0;
            for (int64_t chunk = 0; chunk < counted; chunk++) kept += w_.kept[chunk * w_.count + b];
            for (int64_t s = 0; s < product.ranges; s++)
                read += product.call.reads[s * w_.count + b];
            count_neurons(ffn, b, kept, read);
        }
    });
}

}  // namespace sparseinfer
