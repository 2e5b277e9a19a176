#include "choose.h"

#include <algorithm>

#include "arena.h"
#include "linear.h"

namespace sparseinfer {
namespace {

// Bytes of a predictor that a thread reads at a time: enough to stream, few enough to share evenly.
constexpr int64_t kMinChunk = 16 << 10;
constexpr int64_t kMaxChunk = 256 << 10;
constexpr int64_t kChunksPerThread = 8;

int64_t bytes_per_neuron(const ChooserView &c) {
    switch (c.kind) {
        case Choice::lowrank: return c.outward.stride;
        case Choice::sign: return (c.hidden + 63) / 64 * 8;
        default: return 2 * c.stride;
    }
}

}  // namespace

int64_t neurons_per_choice(const ChooserView &chooser, int64_t threads) {
    const int64_t row = std::max<int64_t>(1, bytes_per_neuron(chooser));
    const int64_t bytes = std::clamp(chooser.neurons * row / (kChunksPerThread * threads),
                                     kMinChunk, kMaxChunk);
    return std::max<int64_t>(16, bytes / row / 16 * 16);
}

void choose_on(const ChooserView &chooser, const Kernels &kernels, ThreadPool &pool,
               const float *x, int64_t rows, const Choosing &room) {
    Input inputs[kMaxRows];
    const int64_t bytes = kernels.choice_bytes(chooser);
    for (int64_t b = 0; b < rows; b++)
        kernels.fill_choice(chooser, x + b * chooser.hidden, room.inputs + b * bytes, inputs + b);
    if (chooser.kind == Choice::lowrank) {
        const MatrixView &inward = chooser.inward;
        const int64_t rank = inward.rows, step = rows_per_chunk(inward, pool.threads());
        pool.run((rank + step - 1) / step, [&](int64_t chunk) {
            const int64_t begin = chunk * step;
            kernels.dot_rows(inward, nullptr, inputs, rows, begin, std::min(begin + step, rank), -1,
                             room.z + begin, rank);
        });
        const int64_t each = kernels.input_bytes(chooser.outward.format, rank);
        for (int64_t b = 0; b < rows; b++)
            kernels.fill_input(chooser.outward.format, room.z + b * rank, rank,
                               room.z_inputs + b * each, inputs + b);
    }
    const ChooseCall call{inputs, rows, room.chosen, room.g, room.u};
    const int64_t step = neurons_per_choice(chooser, pool.threads());
    const int64_t threads = pool.threads(), chunks = (chooser.neurons + step - 1) / step;
    int64_t next = threads;
    // One chunk ahead, to know what to ask memory for.
    pool.run(threads, [&](int64_t thread) {
        for (int64_t chunk = thread, following; chunk < chunks; chunk = following) {
            following = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
            const int64_t begin = chunk * step;
            kernels.choose(chooser, call, begin, std::min(begin + step, chooser.neurons),
                           following < chunks ? following * step : -1);
        }
    });
}

void choose_rows(const ChooserView &chooser, const Kernels &kernels, ThreadPool &pool,
                 const float *x, uint16_t *chosen, int64_t all_rows) {
    const auto lock = pool.exclusive();
    for (int64_t first = 0; first < all_rows; first += kMaxRows) {
        const int64_t rows = std::min(kMaxRows, all_rows - first);
        Arena measure;
        room_to_choose(chooser, kernels, rows, measure);
        Arena arena(pool.scratch(measure.bytes()));
        const Choosing room = room_to_choose(chooser, kernels, rows, arena);
        choose_on(chooser, kernels, pool, x + first * chooser.hidden, rows, room);
        std::copy_n(room.chosen, chooser.neurons, chosen + first / kMaxRows * chooser.neurons);
    }
}

}  // namespace sparseinfer
