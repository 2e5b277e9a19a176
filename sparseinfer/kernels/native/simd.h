// One vector of floats, `Vec`, as wide as the instruction set this source is compiled for.
//
// Included inside an anonymous namespace of each kernel variant, so nothing leaks between them.
// `load` widens bf16 to fp32, which is exact. The `_part` forms touch only the first n < kWidth
// elements of memory; loaded lanes beyond them are 0. `load_pair` widens the even and the odd ones
// of 2 kWidth, at half the instructions of two loads. `round_shift` and `scale_by` are what `exp`
// needs: see there.

#if defined(__AVX512F__)

using Vec = __m512;
constexpr int kWidth = 16;
struct Pair {
    Vec even, odd;
};

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec splat(float v) { return _mm512_set1_ps(v); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec divide(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec lesser(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec magnitude(Vec a) { return _mm512_abs_ps(a); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec exponent_add(Vec a, Vec shifted) {
    return _mm512_castsi512_ps(_mm512_add_epi32(
        _mm512_castps_si512(a), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}
inline Vec widen(__m256i v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
inline Vec load(const float *p) { return _mm512_loadu_ps(p); }
inline Vec load(const bf16 *p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
inline Pair load_pair(const bf16 *p) {
    const __m512i v = _mm512_loadu_si512(p);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(v, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(-65536)))};
}
inline Vec load(const int8_t *p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
}
inline void store(float *p, Vec v) { _mm512_storeu_ps(p, v); }
inline __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline Vec load_part(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline Vec load_part(const bf16 *p, int64_t n) {
    return widen(_mm256_maskz_loadu_epi16(first(n), p));
}
inline void store_part(float *p, Vec v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
// Halving the vector at each step: the order that `sums` keeps for 16 vectors at once.
inline float sum(Vec v) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
// out[i] = sum(v[i]) for 16 vectors.
inline void sums(const Vec *v, float *out) {
    Vec b[8], c[4], d[2];
    for (int i = 0; i < 8; i++)
        b[i] = add(_mm512_shuffle_f32x4(v[i], v[i + 8], 0x44),
                   _mm512_shuffle_f32x4(v[i], v[i + 8], 0xEE));
    for (int i = 0; i < 4; i++)
        c[i] = add(_mm512_shuffle_f32x4(b[i], b[i + 4], 0x88),
                   _mm512_shuffle_f32x4(b[i], b[i + 4], 0xDD));
    for (int i = 0; i < 2; i++)
        d[i] = add(_mm512_unpacklo_ps(c[i], c[i + 2]), _mm512_unpackhi_ps(c[i], c[i + 2]));
    const Vec e = add(_mm512_unpacklo_ps(d[0], d[1]), _mm512_unpackhi_ps(d[0], d[1]));
    store(out, _mm512_shuffle_f32x4(e, e, 0xD8));
}

#else

#if defined(__AVX2__) && defined(__FMA__)

using Vec = __m256;
constexpr int kWidth = 8;
struct Pair {
    Vec even, odd;
};

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec splat(float v) { return _mm256_set1_ps(v); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec divide(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec larger(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec lesser(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec magnitude(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec exponent_add(Vec a, Vec shifted) {
    return _mm256_castsi256_ps(_mm256_add_epi32(
        _mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
}
inline Vec load(const float *p) { return _mm256_loadu_ps(p); }
inline Vec load(const bf16 *p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
inline Pair load_pair(const bf16 *p) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(v, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(-65536)))};
}
inline Vec load(const int8_t *p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
}
inline void store(float *p, Vec v) { _mm256_storeu_ps(p, v); }

#elif defined(__SSE2__)

using Vec = __m128;
constexpr int kWidth = 4;
struct Pair {
    Vec even, odd;
};

inline Vec zero() { return _mm_setzero_ps(); }
inline Vec splat(float v) { return _mm_set1_ps(v); }
inline Vec add(Vec a, Vec b) { return _mm_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm_mul_ps(a, b); }
inline Vec divide(Vec a, Vec b) { return _mm_div_ps(a, b); }
inline Vec larger(Vec a, Vec b) { return _mm_max_ps(a, b); }
inline Vec lesser(Vec a, Vec b) { return _mm_min_ps(a, b); }
inline Vec magnitude(Vec a) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), a); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
inline Vec exponent_add(Vec a, Vec shifted) {
    return _mm_castsi128_ps(
        _mm_add_epi32(_mm_castps_si128(a), _mm_slli_epi32(_mm_castps_si128(shifted), 23)));
}
inline Vec load(const float *p) { return _mm_loadu_ps(p); }
inline Vec load(const bf16 *p) {
    const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
    return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), v));
}
inline Pair load_pair(const bf16 *p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return {_mm_castsi128_ps(_mm_slli_epi32(v, 16)),
            _mm_castsi128_ps(_mm_and_si128(v, _mm_set1_epi32(-65536)))};
}
inline Vec load(const int8_t *p) {
    return _mm_setr_ps(p[0], p[1], p[2], p[3]);
}
inline void store(float *p, Vec v) { _mm_storeu_ps(p, v); }

#elif defined(__aarch64__)

using Vec = float32x4_t;
constexpr int kWidth = 4;
struct Pair {
    Vec even, odd;
};

inline Vec zero() { return vdupq_n_f32(0.0f); }
inline Vec splat(float v) { return vdupq_n_f32(v); }
inline Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
inline Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
inline Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
inline Vec divide(Vec a, Vec b) { return vdivq_f32(a, b); }
// As on x86, the second operand where one of them is NaN.
inline Vec larger(Vec a, Vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline Vec lesser(Vec a, Vec b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline Vec magnitude(Vec a) { return vabsq_f32(a); }
inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
inline Vec exponent_add(Vec a, Vec shifted) {
    return vreinterpretq_f32_s32(
        vaddq_s32(vreinterpretq_s32_f32(a), vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23)));
}
inline Vec load(const float *p) { return vld1q_f32(p); }
inline Vec load(const bf16 *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16));
}
inline Pair load_pair(const bf16 *p) {
    const uint32x4_t v = vreinterpretq_u32_u16(vld1q_u16(&p->bits));
    return {vreinterpretq_f32_u32(vshlq_n_u32(v, 16)),
            vreinterpretq_f32_u32(vandq_u32(v, vdupq_n_u32(0xffff0000u)))};
}
inline Vec load(const int8_t *p) {
    const int32_t wide[4] = {p[0], p[1], p[2], p[3]};
    return vcvtq_f32_s32(vld1q_s32(wide));
}
inline void store(float *p, Vec v) { vst1q_f32(p, v); }

#else  // any other machine: lanes that the compiler may or may not vectorise

struct Vec {
    float lane[4];
};
constexpr int kWidth = 4;
struct Pair {
    Vec even, odd;
};

inline Vec splat(float v) { return {{v, v, v, v}}; }
inline Vec zero() { return splat(0.0f); }
template <class F>
inline Vec each(Vec a, Vec b, F f) {
    for (int i = 0; i < kWidth; i++) a.lane[i] = f(a.lane[i], b.lane[i]);
    return a;
}
inline Vec add(Vec a, Vec b) { return each(a, b, [](float x, float y) { return x + y; }); }
inline Vec sub(Vec a, Vec b) { return each(a, b, [](float x, float y) { return x - y; }); }
inline Vec mul(Vec a, Vec b) { return each(a, b, [](float x, float y) { return x * y; }); }
inline Vec divide(Vec a, Vec b) { return each(a, b, [](float x, float y) { return x / y; }); }
inline Vec larger(Vec a, Vec b) { return each(a, b, [](float x, float y) { return x > y ? x : y; }); }
inline Vec lesser(Vec a, Vec b) { return each(a, b, [](float x, float y) { return x < y ? x : y; }); }
inline Vec magnitude(Vec a) { return each(a, a, [](float x, float) { return __builtin_fabsf(x); }); }
inline Vec fma(Vec a, Vec b, Vec c) { return add(mul(a, b), c); }
inline Vec exponent_add(Vec a, Vec shifted) {
    for (int i = 0; i < kWidth; i++) {
        uint32_t bits, more;
        __builtin_memcpy(&bits, &a.lane[i], 4);
        __builtin_memcpy(&more, &shifted.lane[i], 4);
        bits += more << 23;
        __builtin_memcpy(&a.lane[i], &bits, 4);
    }
    return a;
}
inline Vec load(const float *p) { return {{p[0], p[1], p[2], p[3]}}; }
inline Vec load(const bf16 *p) {
    Vec v;
    for (int i = 0; i < kWidth; i++) {
        const uint32_t bits = static_cast<uint32_t>(p[i].bits) << 16;
        __builtin_memcpy(&v.lane[i], &bits, 4);
    }
    return v;
}
inline Pair load_pair(const bf16 *p) {
    Pair v;
    for (int i = 0; i < 2 * kWidth; i++) {
        const uint32_t bits = static_cast<uint32_t>(p[i].bits) << 16;
        __builtin_memcpy(i % 2 ? &v.odd.lane[i / 2] : &v.even.lane[i / 2], &bits, 4);
    }
    return v;
}
inline Vec load(const int8_t *p) {
    return {{float(p[0]), float(p[1]), float(p[2]), float(p[3])}};
}
inline void store(float *p, Vec v) { __builtin_memcpy(p, v.lane, sizeof v.lane); }

#endif

template <class T>
inline Vec load_part(const T *p, int64_t n) {
    T padded[kWidth] = {};
    for (int64_t i = 0; i < n; i++) padded[i] = p[i];
    return load(padded);
}
inline void store_part(float *p, Vec v, int64_t n) {
    float lanes[kWidth];
    store(lanes, v);
    for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
}
inline float sum(Vec v) {
    float lanes[kWidth];
    store(lanes, v);
    // Halving keeps the rounding error at log2(width) steps.
    for (int half = kWidth / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}
inline void sums(const Vec *v, float *out) {
    for (int i = 0; i < 16; i++) out[i] = sum(v[i]);
}

#endif

// e^v, relative error below 2e-7; 0 below -87, NaN for NaN. With n = round(v / ln 2) and
// |r| <= ln(2) / 2, e^v = 2^n e^r; adding 1.5 * 2^23 rounds to an integer and leaves n in the low
// bits of the sum, from where it goes into the exponent.
inline Vec exponential(Vec v) {
    const Vec magic = splat(12582912.0f);
    const Vec bounded = lesser(splat(88.0f), larger(splat(-87.0f), v));
    const Vec shifted = fma(bounded, splat(1.44269504f), magic);
    const Vec n = sub(shifted, magic);
    Vec r = fma(n, splat(-0.693359375f), bounded);
    r = fma(n, splat(2.12194440e-4f), r);
    Vec p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(fma(p, r, splat(1.0f)), r, splat(1.0f));
    return exponent_add(p, shifted);
}
