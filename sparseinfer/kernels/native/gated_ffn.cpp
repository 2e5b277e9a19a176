#include "gated_ffn.h"

#include <algorithm>

#include "arena.h"

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

bool needs_all_gates(const FfnWeights &weights) {
    return weights.top_k > 0 || weights.gate_by_input || weights.up_by_input;
}

void gated_ffn(const FfnWeights &weights, const Kernels &kernels, ThreadPool &pool, const float *x,
               float *y, int64_t *counts, int64_t all_rows) {
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

        Arena arena(pool.scratch(measure.bytes()));
        call.partial = arena.take<float>(ranges * rows * call.width);
        call.reads = arena.take<int32_t>(ranges * rows * 2);
        uint8_t *scratch = arena.take<uint8_t>(threads * kernels.ffn_scratch());
        for (int64_t b = 0; b < rows; b++)
            kernels.fill_input(weights.gate.format, x + (first + b) * hidden, hidden,
                               arena.take<uint8_t>(input_bytes), inputs + b);

        int64_t next = threads;
        pool.run(threads, [&](int64_t thread) {
            FfnCall mine = call;
            mine.scratch = scratch + thread * kernels.ffn_scratch();
            kernels.ffn_ranges(weights, mine, thread, &next);
        });
        pool.run((hidden + kSumColumns - 1) / kSumColumns, [&](int64_t chunk) {
            const int64_t begin = chunk * kSumColumns;
            kernels.ffn_sum(weights, call, begin, std::min(begin + kSumColumns, hidden));
        });

        for (int64_t b = 0; b < rows; b++) {
            int64_t *out = counts + (first + b) * 2;
            out[0] = out[1] = 0;
            for (int64_t s = 0; s < ranges; s++) {
                out[0] += call.reads[(s * rows + b) * 2];
                out[1] += call.reads[(s * rows + b) * 2 + 1];
            }
        }
    }
}

}  // namespace sparseinfer
