// The two loops over weight rows that everything is made of: dot products and scaled additions.
//
// A row's result never depends on which other rows are done in the same call: it sees the same
// operations in the same order whatever the grouping.

// Independent sums per dot product: enough to hide the latency of a fused multiply-add. One row at
// a time reads memory faster than several side by side, whose streams confuse the prefetcher of
// the processor when rows are short (measured at 576 bf16: 25 against 10 GB/s).
constexpr int kChains = kWidth == 16 ? 4 : 8;
constexpr int kAxpyGroup = 8;          // rows per pass over the accumulator
constexpr int64_t kAhead = 8 << 10;    // bytes between a prefetch and the use of what it fetches

// Into the second-level cache: filling the first one this far ahead is no faster than no prefetch.
inline void prefetch(const void *p) { __builtin_prefetch(p, 0, 2); }

// row . x for n elements. `soon` (or null): a row to be fetched meanwhile.
template <class T>
inline float dot(const T *row, const T *soon, const float *x, int64_t n) {
    constexpr int kLine = 64 / sizeof(T);
    constexpr int kStep = kChains * kWidth;
    Vec chain[kChains];
    for (int c = 0; c < kChains; c++) chain[c] = zero();
    int64_t k = 0;
    for (; k + kStep <= n; k += kStep) {
        if (soon)
            for (int c = 0; c < kStep; c += kLine) prefetch(soon + k + c);
        for (int c = 0; c < kChains; c++)
            chain[c] = fma(load(row + k + c * kWidth), load(x + k + c * kWidth), chain[c]);
    }
    for (int c = 0; c < kChains; c++) {
        if (k + kWidth > n) break;
        chain[c] = fma(load(row + k), load(x + k), chain[c]);
        k += kWidth;
    }
    if (k < n)
        chain[kChains - 1] =
            fma(load_part(row + k, n - k), load_part(x + k, n - k), chain[kChains - 1]);
    for (int half = kChains / 2; half > 0; half /= 2)
        for (int c = 0; c < half; c++) chain[c] = add(chain[c], chain[c + half]);
    return sum(chain[0]);
}

// acc += scale[0] * rows[0] + scale[1] * rows[1] + ..., one row after the other in each element,
// so that the sum is the same as with one call per row. `soon` (or null): R rows to be fetched.
template <int R, class T>
inline void axpy_rows(const T *const *rows, const T *const *soon, const float *scale, int64_t n,
                      float *acc) {
    constexpr int kLine = 64 / sizeof(T);
    constexpr int kStep = kLine > kWidth ? kLine : kWidth;
    Vec s[R];
    for (int r = 0; r < R; r++) s[r] = splat(scale[r]);
    int64_t k = 0;
    for (; k + kStep <= n; k += kStep) {
        if (soon)
            for (int r = 0; r < R; r++) prefetch(soon[r] + k);
        for (int c = 0; c < kStep; c += kWidth) {
            Vec v = load(acc + k + c);
            for (int r = 0; r < R; r++) v = fma(load(rows[r] + k + c), s[r], v);
            store(acc + k + c, v);
        }
    }
    for (; k + kWidth <= n; k += kWidth) {
        Vec v = load(acc + k);
        for (int r = 0; r < R; r++) v = fma(load(rows[r] + k), s[r], v);
        store(acc + k, v);
    }
    if (k < n) {
        Vec v = load_part(acc + k, n - k);
        for (int r = 0; r < R; r++) v = fma(load_part(rows[r] + k, n - k), s[r], v);
        store_part(acc + k, v, n - k);
    }
}

// out[i] = rows[i] . x for `count` rows; `known` >= count rows may be fetched ahead.
template <class T>
inline void dot_list(const T *const *rows, int count, int known, const float *x, int64_t n,
                     float *out) {
    const int64_t row_bytes = n * static_cast<int64_t>(sizeof(T));
    const int ahead = row_bytes < kAhead ? static_cast<int>(kAhead / row_bytes) : 1;
    for (int i = 0; i < count; i++)
        out[i] = dot<T>(rows[i], i + ahead < known ? rows[i + ahead] : nullptr, x, n);
}

template <class T>
inline void axpy_list(const T *const *rows, int count, const float *scale, int64_t n, float *acc) {
    int i = 0;
    for (; i + kAxpyGroup <= count; i += kAxpyGroup) {
        const bool more = i + 2 * kAxpyGroup <= count;
        axpy_rows<kAxpyGroup>(rows + i, more ? rows + i + kAxpyGroup : nullptr, scale + i, n, acc);
    }
    if (i + 4 <= count) {
        axpy_rows<4, T>(rows + i, nullptr, scale + i, n, acc);
        i += 4;
    }
    if (i + 2 <= count) {
        axpy_rows<2, T>(rows + i, nullptr, scale + i, n, acc);
        i += 2;
    }
    if (i < count) axpy_rows<1, T>(rows + i, nullptr, scale + i, n, acc);
}
