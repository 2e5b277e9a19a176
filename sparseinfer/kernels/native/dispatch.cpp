#include "dispatch.h"

#include <stdexcept>

namespace sparseinfer {
namespace {

std::vector<const Kernels *> variants() {
    std::vector<const Kernels *> found{&kernels_portable};
#if defined(SPARSEINFER_X86_64)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        found.push_back(&kernels_avx2);
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
            found.push_back(&kernels_avx512);
    }
#endif
    return found;
}

}  // namespace

std::vector<std::string> isa_available() {
    std::vector<std::string> names;
    for (const Kernels *kernels : variants()) names.emplace_back(kernels->isa);
    return names;
}

const Kernels &kernels_for(const std::string &isa) {
    for (const Kernels *kernels : variants())
        if (isa == kernels->isa) return *kernels;
    std::string known;
    for (const std::string &name : isa_available()) known += (known.empty() ? "" : ", ") + name;
    throw std::invalid_argument("isa \"" + isa + "\" is not available here; choose one of: " + known);
}

}  // namespace sparseinfer
