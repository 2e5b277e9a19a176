#include "top_k.h"

#include <cstring>

namespace sparseinfer {
namespace {

// Magnitudes order as their bits do.
uint32_t magnitude(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & 0x7fffffffu;
}

}  // namespace

void keep_largest(float *values, int64_t count, int64_t k) {
    if (k >= count) return;
    // The bits of the k-th largest magnitude, eight at a time from the top: in which of the buckets
    // of values that begin as it does it falls.
    uint32_t found = 0, known = 0;
    int64_t left = k;    // of those with the bits found so far
    constexpr int kShifts[] = {23, 15, 7, 0};
    for (int shift : kShifts) {
        const uint32_t digit = shift == 0 ? 127 : 255;
        int64_t buckets[256] = {};
        for (int64_t i = 0; i < count; i++) {
            const uint32_t bits = magnitude(values[i]);
            if ((bits & known) == found) buckets[bits >> shift & digit]++;
        }
        uint32_t bucket = digit;
        while (bucket > 0 && buckets[bucket] < left) left -= buckets[bucket--];
        found |= bucket << shift;
        known |= digit << shift;
    }
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = magnitude(values[i]);
        if (bits < found || (bits == found && left-- <= 0)) values[i] = 0.0f;
    }
}

}  // namespace sparseinfer
