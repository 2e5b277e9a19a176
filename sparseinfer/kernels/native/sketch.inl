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

inline Vec add_group(__m512i codes, __m512i x, float scale, Vec acc) {
    const __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, x);
    return fma(_mm512_cvtepi32_ps(dot), splat(scale), acc);
}

// out[r]: partial sums of row r times the input, for R rows that share each piece of it.
template <int kBits, int R>
inline void dot_sketch(const uint8_t *const *rows, const Input &in, int64_t groups,
                       const uint8_t *const *ahead, Vec *out) {
    constexpr int kFieldBits = kBits == 4 ? 4 : 2, kFields = 8 / kFieldBits;
    constexpr int kBytes = 2 + kSketchGroup * kBits / 8, kCodes = kSketchGroup * kFieldBits / 8;
    const Vec half = splat(static_cast<float>(1 << (kBits - 1)));
    const int64_t whole = groups / kFields * kFields, tops = (2 + kCodes) * groups;
    // 4 bits: codes of odd groups stay in the high halves of their bytes, which is exact and saves
    // a shift.
    const Vec factor = kBits == 4 ? _mm512_castsi512_ps(_mm512_set1_epi64(0x3d8000003f800000))
                                  : splat(1.0f);    // 1, 1/16, 1, 1/16 ...
    Vec acc[R][2], offset[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = offset[r] = zero();
    for (int64_t g0 = 0; g0 < groups; g0 += 16) {
        alignas(64) float scale[R][16];
        const int64_t count = smaller(16, groups - g0);
        const int64_t blocks = smaller(count, whole - g0) / kFields * kFields;
        const Vec of_input = load(in.scale + g0), of_offset = mul(half, load(in.offset + g0));
        // The groups behind the last whole block are not in the high halves.
        const Vec shifted = _mm512_mask_blend_ps(first(blocks), splat(1.0f), factor);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const Vec stored =
                _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), rows[r] + 2 * g0));
            store(scale[r], mul(mul(stored, of_input), shifted));
            offset[r] = fma(stored, of_offset, offset[r]);
            if (ahead[r])
                for (int64_t i = g0 * kBytes; i < (g0 + count) * kBytes; i += kLine)
                    prefetch(ahead[r] + i);
        }
        int64_t i = 0;
        for (; i < blocks; i += kFields) {
            const int64_t g = g0 + i;
            __m512i block[R];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++)
                block[r] = _mm512_loadu_si512(rows[r] + 2 * groups + g * kCodes);
#pragma GCC unroll 4
            for (int k = 0; k < kFields; k++) {
                const __m512i x = _mm512_loadu_si512(in.hi + (g + k) * kSketchGroup);
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) {
                    const __m512i codes =
                        kBits == 4 && k == 1
                            ? _mm512_and_si512(block[r], _mm512_set1_epi8(static_cast<char>(0xf0)))
                            : with_top<kBits>(block_codes<kFieldBits>(block[r], k), rows[r] + tops,
                                              g + k);
                    acc[r][k & 1] = add_group(codes, x, scale[r][i + k], acc[r][k & 1]);
                }
            }
        }
        for (; i < count; i++) {
            const int64_t g = g0 + i;
            const __m512i x = _mm512_loadu_si512(in.hi + g * kSketchGroup);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const __m512i part = rest_codes<kFieldBits>(rows[r] + 2 * groups + g * kCodes);
                acc[r][0] = add_group(with_top<kBits>(part, rows[r] + tops, g), x, scale[r][i],
                                      acc[r][0]);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) out[r] = add(add(acc[r][0], acc[r][1]), offset[r]);
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

template <int kBits, int R>
inline void dot_sketch(const uint8_t *const *rows, const Input &in, int64_t groups,
                       const uint8_t *const *ahead, Vec *out) {
    constexpr int kFieldBits = kBits == 4 ? 4 : 2;
    constexpr int kBytes = 2 + kSketchGroup * kBits / 8;
    for (int r = 0; r < R; r++) {
        const uint8_t *codes = rows[r] + 2 * groups;
        const uint8_t *tops = codes + groups * kSketchGroup * kFieldBits / 8;
        float total = 0.0f;
        for (int64_t g0 = 0; g0 < groups; g0 += 16) {
            float scale[16];
            const int64_t count = smaller(16, groups - g0);
            load_few_scales(rows[r] + 2 * g0, count, scale);
            if (ahead[r])
                for (int64_t i = g0 * kBytes; i < (g0 + count) * kBytes; i += kLine)
                    prefetch(ahead[r] + i);
            for (int64_t i = 0; i < count; i++) {
                const int64_t g = g0 + i;
                uint8_t values[kSketchGroup];
                group_codes<kBits>(codes, tops, g, groups, values);
                const float dot = static_cast<float>(dot_codes(values, in.hi + g * kSketchGroup));
                total += scale[i] * (in.scale[g] * dot + (1 << (kBits - 1)) * in.offset[g]);
            }
        }
        out[r] = load_part(&total, 1);
    }
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

// out[r]: partial sums of R rows that share each piece of the input. `stored`: scales of row r.
template <int R>
inline void dot_plane(const Plane &plane, const uint8_t *const *stored,
                      const uint8_t *const *codes, const Input &in, int64_t columns,
                      const uint8_t *const *ahead, int64_t per_group, Vec *out) {
    const int64_t groups = groups_of(columns);
    const __m512i mask = _mm512_set1_epi8(15);
    const Vec unit = splat(plane.unit), zero_point = splat(plane.zero / kZeroPoint<Format::int8>);
    Vec acc[R][2], offset[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = offset[r] = zero();
    for (int64_t g0 = 0; g0 < groups; g0 += 16) {
        const int64_t count = smaller(16, groups - g0);
        const Vec of_input = mul(unit, load(in.scale + g0));
        const Vec of_offset = mul(zero_point, load(in.offset + g0));
        Vec scales[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const Vec wide =
                _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), stored[r] + 2 * g0));
            scales[r] = mul(wide, of_input);
            offset[r] = fma(wide, of_offset, offset[r]);
            if (ahead[r])
                for (int64_t i = 0; i < count * per_group; i += kLine)
                    prefetch(ahead[r] + g0 * per_group + i);
        }
        int64_t i = 0;
        const auto add_pair = [&](const __m512i *halves, int which) {
            const int64_t at = (g0 + i) * kGroup + 64 * which;
            const __m512i hi = _mm512_loadu_si512(in.hi + at), lo = _mm512_loadu_si512(in.lo + at);
            const __m512i index = pair_index(static_cast<int>(i) / 2 + which);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), halves[r], hi);
                dot = _mm512_dpbusd_epi32(_mm512_slli_epi32(dot, 8), halves[r], lo);
                acc[r][which] = fma(_mm512_cvtepi32_ps(dot),
                                    _mm512_permutexvar_ps(index, scales[r]), acc[r][which]);
            }
        };
        for (; i + 4 <= count; i += 4) {
            __m512i low[R], high[R];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const __m512i v = _mm512_loadu_si512(codes[r] + (g0 + i) * kHalves);
                low[r] = _mm512_and_si512(v, mask);
                high[r] = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
            }
            add_pair(low, 0);
            add_pair(high, 1);
        }
        if (i < count) {
            __m512i both[R];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const __m256i v = _mm256_loadu_si256(
                    reinterpret_cast<const __m256i *>(codes[r] + (g0 + i) * kHalves));
                both[r] = _mm512_and_si512(
                    _mm512_inserti64x4(_mm512_castsi256_si512(v), _mm256_srli_epi16(v, 4), 1),
                    mask);
            }
            add_pair(both, 0);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) out[r] = add(add(acc[r][0], acc[r][1]), offset[r]);
}

#else

template <int R>
inline void dot_plane(const Plane &plane, const uint8_t *const *stored,
                      const uint8_t *const *codes, const Input &in, int64_t columns,
                      const uint8_t *const *ahead, int64_t per_group, Vec *out) {
    const int64_t groups = groups_of(columns);
    for (int r = 0; r < R; r++) {
        float total = 0.0f;
        for (int64_t g0 = 0; g0 < groups; g0 += 16) {
            float scale[16];
            const int64_t count = smaller(16, groups - g0);
            load_few_scales(stored[r] + 2 * g0, count, scale);
            if (ahead[r])
                for (int64_t i = 0; i < count * per_group; i += kLine)
                    prefetch(ahead[r] + g0 * per_group + i);
            for (int64_t i = 0; i < count; i++) {
                const int64_t g = g0 + i;
                const Nibbles n = nibbles(codes[r], g, groups);
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
        out[r] = load_part(&total, 1);
    }
}

#endif
