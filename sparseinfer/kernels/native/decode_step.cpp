#include "decode_step.h"

#include <algorithm>

#include "choose.h"
#include "gated_ffn.h"
#include "linear.h"

namespace sparseinfer {
namespace {

// As `keeps` in ffn.inl: NaN counts.
bool reaches(float x, float threshold) {
    return (__builtin_fabsf(x) >= threshold || x != x) && x != 0.0f;
}

// The inputs that count, 0 for the others; returns how many count.
int64_t mask_inputs(const float *x, const float *threshold, int64_t n, float *out) {
    int64_t used = 0;
    for (int64_t j = 0; j < n; j++) {
        const bool counted = reaches(x[j], threshold[j]);
        out[j] = counted ? x[j] : 0.0f;
        used += counted;
    }
    return used;
}

}  // namespace

StepMember::StepMember(const ModelView &model, const Kernels &kernels, Team &team, StepWork &work,
                       int64_t thread)
    : model_(model), kernels_(kernels), team_(team), w_(work), thread_(thread),
      hidden_(model.head.columns), q_(model.heads * model.head_dim),
      qkv_rows_(q_ + 2 * model.kv_heads * model.head_dim), alone_(work.count == 1),
      normed_(work.normed + (alone_ ? thread * hidden_ : 0)) {}

int64_t StepMember::phases(const LayerView &layer) {
    const int64_t attention = layer.apart ? 3 + 1 + 2 : 1 + 1 + 1;
    const int64_t choice = layer.ffn.chooser.kind == Choice::none      ? 0
                           : layer.ffn.chooser.kind == Choice::lowrank ? 2
                                                                       : 1;
    const int64_t counting = is_predictor(layer.ffn.chooser.kind) ? 2 : 0;    // firing neurons
    return attention + choice + counting + (needs_all_gates(layer.ffn) ? 6 : 2);
}

void StepMember::run() {
    const int64_t threads = team_.threads();
    for (int64_t b = thread_; b < w_.count; b += threads)
        kernels_.widen_row(model_.embedding, w_.rows[b].token, w_.hidden + b * hidden_);
    team_.meet();
    for (layer_ = 0; layer_ < static_cast<int64_t>(model_.layers.size()); layer_++) {
        const LayerView &layer = model_.layers[layer_];
        if (layer.apart)
            project_apart(layer);
        else
            project_together(layer);
        const ProjectionView o = out_of(layer);
        if (!o.by_input) fetch_start(o.weight, thread_ * out_step(o));
        team_.meet();
        attend();
        if (o.by_input)
            add_out_by_input(o);
        else
            add_out_rows(o);
        fetch_ffn(layer.ffn);
        team_.meet();
        ffn(layer);
        team_.meet();
    }
    head();
}

float *StepMember::masked(int slot, int64_t row) const {
    const int64_t copy = alone_ ? thread_ : 0;
    return w_.masked + ((copy * w_.slots + slot) * w_.count + row) * w_.widest;
}

void *StepMember::input_memory(int slot, int64_t row) const {
    const int64_t copy = alone_ ? thread_ : 0;
    return w_.inputs + ((copy * w_.slots + slot) * w_.count + row) * w_.input_bytes;
}

// Of one row in this layer.
int32_t *StepMember::counts(int64_t row) const {
    return w_.counts + (layer_ * w_.count + row) * (model_.counts_all ? 3 + kParts : 2);
}

void StepMember::count_inputs(int64_t row, Part part, int64_t used) {
    if (model_.counts_all) counts(row)[3 + static_cast<int>(part)] = static_cast<int32_t>(used);
}

// Norms rows [from, count) of x where there is a norm, and fills `inputs_` for what is wanted of
// them. Norms are left in `normed_`.
void StepMember::prepare(const float *x, int64_t n, Norm norm, const float *weight,
                         const Want *wants, int wanted, int64_t from) {
    const int64_t threads = team_.threads();
    const float *rows = norm == Norm::none ? x : normed_;
    for (int64_t b = from; b < w_.count; b++) {
        if (!alone_ && b % threads != thread_) continue;
        if (norm != Norm::none) {
            float *out = normed_ + b * n;
            kernels_.rms_norm(x + b * n, weight, model_.eps, n, out);
            if (norm == Norm::layer && model_.input_relu)
                for (int64_t j = 0; j < n; j++) out[j] = out[j] < 0.0f ? 0.0f : out[j];
        }
        for (const Want *want = wants; want < wants + wanted; want++) {
            const float *row = rows + b * n;
            if (want->threshold) {
                float *out = masked(want->slot, b);
                const int64_t used = mask_inputs(row, want->threshold, n, out);
                if (!alone_ || thread_ == 0) count_inputs(b, want->part, used);
                row = out;
            }
            fill(*want, row, n, b);
        }
    }
    if (alone_) return;
    team_.meet();
    for (int64_t b = from; b < w_.count; b++)
        for (const Want *want = wants; want < wants + wanted; want++) {
            if (b % threads == thread_) continue;
            const float *row = want->threshold ? masked(want->slot, b) : rows + b * n;
            view(*want, row, n, b);
        }
}

void StepMember::fill(const Want &want, const float *x, int64_t n, int64_t row) {
    void *memory = input_memory(want.slot, row);
    Input *input = &inputs_[want.slot][row];
    if (want.chooser)
        kernels_.fill_choice(*want.chooser, x, memory, input);
    else
        kernels_.fill_input(want.format, x, n, memory, input);
}

// What another thread has filled.
void StepMember::view(const Want &want, const float *x, int64_t n, int64_t row) {
    void *memory = input_memory(want.slot, row);
    Input *input = &inputs_[want.slot][row];
    if (want.chooser)
        kernels_.view_choice(*want.chooser, x, memory, input);
    else
        kernels_.view_input(want.format, x, n, memory, input);
}

CacheView StepMember::cache(const TokenRow &row, uint8_t *base) const {
    return CacheView{base + layer_ * row.layer_stride, row.head_stride, model_.cache_format};
}

void StepMember::fetch_start(const MatrixView &m, int64_t row) const {
    if (row < m.rows) fetch_bytes(m.data + row * m.stride, (m.rows - row) * m.stride);
}

void StepMember::fetch_bytes(const uint8_t *data, int64_t bytes) const {
    constexpr int64_t kBytes = 16 << 10;
    for (int64_t i = 0; i < std::min(kBytes, bytes); i += 64)
        __builtin_prefetch(data + i, 0, 2);
}

void StepMember::attend() {
    const int64_t heads = model_.heads, head_dim = model_.head_dim;
    team_.claim(phase_++, thread_, w_.count * heads, [&](int64_t unit, int64_t) {
        const int64_t b = unit / heads, head = unit % heads;
        const TokenRow &row = w_.rows[b];
        AttentionHead call{};
        call.query = w_.qkv + b * qkv_rows_ + head * head_dim;
        call.keys = cache(row, row.keys);
        call.values = cache(row, row.values);
        call.kv_head = head / (heads / model_.kv_heads);
        call.end = row.position + 1;
        call.begin = model_.window > 0 ? std::max<int64_t>(0, call.end - model_.window) : 0;
        call.head_dim = head_dim;
        call.scores = w_.scores + thread_ * w_.longest;
        call.out = w_.attended + b * q_ + head * head_dim;
        kernels_.attend(call);
    });
    team_.meet();
}

void StepMember::head() {
    const Want want{model_.head.format, nullptr, Part::q, 0};
    prepare(w_.hidden, hidden_, Norm::last, model_.final_norm, &want, 1, w_.first_logits);
    const int64_t vocabulary = model_.head.rows;
    const int64_t step = rows_per_chunk(model_.head, team_.threads());
    team_.claim(phase_, thread_, (vocabulary + step - 1) / step, [&](int64_t chunk,
                                                                    int64_t following) {
        const int64_t begin = chunk * step;
        kernels_.dot_rows(model_.head, nullptr, inputs_[0] + w_.first_logits,
                          w_.count - w_.first_logits, begin, std::min(begin + step, vocabulary),
                          following < 0 ? -1 : following * step, w_.logits + begin, vocabulary);
    });
}

}  // namespace sparseinfer
