#include "gated_ffn.h"

#include <algorithm>

namespace sparseinfer {
namespace {

// Below this many floats the final sum is over before a second job would have started.
constexpr int64_t kSerialSum = 1 << 16;
constexpr int64_t kSumColumns = 512;

}  // namespace

void gated_ffn(const FfnWeights &weights, const Kernels &kernels, ThreadPool &pool, const float *x,
               float *y, int64_t *counts, int64_t rows) {
    const int64_t hidden = weights.hidden;
    const int64_t ranges = (weights.intermediate + kRange - 1) / kRange;
    const auto lock = pool.exclusive();
    for (int64_t first = 0; first < rows; first += kMaxRows) {
        FfnCall call{};
        call.rows = std::min(kMaxRows, rows - first);
        call.x = x + first * hidden;
        call.y = y + first * hidden;
        const int64_t floats = ranges * call.rows * hidden;
        call.partial = static_cast<float *>(
            pool.scratch((floats + ranges * call.rows * 2) * sizeof(float)));
        call.reads = reinterpret_cast<int32_t *>(call.partial + floats);

        pool.run(ranges, [&](int64_t range) { kernels.ffn_range(weights, call, range); });

        const int64_t columns = floats < kSerialSum ? hidden : kSumColumns;
        pool.run((hidden + columns - 1) / columns, [&](int64_t chunk) {
            const int64_t begin = chunk * columns;
            kernels.ffn_sum(weights, call, begin, std::min(begin + columns, hidden));
        });

        for (int64_t b = 0; b < call.rows; b++) {
            int64_t *out = counts + (first + b) * 2;
            out[0] = out[1] = 0;
            for (int64_t s = 0; s < ranges; s++) {
                out[0] += call.reads[(s * call.rows + b) * 2];
                out[1] += call.reads[(s * call.rows + b) * 2 + 1];
            }
        }
    }
}

}  // namespace sparseinfer
