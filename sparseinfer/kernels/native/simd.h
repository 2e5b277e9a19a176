// One vector of floats, `Vec`, as wide as the instruction set this source is compiled for.
//
// Included inside an anonymous namespace of each kernel variant, so nothing leaks between them.
// `load` widens bf16 to fp32, which is exact. The `_part` forms touch only the first n < kWidth
// elements of memory; loaded lanes beyond them are 0.

#if defined(__AVX512F__)

using Vec = __m512;
constexpr int kWidth = 16;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec splat(float v) { return _mm512_set1_ps(v); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec widen(__m256i v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
inline Vec load(const float *p) { return _mm512_loadu_ps(p); }
inline Vec load(const bf16 *p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
inline void store(float *p, Vec v) { _mm512_storeu_ps(p, v); }
inline __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline Vec load_part(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline Vec load_part(const bf16 *p, int64_t n) {
    return widen(_mm256_maskz_loadu_epi16(first(n), p));
}
inline void store_part(float *p, Vec v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
inline float sum(Vec v) { return _mm512_reduce_add_ps(v); }

#else

#if defined(__AVX2__) && defined(__FMA__)

using Vec = __m256;
constexpr int kWidth = 8;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec splat(float v) { return _mm256_set1_ps(v); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec load(const float *p) { return _mm256_loadu_ps(p); }
inline Vec load(const bf16 *p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
inline void store(float *p, Vec v) { _mm256_storeu_ps(p, v); }

#elif defined(__SSE2__)

using Vec = __m128;
constexpr int kWidth = 4;

inline Vec zero() { return _mm_setzero_ps(); }
inline Vec splat(float v) { return _mm_set1_ps(v); }
inline Vec add(Vec a, Vec b) { return _mm_add_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
inline Vec load(const float *p) { return _mm_loadu_ps(p); }
inline Vec load(const bf16 *p) {
    const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
    return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), v));
}
inline void store(float *p, Vec v) { _mm_storeu_ps(p, v); }

#elif defined(__aarch64__)

using Vec = float32x4_t;
constexpr int kWidth = 4;

inline Vec zero() { return vdupq_n_f32(0.0f); }
inline Vec splat(float v) { return vdupq_n_f32(v); }
inline Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
inline Vec load(const float *p) { return vld1q_f32(p); }
inline Vec load(const bf16 *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16));
}
inline void store(float *p, Vec v) { vst1q_f32(p, v); }

#else  // any other machine: lanes that the compiler may or may not vectorise

struct Vec {
    float lane[4];
};
constexpr int kWidth = 4;

inline Vec splat(float v) { return {{v, v, v, v}}; }
inline Vec zero() { return splat(0.0f); }
inline Vec add(Vec a, Vec b) {
    for (int i = 0; i < kWidth; i++) a.lane[i] += b.lane[i];
    return a;
}
inline Vec fma(Vec a, Vec b, Vec c) {
    for (int i = 0; i < kWidth; i++) c.lane[i] = a.lane[i] * b.lane[i] + c.lane[i];
    return c;
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

#endif
