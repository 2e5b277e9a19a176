#pragma once

#include <cstdint>

namespace sparseinfer {

// Sets all but the k values of largest magnitude to 0. Of equal ones the first stay; NaN counts as
// larger than any number.
void keep_largest(float *values, int64_t count, int64_t k);

}  // namespace sparseinfer
