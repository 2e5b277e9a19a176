// Dense products of a few vectors with all rows of a matrix, and the input-sparse product.

template <Format F>
void dot_rows_of(const MatrixView &m, const float *bias, const Input *in, int64_t batch,
                 int64_t begin, int64_t end, int64_t following, float *out, int64_t stride) {
    for (int64_t r0 = begin; r0 < end; r0 += 16) {
        const int count = static_cast<int>(smaller(16, end - r0));
        const uint8_t *rows[16];
        for (int i = 0; i < count; i++) rows[i] = row_of(m, r0 + i);
        float sum[kMaxRows][16];
        // The last rows ask for those of the next chunk.
        const uint8_t *next[16];
        const int64_t next_row = r0 + 16 < end ? r0 + 16 : following;
        int known = 0;
        if (next_row >= 0)
            for (; known < 16 && next_row + known < m.rows; known++)
                next[known] = row_of(m, next_row + known);
        Soon soon{next, known, bytes_per_row<F>(m.columns)};
        dot_sixteen<F>(rows, count, nullptr, in, batch, m.columns, soon, sum);
        for (int64_t b = 0; b < batch; b++)
            for (int i = 0; i < count; i++)
                out[b * stride + r0 - begin + i] = sum[b][i] + (bias ? bias[r0 + i] : 0.0f);
    }
}

void dot_rows(const MatrixView &m, const float *bias, const Input *in, int64_t batch,
              int64_t begin, int64_t end, int64_t following, float *out, int64_t stride) {
#define SPARSEINFER_CALL(F) dot_rows_of<F>(m, bias, in, batch, begin, end, following, out, stride)
    SPARSEINFER_BY_FORMAT(m.format, SPARSEINFER_CALL)
#undef SPARSEINFER_CALL
}

template <Format F>
void sparse_input_range_of(const SparseInputWeights &w, const SparseInputCall &call,
                           int64_t range) {
    constexpr int kList = 64;
    const int64_t inputs = w.weight.rows, outputs = w.weight.columns;
    const int64_t bytes = bytes_per_row<F>(outputs);
    const int64_t begin = range * w.range, end = smaller(begin + w.range, inputs);
    for (int64_t b = 0; b < call.rows; b++) {
        const float *x = call.x + b * inputs;
        const int64_t slot = range * call.rows + b;
        float *acc = call.partial + slot * call.width;
        int32_t &reads = call.reads[slot];
        reads = 0;
        for (int64_t j0 = begin; j0 < end; j0 += kList) {
            const uint8_t *rows[kList];
            float scale[kList];
            int live = 0;
            for (int64_t j = j0; j < smaller(j0 + kList, end); j++) {
                if (!keeps(x[j], w.threshold ? w.threshold[j] : 0.0f)) continue;
                rows[live] = row_of(w.weight, j);
                scale[live++] = x[j];
            }
            if (live == 0) continue;
            if (reads == 0) __builtin_memset(acc, 0, call.width * sizeof(float));
            reads += live;
            Soon ahead{rows, live, bytes};
            ahead.fetch(kAxpyGroup);    // the others are asked for while these are added
            const float *scales = scale;
            axpy<F, 1>(rows, live, &scales, outputs, &acc, ahead);
        }
    }
}

void sparse_input_range(const SparseInputWeights &w, const SparseInputCall &call, int64_t range) {
#define SPARSEINFER_CALL(F) sparse_input_range_of<F>(w, call, range)
    SPARSEINFER_BY_FORMAT(w.weight.format, SPARSEINFER_CALL)
#undef SPARSEINFER_CALL
}

void sparse_input_sum(const SparseInputWeights &w, const SparseInputCall &call, int64_t begin,
                      int64_t end) {
    sum_ranges((w.weight.rows + w.range - 1) / w.range, call.rows, call.width, call.partial,
               w.weight.format, w.bias, w.weight.columns, begin, end, call.add, call.y, call.y_stride,
               [&](int64_t slot) { return call.reads[slot] != 0; });
}
