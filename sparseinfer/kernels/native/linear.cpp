#include "linear.h"

#include <algorithm>

#include "arena.h"
#include "gated_ffn.h"

namespace sparseinfer {
namespace {

// Bytes of weight per chunk: large enough to stream, small enough to share out evenly. Which
// outputs form a chunk does not enter the result.
constexpr int64_t kMinChunk = 16 << 10;
constexpr int64_t kMaxChunk = 256 << 10;
constexpr int64_t kChunksPerThread = 16;

}  // namespace

int64_t rows_per_chunk(const MatrixView &weight, int64_t threads) {
    const int64_t bytes = std::clamp(weight.rows * weight.stride / (kChunksPerThread * threads),
                                     kMinChunk, kMaxChunk);
    return std::max<int64_t>(16, bytes / weight.stride / 16 * 16);
}

void linear(const MatrixView &weight, const float *bias, const Kernels &kernels, ThreadPool &pool,
            const float *x, float *y, int64_t all_rows) {
    const int64_t input_bytes = kernels.input_bytes(weight.format, weight.columns);
    const int64_t step = rows_per_chunk(weight, pool.threads());
    const int64_t chunks = (weight.rows + step - 1) / step;
    const auto lock = pool.exclusive();
    for (int64_t first = 0; first < all_rows; first += kMaxRows) {
        const int64_t rows = std::min(kMaxRows, all_rows - first);
        Arena measure;
        for (int64_t b = 0; b < rows; b++) measure.take<uint8_t>(input_bytes);
        Arena arena(pool.scratch(measure.bytes()));
        Input inputs[kMaxRows];
        for (int64_t b = 0; b < rows; b++)
            kernels.fill_input(weight.format, x + (first + b) * weight.columns, weight.columns,
                               arena.take<uint8_t>(input_bytes), inputs + b);
        pool.run(chunks, [&](int64_t chunk) {
            const int64_t begin = chunk * step;
            kernels.dot_rows(weight, bias, inputs, rows, begin, std::min(begin + step, weight.rows),
                             -1, y + first * weight.rows + begin, weight.rows);
        });
    }
}

void sparse_input_linear(const SparseInputWeights &weights, const Kernels &kernels,
                         ThreadPool &pool, const float *x, float *y, int64_t *reads,
                         int64_t all_rows) {
    const int64_t inputs = weights.weight.rows, outputs = weights.weight.columns;
    const int64_t ranges = range_count(inputs, weights.range);
    const auto lock = pool.exclusive();
    for (int64_t first = 0; first < all_rows; first += kMaxRows) {
        SparseInputCall call{};
        call.rows = std::min(kMaxRows, all_rows - first);
        call.x = x + first * inputs;
        call.y = y + first * outputs;
        call.y_stride = outputs;
        call.width = accumulator_width(weights.weight);
        Arena measure;
        measure.take<float>(ranges * call.rows * call.width);
        measure.take<int32_t>(ranges * call.rows);
        Arena arena(pool.scratch(measure.bytes()));
        call.partial = arena.take<float>(ranges * call.rows * call.width);
        call.reads = arena.take<int32_t>(ranges * call.rows);
        pool.run(ranges, [&](int64_t range) {
            kernels.sparse_input_range({&weights, &call, range}, {});
        });
        pool.run((outputs + kSumColumns - 1) / kSumColumns, [&](int64_t chunk) {
            const int64_t begin = chunk * kSumColumns;
            kernels.sparse_input_sum(weights, call, begin, std::min(begin + kSumColumns, outputs));
        });
        for (int64_t b = 0; b < call.rows; b++) {
            reads[first + b] = 0;
            for (int64_t s = 0; s < ranges; s++) reads[first + b] += call.reads[s * call.rows + b];
        }
    }
}

}  // namespace sparseinfer
