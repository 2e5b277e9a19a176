#include "gated_ffn.h"

#include <algorithm>

#include "arena.h"
#include "choose.h"

namespace sparseinfer {
namespace {

// At most about as many ranges as this: enough for the threads to share them out evenly, few enough
// that adding up their accumulators costs little. A range long enough to hold a batch of kept
// neurons at high sparsity, or batches are cut short (measured at 576 x 1536, int4, density 0.1: 16
// GB/s with 96 neurons, 11 with 32).
constexpr int64_t kRanges = 64;
constexpr int64_t kMinRange = 96;

}  // namespace

int64_t range_size(int64_t neurons) {
    const int64_t even = (neurons + kRanges - 1) / kRanges;
    return std::max(kMinRange, (even + 7) / 8 * 8);
}

int64_t range_count(int64_t neurons, int64_t range) { return (neurons + range - 1) / range; }

int64_t count_chosen(const uint16_t *chosen, int64_t neurons, int64_t row) {
    int64_t count = 0;
    for (int64_t i = 0; i < neurons; i++) count += chosen[i] >> row & 1;
    return count;
}

bool needs_all_gates(const FfnWeights &weights) {
    return weights.top_k > 0 || weights.gate_by_input || weights.up_by_input;
}

void gated_ffn(const FfnWeights &weights, const Kernels &kernels, ThreadPool &pool, const float *x,
               const uint16_t *candidates, float *y, int64_t *counts, int64_t all_rows) {
    const ChooserView &chooser = weights.chooser;
    const bool chooses = chooser.kind != Choice::none;
    const int64_t hidden = weights.hidden;
    const int64_t ranges = range_count(weights.intermediate, weights.range);
    const int64_t threads = pool.threads();
    const int64_t input_bytes = kernels.input_bytes(weights.gate.format, hidden);
    const auto lock = pool.exclusive();
    for (int64_t first = 0; first < all_rows; first += kMaxRows) {
        const int64_t rows = std::min(kMaxRows, all_rows - first);
        Input inputs[kMaxRows];
        FfnCall call{};
        call.inputs = inputs;
        call.rows = rows;
        call.y = y + first * hidden;
        call.width = accumulator_width(weights.down);
        Arena measure;
        measure.take<float>(ranges * rows * call.width);
        measure.take<int32_t>(ranges * rows * 2);
        measure.take<uint8_t>(threads * kernels.ffn_scratch());
        for (int64_t b = 0; b < rows; b++) measure.take<uint8_t>(input_bytes);
        room_to_choose(chooser, kernels, rows, measure);

        Arena arena(pool.scratch(measure.bytes()));
        call.partial = arena.take<float>(ranges * rows * call.width);
        call.reads = arena.take<int32_t>(ranges * rows * 2);
        uint8_t *scratch = arena.take<uint8_t>(threads * kernels.ffn_scratch());
        for (int64_t b = 0; b < rows; b++)
            kernels.fill_input(weights.gate.format, x + (first + b) * hidden, hidden,
                               arena.take<uint8_t>(input_bytes), inputs + b);
        const Choosing room = room_to_choose(chooser, kernels, rows, arena);
        if (chooses) choose_on(chooser, kernels, pool, x + first * hidden, rows, room);
        call.chosen = chooses ? room.chosen : nullptr;
        if (candidates) call.chosen = candidates + first / kMaxRows * weights.intermediate;
        call.g = room.g;
        call.u = room.u;

        int64_t next = threads;
        pool.run(threads, [&](int64_t thread) {
            FfnCall mine = call;
            mine.scratch = scratch + thread * kernels.ffn_scratch();
            (call.chosen ? kernels.ffn_chosen : kernels.ffn_ranges)(weights, mine, thread, &next);
        });
        pool.run((hidden + kSumColumns - 1) / kSumColumns, [&](int64_t chunk) {
            const int64_t begin = chunk * kSumColumns;
            kernels.ffn_sum(weights, call, begin, std::min(begin + kSumColumns, hidden));
        });

        for (int64_t b = 0; b < rows; b++) {
            int64_t *out = counts + (first + b) * 3;
            out[0] = out[1] = 0;
            out[2] = weights.intermediate;
            if (call.chosen) out[2] = count_chosen(call.chosen, weights.intermediate, b);
            for (int64_t s = 0; s < ranges; s++) {
                out[0] += call.reads[(s * rows + b) * 2];
                out[1] += call.reads[(s * rows + b) * 2 + 1];
            }
        }
    }
}

}  // namespace sparseinfer
