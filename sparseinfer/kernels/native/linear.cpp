#include "linear.h"

#include <algorithm>

namespace sparseinfer {
namespace {

// Bytes of weight per chunk: large enough to stream, small enough to share out evenly. Which
// outputs form a chunk does not enter the result.
constexpr int64_t kMinChunk = 32 << 10;
constexpr int64_t kMaxChunk = 512 << 10;
constexpr int64_t kChunks = 128;

}  // namespace

void linear(const LinearWeights &weights, const Kernels &kernels, ThreadPool &pool, const float *x,
            float *y, int64_t rows) {
    const int64_t row_bytes = weights.inputs * (weights.is_bf16 ? 2 : 4);
    const int64_t bytes =
        std::clamp(weights.outputs * row_bytes / kChunks, kMinChunk, kMaxChunk);
    // A multiple of 8 keeps the groups of rows whole.
    const int64_t step = std::max<int64_t>(8, bytes / row_bytes / 8 * 8);
    const int64_t chunks = (weights.outputs + step - 1) / step;
    const auto lock = pool.exclusive();
    pool.run(chunks, [&](int64_t chunk) {
        const int64_t begin = chunk * step;
        kernels.linear(weights, x, y, rows, begin, std::min(begin + step, weights.outputs));
    });
}

}  // namespace sparseinfer
