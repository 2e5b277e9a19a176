// The row loops by format.

template <int N>
struct Size {
    static constexpr int value = N;
};

template <Format F, int B>
inline void dot(const uint8_t *row, const Input *in, int64_t n, const uint8_t *ahead, Vec *out) {
    if constexpr (F == Format::fp32)
        dot_plain<float, B>(row, in, n, ahead, out);
    else if constexpr (F == Format::bf16)
        dot_plain<bf16, B>(row, in, n, ahead, out);
    else
        dot_quantised<F, B>(row, in, n, ahead, out);
}

template <Format F, int R, int B>
inline void axpy_rows(const uint8_t *const *rows, const float *const *scale, int64_t n,
                      const uint8_t *const *ahead, float *const *acc) {
    if constexpr (F == Format::fp32)
        axpy_plain<float, R, B>(rows, scale, n, ahead, acc);
    else if constexpr (F == Format::bf16)
        axpy_plain<bf16, R, B>(rows, scale, n, ahead, acc);
    else if constexpr (F == Format::int8)
        axpy_int8<R, B>(rows, scale, n, ahead, acc);
    else
        axpy_int4<R, B>(rows, scale, n, ahead, acc);
}

// Rows that will be read soon: rows that are worked on ask for one of them each, or every so many
// of them do.
struct Soon {
    const uint8_t *const *rows;
    int count;
    int64_t bytes;    // of a row
    int every = 1;
    int turn = 0;

    // Spreads what is left over so many rows' work, which passes over each row `passes` times.
    void spread(int64_t work, int64_t passes) {
        every = count > 0 ? static_cast<int>(smaller(passes, work / count)) : 1;
        if (every < 1) every = 1;
        turn = 0;
    }

    // The next of them, or null.
    const uint8_t *take() {
        if (count == 0 || turn++ % every != 0) return nullptr;
        count--;
        return *rows++;
    }

    // Asks for the start of up to `most` of them at once.
    void fetch(int most) {
        for (; most > 0 && count > 0; most--, count--) prefetch_start(*rows++, bytes);
    }
};

// acc[b] += scale[b][i] * rows[i] for all i, in order, and B accumulators; acc in the order of
// `column_position`.
template <Format F, int B>
inline void axpy(const uint8_t *const *rows, int count, const float *const *scale, int64_t n,
                 float *const *acc, Soon &soon) {
    int i = 0;
    const auto add = [&](auto size) {
        constexpr int kRows = decltype(size)::value;
        const uint8_t *ahead[kRows];
        const float *here[B];
        for (int r = 0; r < kRows; r++) {
            ahead[r] = soon.take();
            if (!ahead[r]) ahead[r] = r == 0 ? nullptr : rows[i + r];    // all or none
        }
        for (int b = 0; b < B; b++) here[b] = scale[b] + i;
        axpy_rows<F, kRows, B>(rows + i, here, n, ahead, acc);
        i += kRows;
    };
    while (i + kAxpyGroup <= count) add(Size<kAxpyGroup>{});
    if (i + 4 <= count) add(Size<4>{});
    if (i + 2 <= count) add(Size<2>{});
    if (i < count) add(Size<1>{});
}

// out[b][i] = rows[i] . in[b] for up to 16 rows and the vectors begin..end-1, B at a time.
template <Format F, int B>
inline void dot_tiles(const uint8_t *const *rows, int count, const uint16_t *wanted,
                      const Input *in, int64_t begin, int64_t end, int64_t n, Soon &soon,
                      float (*out)[16]) {
    for (int64_t b = begin; b < end; b += B) {
        Vec parts[B][16];
        for (int i = 0; i < 16; i++) {
            Vec tile[B];
            for (int t = 0; t < B; t++) tile[t] = zero();
            if (i < count && (!wanted || (wanted[i] >> b & ((1 << B) - 1))))
                dot<F, B>(rows[i], in + b, n, soon.take(), tile);
            for (int t = 0; t < B; t++) parts[t][i] = tile[t];
        }
        for (int t = 0; t < B; t++) sums(parts[t], out[b + t]);
    }
}

// out[b][i] = rows[i] . in[b] for up to 16 rows. `wanted` (or null): bit b of wanted[i] says whether
// that one is needed; the others may be left as they are.
template <Format F>
inline void dot_sixteen(const uint8_t *const *rows, int count, const uint16_t *wanted,
                        const Input *in, int64_t batch, int64_t n, Soon &soon, float (*out)[16]) {
    // Asked for in the first pass alone, rows would be waited for in it, and memory idle in the
    // others.
    const int64_t passes = (batch + kTile - 1) / kTile;
    soon.spread(count * passes, passes);
    int64_t begin = 0;
    const auto multiply = [&](auto size, int64_t end) {
        constexpr int B = decltype(size)::value;
        dot_tiles<F, B>(rows, count, wanted, in, begin, end, n, soon, out);
        begin = end;
    };
    if constexpr (kTile > 1) multiply(Size<kTile>{}, batch - batch % kTile);
    if constexpr (kWidth == 8) multiply(Size<2>{}, batch - batch % 2);
    multiply(Size<1>{}, batch);
    soon.spread(1, 1);
}

inline int64_t column_position(Format format, int64_t column, int64_t columns) {
    if (format == Format::bf16) return bf16_position(column, columns);
    return format == Format::int4 ? int4_position(column, groups_of(columns)) : column;
}

#define SPARSEINFER_BY_FORMAT(format, call)              \
    switch (format) {                                    \
        case Format::fp32: call(Format::fp32); break;    \
        case Format::bf16: call(Format::bf16); break;    \
        case Format::int8: call(Format::int8); break;    \
        case Format::int4: call(Format::int4); break;    \
    }
