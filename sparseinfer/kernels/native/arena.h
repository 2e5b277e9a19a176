// Hands out 64-byte aligned pieces of one block of memory; without a block it only adds them up.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparseinfer {

class Arena {
public:
    Arena() = default;
    explicit Arena(void *block) : block_(static_cast<uint8_t *>(block)) {}

    template <class T>
    T *take(int64_t count) {
        T *piece = block_ ? reinterpret_cast<T *>(block_ + used_) : nullptr;
        used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
        return piece;
    }

    size_t bytes() const { return used_; }

private:
    uint8_t *block_ = nullptr;
    size_t used_ = 0;
};

}  // namespace sparseinfer
