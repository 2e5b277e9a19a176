#include "dispatch.h"

#include <stdexcept>

namespace sparseinfer {
namespace {

std::vector<const Kernels *> variants() {
    std::vector<const Kernels *> found{&kernels_portable};
#if defined(SPARSEINFER_X86_64)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    if (avx2) found.push_back(&kernels_avx2);
    if (avx512) found.push_back(&kernels_avx512);
    if (avx512 && __builtin_cpu_supports("avx512vnni")) found.push_back(&kernels_avx512_vnni);
#endif
    return found;
}

}  // namespace

std::vector<std::string> isa_available() {
    std::vector<std::string> names;
    for (const Kernels *kernels : variants()) names.emplace_back(kernels->isa);
    return names;
}

int64_t accumulator_width(const MatrixView &m) {
    const bool plain = m.format == Format::fp32 || m.format == Format::bf16;
    return plain ? m.columns : (m.columns + 2 * kGroup - 1) / (2 * kGroup) * (2 * kGroup);
}

const Kernels &kernels_for(const std::string &isa) {
    for (const Kernels *kernels : variants())
        if (isa == kernels->isa) return *kernels;
    std::string known;
    for (const std::string &name : isa_available()) known += (known.empty() ? "" : ", ") + name;
    throw std::invalid_argument("isa \"" + isa + "\" is not available here; choose one of: " + known);
}

}  // namespace sparseinfer
