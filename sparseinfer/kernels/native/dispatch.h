// Which kernel variants this machine can run, best last.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace sparseinfer {

std::vector<std::string> isa_available();

// Throws std::invalid_argument for a name that is unknown or that this machine cannot run.
const Kernels &kernels_for(const std::string &isa);

}  // namespace sparseinfer
