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

#include "quantised.inl"

#include "formats.inl"

#include "sketch.inl"

#include "inputs.inl"

#include "ffn.inl"

#include "ffn_chosen.inl"

#include "choose.inl"

#include "linear.inl"

#include "attention.inl"

#include "prefill.inl"

int64_t ffn_scratch() { return static_cast<int64_t>(sizeof(FfnScratch)); }

}  // namespace

#define SPARSEINFER_TEXT_(name) #name
#define SPARSEINFER_TEXT(name) SPARSEINFER_TEXT_(name)
#define SPARSEINFER_JOIN_(a, b) a##b
#define SPARSEINFER_JOIN(a, b) SPARSEINFER_JOIN_(a, b)

extern const Kernels SPARSEINFER_JOIN(kernels_, SPARSEINFER_ISA) = {
    SPARSEINFER_TEXT(SPARSEINFER_ISA),
    input_bytes,
    fill_input,
    view_input,
    dot_rows,
    ffn_scratch,
    ffn_ranges,
    activate_neurons,
    neuron_outputs,
    ffn_given,
    ffn_chosen,
    choice_bytes,
    fill_choice,
    view_choice,
    choose,
    ffn_sum,
    sparse_input_range,
    sparse_input_sum,
    widen_row,
    rms_norm,
    rotate,
    store_cache,
    attend,
    unpack_row,
    gate_row,
    prompt_scratch,
    attend_prompt};

}  // namespace sparseinfer
