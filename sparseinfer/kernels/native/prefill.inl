// What a prompt needs beside matrix products: weights unpacked for them, the middle of the gated
// FFN, and attention of many tokens at once. Each function is one thread's share of the work.

// Codes of one group as signed bytes.
inline void group_codes(Format format, const uint8_t *codes, int64_t g, int64_t groups,
                        int8_t *out) {
    if (format == Format::int8) {
        __builtin_memcpy(out, codes + g * kGroup, kGroup);
        return;
    }
    const int64_t block = g / 4 * 4, k = g - block;
    const bool whole = block + 4 <= groups;
    const uint8_t *p = codes + block * 16 + (whole ? (k & 1) * 32 : 0);
    const int shift = (whole ? k & 2 : k & 1) ? 4 : 0;
    for (int i = 0; i < kGroup; i++) out[i] = static_cast<int8_t>((p[i] >> shift & 15) - 8);
}

inline void put(const float *v, int64_t n, float *out) { __builtin_memcpy(out, v, n * 4); }
inline void put(const float *v, int64_t n, bf16 *out) {
    for (int64_t i = 0; i < n; i++) out[i].bits = round_to_bf16(v[i]);
}

template <class T>
void unpack_row_as(const MatrixView &m, int64_t row, T *out) {
    constexpr int kStep = 64;
    const uint8_t *p = row_of(m, row);
    const int64_t n = m.columns;
    if (m.format == Format::fp32) return put(reinterpret_cast<const float *>(p), n, out);
    alignas(64) float v[kStep];
    if (m.format == Format::bf16) {
        const bf16 *w = reinterpret_cast<const bf16 *>(p);
        for (int64_t k = 0; k < n; k += kStep) {
            const int64_t count = smaller(kStep, n - k);
            for (int64_t i = 0; i < count; i += kWidth)
                store(v + i, count - i < kWidth ? load_part(w + k + i, count - i)
                                                : load(w + k + i));
            put(v, count, out + k);
        }
        return;
    }
    const int64_t groups = groups_of(n);
    const uint8_t *codes = p + 2 * groups;
    for (int64_t g = 0; g * kGroup < n; g++) {
        int8_t c[kGroup];
        group_codes(m.format, codes, g, groups, c);
        uint16_t half;
        __builtin_memcpy(&half, p + 2 * g, 2);
        const Vec scale = splat(half_to_float(half));
        for (int i = 0; i < kGroup; i += kWidth) store(v + i, mul(scale, load(c + i)));
        put(v, smaller(kGroup, n - g * kGroup), out + g * kGroup);
    }
}

void unpack_row(const MatrixView &m, int64_t row, Format to, void *out) {
    if (to == Format::fp32)
        unpack_row_as(m, row, static_cast<float *>(out));
    else
        unpack_row_as(m, row, static_cast<bf16 *>(out));
}

// Neurons of a gated FFN worked on at a time. Long loops with a fixed end are what the compiler
// makes vector instructions of.
constexpr int kGateStep = 256;

// Up to kGateStep values from p on, and zeros up to the next multiple of 16.
template <class T>
inline void take(const T *p, int64_t n, float *out) {
    for (int64_t i = 0; i < (n + 15) / 16 * 16; i += kWidth)
        store(out + i, n - i >= kWidth ? load(p + i)
                       : n > i         ? load_part(p + i, n - i)
                                       : zero());
}

// a = a * v where `keeps` says so, else 0; counts both. Non-negative floats order as their bits do,
// NaN above all others, so integers can compare them.
inline void mask_products(float *a, const float *v, const float *threshold, int32_t *up,
                          int32_t *down) {
    constexpr int32_t kMagnitude = 0x7fffffff;
    int32_t kept = 0, live = 0;
    for (int i = 0; i < kGateStep; i++) {
        const float product = a[i] * v[i];
        const float floor = threshold[i] > 0.0f ? threshold[i] : 0.0f;
        int32_t bits, least, h;
        __builtin_memcpy(&bits, a + i, 4);
        __builtin_memcpy(&least, &floor, 4);
        __builtin_memcpy(&h, &product, 4);
        least = least > 1 ? least : 1;
        const int32_t mask = (bits & kMagnitude) >= least ? -1 : 0;
        h &= mask;
        kept -= mask;
        live += (h & kMagnitude) != 0 ? 1 : 0;
        __builtin_memcpy(a + i, &h, 4);
    }
    *up += kept;
    *down += live;
}

// Drops neuron outputs below their threshold; returns how many are left.
inline int32_t mask_outputs(float *h, const float *threshold) {
    constexpr int32_t kMagnitude = 0x7fffffff;
    int32_t live = 0;
    for (int i = 0; i < kGateStep; i++) {
        const float floor = threshold[i] > 0.0f ? threshold[i] : 0.0f;
        int32_t bits, least;
        __builtin_memcpy(&bits, h + i, 4);
        __builtin_memcpy(&least, &floor, 4);
        least = least > 1 ? least : 1;
        const int32_t mask = (bits & kMagnitude) >= least ? -1 : 0;
        bits &= mask;
        live -= mask;
        __builtin_memcpy(h + i, &bits, 4);
    }
    return live;
}

template <class T>
void gate_row_as(const GateRow &r) {
    const T *g = static_cast<const T *>(r.g);
    const T *u = static_cast<const T *>(r.u);
    T *h = static_cast<T *>(r.h);
    int32_t up = 0, down = 0;
    alignas(64) float a[kGateStep] = {}, v[kGateStep] = {}, threshold[kGateStep] = {};
    for (int64_t k = 0; k < r.neurons; k += kGateStep) {
        const int64_t n = smaller(kGateStep, r.neurons - k);
        take(g + k, n, a);
        take(u + k, n, v);
        take(r.threshold + k, n, threshold);
        if (r.gate_bias)
            for (int64_t i = 0; i < n; i++) a[i] += r.gate_bias[k + i];
        if (r.up_bias)
            for (int64_t i = 0; i < n; i++) v[i] += r.up_bias[k + i];
        // What is left beyond the last neuron is 0, which no phi changes and no mask keeps.
        for (int64_t i = (n + 15) / 16 * 16; i < kGateStep; i++) a[i] = 0.0f;
        for (int64_t i = 0; i < n; i += 16) activate(r.phi, a + i);
        if (r.psi == Psi::relu)
            for (int i = 0; i < kGateStep; i++) v[i] = relu(v[i]);
        int32_t live = 0;
        mask_products(a, v, threshold, &up, &live);
        if (r.down_input) {
            take(r.down_input + k, n, threshold);
            live = mask_outputs(a, threshold);
        }
        down += live;
        if (n == kGateStep)
            put(a, kGateStep, h + k);
        else
            put(a, n, h + k);
    }
    r.reads[0] += up;
    r.reads[1] += down;
}

void gate_row(const GateRow &row) {
    if (row.format == Format::fp32)
        gate_row_as<float>(row);
    else
        gate_row_as<bf16>(row);
}

// Attention keeps, for each query, a running maximum, the sum of exponentials and the weighted sum
// of values (online softmax, 1805.02867), and goes through the keys in blocks.

constexpr int kTileRows = kWidth == 16 ? 6 : 3;    // queries whose sums are held in registers
constexpr int kTileVecs = 4;
constexpr int kKeys = kTileVecs * kWidth;          // keys per block

inline int64_t padded_head(int64_t head_dim) { return (head_dim + kKeys - 1) / kKeys * kKeys; }

// c[i] += a[i][begin..end) times rows begin..end-1 of b, kKeys columns.
template <int M>
inline __attribute__((always_inline)) void multiply(const float *const *a, const float *b,
                                                    int64_t stride, int64_t begin, int64_t end,
                                                    Vec (&c)[M][kTileVecs]) {
    for (int64_t j = begin; j < end; j++) {
        Vec w[kTileVecs];
        for (int v = 0; v < kTileVecs; v++) w[v] = load(b + j * stride + v * kWidth);
        for (int i = 0; i < M; i++) {
            const Vec s = splat(a[i][j]);
            for (int v = 0; v < kTileVecs; v++) c[i][v] = fma(s, w[v], c[i][v]);
        }
    }
}

struct PromptBlock {
    const PromptAttention *p;
    float *keys;       // [head_dim, kKeys]: transposed
    float *values;     // [kKeys, padded head_dim]
    float *out;        // [queries, padded head_dim]
    float *most;       // [queries]
    float *total;      // [queries]
    int64_t first;     // position of the first key
    float factor;
    bool finite;       // all values of this block are
};

inline int64_t position_of(const PromptAttention &p, int64_t query) {
    return p.start + p.begin + query / p.group;
}

// The keys of a block that a query sees, counted from the block's first.
inline void visible(const PromptBlock &b, int64_t query, int64_t *begin, int64_t *end) {
    const int64_t position = position_of(*b.p, query);
    const int64_t oldest = b.p->window > 0 ? position - b.p->window + 1 : 0;
    *begin = oldest > b.first ? oldest - b.first : 0;
    *end = smaller(position + 1 - b.first, kKeys);
}

template <int M>
void attend_tile(const PromptBlock &b, int64_t query) {
    const PromptAttention &p = *b.p;
    const int64_t width = padded_head(p.head_dim);
    alignas(64) float weights[M][kKeys];
    const float *rows[M];
    for (int i = 0; i < M; i++) {
        const int64_t token = p.begin + (query + i) / p.group;
        rows[i] = p.query + token * p.query_stride + (query + i) % p.group * p.head_dim;
    }
    {
        Vec c[M][kTileVecs];
        for (int i = 0; i < M; i++)
            for (int v = 0; v < kTileVecs; v++) c[i][v] = zero();
        multiply<M>(rows, b.keys, kKeys, 0, p.head_dim, c);
        for (int i = 0; i < M; i++)
            for (int v = 0; v < kTileVecs; v++)
                store(weights[i] + v * kWidth, mul(c[i][v], splat(b.factor)));
    }
    int64_t begin = 0, end = 0;
    for (int i = 0; i < M; i++) {
        float *w = weights[i];
        visible(b, query + i, &begin, &end);
        const bool all = begin <= 0 && end >= kKeys;
        if (begin >= end) {    // the sums stay as they are
            for (int j = 0; j < kKeys; j++) w[j] = 0.0f;
            rows[i] = w;
            continue;
        }
        if (!all)
            for (int j = 0; j < kKeys; j++)
                if (j < begin || j >= end) w[j] = -__builtin_inff();
        Vec peak = splat(b.most[query + i]);
        for (int v = 0; v < kTileVecs; v++) peak = larger(peak, load(w + v * kWidth));
        float lanes[kWidth], most = -__builtin_inff();
        store(lanes, peak);
        for (int j = 0; j < kWidth; j++) most = lanes[j] > most ? lanes[j] : most;
        Vec total = zero();
        for (int v = 0; v < kTileVecs; v++) {
            const Vec e = exponential(sub(load(w + v * kWidth), splat(most)));
            store(w + v * kWidth, e);
        }
        if (!all)
            for (int j = 0; j < kKeys; j++)
                if (j < begin || j >= end) w[j] = 0.0f;
        for (int v = 0; v < kTileVecs; v++) total = add(total, load(w + v * kWidth));
        if (most > b.most[query + i]) {
            float shrink = 0.0f;
            if (b.most[query + i] > -__builtin_inff()) {
                store(lanes, exponential(splat(b.most[query + i] - most)));
                shrink = lanes[0];
            }
            b.total[query + i] *= shrink;
            float *out = b.out + (query + i) * width;
            for (int64_t k = 0; k < width; k += kWidth)
                store(out + k, mul(load(out + k), splat(shrink)));
            b.most[query + i] = most;
        }
        b.total[query + i] += sum(total);
        rows[i] = w;
    }
    // Several queries share one loop, in which an unseen value counts 0 times; one alone leaves
    // unseen values out, as they may be infinite.
    if (M > 1) {
        begin = 0;
        end = kKeys;
    }
    for (int64_t k = 0; k < width; k += kKeys) {
        Vec c[M][kTileVecs];
        for (int i = 0; i < M; i++)
            for (int v = 0; v < kTileVecs; v++)
                c[i][v] = load(b.out + (query + i) * width + k + v * kWidth);
        multiply<M>(rows, b.values + k, width, begin, end, c);
        for (int i = 0; i < M; i++)
            for (int v = 0; v < kTileVecs; v++)
                store(b.out + (query + i) * width + k + v * kWidth, c[i][v]);
    }
}

template <class T>
void fill_keys(PromptBlock &b, int64_t count) {
    const PromptAttention &p = *b.p;
    const int64_t n = p.head_dim, width = padded_head(n);
    const T *keys = reinterpret_cast<const T *>(p.keys.data + p.kv_head * p.keys.head_stride);
    const T *values = reinterpret_cast<const T *>(p.values.data + p.kv_head * p.values.head_stride);
    Vec poison = zero();    // stays 0 unless a value is infinite or NaN
    for (int64_t j = 0; j < kKeys; j++) {
        // Beyond the last key: zeros, so that no NaN of unused memory gets into a sum.
        const T *key = keys + (b.first + j) * n, *value = values + (b.first + j) * n;
        float *out = b.values + j * width;
        for (int64_t k = 0; k < width; k += kWidth) {
            const int64_t left = j < count ? n - k : 0;
            const Vec v = left >= kWidth ? load(value + k)
                          : left > 0     ? load_part(value + k, left)
                                         : zero();
            poison = fma(v, zero(), poison);
            store(out + k, v);
        }
        for (int64_t k = 0; k < n; k += kWidth) {
            const int64_t left = j < count ? smaller(n - k, kWidth) : 0;
            float lanes[kWidth];
            store(lanes, left == kWidth ? load(key + k) : left > 0 ? load_part(key + k, left)
                                                                   : zero());
            for (int64_t i = 0; i < smaller(n - k, kWidth); i++)
                b.keys[(k + i) * kKeys + j] = lanes[i];
        }
    }
    b.finite = sum(poison) == 0.0f;
}

int64_t prompt_scratch(int64_t queries, int64_t head_dim) {
    const int64_t width = padded_head(head_dim);
    return (head_dim * kKeys + kKeys * width + queries * width + 2 * queries + 64) * 4;
}

void attend_prompt(const PromptAttention &p, void *memory) {
    const int64_t queries = (p.end - p.begin) * p.group;
    const int64_t width = padded_head(p.head_dim);
    float *scratch = static_cast<float *>(memory);
    PromptBlock b{};
    b.p = &p;
    b.factor = 1.0f / __builtin_sqrtf(static_cast<float>(p.head_dim));
    b.keys = scratch;
    b.values = b.keys + p.head_dim * kKeys;
    b.out = b.values + kKeys * width;
    b.most = b.out + queries * width;
    b.total = b.most + queries;
    for (int64_t i = 0; i < queries * width; i++) b.out[i] = 0.0f;
    for (int64_t i = 0; i < queries; i++) {
        b.most[i] = -__builtin_inff();
        b.total[i] = 0.0f;
    }
    const int64_t last = p.start + p.end;    // one past the last visible key
    int64_t first = 0;
    if (p.window > 0 && p.start + p.begin + 1 > p.window)
        first = (p.start + p.begin + 1 - p.window) / kKeys * kKeys;
    for (; first < last; first += kKeys) {
        b.first = first;
        const int64_t count = smaller(kKeys, last - first);
        if (p.keys.format == Format::fp32)
            fill_keys<float>(b, count);
        else
            fill_keys<bf16>(b, count);
        // Queries before this block see none of it.
        int64_t query = first > p.start + p.begin ? (first - p.start - p.begin) * p.group : 0;
        for (; b.finite && query + kTileRows <= queries; query += kTileRows)
            attend_tile<kTileRows>(b, query);
        for (; query < queries; query++) attend_tile<1>(b, query);
    }
    for (int64_t i = 0; i < queries; i++) {
        const int64_t token = p.begin + i / p.group;
        float *out = p.out + token * p.out_stride + i % p.group * p.head_dim;
        const float inverse = 1.0f / b.total[i];
        for (int64_t k = 0; k < p.head_dim; k++) out[k] = b.out[i * width + k] * inverse;
    }
}
