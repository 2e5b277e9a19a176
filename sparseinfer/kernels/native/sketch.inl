// Low-bit copies of rows (layouts: sketch/matrix.py) and the planes of int8 rows (planes.py): dot
// products that estimate.

constexpr int64_t kSketchGroup = 64;    // weights, and inputs, that share one scale

inline int64_t sketch_groups(int64_t columns) { return (columns + kSketchGroup - 1) / kSketchGroup; }

inline int64_t sketch_input_bytes(int64_t columns) {
    const int64_t groups = sketch_groups(columns);
    return padded(groups * kSketchGroup) + 2 * padded(4 * (groups + 16));
}

// Where the parts of an input for sketches lie. `offset` is of codes 1 too high: -sum of x.
inline void view_sketch_input(const float *x, int64_t columns, void *memory, Input *in) {
    const int64_t groups = sketch_groups(columns);
    uint8_t *at = static_cast<uint8_t *>(memory);
    *in = Input{};
    in->x = x;
    in->hi = reinterpret_cast<int8_t *>(at);
    at += padded(groups * kSketchGroup);
    in->scale = reinterpret_cast<float *>(at);
    at += padded(4 * (groups + 16));
    in->offset = reinterpret_cast<float *>(at);
}

// x rounded to 8 bits, as `round_input` of sketch/__init__.py does.
inline void fill_sketch_input(const float *x, int64_t columns, void *memory, Input *in) {
    view_sketch_input(x, columns, memory, in);
    const int64_t groups = sketch_groups(columns);
    for (int64_t g = 0; g < groups; g++) {
        alignas(64) float values[kSketchGroup] = {};
        const int64_t count = smaller(kSketchGroup, columns - g * kSketchGroup);
        __builtin_memcpy(values, x + g * kSketchGroup, count * sizeof(float));
        Vec peak = zero(), spoil = zero();
        for (int i = 0; i < kSketchGroup; i += kWidth) {
            peak = larger(peak, magnitude(load(values + i)));
            spoil = fma(load(values + i), zero(), spoil);
        }
        float lanes[kWidth], most = 0.0f;
        store(lanes, peak);
        for (int i = 0; i < kWidth; i++) most = lanes[i] > most ? lanes[i] : most;
        // NaN and infinity must reach the estimate, and integers cannot carry them: the scale does.
        const float poison = sum(spoil), scale = most / 127.0f;
        const bool usable = poison == 0.0f && scale >= 1e-30f;
        const float inverse = usable ? 1.0f / scale : 0.0f;
        int32_t total = 0;
        for (int i = 0; i < kSketchGroup; i++) {
            // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, on every machine.
            const float shifted = (usable ? values[i] * inverse : 0.0f) + 12582912.0f;
            int32_t bits;
            __builtin_memcpy(&bits, &shifted, 4);
            const int32_t q = (bits & 0x7fffff) - 0x400000;
            in->hi[g * kSketchGroup + i] = static_cast<int8_t>(q);
            total += q;
        }
        in->scale[g] = (usable ? scale : 0.0f) + poison;
        in->offset[g] = in->scale[g] * static_cast<float>(-total);
    }
    for (int64_t g = groups; g < (groups + 15) / 16 * 16; g++) in->scale[g] = in->offset[g] = 0.0f;
}

// Up to 16 scales at p; 0 behind the last of `count`.
inline void load_few_scales(const uint8_t *p, int64_t count, float *out) {
    if (count >= 16) return load_scales(p, out);
    alignas(32) uint8_t bytes[32] = {};
    __builtin_memcpy(bytes, p, 2 * count);
    load_scales(bytes, out);
}

// Codes of a group lie in `width` bytes at `p`, in fields of a byte: in whole blocks each field is a
// group of its own, in the rest each is a part of the one group.
template <int kFieldBits>
struct Fields {
    static constexpr int kCount = 8 / kFieldBits;
    static constexpr uint8_t kMask = (1 << kFieldBits) - 1;
};

#if defined(__AVX512VNNI__)

// The 64 codes of field `k` of a block.
template <int kFieldBits>
inline __m512i block_codes(__m512i block, int k) {
    const __m512i mask = _mm512_set1_epi8(Fields<kFieldBits>::kMask);
    return _mm512_and_si512(_mm512_srli_epi16(block, static_cast<unsigned>(kFieldBits * k)), mask);
}

// The 64 codes of a group whose fields follow each other.
template <int kFieldBits>
inline __m512i rest_codes(const uint8_t *p) {
    const __m512i mask = _mm512_set1_epi8(Fields<kFieldBits>::kMask);
    if constexpr (kFieldBits == 4) {
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
        const __m512i both =
            _mm512_inserti64x4(_mm512_castsi256_si512(v), _mm256_srli_epi16(v, 4), 1);
        return _mm512_and_si512(both, mask);
    } else {
        const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
        const __m512i shifts = _mm512_set_epi64(
            0x0006000600060006, 0x0006000600060006, 0x0004000400040004, 0x0004000400040004,
            0x0002000200020002, 0x0002000200020002, 0, 0);
        return _mm512_and_si512(_mm512_srlv_epi16(_mm512_broadcast_i32x4(v), shifts), mask);
    }
}

template <int kBits>
inline __m512i with_top(__m512i codes, const uint8_t *tops, int64_t g) {
    if constexpr (kBits == 3) {
        uint64_t top;
        __builtin_memcpy(&top, tops + 8 * g, 8);
        codes = _mm512_or_si512(codes,
                                _mm512_maskz_set1_epi8(static_cast<__mmask64>(top), 4));
    }
    return codes;
}

inline Vec add_group(__m512i codes, const int8_t *x, float scale, Vec acc) {
    const __m512i dot =
        _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, _mm512_loadu_si512(x));
    return fma(_mm512_cvtepi32_ps(dot), splat(scale), acc);
}

// Partial sums of one row times one input.
template <int kBits>
inline Vec dot_sketch(const uint8_t *row, const Input &in, int64_t groups, const uint8_t *ahead) {
    constexpr int kFieldBits = kBits == 4 ? 4 : 2, kFields = 8 / kFieldBits;
    const uint8_t *codes = row + 2 * groups;
    const uint8_t *tops = codes + groups * kSketchGroup * kFieldBits / 8;
    const Vec half = splat(static_cast<float>(1 << (kBits - 1)));
    const int64_t whole = groups / kFields * kFields;
    Vec acc[4] = {zero(), zero(), zero(), zero()}, offset = zero();
    for (int64_t g0 = 0; g0 < groups; g0 += 16) {
        alignas(64) float scale[16];
        const int64_t count = smaller(16, groups - g0);
        const __m256i stored =
            _mm256_maskz_loadu_epi16(first(count), row + 2 * g0);
        const Vec wide = _mm512_cvtph_ps(stored);
        store(scale, mul(wide, load(in.scale + g0)));
        offset = fma(wide, mul(half, load(in.offset + g0)), offset);
        if (ahead) {
            constexpr int kBytes = 2 + kSketchGroup * kBits / 8;
            for (int64_t i = g0 * kBytes; i < (g0 + count) * kBytes; i += kLine)
                prefetch(ahead + i);
        }
        const int64_t blocks = smaller(count, whole - g0);
        int64_t i = 0;
        for (; i + kFields <= blocks; i += kFields) {
            const int64_t g = g0 + i;
            const __m512i block = _mm512_loadu_si512(codes + g * kSketchGroup * kFieldBits / 8);
#pragma GCC unroll 4
            for (int k = 0; k < kFields; k++)
                acc[k] = add_group(with_top<kBits>(block_codes<kFieldBits>(block, k), tops, g + k),
                                   in.hi + (g + k) * kSketchGroup, scale[i + k], acc[k]);
        }
        for (; i < count; i++) {
            const int64_t g = g0 + i;
            const __m512i part =
                rest_codes<kFieldBits>(codes + g * kSketchGroup * kFieldBits / 8);
            acc[0] = add_group(with_top<kBits>(part, tops, g), in.hi + g * kSketchGroup, scale[i],
                               acc[0]);
        }
    }
    return add(add(add(acc[0], acc[1]), add(acc[2], acc[3])), offset);
}

#else

// The 64 codes of group `g`.
template <int kBits>
inline void group_codes(const uint8_t *codes, const uint8_t *tops, int64_t g, int64_t groups,
                        uint8_t *out) {
    constexpr int kFieldBits = kBits == 4 ? 4 : 2, kFields = 8 / kFieldBits;
    constexpr uint8_t kMask = Fields<kFieldBits>::kMask;
    if (g < groups / kFields * kFields) {
        const uint8_t *block = codes + g / kFields * kSketchGroup;
        const int shift = kFieldBits * static_cast<int>(g % kFields);
        for (int i = 0; i < kSketchGroup; i++)
            out[i] = static_cast<uint8_t>(block[i] >> shift & kMask);
    } else {
        constexpr int kPart = kSketchGroup / kFields;
        const uint8_t *rest = codes + g * kSketchGroup * kFieldBits / 8;
        for (int k = 0; k < kFields; k++)
            for (int i = 0; i < kPart; i++)
                out[k * kPart + i] = static_cast<uint8_t>(rest[i] >> (kFieldBits * k) & kMask);
    }
    if (kBits == 3)
        for (int i = 0; i < kSketchGroup; i++)
            out[i] = static_cast<uint8_t>(out[i] | (tops[8 * g + i / 8] >> (i % 8) & 1) << 2);
}

inline int32_t dot_codes(const uint8_t *codes, const int8_t *x) {
#if defined(__AVX2__)
    __m256i total = _mm256_setzero_si256();
    for (int i = 0; i < kSketchGroup; i += 32) {
        const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(codes + i));
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x + i));
        total = _mm256_add_epi32(
            total, _mm256_madd_epi16(_mm256_maddubs_epi16(w, v), _mm256_set1_epi16(1)));
    }
    const __m128i half =
        _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    const __m128i quarter = _mm_add_epi32(half, _mm_srli_si128(half, 8));
    return _mm_cvtsi128_si32(_mm_add_epi32(quarter, _mm_srli_si128(quarter, 4)));
#else
    int32_t total = 0;
    for (int i = 0; i < kSketchGroup; i++) total += static_cast<int32_t>(codes[i]) * x[i];
    return total;
#endif
}

template <int kBits>
inline Vec dot_sketch(const uint8_t *row, const Input &in, int64_t groups, const uint8_t *ahead) {
    constexpr int kFieldBits = kBits == 4 ? 4 : 2;
    constexpr int kBytes = 2 + kSketchGroup * kBits / 8;
    const uint8_t *codes = row + 2 * groups;
    const uint8_t *tops = codes + groups * kSketchGroup * kFieldBits / 8;
    float total = 0.0f;
    for (int64_t g0 = 0; g0 < groups; g0 += 16) {
        float scale[16];
        const int64_t count = smaller(16, groups - g0);
        load_few_scales(row + 2 * g0, count, scale);
        if (ahead)
            for (int64_t i = g0 * kBytes; i < (g0 + count) * kBytes; i += kLine)
                prefetch(ahead + i);
        for (int64_t i = 0; i < count; i++) {
            const int64_t g = g0 + i;
            uint8_t values[kSketchGroup];
            group_codes<kBits>(codes, tops, g, groups, values);
            const float dot = static_cast<float>(dot_codes(values, in.hi + g * kSketchGroup));
            total += scale[i] * (in.scale[g] * dot + (1 << (kBits - 1)) * in.offset[g]);
        }
    }
    return load_part(&total, 1);
}

#endif

// Bytes of a group in a plane.
constexpr int64_t kHalves = kGroup / 2;

// One plane of an int8 row times one input: what its halves of the codes contribute. While it works
// it asks for `per_group` bytes of what lies `ahead` (or null) for each group.
struct Plane {
    float unit;    // of a half of a code
    float zero;    // what is taken off each code, in units of whole codes
};
// A low half that is not read counts as 7.5.
constexpr Plane kHighPlane{16.0f, 128.0f - 7.5f};
constexpr Plane kLowPlane{1.0f, 7.5f};

#if defined(__AVX512VNNI__)

inline Vec add_nibbles(__m512i codes, const Input &in, int64_t at, Vec scales, int p, Vec acc) {
    __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes,
                                      _mm512_loadu_si512(in.hi + at));
    dot = _mm512_dpbusd_epi32(_mm512_slli_epi32(dot, 8), codes, _mm512_loadu_si512(in.lo + at));
    return fma(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(pair_index(p), scales), acc);
}

inline Vec dot_plane(const Plane &plane, const uint8_t *stored, const uint8_t *codes,
                     const Input &in, int64_t columns, const uint8_t *ahead, int64_t per_group) {
    const int64_t groups = groups_of(columns);
    const __m512i mask = _mm512_set1_epi8(15);
    const Vec unit = splat(plane.unit), zero_point = splat(plane.zero / kZeroPoint<Format::int8>);
    Vec acc[2] = {zero(), zero()}, offset = zero();
    for (int64_t g0 = 0; g0 < groups; g0 += 16) {
        const int64_t count = smaller(16, groups - g0);
        const Vec wide = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), stored + 2 * g0));
        const Vec scales = mul(mul(wide, unit), load(in.scale + g0));
        offset = fma(wide, mul(zero_point, load(in.offset + g0)), offset);
        if (ahead)
            for (int64_t i = 0; i < count * per_group; i += kLine)
                prefetch(ahead + g0 * per_group + i);
        int64_t i = 0;
        for (; i + 4 <= count; i += 4) {
            const __m512i v = _mm512_loadu_si512(codes + (g0 + i) * 16);
            const int64_t at = (g0 + i) * kGroup;
            const int p = static_cast<int>(i) / 2;
            acc[0] = add_nibbles(_mm512_and_si512(v, mask), in, at, scales, p, acc[0]);
            acc[1] = add_nibbles(_mm512_and_si512(_mm512_srli_epi16(v, 4), mask), in, at + 64,
                                 scales, p + 1, acc[1]);
        }
        if (i < count) {
            const __m256i v =
                _mm256_loadu_si256(reinterpret_cast<const __m256i *>(codes + (g0 + i) * 16));
            const __m512i both =
                _mm512_inserti64x4(_mm512_castsi256_si512(v), _mm256_srli_epi16(v, 4), 1);
            acc[0] = add_nibbles(_mm512_and_si512(both, mask), in, (g0 + i) * kGroup, scales,
                                 static_cast<int>(i) / 2, acc[0]);
        }
    }
    return add(add(acc[0], acc[1]), offset);
}

#else

inline Vec dot_plane(const Plane &plane, const uint8_t *stored, const uint8_t *codes,
                     const Input &in, int64_t columns, const uint8_t *ahead, int64_t per_group) {
    const int64_t groups = groups_of(columns);
    float total = 0.0f;
    for (int64_t g0 = 0; g0 < groups; g0 += 16) {
        float scale[16];
        const int64_t count = smaller(16, groups - g0);
        load_few_scales(stored + 2 * g0, count, scale);
        if (ahead)
            for (int64_t i = 0; i < count * per_group; i += kLine)
                prefetch(ahead + g0 * per_group + i);
        for (int64_t i = 0; i < count; i++) {
            const int64_t g = g0 + i;
            const Nibbles n = nibbles(codes, g, groups);
            const int16_t *x = in.x16 + g * kGroup;
            int32_t dot = 0, sum_of_x = 0;
            for (int j = 0; j < kGroup; j++) {
                dot += static_cast<int32_t>(n.p[j] >> n.shift & 15) * x[j];
                sum_of_x += x[j];
            }
            total += scale[i] * in.scale[g] *
                     (plane.unit * static_cast<float>(dot) -
                      plane.zero * static_cast<float>(sum_of_x));
        }
    }
    return load_part(&total, 1);
}

#endif
