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

constexpr int kList = 256;    // inputs looked at together: of most matrices a whole range

// Rows of weights, and what they are multiplied by, of inputs begin..end-1 that count: at most
// `most`. Returns how many.
inline int list_inputs(const SparseInputWeights &w, const float *x, int64_t begin, int64_t end,
                       int most, const uint8_t **rows, float *scale) {
    int live = 0;
    for (int64_t j = begin; j < end && live < most; j++) {
        if (!keeps(x[j], w.threshold ? w.threshold[j] : 0.0f)) continue;
        rows[live] = row_of(w.weight, j);
        scale[live++] = x[j];
    }
    return live;
}

// The first rows of a range, as many as one pass over its accumulators adds.
inline int first_rows(const SparseInputRange &r, const uint8_t **rows) {
    if (!r.weights) return 0;
    const int64_t begin = r.range * r.weights->range;
    const int64_t end = smaller(begin + r.weights->range, r.weights->weight.rows);
    float scale[kAxpyGroup];
    return list_inputs(*r.weights, r.call->x, begin, end, kAxpyGroup, rows, scale);
}

template <Format F>
void sparse_input_range_of(const SparseInputRange &now, const SparseInputRange &following) {
    const SparseInputWeights &w = *now.weights;
    const SparseInputCall &call = *now.call;
    const int64_t inputs = w.weight.rows, outputs = w.weight.columns;
    const int64_t begin = now.range * w.range, end = smaller(begin + w.range, inputs);
    const uint8_t *rows[kList + kAxpyGroup];
    float scale[kList];
    for (int64_t b = 0; b < call.rows; b++) {
        const float *x = call.x + b * inputs;
        const int64_t slot = now.range * call.rows + b;
        float *acc = call.partial + slot * call.width;
        int32_t &reads = call.reads[slot];
        reads = 0;
        for (int64_t j0 = begin; j0 < end; j0 += kList) {
            const int64_t stop = smaller(j0 + kList, end);
            const int live = list_inputs(w, x, j0, stop, kList, rows, scale);
            if (live == 0) continue;
            if (reads == 0) __builtin_memset(acc, 0, call.width * sizeof(float));
            reads += live;
            // Rows that are added ask for those after them, the last ones for the next range's.
            const bool last = stop == end && b + 1 == call.rows;
            const int more = last ? first_rows(following, rows + live) : 0;
            Soon ahead{rows, live + more, bytes_per_row<F>(outputs)};
            ahead.fetch(kAxpyGroup);
            const float *scales = scale;
            axpy<F, 1>(rows, live, &scales, outputs, &acc, ahead);
        }
    }
}

void sparse_input_range(const SparseInputRange &now, const SparseInputRange &following) {
#define SPARSEINFER_CALL(F) sparse_input_range_of<F>(now, following)
    SPARSEINFER_BY_FORMAT(now.weights->weight.format, SPARSEINFER_CALL)
#undef SPARSEINFER_CALL
}

void sparse_input_sum(const SparseInputWeights &w, const SparseInputCall &call, int64_t begin,
                      int64_t end) {
    sum_ranges((w.weight.rows + w.range - 1) / w.range, call.rows, call.width, call.partial,
               w.weight.format, w.bias, w.weight.columns, begin, end, call.add, call.y,
               call.y_stride, [&](int64_t slot) { return call.reads[slot] != 0; });
}
