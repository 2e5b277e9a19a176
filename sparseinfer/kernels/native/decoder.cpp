#include "decoder.h"

#include <algorithm>
#include <utility>

#include "arena.h"
#include "gated_ffn.h"
#include "linear.h"
#include "openmp.h"

namespace sparseinfer {
namespace {

// Claiming phases of a layer: q, k and v; attention; o; FFN; the FFN's sum. Then the head.
constexpr int64_t kPhases = 5;
constexpr int64_t kMaxChunkRows = 64;    // of o: its products pass through a buffer on the stack

// Asks for the start of what a member reads first in its next phase.
void fetch_start(const MatrixView &m, int64_t row) {
    constexpr int64_t kBytes = 16 << 10;
    if (row >= m.rows) return;
    const int64_t left = (m.rows - row) * m.stride;
    for (int64_t i = 0; i < std::min(kBytes, left); i += 64)
        __builtin_prefetch(m.data + row * m.stride + i, 0, 2);
}

}  // namespace

// What the members of one step share.
struct Decoder::Work {
    const TokenRow *rows;
    int64_t count;
    const float *cos;
    const float *sin;
    int64_t first_logits;
    float *logits;
    int32_t *counts;

    float *hidden;      // [count, hidden]
    float *normed;      // [threads or 1, count, hidden]
    float *qkv;         // [count, qkv rows]
    float *attended;    // [count, heads head_dim]
    uint8_t *inputs;    // [threads or 1, count, input_bytes]
    int64_t input_bytes;
    float *partial;
    int32_t *reads;
    uint8_t *ffn_scratch;
    float *scores;      // [threads, longest]
    int64_t longest;
    int64_t ranges;
    int64_t width;
};

Decoder::Decoder(ModelView model, std::shared_ptr<ThreadPool> pool, const Kernels &kernels)
    : model_(std::move(model)), pool_(std::move(pool)), kernels_(kernels),
      team_(pool_->threads(), static_cast<int64_t>(model_.layers.size()) * kPhases + 1) {}

void Decoder::step(const TokenRow *rows, int64_t count, const float *cos, const float *sin,
                   int64_t first_logits, float *logits, int32_t *counts) {
    const int64_t hidden = model_.head.columns, threads = pool_->threads();
    const int64_t q = model_.heads * model_.head_dim;
    rest_openmp();    // of the prompt before
    const auto lock = pool_->exclusive();
    Work work{};
    work.rows = rows;
    work.count = count;
    work.cos = cos;
    work.sin = sin;
    work.first_logits = first_logits;
    work.logits = logits;
    work.counts = counts;
    work.input_bytes = kernels_.input_bytes(model_.head.format, hidden);
    for (const LayerView &layer : model_.layers) {
        work.input_bytes = std::max({work.input_bytes,
                                     kernels_.input_bytes(layer.qkv.format, hidden),
                                     kernels_.input_bytes(layer.o.format, q),
                                     kernels_.input_bytes(layer.ffn.gate.format, hidden)});
        work.ranges = std::max(work.ranges, range_count(layer.ffn.intermediate, layer.ffn.range));
        work.width = std::max(work.width, accumulator_width(layer.ffn.down));
    }
    for (int64_t b = 0; b < count; b++)
        work.longest = std::max(work.longest, (rows[b].position + 1 + 15) / 16 * 16);
    // A single row's input is prepared by each member for itself: cheaper than waiting for one.
    const int64_t copies = count == 1 ? threads : 1;
    const auto lay_out = [&](Arena &arena) {
        work.hidden = arena.take<float>(count * hidden);
        work.normed = arena.take<float>(copies * count * hidden);
        work.qkv = arena.take<float>(count * (q + 2 * model_.kv_heads * model_.head_dim));
        work.attended = arena.take<float>(count * q);
        work.inputs = arena.take<uint8_t>(copies * count * work.input_bytes);
        work.partial = arena.take<float>(work.ranges * count * work.width);
        work.reads = arena.take<int32_t>(work.ranges * count * 2);
        work.ffn_scratch = arena.take<uint8_t>(threads * kernels_.ffn_scratch());
        work.scores = arena.take<float>(threads * work.longest);
    };
    Arena measure;
    lay_out(measure);
    Arena arena(pool_->scratch(measure.bytes()));
    lay_out(arena);
    team_.reset();
    pool_->run(threads, [&](int64_t thread) { member(work, thread); });
}

void Decoder::member(Work &w, int64_t thread) {
    const int64_t hidden = model_.head.columns, threads = team_.threads();
    const int64_t heads = model_.heads, kv_heads = model_.kv_heads, head_dim = model_.head_dim;
    const int64_t q = heads * head_dim, qkv_rows = q + 2 * kv_heads * head_dim;
    const bool alone = w.count == 1;
    float *normed = w.normed + (alone ? thread * hidden : 0);
    uint8_t *memory = w.inputs + (alone ? thread * w.input_bytes : 0);
    Input inputs[kMaxRows];

    // Fills `inputs` for rows [from, count) of x, normed first where there is a norm to apply.
    const auto prepare = [&](const float *x, int64_t n, const float *norm, Format format,
                             int64_t from) {
        for (int64_t b = from; b < w.count; b++) {
            const float *row = x + b * n;
            if (norm) row = normed + b * n;
            const bool mine = alone || b % threads == thread;
            if (mine && norm) kernels_.rms_norm(x + b * n, norm, model_.eps, n, normed + b * n);
            if (mine) kernels_.fill_input(format, row, n, memory + b * w.input_bytes, inputs + b);
        }
        if (alone) return;
        team_.meet();
        for (int64_t b = from; b < w.count; b++)
            if (b % threads != thread)
                kernels_.view_input(format, norm ? normed + b * n : x + b * n, n,
                                    memory + b * w.input_bytes, inputs + b);
    };

    for (int64_t b = thread; b < w.count; b += threads)
        kernels_.widen_row(model_.embedding, w.rows[b].token, w.hidden + b * hidden);
    team_.meet();

    int64_t phase = 0;
    for (size_t index = 0; index < model_.layers.size(); index++) {
        const LayerView &layer = model_.layers[index];
        const auto cache = [&](const TokenRow &row, uint8_t *base) {
            return CacheView{base + static_cast<int64_t>(index) * row.layer_stride,
                             row.head_stride, model_.cache_format};
        };

        prepare(w.hidden, hidden, layer.input_norm, layer.qkv.format, 0);
        team_.claim(phase++, thread, heads + 2 * kv_heads, [&](int64_t head, int64_t following) {
            const int64_t begin = head * head_dim;
            kernels_.dot_rows(layer.qkv, layer.qkv_bias, inputs, w.count, begin, begin + head_dim,
                              following < 0 ? -1 : following * head_dim, w.qkv + begin, qkv_rows);
            for (int64_t b = 0; b < w.count; b++) {
                const TokenRow &row = w.rows[b];
                float *x = w.qkv + b * qkv_rows + begin;
                const int64_t turn = row.position * head_dim;
                if (head < heads + kv_heads)
                    kernels_.rotate(x, w.cos + turn, w.sin + turn, head_dim);
                if (head >= heads + kv_heads)
                    kernels_.store_cache(cache(row, row.values), head - heads - kv_heads,
                                         row.position, x, head_dim);
                else if (head >= heads)
                    kernels_.store_cache(cache(row, row.keys), head - heads, row.position, x,
                                         head_dim);
            }
        });
        const int64_t step = std::min(kMaxChunkRows, rows_per_chunk(layer.o, threads));
        fetch_start(layer.o, thread * step);
        team_.meet();

        team_.claim(phase++, thread, w.count * heads, [&](int64_t unit, int64_t) {
            const int64_t b = unit / heads, head = unit % heads;
            const TokenRow &row = w.rows[b];
            AttentionHead call{};
            call.query = w.qkv + b * qkv_rows + head * head_dim;
            call.keys = cache(row, row.keys);
            call.values = cache(row, row.values);
            call.kv_head = head / (heads / kv_heads);
            call.end = row.position + 1;
            call.begin = model_.window > 0 ? std::max<int64_t>(0, call.end - model_.window) : 0;
            call.head_dim = head_dim;
            call.scores = w.scores + thread * w.longest;
            call.out = w.attended + b * q + head * head_dim;
            kernels_.attend(call);
        });
        team_.meet();

        prepare(w.attended, q, nullptr, layer.o.format, 0);
        team_.claim(phase++, thread, (hidden + step - 1) / step, [&](int64_t chunk,
                                                                    int64_t following) {
            const int64_t begin = chunk * step, end = std::min(begin + step, hidden);
            float out[kMaxRows * kMaxChunkRows];
            kernels_.dot_rows(layer.o, layer.o_bias, inputs, w.count, begin, end,
                              following < 0 ? -1 : following * step, out, kMaxChunkRows);
            for (int64_t b = 0; b < w.count; b++)
                for (int64_t j = begin; j < end; j++)
                    w.hidden[b * hidden + j] += out[b * kMaxChunkRows + j - begin];
        });
        fetch_start(layer.ffn.gate, thread * layer.ffn.range);
        team_.meet();

        prepare(w.hidden, hidden, layer.ffn_norm, layer.ffn.gate.format, 0);
        FfnCall call{};
        call.inputs = inputs;
        call.y = w.hidden;
        call.add = true;
        call.rows = w.count;
        call.partial = w.partial;
        call.width = accumulator_width(layer.ffn.down);
        call.reads = w.reads;
        call.scratch = w.ffn_scratch + thread * kernels_.ffn_scratch();
        kernels_.ffn_ranges(layer.ffn, call, thread, team_.counter(phase++));
        const bool last = index + 1 == model_.layers.size();
        const int64_t head_step = rows_per_chunk(model_.head, threads);
        if (last)
            fetch_start(model_.head, thread * head_step);
        else
            fetch_start(model_.layers[index + 1].qkv, thread * head_dim);
        team_.meet();

        const int64_t sums = (hidden + kSumColumns - 1) / kSumColumns;
        team_.claim(phase++, thread, sums + 1, [&](int64_t chunk, int64_t) {
            if (chunk < sums) {
                const int64_t begin = chunk * kSumColumns;
                kernels_.ffn_sum(layer.ffn, call, begin, std::min(begin + kSumColumns, hidden));
                return;
            }
            const int64_t ranges = range_count(layer.ffn.intermediate, layer.ffn.range);
            int32_t *out = w.counts + static_cast<int64_t>(index) * w.count * 2;
            for (int64_t i = 0; i < w.count * 2; i++) {
                out[i] = 0;
                for (int64_t s = 0; s < ranges; s++) out[i] += w.reads[s * w.count * 2 + i];
            }
        });
        team_.meet();
    }

    prepare(w.hidden, hidden, model_.final_norm, model_.head.format, w.first_logits);
    const int64_t vocabulary = model_.head.rows, step = rows_per_chunk(model_.head, threads);
    team_.claim(phase, thread, (vocabulary + step - 1) / step, [&](int64_t chunk,
                                                                  int64_t following) {
        const int64_t begin = chunk * step;
        kernels_.dot_rows(model_.head, nullptr, inputs + w.first_logits, w.count - w.first_logits,
                          begin, std::min(begin + step, vocabulary),
                          following < 0 ? -1 : following * step, w.logits + begin, vocabulary);
    });
}

}  // namespace sparseinfer
