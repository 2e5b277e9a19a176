// The two loops over weight rows that everything is made of, for fp32 and bf16: dot products and
// scaled additions. Quantised rows: quantised.inl.
//
// A row's result never depends on which other rows are done in the same call: it sees the same
// operations in the same order whatever the grouping.

// Independent sums per dot product, and input vectors that share one pass over a row: as many as have
// room for their sums in registers. With 16 registers that is few sums of many vectors: one vector
// then hides less of the latency of a fused multiply-add, but waits for memory anyway.
constexpr int kChains = kWidth == 16 ? 4 : kWidth == 8 ? 2 : 8;
constexpr int kTile = kWidth >= 8 ? 4 : 1;

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

// bf16 rows are read in blocks of 2 kWidth columns, even columns first: inputs and accumulators are
// in the order of `bf16_position`. What is left of a row behind its last block is in natural order.
constexpr int64_t kPairs = 2 * kWidth;

inline int64_t bf16_position(int64_t column, int64_t columns) {
    const int64_t block = column / kPairs * kPairs, in = column - block;
    return block + kPairs > columns ? column : block + in % 2 * kWidth + in / 2;
}

// x in that order.
inline void order_input(const float *x, int64_t columns, float *out) {
    int64_t k = 0;
    for (; k + kPairs <= columns; k += kPairs)
        for (int i = 0; i < kWidth; i++) {
            out[k + i] = x[k + 2 * i];
            out[k + kWidth + i] = x[k + 2 * i + 1];
        }
    for (; k < columns; k++) out[k] = x[k];
}

// One block of a row, widened.
template <class T>
struct Reader;

template <>
struct Reader<float> {
    static constexpr int kVecs = 1;    // of a block
    static void read(const float *p, Vec *out) { out[0] = load(p); }
};

template <>
struct Reader<bf16> {
    static constexpr int kVecs = 2;
    static void read(const bf16 *p, Vec *out) {
        const Pair v = load_pair(p);
        out[0] = v.even;
        out[1] = v.odd;
    }
};

// out[b]: partial sums of row . in[b].x for n elements.
template <class T, int B>
inline void dot_plain(const uint8_t *bytes, const Input *in, int64_t n, const uint8_t *ahead,
                      Vec *out) {
    const T *row = reinterpret_cast<const T *>(bytes);
    constexpr int kVecs = Reader<T>::kVecs, kBlock = kVecs * kWidth;
    // Whole cache lines, since a step asks for them.
    constexpr int kLineColumns = kLine / sizeof(T);
    constexpr int kStep = kChains * kWidth > kLineColumns ? kChains * kWidth : kLineColumns;
    Vec chain[B][kChains];
    for (int b = 0; b < B; b++)
        for (int c = 0; c < kChains; c++) chain[b][c] = zero();
    // Called, it would keep the sums in memory.
    const auto add_block = [&](int64_t k, int c0) __attribute__((always_inline)) {
        Vec w[kVecs];
        Reader<T>::read(row + k, w);
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; v++)
#pragma GCC unroll 4
            for (int b = 0; b < B; b++) {
                Vec &sum = chain[b][(c0 + v) % kChains];
                sum = fma(w[v], load(in[b].x + k + v * kWidth), sum);
            }
    };
    int64_t k = 0;
    for (; k + kStep <= n; k += kStep) {
        if (ahead)
            for (int64_t i = 0; i < kStep * static_cast<int64_t>(sizeof(T)); i += kLine)
                prefetch(ahead + k * sizeof(T) + i);
#pragma GCC unroll 8
        for (int c = 0; c * kWidth < kStep; c += kVecs) add_block(k + c * kWidth, c);
    }
#pragma GCC unroll 8
    for (int c = 0; c * kWidth < kStep; c += kVecs) {
        if (k + kBlock > n) break;
        add_block(k, c);
        k += kBlock;
    }
    if (k + kWidth <= n) {    // bf16 only: half a block
        const Vec w = load(row + k);
        for (int b = 0; b < B; b++) chain[b][0] = fma(w, load(in[b].x + k), chain[b][0]);
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
    constexpr int kVecs = Reader<T>::kVecs;
    constexpr int64_t kBlock = kVecs * kWidth, kLineColumns = kLine / sizeof(T);
    Vec s[R][B];
    const T *rows[R];
    for (int r = 0; r < R; r++) {
        for (int b = 0; b < B; b++) s[r][b] = splat(scale[b][r]);
        rows[r] = reinterpret_cast<const T *>(bytes[r]);
    }
    int64_t k = 0;
    for (; k + kBlock <= n; k += kBlock) {
        if (k % kLineColumns == 0 && *ahead)
            for (int r = 0; r < R; r++) prefetch(ahead[r] + k * sizeof(T));
        Vec v[B][kVecs];
        for (int b = 0; b < B; b++)
            for (int c = 0; c < kVecs; c++) v[b][c] = load(acc[b] + k + c * kWidth);
        for (int r = 0; r < R; r++) {
            Vec w[kVecs];
            Reader<T>::read(rows[r] + k, w);
            for (int b = 0; b < B; b++)
                for (int c = 0; c < kVecs; c++) v[b][c] = fma(w[c], s[r][b], v[b][c]);
        }
        for (int b = 0; b < B; b++)
            for (int c = 0; c < kVecs; c++) store(acc[b] + k + c * kWidth, v[b][c]);
    }
    for (; k < n; k += kWidth) {    // at most two: bf16 may have half a block and a part
        const int64_t count = smaller(kWidth, n - k);
        Vec v[B];
        for (int b = 0; b < B; b++) v[b] = load_part(acc[b] + k, count);
        for (int r = 0; r < R; r++) {
            const Vec w = load_part(rows[r] + k, count);
            for (int b = 0; b < B; b++) v[b] = fma(w, s[r][b], v[b]);
        }
        for (int b = 0; b < B; b++) store_part(acc[b] + k, v[b], count);
    }
}
