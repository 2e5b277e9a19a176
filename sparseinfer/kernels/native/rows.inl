// The two loops over weight rows that everything is made of, for fp32 and bf16: dot products and
// scaled additions. Quantised rows: quantised.inl.
//
// A row's result never depends on which other rows are done in the same call: it sees the same
// operations in the same order whatever the grouping.

// Independent sums per dot product: enough to hide the latency of a fused multiply-add.
constexpr int kChains = kWidth == 16 ? 4 : 8;

// Input vectors that share one pass over a row: as many as have room for their sums in registers.
constexpr int kTile = kWidth == 16 ? 4 : 1;

constexpr int kAxpyGroup = 8;    // rows per pass over the accumulators

// Memory works while the processor computes only if it is asked in time, and evenly: each cache
// line of a row that is worked on asks for the line at the same place of a row that is needed
// later, its `ahead` (or null). Asking for a whole row at once holds up the loads of the row at hand
// (measured at rows of 8 KiB: 25 GB/s in place of 36). Into the second-level cache: the first one
// is too small to wait in.
constexpr int64_t kLine = 64;
inline void prefetch(const uint8_t *p) { __builtin_prefetch(p, 0, 2); }

// For the start of a row with no row to work on in the meantime.
constexpr int64_t kFetch = 1152;
inline void prefetch_start(const uint8_t *p, int64_t bytes) {
    const int64_t some = bytes < kFetch ? bytes : kFetch;
    for (int64_t i = 0; i < some; i += kLine) prefetch(p + i);
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// out[b]: partial sums of row . in[b].x for n elements.
template <class T, int B>
inline void dot_plain(const uint8_t *bytes, const Input *in, int64_t n, const uint8_t *ahead,
                      Vec *out) {
    const T *row = reinterpret_cast<const T *>(bytes);
    constexpr int kStep = kChains * kWidth;
    Vec chain[B][kChains];
    for (int b = 0; b < B; b++)
        for (int c = 0; c < kChains; c++) chain[b][c] = zero();
    int64_t k = 0;
    for (; k + kStep <= n; k += kStep) {
        if (ahead)
            for (int64_t i = 0; i < kStep * static_cast<int64_t>(sizeof(T)); i += kLine)
                prefetch(ahead + k * sizeof(T) + i);
        for (int c = 0; c < kChains; c++) {
            const Vec w = load(row + k + c * kWidth);
            for (int b = 0; b < B; b++)
                chain[b][c] = fma(w, load(in[b].x + k + c * kWidth), chain[b][c]);
        }
    }
    for (int c = 0; c < kChains; c++) {
        if (k + kWidth > n) break;
        const Vec w = load(row + k);
        for (int b = 0; b < B; b++) chain[b][c] = fma(w, load(in[b].x + k), chain[b][c]);
        k += kWidth;
    }
    if (k < n) {
        const Vec w = load_part(row + k, n - k);
        for (int b = 0; b < B; b++)
            chain[b][kChains - 1] = fma(w, load_part(in[b].x + k, n - k), chain[b][kChains - 1]);
    }
    for (int b = 0; b < B; b++) {
        for (int half = kChains / 2; half > 0; half /= 2)
            for (int c = 0; c < half; c++) chain[b][c] = add(chain[b][c], chain[b][c + half]);
        out[b] = chain[b][0];
    }
}

// acc[b] += scale[b][0] * rows[0] + scale[b][1] * rows[1] + ..., one row after the other in each
// element, so that the sum is the same as with one call per row, and whatever the other acc are.
// A scale of 0 changes nothing.
template <class T, int R, int B>
inline void axpy_plain(const uint8_t *const *bytes, const float *const *scale, int64_t n,
                       const uint8_t *const *ahead, float *const *acc) {
    constexpr int64_t kBlock = kLine / sizeof(T);
    Vec s[R][B];
    const T *rows[R];
    for (int r = 0; r < R; r++) {
        for (int b = 0; b < B; b++) s[r][b] = splat(scale[b][r]);
        rows[r] = reinterpret_cast<const T *>(bytes[r]);
    }
    int64_t k = 0;
    for (; k + kWidth <= n; k += kWidth) {
        if (k % kBlock == 0 && *ahead)
            for (int r = 0; r < R; r++) prefetch(ahead[r] + k * sizeof(T));
        Vec v[B];
        for (int b = 0; b < B; b++) v[b] = load(acc[b] + k);
        for (int r = 0; r < R; r++) {
            const Vec w = load(rows[r] + k);
            for (int b = 0; b < B; b++) v[b] = fma(w, s[r][b], v[b]);
        }
        for (int b = 0; b < B; b++) store(acc[b] + k, v[b]);
    }
    if (k < n) {
        Vec v[B];
        for (int b = 0; b < B; b++) v[b] = load_part(acc[b] + k, n - k);
        for (int r = 0; r < R; r++) {
            const Vec w = load_part(rows[r] + k, n - k);
            for (int b = 0; b < B; b++) v[b] = fma(w, s[r][b], v[b]);
        }
        for (int b = 0; b < B; b++) store_part(acc[b] + k, v[b], n - k);
    }
}
