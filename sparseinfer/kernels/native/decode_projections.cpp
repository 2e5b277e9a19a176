#include <algorithm>

#include "decode_step.h"
#include "gated_ffn.h"
#include "linear.h"

namespace sparseinfer {
namespace {

constexpr int64_t kMaxChunkRows = 64;    // of o: its products pass through a buffer on the stack

int64_t chunks(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace

StepMember::ByInput StepMember::by_input(const ProjectionView &projection, Part part,
                                         const float *x, float *y, int64_t y_stride, bool add,
                                         int slot) const {
    ByInput product{};
    product.part = part;
    product.weights.weight = projection.weight;
    product.weights.threshold = projection.threshold;
    product.weights.bias = projection.bias;
    product.weights.range = range_size(projection.inputs());
    product.call.x = x;
    product.call.y = y;
    product.call.y_stride = y_stride;
    product.call.add = add;
    product.call.rows = w_.count;
    product.call.width = accumulator_width(projection.weight);
    product.call.partial = w_.by_input_partial[slot];
    product.call.reads = w_.by_input_reads[slot];
    product.ranges = range_count(projection.inputs(), product.weights.range);
    product.chunks = chunks(projection.outputs(), kSumColumns);
    return product;
}

SparseInputRange StepMember::range_of(const ByInput &product, int64_t range) {
    return {&product.weights, &product.call, range};
}

void StepMember::claim_ranges(const ByInput &product) {
    team_.claim(phase_++, thread_, product.ranges, [&](int64_t range, int64_t following) {
        kernels_.sparse_input_range(
            range_of(product, range),
            following < 0 ? SparseInputRange{} : range_of(product, following));
    });
}

void StepMember::sum_by_input(const ByInput &product, int64_t unit) {
    if (unit < product.chunks) {
        const int64_t begin = unit * kSumColumns;
        kernels_.sparse_input_sum(product.weights, product.call, begin,
                                  std::min(begin + kSumColumns, product.weights.weight.columns));
        return;
    }
    if (!product.weights.threshold) return;
    for (int64_t b = 0; b < w_.count; b++) {
        int64_t used = 0;
        for (int64_t s = 0; s < product.ranges; s++) used += product.call.reads[s * w_.count + b];
        count_inputs(b, product.part, used);
    }
}

// q, k and v as rows of one matrix.
void StepMember::project_together(const LayerView &layer) {
    const int64_t head_dim = model_.head_dim;
    const Want want{layer.qkv.format, nullptr, Part::q, 0};
    prepare(w_.hidden, hidden_, Norm::layer, layer.input_norm, &want, 1);
    const int64_t heads = model_.heads + 2 * model_.kv_heads;
    team_.claim(phase_++, thread_, heads, [&](int64_t head, int64_t following) {
        const int64_t begin = head * head_dim;
        kernels_.dot_rows(layer.qkv, layer.qkv_bias, inputs_[0], w_.count, begin, begin + head_dim,
                          following < 0 ? -1 : following * head_dim, w_.qkv + begin, qkv_rows_);
        finish_head(head);
    });
}

// q, k and v each with inputs of its own.
void StepMember::project_apart(const LayerView &layer) {
    const int64_t head_dim = model_.head_dim;
    const int64_t heads[] = {model_.heads, model_.kv_heads, model_.kv_heads};
    Want wants[3];
    int wanted = 0;
    for (int p = 0; p < 3; p++)
        if (!layer.parts[p].by_input)
            wants[wanted++] = {layer.parts[p].weight.format, layer.parts[p].threshold,
                               static_cast<Part>(p), p};
    prepare(w_.hidden, hidden_, Norm::layer, layer.input_norm, wants, wanted);

    ByInput products[3]{};
    int64_t first[4] = {}, first_sum[4] = {}, offset = 0;
    float *out[3];
    for (int p = 0; p < 3; p++) {
        const ProjectionView &part = layer.parts[p];
        out[p] = w_.qkv + offset;
        offset += part.outputs();
        if (part.by_input)
            products[p] = by_input(part, static_cast<Part>(p), normed_, out[p], qkv_rows_, false, p);
        first[p + 1] = first[p] + (part.by_input ? products[p].ranges : heads[p]);
        first_sum[p + 1] = first_sum[p] + (part.by_input ? products[p].chunks + 1 : 0);
    }
    const auto part_of = [&](int64_t unit) { return unit < first[1] ? 0 : unit < first[2] ? 1 : 2; };
    const auto range = [&](int64_t unit) {
        const int p = unit < 0 ? -1 : part_of(unit);
        const bool by_input = p >= 0 && layer.parts[p].by_input;
        return by_input ? range_of(products[p], unit - first[p]) : SparseInputRange{};
    };
    team_.claim(phase_++, thread_, first[3], [&](int64_t unit, int64_t following) {
        const int p = part_of(unit);
        const ProjectionView &part = layer.parts[p];
        if (part.by_input) {
            kernels_.sparse_input_range(range(unit), range(following));
            return;
        }
        const bool on = following >= 0 && part_of(following) == p;
        const int64_t begin = (unit - first[p]) * head_dim;
        kernels_.dot_rows(part.weight, part.bias, inputs_[p], w_.count, begin, begin + head_dim,
                          on ? (following - first[p]) * head_dim : -1, out[p] + begin, qkv_rows_);
    });
    team_.meet();
    team_.claim(phase_++, thread_, first_sum[3], [&](int64_t unit, int64_t) {
        const int p = unit < first_sum[1] ? 0 : unit < first_sum[2] ? 1 : 2;
        sum_by_input(products[p], unit - first_sum[p]);
    });
    team_.meet();
    team_.claim(phase_++, thread_, heads[0] + heads[1] + heads[2],
                [&](int64_t head, int64_t) { finish_head(head); });
}

// Rotates a head of q or k, and stores one of k or v, for all rows.
void StepMember::finish_head(int64_t head) {
    const int64_t heads = model_.heads, kv_heads = model_.kv_heads, head_dim = model_.head_dim;
    for (int64_t b = 0; b < w_.count; b++) {
        const TokenRow &row = w_.rows[b];
        float *x = w_.qkv + b * qkv_rows_ + head * head_dim;
        const int64_t turn = row.position * head_dim;
        if (head < heads + kv_heads) kernels_.rotate(x, w_.cos + turn, w_.sin + turn, head_dim);
        if (head >= heads + kv_heads)
            kernels_.store_cache(cache(row, row.values), head - heads - kv_heads, row.position, x,
                                 head_dim);
        else if (head >= heads)
            kernels_.store_cache(cache(row, row.keys), head - heads, row.position, x, head_dim);
    }
}

ProjectionView StepMember::out_of(const LayerView &layer) {
    return layer.apart ? layer.parts[3] : ProjectionView{layer.o, layer.o_bias, nullptr, false};
}

int64_t StepMember::out_step(const ProjectionView &o) const {
    return std::min(kMaxChunkRows, rows_per_chunk(o.weight, team_.threads()));
}

void StepMember::add_out_rows(const ProjectionView &o) {
    const int64_t step = out_step(o);
    const Want want{o.weight.format, o.threshold, Part::o, 0};
    prepare(w_.attended, q_, Norm::none, nullptr, &want, 1);
    team_.claim(phase_++, thread_, chunks(hidden_, step), [&](int64_t chunk, int64_t following) {
        const int64_t begin = chunk * step, end = std::min(begin + step, hidden_);
        float out[kMaxRows * kMaxChunkRows];
        kernels_.dot_rows(o.weight, o.bias, inputs_[0], w_.count, begin, end,
                          following < 0 ? -1 : following * step, out, kMaxChunkRows);
        for (int64_t b = 0; b < w_.count; b++)
            for (int64_t j = begin; j < end; j++)
                w_.hidden[b * hidden_ + j] += out[b * kMaxChunkRows + j - begin];
    });
}

void StepMember::add_out_by_input(const ProjectionView &o) {
    const ByInput product = by_input(o, Part::o, w_.attended, w_.hidden, hidden_, true, 0);
    claim_ranges(product);
    team_.meet();
    team_.claim(phase_++, thread_, product.chunks + 1,
                [&](int64_t unit, int64_t) { sum_by_input(product, unit); });
}

}  // namespace sparseinfer
