// Choosers, and the gated FFN over what they choose, against loops in double.

#include <algorithm>

#include "choose.h"
#include "dispatch.h"
#include "gated_ffn.h"
#include "tests.h"
#include "weights.h"

using namespace sparseinfer;

namespace {

struct Shape {
    int64_t hidden, intermediate;
};

// Random codes of a sketch, packed as sketch/matrix.py describes, beside their exact values.
class SketchRows {
public:
    SketchRows(int bits, int64_t rows, int64_t columns, Random &random)
        : columns_(columns), value_(rows * columns) {
        const int64_t groups = (columns + 63) / 64, width = groups * (2 + 8 * bits);
        bytes_.assign(rows * width, 0);
        stride_ = width;
        const int fields = bits == 4 ? 2 : 4, field_bits = bits == 4 ? 4 : 2;
        for (int64_t r = 0; r < rows; r++) {
            uint8_t *row = bytes_.data() + r * width, *codes = row + 2 * groups;
            uint8_t *tops = codes + groups * 8 * field_bits;
            for (int64_t g = 0; g < groups; g++) {
                const uint16_t half = static_cast<uint16_t>(12 << 10 | random.below(1024));
                const double scale = std::ldexp(1024 + (half & 1023), (half >> 10) - 25);
                std::memcpy(row + 2 * g, &half, 2);
                const bool whole = g < groups / fields * fields;
                for (int64_t p = 0; p < 64; p++) {
                    const int64_t k = 64 * g + p;
                    const int code = k < columns ? static_cast<int>(random.below(1 << bits))
                                                 : 1 << (bits - 1);
                    if (k < columns) value_[r * columns + k] = scale * (code - (1 << (bits - 1)));
                    const int64_t part = 64 / fields;
                    uint8_t &byte = whole ? codes[g / fields * 64 + p]
                                          : codes[g * 8 * field_bits + p % part];
                    const int64_t field = whole ? g % fields : p / part;
                    byte |= static_cast<uint8_t>((code & ((1 << field_bits) - 1))
                                                 << (field * field_bits));
                    if (bits == 3) tops[8 * g + p / 8] |= static_cast<uint8_t>((code >> 2) << (p % 8));
                }
            }
        }
    }

    const uint8_t *data() const { return bytes_.data(); }
    int64_t stride() const { return stride_; }
    double operator()(int64_t row, int64_t column) const { return value_[row * columns_ + column]; }

private:
    int64_t columns_, stride_;
    std::vector<uint8_t> bytes_;
    std::vector<double> value_;
};

// An int8 matrix in two planes, as planes.py describes.
struct Planes {
    Planes(const Weights &m) {
        const MatrixView v = m.view();
        const int64_t groups = (v.columns + 63) / 64 * 2, width = groups * kGroup;
        high_stride = groups * 18;
        low_stride = width / 2;
        high.assign(v.rows * high_stride, 0);
        low.assign(v.rows * low_stride, 0);
        for (int64_t r = 0; r < v.rows; r++) {
            const uint8_t *row = v.data + r * v.stride;
            uint8_t *h = high.data() + r * high_stride, *l = low.data() + r * low_stride;
            std::memcpy(h, row, 2 * groups);
            for (int64_t block = 0; block < width; block += 128) {
                const int64_t half = std::min<int64_t>(128, width - block) / 2;
                for (int64_t i = 0; i < half; i++) {
                    const int first = row[2 * groups + block + i] ^ 128;
                    const int second = row[2 * groups + block + half + i] ^ 128;
                    h[2 * groups + block / 2 + i] =
                        static_cast<uint8_t>(first >> 4 | (second >> 4) << 4);
                    l[block / 2 + i] = static_cast<uint8_t>((first & 15) | (second & 15) << 4);
                }
            }
        }
    }
    // What the high plane alone says of a weight.
    double estimate(const Weights &m, int64_t row, int64_t column) const {
        const MatrixView v = m.view();
        const int64_t groups = (v.columns + 63) / 64 * 2;
        const int code = static_cast<int8_t>(v.data[row * v.stride + 2 * groups + column]);
        if (code == 0) return m(row, column) + scale(v, row, column, groups) * 7.5;
        return scale(v, row, column, groups) * ((((code + 128) >> 4) - 8) * 16 + 7.5);
    }
    static double scale(const MatrixView &v, int64_t row, int64_t column, int64_t groups) {
        uint16_t half;
        std::memcpy(&half, v.data + row * v.stride + 2 * (column / kGroup), 2);
        (void)groups;
        return (half >> 10) ? std::ldexp(1024 + (half & 1023), (half >> 10) - 25)
                            : std::ldexp(half & 1023, -24);
    }
    std::vector<uint8_t> high, low;
    int64_t high_stride, low_stride;
};

// Whole multiples of 1/64, the largest of each group of 64, and of 32, being 127/64: exact in 8 bits.
std::vector<float> input(int64_t rows, int64_t columns, Random &random) {
    return exact_input(rows, columns, random);
}

std::string label(const Kernels &kernels, const char *kind, Shape s, int64_t rows) {
    return std::string(kind) + " " + kernels.isa + " " + std::to_string(s.hidden) + "x" +
           std::to_string(s.intermediate) + " rows " + std::to_string(rows);
}

// chosen against `margin` [rows, neurons]: a neuron is chosen where it is not negative.
void check_chosen(const std::vector<uint16_t> &chosen, const std::vector<double> &margin,
                  int64_t rows, int64_t neurons, double unsure, const std::string &what) {
    int64_t wrong = 0, on = 0;
    for (int64_t b = 0; b < rows; b++)
        for (int64_t i = 0; i < neurons; i++) {
            const bool found = chosen[b / kMaxRows * neurons + i] >> (b % kMaxRows) & 1;
            const double m = margin[b * neurons + i];
            on += found;
            if (std::fabs(m) > unsure) wrong += found != (m >= 0.0);
        }
    check(wrong == 0, what + ": " + std::to_string(wrong) + " of " + std::to_string(on) + " wrong");
}

std::vector<uint16_t> chosen_by(const ChooserView &chooser, const Kernels &kernels,
                                const std::vector<float> &x, int64_t rows) {
    ThreadPool pool(2);
    std::vector<uint16_t> chosen((rows + kMaxRows - 1) / kMaxRows * chooser.neurons, 0xffff);
    choose_rows(chooser, kernels, pool, x.data(), chosen.data(), rows);
    return chosen;
}

void test_signs(const Kernels &kernels, Shape s, int64_t rows, Random &random) {
    const int64_t width = (s.hidden + 63) / 64 * 8;
    std::vector<uint8_t> bits(s.intermediate * width, 0);
    for (int64_t i = 0; i < s.intermediate; i++)
        for (int64_t k = 0; k < s.hidden; k++)
            bits[i * width + k / 8] |= static_cast<uint8_t>(random.below(2) << (k % 8));
    const std::vector<float> x = random.vector(rows * s.hidden);
    ChooserView chooser{};
    chooser.kind = Choice::sign;
    chooser.hidden = s.hidden;
    chooser.neurons = s.intermediate;
    chooser.bits = bits.data();
    chooser.most = s.hidden / 2;
    std::vector<double> margin(rows * s.intermediate);
    for (int64_t b = 0; b < rows; b++)
        for (int64_t i = 0; i < s.intermediate; i++) {
            int64_t negative = 0;
            for (int64_t k = 0; k < s.hidden; k++)
                negative += (x[b * s.hidden + k] < 0.0f) != (bits[i * width + k / 8] >> (k % 8) & 1);
            margin[b * s.intermediate + i] = static_cast<double>(chooser.most - negative) + 0.25;
        }
    check_chosen(chosen_by(chooser, kernels, x, rows), margin, rows, s.intermediate, 0.0,
                 label(kernels, "sign", s, rows));
}

void test_lowrank(const Kernels &kernels, Format format, Shape s, int64_t rows, Random &random) {
    const int64_t rank = 1 + random.below(40);
    const Weights inward(format, rank, s.hidden, random), outward(format, s.intermediate, rank, random);
    const std::vector<float> x = input(rows, s.hidden, random), bias = random.vector(s.intermediate);
    ChooserView chooser{};
    chooser.kind = Choice::lowrank;
    chooser.hidden = s.hidden;
    chooser.neurons = s.intermediate;
    chooser.inward = inward.view();
    chooser.outward = outward.view();
    chooser.bias = bias.data();
    std::vector<double> margin(rows * s.intermediate);
    double largest = 0.0;
    for (int64_t b = 0; b < rows; b++) {
        std::vector<double> z(rank, 0.0);
        for (int64_t r = 0; r < rank; r++)
            for (int64_t k = 0; k < s.hidden; k++) z[r] += x[b * s.hidden + k] * inward(r, k);
        for (int64_t i = 0; i < s.intermediate; i++) {
            double &m = margin[b * s.intermediate + i];
            m = bias[i];
            for (int64_t r = 0; r < rank; r++) m += z[r] * outward(i, r);
            largest = std::max(largest, std::fabs(m));
        }
    }
    check_chosen(chosen_by(chooser, kernels, x, rows), margin, rows, s.intermediate, 1e-3 * largest,
                 label(kernels, "lowrank", s, rows));
}

// A sketch, or planes; for the latter the FFN itself too.
template <class GateWeight, class UpWeight>
std::vector<double> margins(Shape s, int64_t rows, const std::vector<float> &x, double threshold,
                            const GateWeight &gate, const UpWeight &up, double *unsure) {
    std::vector<double> margin(rows * s.intermediate);
    double largest = 0.0;
    for (int64_t b = 0; b < rows; b++)
        for (int64_t i = 0; i < s.intermediate; i++) {
            double g = 0.0, u = 0.0;
            for (int64_t k = 0; k < s.hidden; k++) {
                g += x[b * s.hidden + k] * gate(i, k);
                u += x[b * s.hidden + k] * up(i, k);
            }
            const double estimate = std::fabs(std::max(g, 0.0) * u);
            margin[b * s.intermediate + i] = estimate - threshold;
            largest = std::max(largest, estimate);
        }
    *unsure = 1e-4 * largest;
    return margin;
}

void test_sketch(const Kernels &kernels, int bits, Shape s, int64_t rows, Random &random) {
    const SketchRows gate(bits, s.intermediate, s.hidden, random);
    const SketchRows up(bits, s.intermediate, s.hidden, random);
    const std::vector<float> x = input(rows, s.hidden, random);
    const std::vector<float> threshold(s.intermediate, 3.0f);
    ChooserView chooser{};
    chooser.kind = Choice::sketch;
    chooser.hidden = s.hidden;
    chooser.neurons = s.intermediate;
    chooser.gate = gate.data();
    chooser.up = up.data();
    chooser.stride = gate.stride();
    chooser.code_bits = bits;
    chooser.threshold = threshold.data();
    chooser.phi = Phi::relu;
    chooser.psi = Psi::id;
    double unsure;
    const auto margin = margins(s, rows, x, 3.0, gate, up, &unsure);
    check_chosen(chosen_by(chooser, kernels, x, rows), margin, rows, s.intermediate, unsure,
                 label(kernels, "sketch", s, rows) + " bits " + std::to_string(bits));
}

void test_planes(const Kernels &kernels, Shape s, int64_t rows, Random &random) {
    const Weights gate(Format::int8, s.intermediate, s.hidden, random);
    const Weights up(Format::int8, s.intermediate, s.hidden, random);
    const Weights down(Format::int8, s.intermediate, s.hidden, random);
    const Planes gates(gate), ups(up);
    const std::vector<float> x = input(rows, s.hidden, random);
    const std::vector<float> threshold(s.intermediate, 3.0f);
    FfnWeights w{};
    w.gate = {gates.low.data(), s.intermediate, s.hidden, gates.low_stride, Format::int8};
    w.up = {ups.low.data(), s.intermediate, s.hidden, ups.low_stride, Format::int8};
    w.down = down.view();
    w.threshold = threshold.data();
    w.hidden = s.hidden;
    w.intermediate = s.intermediate;
    w.range = range_size(s.intermediate);
    w.phi = Phi::relu;
    w.psi = Psi::id;
    ChooserView &chooser = w.chooser;
    chooser.kind = Choice::planes;
    chooser.hidden = s.hidden;
    chooser.neurons = s.intermediate;
    chooser.gate = gates.high.data();
    chooser.up = ups.high.data();
    chooser.stride = gates.high_stride;
    chooser.threshold = threshold.data();
    chooser.phi = w.phi;
    chooser.psi = w.psi;
    double unsure;
    const auto margin = margins(
        s, rows, x, 3.0, [&](int64_t i, int64_t k) { return gates.estimate(gate, i, k); },
        [&](int64_t i, int64_t k) { return ups.estimate(up, i, k); }, &unsure);
    const std::string what = label(kernels, "planes", s, rows);
    const std::vector<uint16_t> chosen = chosen_by(chooser, kernels, x, rows);
    check_chosen(chosen, margin, rows, s.intermediate, unsure, what);

    std::vector<double> expected(rows * s.hidden, 0.0);
    for (int64_t b = 0; b < rows; b++)
        for (int64_t i = 0; i < s.intermediate; i++) {
            if (!(chosen[b / kMaxRows * s.intermediate + i] >> (b % kMaxRows) & 1)) continue;
            double g = 0.0, u = 0.0;
            for (int64_t k = 0; k < s.hidden; k++) {
                g += x[b * s.hidden + k] * gate(i, k);
                u += x[b * s.hidden + k] * up(i, k);
            }
            for (int64_t k = 0; k < s.hidden; k++)
                expected[b * s.hidden + k] += std::max(g, 0.0) * u * down(i, k);
        }
    std::vector<float> first;
    for (int64_t threads : {1, 3}) {
        ThreadPool pool(threads);
        std::vector<float> y = unwritten(rows * s.hidden);
        std::vector<int64_t> counts(3 * rows, -1);
        gated_ffn(w, kernels, pool, x.data(), nullptr, y.data(), counts.data(), rows);
        if (threads == 1) {
            check_near(y, expected, 1e-5, what + ": y");
            first = y;
        }
        check(y == first, what + ": bits depend on threads");
        for (int64_t b = 0; b < rows; b++)
            check(counts[3 * b + 2] ==
                      count_chosen(chosen.data() + b / kMaxRows * s.intermediate, s.intermediate,
                                   b % kMaxRows),
                  what + ": rows of gate");
    }
}

// Given candidates against thresholds of infinity: the same bits by other code, and no read of a row
// of gate, up or down of another neuron.
void test_given(const Kernels &kernels, Format format, Shape s, double density, Random &random) {
    Weights gate(format, s.intermediate, s.hidden, random), up(format, s.intermediate, s.hidden, random);
    Weights down(format, s.intermediate, s.hidden, random, 12);
    const std::vector<float> x = input(1, s.hidden, random);
    std::vector<float> threshold(s.intermediate, 0.0f);
    std::vector<uint16_t> chosen(s.intermediate, 1);
    FfnWeights w{};
    w.gate = gate.view();
    w.up = up.view();
    w.down = down.view();
    w.threshold = threshold.data();
    w.hidden = s.hidden;
    w.intermediate = s.intermediate;
    w.range = range_size(s.intermediate);
    w.phi = Phi::silu;
    for (int64_t i = 0; i < s.intermediate; i++)
        if (random.uniform() >= density) {
            threshold[i] = INFINITY;
            chosen[i] = 0;
        }
    ThreadPool pool(2);
    std::vector<float> wanted = unwritten(s.hidden), y = unwritten(s.hidden);
    int64_t counts[3];
    gated_ffn(w, kernels, pool, x.data(), nullptr, wanted.data(), counts, 1);
    for (int64_t i = 0; i < s.intermediate; i++)
        if (!chosen[i]) {
            gate.poison(i);
            up.poison(i);
            down.poison(i);
            threshold[i] = 0.0f;
        }
    gated_ffn(w, kernels, pool, x.data(), chosen.data(), y.data(), counts, 1);
    check(y == wanted, label(kernels, "given", s, 1) + " density " + std::to_string(density));
    check(counts[2] == count_chosen(chosen.data(), s.intermediate, 0),
          label(kernels, "given", s, 1) + ": rows of gate");
}

}  // namespace

void test_candidates(const Kernels &kernels) {
    Random random(5);
    for (const Shape s : {Shape{5, 3}, Shape{64, 50}, Shape{200, 131}, Shape{320, 70}})
        for (int64_t rows : {1, 3, 19}) {
            test_signs(kernels, s, rows, random);
            for (const Format format : {Format::fp32, Format::bf16, Format::int8})
                test_lowrank(kernels, format, s, rows, random);
            for (int bits : {2, 3, 4}) test_sketch(kernels, bits, s, rows, random);
            test_planes(kernels, s, rows, random);
            for (const Format format : kFormats)
                for (double density : {0.0, 0.2, 1.0}) test_given(kernels, format, s, density, random);
        }
}
