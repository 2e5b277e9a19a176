// The kernels of one variant. The including source names it (SPARSEINFER_ISA) and is compiled with
// its instruction set. No standard library templates here: see kernels.h.

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace sparseinfer {
namespace {

#include "simd.h"

#include "rows.inl"

// Written so that NaN comes out as NaN: a comparison with NaN is false.
inline float relu(float v) { return v < 0.0f ? 0.0f : v; }

inline float activate(Phi phi, float g) {
    switch (phi) {
        case Phi::silu: return g / (1.0f + __builtin_expf(-g));
        case Phi::relu: return relu(g);
        default: return relu(g) * relu(g);
    }
}

// A NaN activation is kept, so that it reaches the output instead of vanishing.
inline bool keeps(float a, float threshold) {
    return (__builtin_fabsf(a) >= threshold || a != a) && a != 0.0f;
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
void ffn_range_of(const FfnWeights &w, const FfnCall &call, int64_t range) {
    const T *gate = static_cast<const T *>(w.gate);
    const T *up = static_cast<const T *>(w.up);
    const T *down = static_cast<const T *>(w.down);
    const int64_t n = w.hidden;
    const int64_t begin = range * kRange;
    const int64_t end = smaller(begin + kRange, w.intermediate);
    float *partial = call.partial + range * call.rows * n;
    int32_t *reads = call.reads + range * call.rows * 2;
    for (int64_t b = 0; b < call.rows; b++) reads[2 * b] = reads[2 * b + 1] = 0;

    // With several batch rows the weights are taken in blocks small enough to stay cached from one
    // batch row to the next. The block size does not enter the result.
    const int64_t block = call.rows == 1 ? kRange : 8;
    for (int64_t i0 = begin; i0 < end; i0 += block) {
        const int64_t i1 = smaller(i0 + block, end);
        float a[kMaxRows][kRange];        // activations of the kept neurons, then their h
        int32_t kept[kMaxRows][kRange];
        int32_t kept_count[kMaxRows];
        const T *list[2 * kRange];
        const int count = static_cast<int>(i1 - i0);

        for (int i = 0; i < count; i++) list[i] = gate + (i0 + i) * n;
        for (int64_t b = 0; b < call.rows; b++) {
            float g[kRange];
            dot_list(list, count, count, call.x + b * n, n, g);
            int32_t live = 0;
            for (int64_t i = i0; i < i1; i++) {
                const float bias = w.gate_bias ? w.gate_bias[i] : 0.0f;
                const float value = activate(w.phi, g[i - i0] + bias);
                if (!keeps(value, w.threshold[i])) continue;
                a[b][live] = value;
                kept[b][live++] = static_cast<int32_t>(i);
            }
            kept_count[b] = live;
            reads[2 * b] += live;
        }

        for (int64_t b = 0; b < call.rows; b++) {
            float u[kRange];
            const int32_t *neurons = kept[b];
            const int32_t candidates = kept_count[b];
            // Nearly every kept neuron needs its row of down too, so those are fetched ahead as
            // well; dReLU alone drops some later on.
            const int known = w.psi == Psi::id ? 2 * candidates : candidates;
            for (int i = 0; i < candidates; i++) {
                list[i] = up + neurons[i] * n;
                list[candidates + i] = down + neurons[i] * n;
            }
            dot_list(list, candidates, known, call.x + b * n, n, u);
            int32_t live = 0;
            for (int i = 0; i < candidates; i++) {
                const int32_t neuron = neurons[i];
                float value = u[i] + (w.up_bias ? w.up_bias[neuron] : 0.0f);
                if (w.psi == Psi::relu) value = relu(value);
                const float h = a[b][i] * value;
                if (h == 0.0f) continue;
                a[b][live] = h;
                list[live++] = down + neuron * n;
            }
            if (live == 0) continue;
            float *acc = partial + b * n;
            if (reads[2 * b + 1] == 0) __builtin_memset(acc, 0, n * sizeof(float));
            reads[2 * b + 1] += live;
            axpy_list(list, live, a[b], n, acc);
        }
    }
}

void ffn_range(const FfnWeights &w, const FfnCall &call, int64_t range) {
    if (w.is_bf16)
        ffn_range_of<bf16>(w, call, range);
    else
        ffn_range_of<float>(w, call, range);
}

void ffn_sum(const FfnWeights &w, const FfnCall &call, int64_t begin, int64_t end) {
    const int64_t ranges = (w.intermediate + kRange - 1) / kRange;
    for (int64_t b = 0; b < call.rows; b++) {
        float *y = call.y + b * w.hidden;
        for (int64_t j = begin; j < end; j++) y[j] = w.down_bias ? w.down_bias[j] : 0.0f;
        for (int64_t s = 0; s < ranges; s++) {
            const int64_t slot = s * call.rows + b;
            if (call.reads[2 * slot + 1] == 0) continue;
            const float *part = call.partial + slot * w.hidden;
            for (int64_t j = begin; j < end; j++) y[j] += part[j];
        }
    }
}

template <class T>
void linear_of(const LinearWeights &w, const float *x, float *y, int64_t rows, int64_t begin,
               int64_t end) {
    const T *weight = static_cast<const T *>(w.weight);
    const int64_t n = w.inputs;
    const int64_t block = rows == 1 ? kRange : 8;    // as in ffn_range_of
    for (int64_t o = begin; o < end; o += block) {
        const T *list[kRange];
        const int count = static_cast<int>(smaller(block, end - o));
        for (int i = 0; i < count; i++) list[i] = weight + (o + i) * n;
        for (int64_t b = 0; b < rows; b++) {
            float *out = y + b * w.outputs + o;
            dot_list(list, count, count, x + b * n, n, out);
            if (w.bias)
                for (int i = 0; i < count; i++) out[i] += w.bias[o + i];
        }
    }
}

void linear(const LinearWeights &w, const float *x, float *y, int64_t rows, int64_t begin,
            int64_t end) {
    if (w.is_bf16)
        linear_of<bf16>(w, x, y, rows, begin, end);
    else
        linear_of<float>(w, x, y, rows, begin, end);
}

}  // namespace

#define SPARSEINFER_TEXT_(name) #name
#define SPARSEINFER_TEXT(name) SPARSEINFER_TEXT_(name)
#define SPARSEINFER_JOIN_(a, b) a##b
#define SPARSEINFER_JOIN(a, b) SPARSEINFER_JOIN_(a, b)

extern const Kernels SPARSEINFER_JOIN(kernels_, SPARSEINFER_ISA) = {
    SPARSEINFER_TEXT(SPARSEINFER_ISA), ffn_range, ffn_sum, linear};

}  // namespace sparseinfer
