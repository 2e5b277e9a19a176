// The gated FFN of one thread over neurons that were chosen before.

// Chosen neurons of one range, and whether it has no others behind them.
struct ChosenStep {
    int64_t range;
    bool last;
    int count;
    int32_t neuron[kGateRows];
    uint16_t mask[kGateRows];
};

// Goes through the chosen neurons of the ranges of one thread, and clears the counts of each range.
class ChosenWalk {
public:
    ChosenWalk(const FfnWeights &w, const FfnCall &call, int64_t first, int64_t *next)
        : w_(w), call_(call), next_(next), ranges_((w.intermediate + w.range - 1) / w.range) {
        enter(first);
    }

    // Up to kGateRows more; false where none is left.
    bool take(ChosenStep &step) {
        step.count = 0;
        while (range_ < ranges_) {
            step.range = range_;
            for (; at_ < end_ && step.count < kGateRows; at_++) {
                if (!call_.chosen[at_]) continue;
                step.neuron[step.count] = static_cast<int32_t>(at_);
                step.mask[step.count++] = call_.chosen[at_];
            }
            while (at_ < end_ && !call_.chosen[at_]) at_++;
            step.last = at_ == end_;
            if (step.last) enter(__atomic_fetch_add(next_, 1, __ATOMIC_RELAXED));
            if (step.count > 0) return true;
        }
        return false;
    }

private:
    void enter(int64_t range) {
        range_ = range;
        if (range >= ranges_) return;
        at_ = range * w_.range;
        end_ = smaller(at_ + w_.range, w_.intermediate);
        int32_t *reads = call_.reads + range * call_.rows * 2;
        for (int64_t b = 0; b < 2 * call_.rows; b++) reads[b] = 0;
    }

    const FfnWeights &w_;
    const FfnCall &call_;
    int64_t *next_;
    const int64_t ranges_;
    int64_t range_ = 0, at_ = 0, end_ = 0;
};

// Asks for the scales of neurons in planes, which lie in the high ones: no row that is worked on asks
// for those.
inline void fetch_scales(const ChooserView &planes, const ChosenStep &step) {
    const int64_t bytes = 2 * groups_of(planes.hidden);
    const uint8_t *const rows[2] = {planes.gate, planes.up};
    for (int i = 0; i < step.count; i++)
        for (int p = 0; p < 2; p++) {
            const uint8_t *row = rows[p] + step.neuron[i] * planes.stride;
            for (int64_t k = 0; k < bytes; k += kLine) prefetch(row + k);
            prefetch(row + bytes - 1);
        }
}

// As ffn_ranges_of, with the gate rows of chosen neurons alone.
template <Format F, bool kPlanes>
void ffn_chosen_of(const FfnWeights &w, const FfnCall &call, int64_t first, int64_t *next) {
    FfnScratch &s = *static_cast<FfnScratch *>(call.scratch);
    const int64_t n = w.hidden, gate_bytes = kPlanes ? groups_of(n) * kHalves : bytes_per_row<F>(n);
    const bool sketched = w.chooser.kind == Choice::sketch || w.chooser.kind == Choice::planes;
    int now = 0, at = 0;
    for (FfnBatch &batch : s.batches) batch.count = 0;
    ChosenWalk walk(w, call, first, next);
    ChosenStep steps[2];
    bool more = walk.take(steps[at]);
    while (more) {
        const ChosenStep &step = steps[at];
        more = walk.take(steps[1 - at]);
        const ChosenStep &following = steps[1 - at];
        at = 1 - at;
        if (kPlanes && more) fetch_scales(w.chooser, following);
        FfnBatch &batch = s.batches[now];
        FfnBatch &before = s.batches[1 - now];
        batch.range = step.range;

        const uint8_t *coming[kBatch];
        for (int i = 0; i < before.count; i++) coming[i] = row_of(w.up, before.neuron[i]);
        Soon ups{coming, before.count, gate_bytes};
        if constexpr (kPlanes) {
            low_sixteen(w, w.gate, w.chooser.gate, call.g, step.neuron, step.count, step.mask, call,
                        ups, s.g);
        } else {
            const uint8_t *rows[kGateRows];
            for (int i = 0; i < step.count; i++) rows[i] = row_of(w.gate, step.neuron[i]);
            dot_sixteen<F>(rows, step.count, step.mask, call.inputs, call.rows, n, ups, s.g);
        }
        ups.fetch(kBatch);    // ups that no gate row asked for
        for (int64_t b = 0; b < call.rows; b++) {
            if (w.gate_bias)
                for (int i = 0; i < step.count; i++) s.g[b][i] += w.gate_bias[step.neuron[i]];
            activate(w.phi, s.g[b]);
        }
        int32_t *reads = call.reads + step.range * call.rows * 2;
        for (int i = 0; i < step.count; i++) {
            const float threshold = sketched ? 0.0f : w.threshold[step.neuron[i]];
            uint16_t mask = 0;
            for (int64_t b = 0; b < call.rows; b++)
                if ((step.mask[i] >> b & 1) && keeps(s.g[b][i], threshold)) {
                    mask |= static_cast<uint16_t>(1u << b);
                    reads[2 * b]++;
                }
            if (!mask) continue;
            batch.neuron[batch.count] = step.neuron[i];
            batch.mask[batch.count] = mask;
            for (int64_t b = 0; b < call.rows; b++) batch.a[b][batch.count] = s.g[b][i];
            batch.count++;
        }
        if (batch.count < kEnough && !step.last) continue;

        const uint8_t *gate[kGateRows];
        for (int i = 0; more && i < following.count; i++)
            gate[i] = row_of(w.gate, following.neuron[i]);
        Soon gates{gate, more ? following.count : 0, gate_bytes};
        finish_batch<F, kPlanes>(w, call, before, s, gates);
        gates.fetch(kGateRows);    // gates that no down row asked for
        if (batch.count > kEnough && !step.last) carry_over(batch, call.rows, before);
        now = 1 - now;
    }
    // One of the two is empty.
    for (FfnBatch &batch : s.batches) {
        Soon nothing{nullptr, 0, gate_bytes};
        finish_batch<F, kPlanes>(w, call, batch, s, nothing);
    }
}

void ffn_chosen(const FfnWeights &w, const FfnCall &call, int64_t first, int64_t *next) {
    if (w.chooser.kind == Choice::planes)
        return ffn_chosen_of<Format::int8, true>(w, call, first, next);
#define SPARSEINFER_CALL(F) ffn_chosen_of<F, false>(w, call, first, next)
    SPARSEINFER_BY_FORMAT(w.gate.format, SPARSEINFER_CALL)
#undef SPARSEINFER_CALL
}
