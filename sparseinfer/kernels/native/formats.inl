// The row loops by format.

template <Format F, int B>
inline void dot(const uint8_t *row, const Input *in, int64_t n, Vec *out) {
    if constexpr (F == Format::fp32)
        dot_plain<float, B>(row, in, n, out);
    else if constexpr (F == Format::bf16)
        dot_plain<bf16, B>(row, in, n, out);
    else
        dot_quantised<F, B>(row, in, n, out);
}

template <Format F, int R>
inline void axpy_rows(const uint8_t *const *rows, const float *scale, int64_t n, float *acc) {
    if constexpr (F == Format::fp32)
        axpy_plain<float, R>(rows, scale, n, acc);
    else if constexpr (F == Format::bf16)
        axpy_plain<bf16, R>(rows, scale, n, acc);
    else if constexpr (F == Format::int8)
        axpy_int8<R>(rows, scale, n, acc);
    else
        axpy_int4<R>(rows, scale, n, acc);
}

// Rows that will be read soon: each row that is worked on asks for one of them, so that memory is
// never idle while there is something to compute.
struct Soon {
    const uint8_t *const *rows;
    int count;
    int64_t bytes;    // of a row

    void fetch(int rows_now) {
        for (; rows_now > 0 && count > 0; rows_now--, count--) prefetch(*rows++, bytes);
    }
};

// acc += scale[i] * rows[i] for all i, in order; acc in the order of `column_position`.
template <Format F>
inline void axpy(const uint8_t *const *rows, int count, const float *scale, int64_t n, float *acc,
                 Soon &soon) {
    int i = 0;
    for (; i + kAxpyGroup <= count; i += kAxpyGroup) {
        soon.fetch(kAxpyGroup);
        axpy_rows<F, kAxpyGroup>(rows + i, scale + i, n, acc);
    }
    soon.fetch(count - i);
    if (i + 4 <= count) {
        axpy_rows<F, 4>(rows + i, scale + i, n, acc);
        i += 4;
    }
    if (i + 2 <= count) {
        axpy_rows<F, 2>(rows + i, scale + i, n, acc);
        i += 2;
    }
    if (i < count) axpy_rows<F, 1>(rows + i, scale + i, n, acc);
}

// out[b][i] = rows[i] . in[b] for up to 16 rows. `wanted` (or null): bit b of wanted[i] says whether
// that one is needed; the others may be left as they are.
template <Format F>
inline void dot_sixteen(const uint8_t *const *rows, int count, const uint16_t *wanted,
                        const Input *in, int64_t batch, int64_t n, Soon &soon, float (*out)[16]) {
    int64_t b = 0;
    for (; b + kTile <= batch && kTile > 1; b += kTile) {
        Vec parts[kTile][16];
        for (int i = 0; i < 16; i++) {
            Vec tile[kTile];
            for (int t = 0; t < kTile; t++) tile[t] = zero();
            soon.fetch(1);
            if (i < count && (!wanted || (wanted[i] >> b & ((1 << kTile) - 1))))
                dot<F, kTile>(rows[i], in + b, n, tile);
            for (int t = 0; t < kTile; t++) parts[t][i] = tile[t];
        }
        for (int t = 0; t < kTile; t++) sums(parts[t], out[b + t]);
    }
    for (; b < batch; b++) {
        Vec parts[16];
        for (int i = 0; i < 16; i++) {
            parts[i] = zero();
            soon.fetch(1);
            if (i < count && (!wanted || (wanted[i] >> b & 1)))
                dot<F, 1>(rows[i], in + b, n, parts + i);
        }
        sums(parts, out[b]);
    }
}

inline int64_t column_position(Format format, int64_t column, int64_t columns) {
    return format == Format::int4 ? int4_position(column, groups_of(columns)) : column;
}

#define SPARSEINFER_BY_FORMAT(format, call)              \
    switch (format) {                                    \
        case Format::fp32: call(Format::fp32); break;    \
        case Format::bf16: call(Format::bf16); break;    \
        case Format::int8: call(Format::int8); break;    \
        case Format::int4: call(Format::int4); break;    \
    }
