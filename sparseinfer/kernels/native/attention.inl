// What a token does outside its matrices: embedding, norms, RoPE, and attention over the cache.

void widen_row(const MatrixView &m, int64_t row, float *out) {
    const uint8_t *p = row_of(m, row);
    const int64_t n = m.columns;
    if (m.format == Format::fp32) {
        __builtin_memcpy(out, p, n * sizeof(float));
        return;
    }
    if (m.format == Format::bf16) {
        const bf16 *v = reinterpret_cast<const bf16 *>(p);
        for (int64_t k = 0; k < n; k++) {
            const uint32_t bits = static_cast<uint32_t>(v[k].bits) << 16;
            __builtin_memcpy(out + k, &bits, 4);
        }
        return;
    }
    const int64_t groups = groups_of(n);
    const uint8_t *codes = p + 2 * groups;
    for (int64_t k = 0; k < n; k++) {
        uint16_t half;
        __builtin_memcpy(&half, p + 2 * (k / kGroup), 2);
        int code;
        if (m.format == Format::int8) {
            code = static_cast<int8_t>(codes[k]);
        } else {
            const int64_t block = k / 128 * 128, in = k - block;
            const int64_t width = (block + 128) / kGroup <= groups ? 64 : 32;
            code = (codes[block / 2 + in % width] >> (in < width ? 0 : 4) & 15) - 8;
        }
        out[k] = half_to_float(half) * static_cast<float>(code);
    }
}

void rms_norm(const float *x, const float *weight, float eps, int64_t n, float *out) {
    Vec squares[4] = {zero(), zero(), zero(), zero()};
    int64_t k = 0;
    for (; k + 4 * kWidth <= n; k += 4 * kWidth)
        for (int c = 0; c < 4; c++) {
            const Vec v = load(x + k + c * kWidth);
            squares[c] = fma(v, v, squares[c]);
        }
    for (; k < n; k += kWidth) {
        const Vec v = n - k < kWidth ? load_part(x + k, n - k) : load(x + k);
        squares[0] = fma(v, v, squares[0]);
    }
    const float total = sum(add(add(squares[0], squares[1]), add(squares[2], squares[3])));
    const float factor = 1.0f / __builtin_sqrtf(total / static_cast<float>(n) + eps);
    for (int64_t j = 0; j < n; j++) out[j] = x[j] * factor * weight[j];
}

void rotate(float *x, const float *cos, const float *sin, int64_t head_dim) {
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

inline uint16_t round_to_bf16(float v) {
    uint32_t bits;
    __builtin_memcpy(&bits, &v, 4);
    if (v != v) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

void store_cache(const CacheView &cache, int64_t kv_head, int64_t position, const float *x,
                 int64_t head_dim) {
    uint8_t *head = cache.data + kv_head * cache.head_stride;
    if (cache.format == Format::fp32) {
        __builtin_memcpy(head + position * head_dim * 4, x, head_dim * 4);
        return;
    }
    uint16_t *out = reinterpret_cast<uint16_t *>(head) + position * head_dim;
    for (int64_t i = 0; i < head_dim; i++) out[i] = round_to_bf16(x[i]);
}

// out += weights[t] * rows[t] for `count` rows of n, n at most 8 vectors.
template <class T>
inline void weighted_rows(const T *rows, const float *weights, int64_t count, int64_t n,
                          float *out) {
    constexpr int kColumns = 4;    // vectors of the output held at a time
    for (int64_t k = 0; k < n; k += kColumns * kWidth) {
        Vec acc[kColumns];
        for (int c = 0; c < kColumns; c++) acc[c] = zero();
        const int64_t left = n - k;
        if (left >= kColumns * kWidth) {
            for (int64_t t = 0; t < count; t++) {
                const Vec w = splat(weights[t]);
                for (int c = 0; c < kColumns; c++)
                    acc[c] = fma(load(rows + t * n + k + c * kWidth), w, acc[c]);
            }
            for (int c = 0; c < kColumns; c++) store(out + k + c * kWidth, acc[c]);
            continue;
        }
        for (int64_t t = 0; t < count; t++) {
            const Vec w = splat(weights[t]);
            for (int64_t c = 0; c * kWidth < left; c++) {
                const T *p = rows + t * n + k + c * kWidth;
                const int64_t m = left - c * kWidth;
                acc[c] = fma(m < kWidth ? load_part(p, m) : load(p), w, acc[c]);
            }
        }
        for (int64_t c = 0; c * kWidth < left; c++)
            store_part(out + k + c * kWidth, acc[c], smaller(kWidth, left - c * kWidth));
    }
}

template <Format F, class T>
void attend_of(const AttentionHead &h) {
    const int64_t n = h.head_dim, count = h.end - h.begin;
    const T *keys = reinterpret_cast<const T *>(h.keys.data + h.kv_head * h.keys.head_stride) +
                    h.begin * n;
    const T *values =
        reinterpret_cast<const T *>(h.values.data + h.kv_head * h.values.head_stride) + h.begin * n;
    Input query{};
    query.x = h.query;
    if (F == Format::bf16) {
        order_input(h.query, n, h.out);    // which is written to last
        query.x = h.out;
    }
    const float factor = 1.0f / __builtin_sqrtf(static_cast<float>(n));
    float most = -__builtin_inff();
    for (int64_t t0 = 0; t0 < count; t0 += 16) {
        const int rows = static_cast<int>(smaller(16, count - t0));
        Vec parts[16];
        for (int i = 0; i < 16; i++) {
            parts[i] = zero();
            if (i < rows)
                dot<F, 1>(reinterpret_cast<const uint8_t *>(keys + (t0 + i) * n), &query, n,
                          nullptr, parts + i);
        }
        float *scores = h.scores + t0;
        sums(parts, scores);
        for (int i = 0; i < rows; i++) {
            scores[i] *= factor;
            most = scores[i] > most ? scores[i] : most;
        }
        for (int i = rows; i < 16; i++) scores[i] = -__builtin_inff();
    }
    Vec total = zero();
    const Vec shift = splat(most);
    for (int64_t t = 0; t < (count + 15) / 16 * 16; t += kWidth) {
        Vec e = exponential(sub(load(h.scores + t), shift));
        if (t + kWidth > count) {    // the padding counts for nothing
            float lanes[kWidth];
            store(lanes, e);
            for (int64_t i = count > t ? count - t : 0; i < kWidth; i++) lanes[i] = 0.0f;
            e = load(lanes);
        }
        store(h.scores + t, e);
        total = add(total, e);
    }
    const float inverse = 1.0f / sum(total);
    weighted_rows(values, h.scores, count, n, h.out);
    for (int64_t i = 0; i < n; i++) h.out[i] *= inverse;
}

void attend(const AttentionHead &head) {
    if (head.keys.format == Format::fp32)
        attend_of<Format::fp32, float>(head);
    else
        attend_of<Format::bf16, bf16>(head);
}
