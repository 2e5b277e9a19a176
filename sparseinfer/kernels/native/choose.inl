// Which neurons are computed, before a row of the gate is read: by low-rank logits, sign bits, or
// what a sketch estimates.

constexpr int kChosenRows = 16;    // neurons per step

inline int64_t sign_words(int64_t columns) { return (columns + 63) / 64; }

// What a chooser multiplies: memory for one row of x.
int64_t choice_bytes(const ChooserView &c) {
    switch (c.kind) {
        case Choice::lowrank: return input_bytes(c.inward.format, c.inward.columns);
        case Choice::sign: return padded(8 * (sign_words(c.hidden) + 1));
        case Choice::sketch: return sketch_input_bytes(c.hidden);
        case Choice::planes: return input_bytes(Format::int8, c.hidden);
        default: return 0;
    }
}

// Sign bits of x, then a word that is not 0 where x has a NaN.
inline void view_signs(void *memory, Input *in) {
    *in = Input{};
    in->signs = static_cast<const uint64_t *>(memory);
}

inline void fill_signs(const float *x, int64_t columns, void *memory, Input *in) {
    uint64_t *words = static_cast<uint64_t *>(memory);
    const int64_t count = sign_words(columns);
    uint64_t spoiled = 0;
    for (int64_t i = 0; i <= count; i++) words[i] = 0;
    for (int64_t j = 0; j < columns; j++) {
        words[j / 64] |= static_cast<uint64_t>(x[j] < 0.0f) << (j % 64);
        spoiled |= static_cast<uint64_t>(x[j] != x[j]);
    }
    words[count] = spoiled;
    view_signs(memory, in);
}

void view_choice(const ChooserView &c, const float *x, void *memory, Input *in) {
    switch (c.kind) {
        case Choice::lowrank: return view_input(c.inward.format, x, c.inward.columns, memory, in);
        case Choice::sign: return view_signs(memory, in);
        case Choice::sketch: return view_sketch_input(x, c.hidden, memory, in);
        case Choice::planes: return view_input(Format::int8, x, c.hidden, memory, in);
        default: return;
    }
}

void fill_choice(const ChooserView &c, const float *x, void *memory, Input *in) {
    switch (c.kind) {
        case Choice::lowrank: return fill_input(c.inward.format, x, c.inward.columns, memory, in);
        case Choice::sign: return fill_signs(x, c.hidden, memory, in);
        case Choice::sketch: return fill_sketch_input(x, c.hidden, memory, in);
        case Choice::planes: return fill_input(Format::int8, x, c.hidden, memory, in);
        default: return;
    }
}

// out[b][i]: logits of neurons i0 + i, without bias.
inline void logits_sixteen(const ChooserView &c, const ChooseCall &call, int64_t i0, int count,
                           float (*out)[16]) {
    const uint8_t *rows[kChosenRows], *coming[kChosenRows];
    int known = 0;
    for (int i = 0; i < count; i++) rows[i] = row_of(c.outward, i0 + i);
    for (; known < kChosenRows && i0 + count + known < c.outward.rows; known++)
        coming[known] = row_of(c.outward, i0 + count + known);
    Soon soon{coming, known, c.outward.stride};
#define SPARSEINFER_CALL(F) \
    dot_sixteen<F>(rows, count, nullptr, call.inputs, call.rows, c.outward.columns, soon, out)
    SPARSEINFER_BY_FORMAT(c.outward.format, SPARSEINFER_CALL)
#undef SPARSEINFER_CALL
}

inline uint16_t chosen_by_signs(const ChooserView &c, const ChooseCall &call, int64_t neuron) {
    const int64_t words = sign_words(c.hidden);
    const uint8_t *row = c.bits + neuron * 8 * words;
    uint16_t mask = 0;
    for (int64_t b = 0; b < call.rows; b++) {
        const uint64_t *signs = call.inputs[b].signs;
        int64_t negative = 0;
        for (int64_t i = 0; i < words; i++) {
            uint64_t word;
            __builtin_memcpy(&word, row + 8 * i, 8);
            negative += __builtin_popcountll(word ^ signs[i]);
        }
        if (negative <= c.most || signs[words] != 0) mask |= static_cast<uint16_t>(1u << b);
    }
    return mask;
}

// Rows of sketches, or of high planes, that share each piece of the input: gates and ups of half as
// many neurons.
constexpr int kSketchRows = 4;

template <int R>
inline void sketch_rows(const ChooserView &c, const uint8_t *const *rows, const Input &in,
                        const uint8_t *const *ahead, Vec *out) {
    const int64_t groups = sketch_groups(c.hidden);
    if (c.kind == Choice::planes) {
        const uint8_t *codes[R];
        for (int r = 0; r < R; r++) codes[r] = rows[r] + 2 * groups_of(c.hidden);
        dot_plane<R>(kHighPlane, rows, codes, in, c.hidden, ahead, 2 + kHalves, out);
    } else if (c.code_bits == 4) {
        dot_sketch<4, R>(rows, in, groups, ahead, out);
    } else if (c.code_bits == 3) {
        dot_sketch<3, R>(rows, in, groups, ahead, out);
    } else {
        dot_sketch<2, R>(rows, in, groups, ahead, out);
    }
}

// g[i], u[i]: what neuron i0 + i's rows of gate and up estimate, without bias. `soon`: the first of
// the neurons that come next.
inline void sketch_sixteen(const ChooserView &c, int64_t i0, int count, int64_t soon,
                           const Input &in, float *g, float *u) {
    Vec found[2][kChosenRows];  // of gate, and of up
    for (int i = 0; i < kChosenRows; i += kSketchRows / 2) {
        const int here = count - i < kSketchRows / 2 ? count - i : kSketchRows / 2;
        const uint8_t *rows[kSketchRows], *ahead[kSketchRows];
        Vec out[kSketchRows];
        for (int r = 0; r < kSketchRows; r++) {
            out[r] = zero();
            const int64_t neuron = i0 + i + r / 2;
            rows[r] = (r % 2 ? c.up : c.gate) + neuron * c.stride;
            const int64_t coming = soon + i + r / 2;
            ahead[r] = coming < c.neurons ? (r % 2 ? c.up : c.gate) + coming * c.stride : nullptr;
        }
        if (here == kSketchRows / 2)
            sketch_rows<kSketchRows>(c, rows, in, ahead, out);
        else if (here > 0)
            sketch_rows<2>(c, rows, in, ahead, out);
        for (int r = 0; r < kSketchRows; r++) found[r % 2][i + r / 2] = out[r];
    }
    sums(found[0], g);
    sums(found[1], u);
}

// Sets bit `b` of mask[i] where row b of x estimates that neuron i0 + i puts out enough.
inline void chosen_by_sketch(const ChooserView &c, const ChooseCall &call, int64_t i0, int count,
                             int64_t soon, uint16_t *mask) {
    for (int64_t b = 0; b < call.rows; b++) {
        float g[16], u[16];
        sketch_sixteen(c, i0, count, soon, call.inputs[b], g, u);
        if (call.g) {
            __builtin_memcpy(call.g + b * c.neurons + i0, g, count * sizeof(float));
            __builtin_memcpy(call.u + b * c.neurons + i0, u, count * sizeof(float));
        }
        for (int i = 0; i < count; i++) {
            if (c.gate_bias) g[i] += c.gate_bias[i0 + i];
            if (c.up_bias) u[i] += c.up_bias[i0 + i];
            if (c.psi == Psi::relu) u[i] = relu(u[i]);
        }
        activate(c.phi, g);
        for (int i = 0; i < count; i++) {
            const float estimate = __builtin_fabsf(g[i] * u[i]);
            // NaN counts, so that it reaches the output.
            if (!(estimate < c.threshold[i0 + i])) mask[i] |= static_cast<uint16_t>(1u << b);
        }
    }
}

void choose(const ChooserView &c, const ChooseCall &call, int64_t begin, int64_t end,
            int64_t following) {
    for (int64_t i0 = begin; i0 < end; i0 += kChosenRows) {
        const int count = static_cast<int>(smaller(kChosenRows, end - i0));
        uint16_t mask[kChosenRows] = {};
        if (c.kind == Choice::lowrank) {
            float logit[kMaxRows][16];
            logits_sixteen(c, call, i0, count, logit);
            for (int64_t b = 0; b < call.rows; b++)
                for (int i = 0; i < count; i++)
                    if (!(logit[b][i] + c.bias[i0 + i] < 0.0f))
                        mask[i] |= static_cast<uint16_t>(1u << b);
        } else if (c.kind == Choice::sign) {
            for (int i = 0; i < count; i++) mask[i] = chosen_by_signs(c, call, i0 + i);
        } else {
            // The last of these neurons ask for the first of those where the thread goes on.
            const int64_t behind = following < 0 ? c.neurons : following;
            chosen_by_sketch(c, call, i0, count, i0 + count < end ? i0 + count : behind, mask);
        }
        for (int i = 0; i < count; i++) call.chosen[i0 + i] = mask[i];
    }
}
