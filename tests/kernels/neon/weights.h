// Random matrices in every format, packed here as matrix.py describes, beside their exact values.
#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "kernels.h"

using sparseinfer::Format;
using sparseinfer::kGroup;
using sparseinfer::MatrixView;

constexpr Format kFormats[] = {Format::fp32, Format::bf16, Format::int8, Format::int4};

inline const char *name(Format format) {
    constexpr const char *names[] = {"fp32", "bf16", "int8", "int4"};
    return names[static_cast<int>(format)];
}

// bf16 is the upper half of fp32.
inline uint16_t upper_half(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    return static_cast<uint16_t>(bits >> 16);
}
inline float from_bf16(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float v;
    std::memcpy(&v, &bits, 4);
    return v;
}

class Weights {
public:
    // `gap`: bytes between rows, which hold 0xff as everything that no row owns.
    Weights(Format format, int64_t rows, int64_t columns, Random &random, int64_t gap = 0)
        : format_(format), rows_(rows), columns_(columns),
          groups_((columns + 2 * kGroup - 1) / (2 * kGroup) * 2), value_(rows * columns) {
        const int64_t bytes = format == Format::fp32   ? 4 * columns
                              : format == Format::bf16 ? 2 * columns
                              : format == Format::int8 ? groups_ * (2 + kGroup)
                                                       : groups_ * (2 + kGroup / 2);
        stride_ = bytes + gap;
        bytes_.assign(rows * stride_ - gap, 0xff);
        row_bytes_ = bytes;
        for (int64_t r = 0; r < rows; r++) fill(r, random);
    }

    MatrixView view() const { return {bytes_.data(), rows_, columns_, stride_, format_}; }
    double operator()(int64_t row, int64_t column) const { return value_[row * columns_ + column]; }
    int64_t rows() const { return rows_; }
    int64_t columns() const { return columns_; }
    Format format() const { return format_; }

    bool is_zero(int64_t row) const {
        for (int64_t k = 0; k < columns_; k++)
            if ((*this)(row, k) != 0.0) return false;
        return true;
    }

    // Makes a row NaN in every format: who reads it shows it.
    void poison(int64_t row) {
        uint8_t *p = bytes_.data() + row * stride_;
        std::memset(p, 0xff, format_ <= Format::bf16 ? row_bytes_ : 2 * groups_);
    }

private:
    void fill(int64_t r, Random &random) {
        uint8_t *p = bytes_.data() + r * stride_;
        double *value = value_.data() + r * columns_;
        if (format_ <= Format::bf16) {
            for (int64_t k = 0; k < columns_; k++) {
                const float v = random.symmetric();
                const uint16_t half = upper_half(v);
                value[k] = format_ == Format::fp32 ? v : from_bf16(half);
                if (format_ == Format::fp32)
                    std::memcpy(p + 4 * k, &v, 4);
                else
                    std::memcpy(p + 2 * k, &half, 2);
            }
            return;
        }
        std::vector<int> code(groups_ * kGroup);
        for (int &c : code)
            c = format_ == Format::int8 ? static_cast<int>(random.below(255)) - 127
                                        : static_cast<int>(random.below(16)) - 8;
        for (int64_t g = 0; g < groups_; g++) {
            const int64_t begin = g * kGroup;
            // Once in a while 0, and once in a while too small for a normal half.
            const int64_t kind = random.below(16);
            const uint16_t fraction = static_cast<uint16_t>(random.below(1024));
            // Of a size that makes weights lie between -2 and 2.
            const int64_t least = format_ == Format::int8 ? 6 : 10;
            const uint16_t exponent = kind < 2 ? 0 : static_cast<uint16_t>(least + random.below(3));
            uint16_t half = static_cast<uint16_t>(exponent << 10 | (kind == 0 ? 0 : fraction));
            if (begin >= columns_) half = 0;
            const double scale = (half >> 10) ? std::ldexp(1024 + (half & 1023), (half >> 10) - 25)
                                              : std::ldexp(half & 1023, -24);
            std::memcpy(p + 2 * g, &half, 2);
            for (int64_t k = begin; k < begin + kGroup; k++) {
                if (k < columns_)
                    value[k] = scale * code[k];
                else if (begin < columns_)
                    code[k] = 0;
            }
        }
        uint8_t *codes = p + 2 * groups_;
        const int64_t width = groups_ * kGroup;
        if (format_ == Format::int8) {
            for (int64_t k = 0; k < width; k++) codes[k] = static_cast<uint8_t>(code[k]);
            return;
        }
        for (int64_t block = 0; block < width; block += 128) {
            const int64_t half = std::min<int64_t>(128, width - block) / 2;
            for (int64_t i = 0; i < half; i++)
                codes[block / 2 + i] = static_cast<uint8_t>((code[block + i] + 8) |
                                                            (code[block + half + i] + 8) << 4);
        }
    }

    Format format_;
    int64_t rows_, columns_, groups_, stride_, row_bytes_;
    std::vector<uint8_t> bytes_;
    std::vector<double> value_;
};

// An input that its quantised form holds exactly, in 8 bits as in 16: whole multiples of 1/64, the
// largest of each group 127/64.
inline std::vector<float> exact_input(int64_t rows, int64_t columns, Random &random) {
    std::vector<float> x(rows * columns);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < columns; k++)
            x[r * columns + k] =
                (k % kGroup == 0 ? (random.below(2) ? 127.0f : -127.0f)
                                 : static_cast<float>(random.below(255)) - 127.0f) / 64.0f;
    return x;
}
