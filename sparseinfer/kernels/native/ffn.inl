// The gated FFN of one thread: gate first, then up and down of the neurons that are kept.
//
// Each of the three reads rows that the one before has asked for: the gate rows of one step ask for
// the up rows of the batch before, those for its down rows, and those for the next gate rows.

constexpr int kGateRows = 16;    // gate rows per step
constexpr int kEnough = 16;      // kept neurons of an up and down pass: what `sums` adds up at once
constexpr int kBatch = kEnough - 1 + kGateRows;
constexpr int kShare = kWidth == 16 ? 4 : 1;    // batch rows that share a widened down row

struct FfnBatch {
    int64_t range;
    int count;
    int32_t neuron[kBatch];
    uint16_t mask[kBatch];    // bit b: row b keeps the neuron
    float a[kMaxRows][kBatch];
};

// Takes all neurons but the first kEnough over into an empty batch.
inline void carry_over(FfnBatch &from, int64_t rows, FfnBatch &to) {
    to.range = from.range;
    to.count = from.count - kEnough;
    for (int i = 0; i < to.count; i++) {
        to.neuron[i] = from.neuron[kEnough + i];
        to.mask[i] = from.mask[kEnough + i];
        for (int64_t b = 0; b < rows; b++) to.a[b][i] = from.a[b][kEnough + i];
    }
    from.count = kEnough;
}

struct FfnScratch {
    FfnBatch batches[2];
    float g[kMaxRows][16];
    float u[kMaxRows][16];
};

// Written so that NaN comes out as NaN: a comparison with NaN is false.
inline float relu(float v) { return v < 0.0f ? 0.0f : v; }

// phi of 16 values in place.
inline void activate(Phi phi, float *g) {
    if (phi == Phi::silu) {
        for (int i = 0; i < 16; i += kWidth) {
            const Vec v = load(g + i);
            store(g + i, divide(v, add(splat(1.0f), exponential(sub(zero(), v)))));
        }
        return;
    }
    for (int i = 0; i < 16; i++) g[i] = relu(g[i]);
    if (phi == Phi::relu2)
        for (int i = 0; i < 16; i++) g[i] *= g[i];
}

// A NaN activation is kept, so that it reaches the output instead of vanishing.
inline bool keeps(float a, float threshold) {
    return (__builtin_fabsf(a) >= threshold || a != a) && a != 0.0f;
}

inline const uint8_t *row_of(const MatrixView &m, int64_t row) { return m.data + row * m.stride; }

// Adds the down rows of a batch to the accumulators of batch rows b0..b0+B-1, whose neuron outputs
// are batch.a (0 where a row drops the neuron).
template <Format F, int B>
void add_down(const FfnWeights &w, const FfnCall &call, const FfnBatch &batch,
              const uint8_t *const *down, int64_t b0, Soon &next) {
    const uint8_t *rows[kBatch];
    float h[B][kBatch];
    const float *scale[B];
    float *acc[B];
    int needed = 0, live[B] = {};
    for (int i = 0; i < batch.count; i++) {
        bool any = false;
        for (int b = 0; b < B; b++) {
            h[b][needed] = batch.a[b0 + b][i];
            any |= h[b][needed] != 0.0f;
            live[b] += h[b][needed] != 0.0f;
        }
        if (any) rows[needed++] = down[i];
    }
    if (needed == 0) return;
    for (int b = 0; b < B; b++) {
        const int64_t slot = batch.range * call.rows + b0 + b;
        int32_t &reads = call.reads[2 * slot + 1];
        scale[b] = h[b];
        acc[b] = call.partial + slot * call.width;
        if (reads == 0) __builtin_memset(acc[b], 0, call.width * sizeof(float));
        reads += live[b];
    }
    axpy<F, B>(rows, needed, scale, w.hidden, acc, next);
}

// Whether B batch rows from b0 share enough neurons that widening a down row once for all of them
// pays for the products with 0. Widening costs about two products.
template <int B>
bool worth_sharing(const FfnBatch &batch, int64_t b0) {
    int needed = 0, live = 0;
    for (int i = 0; i < batch.count; i++) {
        int here = 0;
        for (int b = 0; b < B; b++) here += batch.a[b0 + b][i] != 0.0f;
        live += here;
        needed += here != 0;
    }
    return 3 * live > (2 + B) * needed;
}

// add_down for as many tiles of B batch rows as there are from b; returns the first row left.
template <Format F, int B>
int64_t add_down_shared(const FfnWeights &w, const FfnCall &call, const FfnBatch &batch,
                        const uint8_t *const *down, int64_t b, Soon &next) {
    if constexpr (kShare >= B)
        for (; b + B <= call.rows; b += B) {
            if (worth_sharing<B>(batch, b))
                add_down<F, B>(w, call, batch, down, b, next);
            else
                for (int i = 0; i < B; i++) add_down<F, 1>(w, call, batch, down, b + i, next);
        }
    return b;
}

// out[b][i]: what planes of neuron i add up to, the high ones being in `estimate` [rows, intermediate]
// already. `low`: rows of low halves; `high`: rows of the high plane, which begin with the scales.
inline void low_sixteen(const FfnWeights &w, const MatrixView &low, const uint8_t *high,
                        const float *estimate, const int32_t *neurons, int count,
                        const uint16_t *wanted, const FfnCall &call, Soon &soon, float (*out)[16]) {
    const int64_t per_group = soon.bytes / groups_of(w.hidden);
    for (int64_t b = 0; b < call.rows; b++) {
        int which[16], wants = 0;
        Vec parts[16];
        for (int i = 0; i < 16; i++) {
            parts[i] = zero();
            if (i < count && (wanted[i] >> b & 1)) which[wants++] = i;
        }
        int i = 0;
        const auto add = [&](auto size) {
            constexpr int kRows = decltype(size)::value;
            const uint8_t *scales[kRows], *rows[kRows], *ahead[kRows];
            Vec sums_of_rows[kRows];
            for (int r = 0; r < kRows; r++) {
                const int64_t neuron = neurons[which[i + r]];
                scales[r] = high + neuron * w.chooser.stride;
                rows[r] = row_of(low, neuron);
                ahead[r] = soon.take();
            }
            dot_plane<kRows>(kLowPlane, scales, rows, call.inputs[b], w.hidden, ahead, per_group,
                             sums_of_rows);
            for (int r = 0; r < kRows; r++) parts[which[i + r]] = sums_of_rows[r];
            i += kRows;
        };
        while (i + 4 <= wants) add(Size<4>{});
        if (i + 2 <= wants) add(Size<2>{});
        if (i < wants) add(Size<1>{});
        sums(parts, out[b]);
        for (int i = 0; i < count; i++) out[b][i] += estimate[b * w.intermediate + neurons[i]];
    }
}

// kPlanes: gate and up are in planes, and `call` has what the high ones add up to.
template <Format F, bool kPlanes = false>
void finish_batch(const FfnWeights &w, const FfnCall &call, FfnBatch &batch, FfnScratch &s,
                  Soon &next) {
    if (batch.count == 0) return;
    const int64_t n = w.hidden;
    const uint8_t *down[kBatch];
    for (int i = 0; i < batch.count; i++) down[i] = row_of(w.down, batch.neuron[i]);
    const Input *inputs = call.up_inputs ? call.up_inputs : call.inputs;
    // With a psi or a threshold that drops neurons, which rows of down are needed is not known yet.
    const bool known = w.psi == Psi::id && !w.down_input;
    Soon soon{down, known ? batch.count : 0, bytes_per_row<F>(n)};
    for (int i0 = 0; i0 < batch.count; i0 += 16) {
        const int count = batch.count - i0 < 16 ? batch.count - i0 : 16;
        if constexpr (kPlanes) {
            low_sixteen(w, w.up, w.chooser.up, call.u, batch.neuron + i0, count, batch.mask + i0,
                        call, soon, s.u);
        } else {
            const uint8_t *rows[16];
            for (int i = 0; i < count; i++) rows[i] = row_of(w.up, batch.neuron[i0 + i]);
            dot_sixteen<F>(rows, count, batch.mask + i0, inputs, call.rows, n, soon, s.u);
        }
        for (int64_t b = 0; b < call.rows; b++)
            for (int i = 0; i < count; i++) {
                const int32_t neuron = batch.neuron[i0 + i];
                float u = s.u[b][i];
                if (w.up_bias) u += w.up_bias[neuron];
                if (w.psi == Psi::relu) u = relu(u);
                const bool kept = batch.mask[i0 + i] >> b & 1;
                float h = kept ? batch.a[b][i0 + i] * u : 0.0f;
                if (w.down_input && !keeps(h, w.down_input[neuron])) h = 0.0f;
                batch.a[b][i0 + i] = h;
            }
    }
    int64_t b = add_down_shared<F, 4>(w, call, batch, down, 0, next);
    b = add_down_shared<F, 2>(w, call, batch, down, b, next);
    for (; b < call.rows; b++) add_down<F, 1>(w, call, batch, down, b, next);
    batch.count = 0;
}

template <Format F>
void ffn_ranges_of(const FfnWeights &w, const FfnCall &call, int64_t first, int64_t *next) {
    FfnScratch &s = *static_cast<FfnScratch *>(call.scratch);
    const int64_t ranges = (w.intermediate + w.range - 1) / w.range;
    const int64_t n = w.hidden, row_bytes = bytes_per_row<F>(n);
    const auto claim = [&] { return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED); };
    int now = 0;
    for (FfnBatch &batch : s.batches) batch.count = 0;

    // One range ahead, to know whose gate rows come next.
    int64_t following = first;
    while (following < ranges) {
        const int64_t range = following;
        following = claim();
        const int64_t begin = range * w.range;
        const int64_t end = smaller(begin + w.range, w.intermediate);
        int32_t *reads = call.reads + range * call.rows * 2;
        for (int64_t b = 0; b < 2 * call.rows; b++) reads[b] = 0;

        for (int64_t i0 = begin; i0 < end; i0 += kGateRows) {
            FfnBatch &batch = s.batches[now];
            FfnBatch &before = s.batches[1 - now];
            batch.range = range;
            const int count = static_cast<int>(smaller(kGateRows, end - i0));
            // Gate rows are wanted again when those of this step are through.
            const int64_t next_row = i0 + kGateRows < end ? i0 + kGateRows : following * w.range;
            const uint8_t *gate[kGateRows];
            int known = 0;
            for (; known < kGateRows && next_row + known < w.intermediate; known++)
                gate[known] = row_of(w.gate, next_row + known);

            const uint8_t *rows[kGateRows], *coming[kBatch + kGateRows];
            for (int i = 0; i < count; i++) rows[i] = row_of(w.gate, i0 + i);
            int expected = 0;
            for (; expected < before.count; expected++)
                coming[expected] = row_of(w.up, before.neuron[expected]);

            Soon soon{coming, expected, row_bytes};
            dot_sixteen<F>(rows, count, nullptr, call.inputs, call.rows, n, soon, s.g);
            soon.fetch(kBatch);    // ups that no gate row asked for
            for (int64_t b = 0; b < call.rows; b++) {
                if (w.gate_bias)
                    for (int i = 0; i < count; i++) s.g[b][i] += w.gate_bias[i0 + i];
                activate(w.phi, s.g[b]);
            }
            for (int i = 0; i < count; i++) {
                uint16_t mask = 0;
                for (int64_t b = 0; b < call.rows; b++)
                    if (keeps(s.g[b][i], w.threshold[i0 + i])) {
                        mask |= static_cast<uint16_t>(1u << b);
                        reads[2 * b]++;
                    }
                if (!mask) continue;
                batch.neuron[batch.count] = static_cast<int32_t>(i0 + i);
                batch.mask[batch.count] = mask;
                for (int64_t b = 0; b < call.rows; b++) batch.a[b][batch.count] = s.g[b][i];
                batch.count++;
            }
            if (batch.count < kEnough && i0 + kGateRows < end) continue;

            Soon gates{gate, known, row_bytes};
            finish_batch<F>(w, call, before, s, gates);
            if (batch.count > kEnough && i0 + kGateRows < end)
                carry_over(batch, call.rows, before);
            now = 1 - now;
        }
    }
    // One of the two is empty.
    for (FfnBatch &batch : s.batches) {
        Soon nothing{nullptr, 0, row_bytes};
        finish_batch<F>(w, call, batch, s, nothing);
    }
}

void ffn_ranges(const FfnWeights &w, const FfnCall &call, int64_t first, int64_t *next) {
#define SPARSEINFER_CALL(F) ffn_ranges_of<F>(w, call, first, next)
    SPARSEINFER_BY_FORMAT(w.gate.format, SPARSEINFER_CALL)
#undef SPARSEINFER_CALL
}

// phi of the gate values of one row, in place; 0 for what the threshold drops.
void activate_neurons(const FfnWeights &w, float *g, int64_t begin, int64_t end) {
    for (int64_t i0 = begin; i0 < end; i0 += 16) {
        const int64_t count = smaller(16, end - i0);
        float a[16] = {};
        for (int64_t i = 0; i < count; i++) a[i] = g[i0 + i];
        activate(w.phi, a);
        for (int64_t i = 0; i < count; i++)
            g[i0 + i] = keeps(a[i], w.threshold[i0 + i]) ? a[i] : 0.0f;
    }
}

int64_t neuron_outputs(const FfnWeights &w, float *a, const float *u, int64_t begin, int64_t end) {
    int64_t kept = 0;
    for (int64_t i = begin; i < end; i++) {
        if (a[i] == 0.0f) continue;
        kept++;
        const float h = a[i] * (w.psi == Psi::relu ? relu(u[i]) : u[i]);
        a[i] = w.down_input && !keeps(h, w.down_input[i]) ? 0.0f : h;
    }
    return kept;
}

// Two batches take turns, as above: adding down rows of one asks for the up rows of the other.
template <Format F>
void ffn_given_of(const FfnWeights &w, const FfnCall &call, int64_t first, int64_t *next) {
    FfnScratch &s = *static_cast<FfnScratch *>(call.scratch);
    const int64_t ranges = (w.intermediate + w.range - 1) / w.range;
    const int64_t row_bytes = bytes_per_row<F>(w.hidden);
    int now = 0;
    for (FfnBatch &batch : s.batches) batch.count = 0;
    const auto take_turns = [&] {
        const FfnBatch &batch = s.batches[now];
        const uint8_t *up[kEnough];
        for (int i = 0; i < batch.count; i++) up[i] = row_of(w.up, batch.neuron[i]);
        Soon soon{up, batch.count, row_bytes};
        now = 1 - now;
        finish_batch<F>(w, call, s.batches[now], s, soon);
        soon.fetch(kEnough);    // ups that no down row asked for
    };
    for (int64_t range = first; range < ranges;
         range = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) {
        const int64_t begin = range * w.range;
        const int64_t end = smaller(begin + w.range, w.intermediate);
        int32_t *reads = call.reads + range * call.rows * 2;
        for (int64_t b = 0; b < 2 * call.rows; b++) reads[b] = 0;
        s.batches[now].range = range;
        for (int64_t i = begin; i < end; i++) {
            FfnBatch &batch = s.batches[now];
            uint16_t mask = 0;
            for (int64_t b = 0; b < call.rows; b++) {
                const float a = call.a[b * w.intermediate + i];
                batch.a[b][batch.count] = a;
                if (a == 0.0f) continue;
                mask |= static_cast<uint16_t>(1u << b);
                reads[2 * b]++;
            }
            if (!mask) continue;
            batch.neuron[batch.count] = static_cast<int32_t>(i);
            batch.mask[batch.count++] = mask;
            if (batch.count < kEnough) continue;
            take_turns();
            s.batches[now].range = range;
        }
        if (s.batches[now].count > 0) take_turns();
    }
    take_turns();
}

void ffn_given(const FfnWeights &w, const FfnCall &call, int64_t first, int64_t *next) {
#define SPARSEINFER_CALL(F) ffn_given_of<F>(w, call, first, next)
    SPARSEINFER_BY_FORMAT(w.down.format, SPARSEINFER_CALL)
#undef SPARSEINFER_CALL
}

// y[b, begin:end] from the accumulators [ranges, rows, width] that `written(slot)` names; rows of y
// lie `stride` apart.
template <class Written>
void sum_ranges(int64_t ranges, int64_t rows, int64_t width, const float *partial,
                Format format, const float *bias, int64_t columns, int64_t begin, int64_t end,
                bool add_to, float *y, int64_t stride, const Written &written) {
    for (int64_t b = 0; b < rows; b++)
        for (int64_t j0 = begin; j0 < end; j0 += kSumColumns) {
            const int64_t held = smaller(kSumColumns, width - j0);
            float acc[kSumColumns] = {};
            for (int64_t s = 0; s < ranges; s++) {
                const int64_t slot = s * rows + b;
                if (!written(slot)) continue;
                const float *part = partial + slot * width + j0;
                if (held == kSumColumns)
                    for (int64_t j = 0; j < kSumColumns; j++) acc[j] += part[j];
                else
                    for (int64_t j = 0; j < held; j++) acc[j] += part[j];
            }
            const int64_t stop = smaller(j0 + kSumColumns, end);
            for (int64_t j = j0; j < stop; j++) {
                float v = acc[column_position(format, j, columns) - j0];
                if (bias) v += bias[j];
                float *out = y + b * stride + j;
                *out = add_to ? *out + v : v;
            }
        }
}

void ffn_sum(const FfnWeights &w, const FfnCall &call, int64_t begin, int64_t end) {
    sum_ranges((w.intermediate + w.range - 1) / w.range, call.rows, call.width, call.partial,
               w.down.format, w.down_bias, w.hidden, begin, end, call.add, call.y, w.hidden,
               [&](int64_t slot) { return call.reads[2 * slot + 1] != 0; });
}
