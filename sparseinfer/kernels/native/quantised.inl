// Rows of int8 and int4 codes (layouts: matrix.py): dot products and scaled additions.
//
// A dot product works on integers inside a group, so that a group's sum is exact whatever the
// instructions, and only the groups are added in floating point. Against int8 weights the input has
// 16 bits: nothing is lost that the weights hold. Against int4 weights it has 8, which adds a tenth
// of the weights' own error and saves a quarter of the instructions.

template <Format F>
constexpr float kInputLevels = F == Format::int4 ? 127.0f : 32639.0f;    // 127 * 257: hi, lo <= 127

template <Format F>
constexpr int kZeroPoint = F == Format::int4 ? 8 : 128;    // of codes taken as unsigned

inline int64_t groups_of(int64_t columns) { return (columns + 2 * kGroup - 1) / (2 * kGroup) * 2; }

template <Format F>
inline int64_t bytes_per_row(int64_t columns) {
    if constexpr (F == Format::fp32) return 4 * columns;
    if constexpr (F == Format::bf16) return 2 * columns;
    return groups_of(columns) * (F == Format::int8 ? 2 + kGroup : 2 + kGroup / 2);
}

inline float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 31u, fraction = h & 1023u;
    uint32_t bits;
    if (exponent == 0) {    // subnormal: fraction * 2^-24
        const float value = static_cast<float>(fraction) * 5.9604644775390625e-8f;
        __builtin_memcpy(&bits, &value, 4);
    } else {
        bits = (exponent == 31 ? 0x7f800000u : (exponent + 112u) << 23) | fraction << 13;
    }
    bits |= sign;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

// out[0..15] from the scales at p; the caller ignores those past the end of a row's groups, whose
// bytes are then codes of the same row.
inline void load_scales(const uint8_t *p, float *out) {
#if defined(__AVX512F__)
    store(out, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))));
#elif defined(__F16C__)
    for (int i = 0; i < 16; i += 8)
        store(out + i,
              _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p + 2 * i))));
#else
    for (int i = 0; i < 16; i++) {
        uint16_t h;
        __builtin_memcpy(&h, p + 2 * i, 2);
        out[i] = half_to_float(h);
    }
#endif
}

inline int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Bytes of the quantised form of one input.
inline int64_t quantised_bytes(int64_t columns) {
    const int64_t n = groups_of(columns) * kGroup;
    return padded(n) + padded(n) + padded(2 * n) + 2 * padded(4 * (n / kGroup + 16));
}

// Where the parts of a quantised input lie.
inline void view_quantised(int64_t columns, void *memory, Input *in) {
    const int64_t n = groups_of(columns) * kGroup;
    uint8_t *at = static_cast<uint8_t *>(memory);
    in->hi = reinterpret_cast<int8_t *>(at);
    at += padded(n);
    in->lo = reinterpret_cast<int8_t *>(at);
    at += padded(n);
    in->x16 = reinterpret_cast<int16_t *>(at);
    at += padded(2 * n);
    in->offset = reinterpret_cast<float *>(at);
    at += padded(4 * (n / kGroup + 16));
    in->scale = reinterpret_cast<float *>(at);
}

// One group: its scale and offset, and its integers as hi, lo and x16. The vector form gives the
// same bits as the plain one.
template <Format F>
inline void quantise_group(const float *values, int64_t g, Input *in) {
    Vec peak = zero(), spoil = zero();
    for (int i = 0; i < kGroup; i += kWidth) {
        peak = larger(peak, magnitude(load(values + i)));
        spoil = fma(load(values + i), zero(), spoil);
    }
    float lanes[kWidth], most = 0.0f;
    store(lanes, peak);
    for (int i = 0; i < kWidth; i++) most = lanes[i] > most ? lanes[i] : most;
    // NaN and infinity must reach the output, and integers cannot carry them: the scale does.
    const float poison = sum(spoil);
    const float factor = most > 1e-30f && poison == 0.0f ? kInputLevels<F> / most : 0.0f;
    in->scale[g] = (most > 1e-30f ? most / kInputLevels<F> : 0.0f) + poison;
    const int64_t at = g * kGroup;
    int32_t total = 0;
#if defined(__AVX512F__)
    __m512i sums = _mm512_setzero_si512();
    for (int i = 0; i < kGroup; i += 16) {
        const Vec v = poison == 0.0f ? load(values + i) : zero();
        const __m512i q = _mm512_cvtps_epi32(mul(v, splat(factor)));    // to nearest, ties to even
        sums = _mm512_add_epi32(sums, q);
        if (F == Format::int4) {
            _mm_storeu_si128(reinterpret_cast<__m128i *>(in->hi + at + i),
                             _mm512_cvtepi32_epi8(q));
            continue;
        }
        const __m512i high =
            _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
        _mm_storeu_si128(reinterpret_cast<__m128i *>(in->hi + at + i), _mm512_cvtepi32_epi8(high));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(in->lo + at + i),
                         _mm512_cvtepi32_epi8(_mm512_sub_epi32(q, _mm512_slli_epi32(high, 8))));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(in->x16 + at + i),
                            _mm512_cvtepi32_epi16(q));
    }
    total = _mm512_reduce_add_epi32(sums);
#else
    for (int j = 0; j < kGroup; j++) {
        const float scaled = poison == 0.0f ? values[j] * factor : 0.0f;
        // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, on every machine.
        const float shifted = scaled + 12582912.0f;
        int32_t bits;
        __builtin_memcpy(&bits, &shifted, 4);
        const int32_t q = (bits & 0x7fffff) - 0x400000;
        const int32_t high = F == Format::int4 ? q : (q + 128) >> 8;
        in->hi[at + j] = static_cast<int8_t>(high);
        if (F == Format::int8) {
            in->lo[at + j] = static_cast<int8_t>(q - high * 256);
            in->x16[at + j] = static_cast<int16_t>(q);
        }
        total += q;
    }
#endif
    in->offset[g] = in->scale[g] * static_cast<float>(-kZeroPoint<F> * total);
}

template <Format F>
void quantise_input(const float *x, int64_t columns, Input *in) {
    const int64_t groups = groups_of(columns), whole = columns / kGroup;
    for (int64_t g = 0; g < whole; g++) quantise_group<F>(x + g * kGroup, g, in);
    for (int64_t g = whole; g < groups; g++) {
        float values[kGroup] = {};
        for (int64_t i = g * kGroup; i < columns; i++) values[i - g * kGroup] = x[i];
        quantise_group<F>(values, g, in);
    }
    for (int64_t g = groups; g < (groups + 15) / 16 * 16; g++)
        in->scale[g] = in->offset[g] = 0.0f;
}

#if defined(__AVX512F__)
// For a pair of groups out of 16: lanes 0-7 take the first one's scale, lanes 8-15 the second's.
alignas(64) constexpr int32_t kPair[8][16] = {
    {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1},
    {2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3},
    {4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5},
    {6, 6, 6, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7},
    {8, 8, 8, 8, 8, 8, 8, 8, 9, 9, 9, 9, 9, 9, 9, 9},
    {10, 10, 10, 10, 10, 10, 10, 10, 11, 11, 11, 11, 11, 11, 11, 11},
    {12, 12, 12, 12, 12, 12, 12, 12, 13, 13, 13, 13, 13, 13, 13, 13},
    {14, 14, 14, 14, 14, 14, 14, 14, 15, 15, 15, 15, 15, 15, 15, 15}};

inline __m512i pair_index(int p) { return _mm512_load_si512(kPair[p]); }
#endif

#if defined(__AVX512VNNI__)

// acc += scales of pair `p` * (64 codes . 64 inputs), the codes taken as unsigned.
template <Format F>
inline Vec dot_pair(__m512i codes, const Input &in, int64_t at, Vec scales, int p, Vec acc) {
    const __m512i none = _mm512_setzero_si512();
    __m512i dot = _mm512_dpbusd_epi32(none, codes, _mm512_loadu_si512(in.hi + at));
    if constexpr (F == Format::int8)
        dot = _mm512_dpbusd_epi32(_mm512_slli_epi32(dot, 8), codes,
                                  _mm512_loadu_si512(in.lo + at));
    return fma(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(pair_index(p), scales), acc);
}

// Scales of 16 groups for the first and the second of two pairs: int4 codes of the second stay in
// the high halves of their bytes, which is exact and saves a shift.
template <Format F, int B>
inline void fill_scales(Vec stored, const Input *in, int64_t g, Vec (*scales)[2], Vec *offset) {
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) {
        scales[b][0] = mul(stored, load(in[b].scale + g));
        scales[b][1] = F == Format::int4 ? mul(scales[b][0], splat(0.0625f)) : scales[b][0];
        offset[b] = fma(stored, load(in[b].offset + g), offset[b]);
    }
}

// Two pairs, p and p + 1, whose codes begin at `codes`.
template <Format F, int B>
inline void dot_pairs(const uint8_t *codes, const Input *in, int64_t at, const Vec (*scales)[2],
                      int p, Vec (*acc)[2]) {
    __m512i w0, w1;
    if constexpr (F == Format::int8) {
        const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
        w0 = _mm512_xor_si512(_mm512_loadu_si512(codes), flip);
        w1 = _mm512_xor_si512(_mm512_loadu_si512(codes + 64), flip);
    } else {
        const __m512i v = _mm512_loadu_si512(codes);
        w0 = _mm512_and_si512(v, _mm512_set1_epi8(15));
        w1 = _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(0xf0)));    // 16 * code
    }
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) {
        acc[b][0] = dot_pair<F>(w0, in[b], at, scales[b][0], p, acc[b][0]);
        acc[b][1] = dot_pair<F>(w1, in[b], at + 64, scales[b][1], p + 1, acc[b][1]);
    }
}

// The pair that has no second one.
template <Format F, int B>
inline void dot_last(const uint8_t *codes, const Input *in, int64_t at, const Vec (*scales)[2],
                     int p, Vec (*acc)[2]) {
    __m512i w;
    if constexpr (F == Format::int8) {
        w = _mm512_xor_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8(static_cast<char>(0x80)));
    } else {
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(codes));
        w = _mm512_inserti64x4(_mm512_castsi256_si512(v), _mm256_srli_epi16(v, 4), 1);
        w = _mm512_and_si512(w, _mm512_set1_epi8(15));
    }
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) acc[b][0] = dot_pair<F>(w, in[b], at, scales[b][0], p, acc[b][0]);
}

template <Format F, int B>
inline void dot_quantised(const uint8_t *row, const Input *in, int64_t columns,
                          const uint8_t *ahead, Vec *out) {
    constexpr int64_t kBytes = F == Format::int8 ? kGroup : kGroup / 2;    // codes of a group
    const int64_t groups = groups_of(columns);
    const uint8_t *codes = row + 2 * groups;
    constexpr int64_t kBlock = 16 * (2 + kBytes);    // of a row, scales and codes
    Vec acc[B][2], offset[B], scales[B][2];
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) acc[b][0] = acc[b][1] = offset[b] = zero();
    int64_t g = 0;
    for (; g + 16 <= groups; g += 16) {
        const Vec stored =
            _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(row + 2 * g)));
        fill_scales<F, B>(stored, in, g, scales, offset);
#pragma GCC unroll 4
        for (int p = 0; p < 8; p += 2)
            dot_pairs<F, B>(codes + (g + 2 * p) * kBytes, in, (g + 2 * p) * kGroup, scales, p, acc);
        if (!ahead) continue;
#pragma GCC unroll 16
        for (int64_t i = 0; i < kBlock; i += kLine) prefetch(ahead + i);
        ahead += kBlock;
    }
    if (g < groups) {
        const int pairs = static_cast<int>(groups - g) / 2;
        // What lies behind the last scale is codes, which must not be taken for scales.
        const __m256i bits = _mm256_maskz_loadu_epi16(first(2 * pairs), row + 2 * g);
        const Vec stored = _mm512_cvtph_ps(bits);
        fill_scales<F, B>(stored, in, g, scales, offset);
        if (ahead)
            for (int64_t i = 0; i < (groups - g) * (2 + kBytes); i += kLine) prefetch(ahead + i);
        int p = 0;
        for (; p + 2 <= pairs; p += 2)
            dot_pairs<F, B>(codes + (g + 2 * p) * kBytes, in, (g + 2 * p) * kGroup, scales, p, acc);
        if (p < pairs)
            dot_last<F, B>(codes + (g + 2 * p) * kBytes, in, (g + 2 * p) * kGroup, scales, p, acc);
    }
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) out[b] = add(add(acc[b][0], acc[b][1]), offset[b]);
}

#else

// Codes of group `g` counted from the start of a row's codes: where they begin, and by how many
// bits they are shifted.
struct Nibbles {
    const uint8_t *p;
    int shift;
};
inline Nibbles nibbles(const uint8_t *codes, int64_t g, int64_t groups) {
    const int64_t block = g / 4 * 4;
    const int64_t k = g - block;
    if (block + 4 <= groups) return {codes + block * 16 + (k & 1) * 32, k & 2 ? 4 : 0};
    return {codes + block * 16, k & 1 ? 4 : 0};
}

#if defined(__AVX2__)

// The group's 8 partial sums.
template <Format F>
inline __m256i dot_group(const uint8_t *codes, int64_t g, int64_t groups, const Input &in) {
    const int64_t at = g * kGroup;
    if constexpr (F == Format::int8) {
        __m256i total = _mm256_setzero_si256();
        for (int i = 0; i < kGroup; i += 16) {
            const __m256i w = _mm256_cvtepi8_epi16(
                _mm_loadu_si128(reinterpret_cast<const __m128i *>(codes + at + i)));
            const __m256i x =
                _mm256_loadu_si256(reinterpret_cast<const __m256i *>(in.x16 + at + i));
            total = _mm256_add_epi32(total, _mm256_madd_epi16(w, x));
        }
        return total;
    } else {
        const Nibbles n = nibbles(codes, g, groups);
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(n.p));
        const __m256i w =
            _mm256_and_si256(_mm256_srli_epi16(v, n.shift), _mm256_set1_epi8(15));
        const __m256i pairs = _mm256_maddubs_epi16(
            w, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(in.hi + at)));
        return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }
}

#else

template <Format F>
inline int32_t dot_group(const uint8_t *codes, int64_t g, int64_t groups, const Input &in) {
    int32_t total = 0;
    if constexpr (F == Format::int8) {
        const int16_t *x = in.x16 + g * kGroup;
        const int8_t *w = reinterpret_cast<const int8_t *>(codes) + g * kGroup;
        for (int i = 0; i < kGroup; i++) total += static_cast<int32_t>(w[i]) * x[i];
    } else {
        const int8_t *x = in.hi + g * kGroup;
        const Nibbles n = nibbles(codes, g, groups);
        for (int i = 0; i < kGroup; i++)
            total += (static_cast<int32_t>(n.p[i] >> n.shift & 15) - 8) * x[i];
    }
    return total;
}

#endif

template <Format F, int B>
inline void dot_quantised(const uint8_t *row, const Input *in, int64_t columns,
                          const uint8_t *ahead, Vec *out) {
    const int64_t groups = groups_of(columns);
    const uint8_t *codes = row + 2 * groups;
    const int64_t fetched = bytes_per_row<F>(columns), every = (fetched / groups + 1) * 16;
    for (int b = 0; b < B; b++) {
#if defined(__AVX2__)
        __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
#endif
        float total = 0.0f;    // here: of what the zero point of unsigned codes adds
        for (int64_t g0 = 0; g0 < groups; g0 += 16) {
            if (ahead && b == 0)
                for (int64_t i = 0; i < every; i += kLine) prefetch(ahead + g0 / 16 * every + i);
            float scales[16];
            load_scales(row + 2 * g0, scales);
            const int64_t end = smaller(16, groups - g0);
            for (int64_t i = 0; i < end; i++) {
                const float scale = scales[i] * in[b].scale[g0 + i];
#if defined(__AVX2__)
                acc[i & 1] = _mm256_fmadd_ps(
                    _mm256_cvtepi32_ps(dot_group<F>(codes, g0 + i, groups, in[b])),
                    _mm256_set1_ps(scale), acc[i & 1]);
                if (F == Format::int4) total += scales[i] * in[b].offset[g0 + i];
#else
                total += static_cast<float>(dot_group<F>(codes, g0 + i, groups, in[b])) * scale;
#endif
            }
        }
#if defined(__AVX512F__)
        out[b] = add(load_part(&total, 1), _mm512_zextps256_ps512(_mm256_add_ps(acc[0], acc[1])));
#elif defined(__AVX2__)
        out[b] = add(load_part(&total, 1), _mm256_add_ps(acc[0], acc[1]));
#else
        out[b] = load_part(&total, 1);
#endif
    }
}

#endif

// factors[b][r][i] = scale[b][r] * stored scale g + i of row r
template <int R, int B>
inline void row_factors(const uint8_t *const *rows, int64_t g, const float *const *scale,
                        float (*factors)[R][16]) {
    for (int r = 0; r < R; r++) {
        alignas(64) float stored[16];
        load_scales(rows[r] + 2 * g, stored);
        for (int b = 0; b < B; b++) {
            const Vec s = splat(scale[b][r]);
            for (int i = 0; i < 16; i += kWidth)
                store(factors[b][r] + i, mul(load(stored + i), s));
        }
    }
}

template <int R, int B>
inline void axpy_int8(const uint8_t *const *rows, const float *const *scale, int64_t columns,
                      const uint8_t *const *ahead, float *const *acc) {
    constexpr int kVecs = kGroup / kWidth;
    const int64_t groups = groups_of(columns);
    for (int64_t g0 = 0; g0 < groups; g0 += 16) {
        alignas(64) float factors[B][R][16];
        row_factors<R, B>(rows, g0, scale, factors);
        if (*ahead)
            for (int r = 0; r < R; r++) prefetch(ahead[r] + 2 * g0);
        const int64_t end = smaller(16, groups - g0);
        for (int64_t i = 0; i < end; i++) {
            const int64_t at = (g0 + i) * kGroup;
            if (i % 2 == 0 && *ahead)
                for (int r = 0; r < R; r++) prefetch(ahead[r] + 2 * groups + at);
            Vec v[B][kVecs];
#pragma GCC unroll 8
            for (int b = 0; b < B; b++)
#pragma GCC unroll 8
                for (int j = 0; j < kVecs; j++) v[b][j] = load(acc[b] + at + j * kWidth);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const int8_t *codes = reinterpret_cast<const int8_t *>(rows[r]) + 2 * groups + at;
                Vec w[kVecs];
#pragma GCC unroll 8
                for (int j = 0; j < kVecs; j++) w[j] = load(codes + j * kWidth);
#pragma GCC unroll 8
                for (int b = 0; b < B; b++) {
                    const Vec s = splat(factors[b][r][i]);
#pragma GCC unroll 8
                    for (int j = 0; j < kVecs; j++) v[b][j] = fma(w[j], s, v[b][j]);
                }
            }
#pragma GCC unroll 8
            for (int b = 0; b < B; b++)
#pragma GCC unroll 8
                for (int j = 0; j < kVecs; j++) store(acc[b] + at + j * kWidth, v[b][j]);
        }
    }
}

// Where column `j` of an int4 row is in its accumulator: a 4-byte word of codes holds 8 weights,
// and one shift brings the same one of each word to the front.
inline int64_t int4_position(int64_t j, int64_t groups) {
    const int64_t block = j / 128 * 128;
    const int64_t in = j - block;
    const int64_t words = (block + 128) / kGroup <= groups ? 16 : 8;    // of this block
    const int64_t half = in / (4 * words);                              // low or high halves
    const int64_t byte = in - half * 4 * words;
    return block + (byte % 4 * 2 + half) * words + byte / 4;
}

// One block of `kWords` words per row; its low halves take the scales `low`, the high ones `high`.
#if defined(__AVX2__)
template <int R>
inline void axpy_words8(const uint8_t *const *codes, const float *low, const float *high,
                        float *acc, int64_t step) {
    const __m256i mask = _mm256_set1_epi32(15), eight = _mm256_set1_epi32(8);
    __m256 v[8];
    for (int k = 0; k < 8; k++) v[k] = _mm256_loadu_ps(acc + k * step);
    for (int r = 0; r < R; r++) {
        const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(codes[r]));
        const __m256 s[2] = {_mm256_set1_ps(low[r]), _mm256_set1_ps(high[r])};
        for (int k = 0; k < 8; k++) {
            const __m256i code = _mm256_sub_epi32(
                _mm256_and_si256(_mm256_srli_epi32(word, 4 * k), mask), eight);
            v[k] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(code), s[k & 1], v[k]);
        }
    }
    for (int k = 0; k < 8; k++) _mm256_storeu_ps(acc + k * step, v[k]);
}
#else
template <int R>
inline void axpy_words8(const uint8_t *const *codes, const float *low, const float *high,
                        float *acc, int64_t step) {
    for (int r = 0; r < R; r++)
        for (int k = 0; k < 8; k++) {
            const float s = k & 1 ? high[r] : low[r];
            for (int lane = 0; lane < 8; lane++) {
                const int code = (codes[r][4 * lane + k / 2] >> (k & 1 ? 4 : 0) & 15) - 8;
                acc[k * step + lane] += static_cast<float>(code) * s;
            }
        }
}
#endif

#if defined(__AVX512F__)
// As axpy_words8 for 16 words and B accumulators. A permutation of a table of 16 floats looks at
// the low 4 bits of each index only: it turns codes into floats with no mask and no conversion.
template <int R, int B>
inline void axpy_words16(const uint8_t *const *codes, const float (*factors)[R][16], int pair,
                         float *const *acc, int64_t at) {
    const Vec table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i index[2] = {pair_index(pair), pair_index(pair + 1)};
    // Even k take the first scales, odd ones the second: apart where registers do not suffice.
    constexpr int kPasses = B == 1 ? 1 : 2;
#pragma GCC unroll 2
    for (int pass = 0; pass < kPasses; pass++) {
        Vec v[B][8 / kPasses];
#pragma GCC unroll 8
        for (int b = 0; b < B; b++)
#pragma GCC unroll 8
            for (int k = 0; k < 8 / kPasses; k++)
                v[b][k] = load(acc[b] + at + (k * kPasses + pass) * 16);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const __m512i word = _mm512_loadu_si512(codes[r]);
            Vec w[8 / kPasses];
#pragma GCC unroll 8
            for (int k = 0; k < 8 / kPasses; k++)
                w[k] = _mm512_permutexvar_ps(_mm512_srli_epi32(word, 4 * (k * kPasses + pass)),
                                             table);
#pragma GCC unroll 8
            for (int b = 0; b < B; b++) {
                const Vec f = load(factors[b][r]);
                Vec s[2];
                s[0] = _mm512_permutexvar_ps(index[pass], f);
                s[1] = kPasses == 1 ? _mm512_permutexvar_ps(index[1], f) : s[0];
#pragma GCC unroll 8
                for (int k = 0; k < 8 / kPasses; k++) v[b][k] = fma(w[k], s[k & 1], v[b][k]);
            }
        }
#pragma GCC unroll 8
        for (int b = 0; b < B; b++)
#pragma GCC unroll 8
            for (int k = 0; k < 8 / kPasses; k++)
                store(acc[b] + at + (k * kPasses + pass) * 16, v[b][k]);
    }
}
#endif

template <int R, int B>
inline void axpy_int4(const uint8_t *const *rows, const float *const *scale, int64_t columns,
                      const uint8_t *const *ahead, float *const *acc) {
    const int64_t groups = groups_of(columns);
    for (int64_t g0 = 0; g0 < groups; g0 += 16) {
        alignas(64) float factors[B][R][16];
        row_factors<R, B>(rows, g0, scale, factors);
        if (*ahead)
            for (int r = 0; r < R; r++) prefetch(ahead[r] + 2 * g0);
        const int64_t end = smaller(16, groups - g0);
        int64_t i = 0;
        for (; i + 4 <= end; i += 4) {
            const uint8_t *codes[R];
            for (int r = 0; r < R; r++) codes[r] = rows[r] + 2 * groups + (g0 + i) * 16;
            if (*ahead)
                for (int r = 0; r < R; r++) prefetch(ahead[r] + 2 * groups + (g0 + i) * 16);
            const int64_t at = (g0 + i) * kGroup;
#if defined(__AVX512F__)
            axpy_words16<R, B>(codes, factors, static_cast<int>(i) / 2, acc, at);
#else
            for (int b = 0; b < B; b++)
                for (int half = 0; half < 2; half++) {
                    float low[R], high[R];
                    const uint8_t *part[R];
                    for (int r = 0; r < R; r++) {
                        low[r] = factors[b][r][i + half];
                        high[r] = factors[b][r][i + 2 + half];
                        part[r] = codes[r] + 32 * half;
                    }
                    axpy_words8<R>(part, low, high, acc[b] + at + 8 * half, 16);
                }
#endif
        }
        if (i < end) {
            const uint8_t *codes[R];
            for (int r = 0; r < R; r++) codes[r] = rows[r] + 2 * groups + (g0 + i) * 16;
            for (int b = 0; b < B; b++) {
                float low[R], high[R];
                for (int r = 0; r < R; r++) {
                    low[r] = factors[b][r][i];
                    high[r] = factors[b][r][i + 1];
                }
                axpy_words8<R>(codes, low, high, acc[b] + (g0 + i) * kGroup, 8);
            }
        }
    }
}
