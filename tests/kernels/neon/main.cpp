// The native kernels of one machine against plain loops, without Python: for machines that are only
// emulated, and for variants that no machine here would choose. Arguments: variants that must be
// among those found.

#include <algorithm>

#include "check.h"
#include "dispatch.h"
#include "tests.h"

int main(int count, char **arguments) {
    const std::vector<std::string> found = sparseinfer::isa_available();
    for (int i = 1; i < count; i++)
        check(std::find(found.begin(), found.end(), arguments[i]) != found.end(),
              std::string("no variant ") + arguments[i]);
    for (const std::string &isa : found) {
        const sparseinfer::Kernels &kernels = sparseinfer::kernels_for(isa);
        check(isa == kernels.isa, "name of " + isa);
        test_products(kernels);
        test_ffns(kernels);
        test_decoders(kernels);
        test_candidates(kernels);
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
