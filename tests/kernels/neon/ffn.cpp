// gated_ffn, and gate_rows, its middle for prompts, against loops in double.

#include "dispatch.h"
#include "gated_ffn.h"
#include "prefill.h"
#include "tests.h"
#include "weights.h"

using namespace sparseinfer;

namespace {

constexpr Phi kPhi[] = {Phi::silu, Phi::relu, Phi::relu2};
constexpr Psi kPsi[] = {Psi::id, Psi::relu};

double activated(Phi phi, double g) {
    if (phi == Phi::silu) return g / (1.0 + std::exp(-g));
    const double positive = g > 0.0 ? g : 0.0;
    return phi == Phi::relu ? positive : positive * positive;
}

double activated(Psi psi, double u) { return psi == Psi::relu && u < 0.0 ? 0.0 : u; }

struct Shape {
    int64_t hidden, intermediate;
};

struct Ffn {
    Weights gate, up, down;
    std::vector<float> threshold, gate_bias, up_bias, down_bias;
    FfnWeights weights{};

    // Neurons are switched off by a threshold of infinity, so that rounding decides nothing; their
    // rows of up and down are NaN.
    Ffn(Format format, Shape s, Phi phi, Psi psi, double density, bool biases, Random &random)
        : gate(format, s.intermediate, s.hidden, random, 8),
          up(format, s.intermediate, s.hidden, random),
          down(format, s.intermediate, s.hidden, random, 12), threshold(s.intermediate),
          gate_bias(random.vector(s.intermediate)), up_bias(random.vector(s.intermediate)),
          down_bias(random.vector(s.hidden)) {
        for (int64_t i = 0; i < s.intermediate; i++) {
            threshold[i] = random.uniform() < density ? 0.0f : INFINITY;
            if (threshold[i] == 0.0f) continue;
            up.poison(i);
            down.poison(i);
        }
        weights.gate = gate.view();
        weights.up = up.view();
        weights.down = down.view();
        weights.threshold = threshold.data();
        weights.gate_bias = biases ? gate_bias.data() : nullptr;
        weights.up_bias = biases ? up_bias.data() : nullptr;
        weights.down_bias = biases ? down_bias.data() : nullptr;
        weights.hidden = s.hidden;
        weights.intermediate = s.intermediate;
        weights.range = range_size(s.intermediate);
        weights.phi = phi;
        weights.psi = psi;
    }

    // y and the two counts of one input; `unsure`: neurons whose gate or up is too near 0 to tell.
    void answer(const float *x, double *y, int64_t *counts, int64_t *unsure) const {
        const FfnWeights &w = weights;
        for (int64_t k = 0; k < w.hidden; k++) y[k] = w.down_bias ? w.down_bias[k] : 0.0;
        counts[0] = counts[1] = 0;
        for (int64_t i = 0; i < w.intermediate; i++) {
            if (threshold[i] > 0.0f) continue;
            double g = w.gate_bias ? w.gate_bias[i] : 0.0, u = w.up_bias ? w.up_bias[i] : 0.0;
            for (int64_t k = 0; k < w.hidden; k++) {
                g += x[k] * gate(i, k);
                u += x[k] * up(i, k);
            }
            *unsure += std::fabs(g) < 1e-4 || std::fabs(u) < 1e-4;
            const double a = activated(w.phi, g);
            if (a == 0.0) continue;
            counts[0]++;
            const double h = a * activated(w.psi, u);
            if (h == 0.0) continue;
            counts[1]++;
            for (int64_t k = 0; k < w.hidden; k++) y[k] += h * down(i, k);
        }
    }
};

void test_ffn(const Kernels &kernels, Format format, Shape s, Phi phi, Psi psi, double density,
              int64_t batch, Random &random) {
    const Ffn ffn(format, s, phi, psi, density, batch % 2 == 1, random);
    std::vector<float> x = exact_input(batch, s.hidden, random);
    for (float &v : x) v /= 8.0f;    // keeps exp(-g) of all gates within what fp32 tells from 0
    std::vector<double> expected(batch * s.hidden);
    std::vector<int64_t> wanted(2 * batch);
    int64_t unsure = 0;
    for (int64_t b = 0; b < batch; b++)
        ffn.answer(x.data() + b * s.hidden, expected.data() + b * s.hidden, wanted.data() + 2 * b,
                   &unsure);
    const std::string what = std::string("gated_ffn ") + kernels.isa + " " + name(format) + " " +
                             std::to_string(s.hidden) + "x" + std::to_string(s.intermediate) +
                             " phi " + std::to_string(static_cast<int>(phi)) + " psi " +
                             std::to_string(static_cast<int>(psi)) + " density " +
                             std::to_string(density) + " batch " + std::to_string(batch);
    std::vector<float> first;
    for (int64_t threads : {1, 2, 3}) {
        ThreadPool pool(threads);
        std::vector<float> y = unwritten(batch * s.hidden);
        std::vector<int64_t> counts(3 * batch, -1);
        gated_ffn(ffn.weights, kernels, pool, x.data(), nullptr, y.data(), counts.data(), batch);
        if (threads == 1) {
            check_near(y, expected, 1e-5, what);
            int64_t off = 0;
            for (int64_t b = 0; b < batch; b++) {
                for (int i = 0; i < 2; i++) off += std::llabs(counts[3 * b + i] - wanted[2 * b + i]);
                check(counts[3 * b + 2] == s.intermediate, what + ": rows of gate");
            }
            check(off <= 2 * unsure, what + ": counts");
            first = y;
        }
        check(y == first, what + ": bits depend on threads");
    }
    ThreadPool pool(2);
    for (int64_t b = 0; b < batch; b++) {
        std::vector<float> y = unwritten(s.hidden);
        int64_t counts[3];
        gated_ffn(ffn.weights, kernels, pool, x.data() + b * s.hidden, nullptr, y.data(), counts, 1);
        check(std::equal(y.begin(), y.end(), first.begin() + b * s.hidden),
              what + ": bits depend on the batch");
    }
}

void test_gate_rows(const Kernels &kernels, Phi phi, Psi psi, int64_t neurons, Random &random) {
    constexpr int64_t kRows = 3;
    const std::vector<float> g = random.vector(kRows * neurons), u = random.vector(kRows * neurons);
    const std::vector<float> gate_bias = random.vector(neurons), up_bias = random.vector(neurons);
    std::vector<float> threshold(neurons), h = unwritten(kRows * neurons);
    for (float &t : threshold) t = random.below(2) ? 0.0f : 0.25f;
    std::vector<int64_t> reads(2 * kRows), wanted(2 * kRows);
    std::vector<double> expected(kRows * neurons);
    int64_t unsure = 0;
    for (int64_t r = 0; r < kRows; r++)
        for (int64_t i = 0; i < neurons; i++) {
            // Added in fp32, as the kernel does: the threshold must see the same value.
            const double a = activated(phi, g[r * neurons + i] + gate_bias[i]);
            const double v = activated(psi, u[r * neurons + i] + up_bias[i]);
            unsure += std::fabs(std::fabs(a) - threshold[i]) < 1e-5;
            if (std::fabs(a) < threshold[i] || a == 0.0) continue;
            expected[r * neurons + i] = a * v;
            wanted[2 * r]++;
            wanted[2 * r + 1] += a * v != 0.0;
        }
    GateRow row{};
    row.g = g.data();
    row.u = u.data();
    row.h = h.data();
    row.format = Format::fp32;
    row.threshold = threshold.data();
    row.gate_bias = gate_bias.data();
    row.up_bias = up_bias.data();
    row.neurons = neurons;
    row.phi = phi;
    row.psi = psi;
    row.reads = reads.data();
    ThreadPool pool(2);
    gate_rows(row, kRows, kernels, pool);
    const std::string what = std::string("gate_rows ") + kernels.isa + " " + std::to_string(neurons);
    int64_t off = 0;
    for (int64_t i = 0; i < 2 * kRows; i++) off += std::llabs(reads[i] - wanted[i]);
    check(off <= 2 * unsure, what + ": counts");
    if (unsure == 0) check_near(h, expected, 1e-6, what);
}

}  // namespace

void test_ffns(const Kernels &kernels) {
    Random random(2);
    for (const Format format : kFormats)
        for (const Shape shape : {Shape{5, 3}, Shape{33, 50}, Shape{96, 131}, Shape{200, 70}})
            for (const Phi phi : kPhi)
                for (const Psi psi : kPsi)
                    for (double density : {0.0, 0.5, 1.0})
                        test_ffn(kernels, format, shape, phi, psi, density,
                                 density == 0.5 ? 1 + random.below(18) : 1 + random.below(2),
                                 random);
    for (const Phi phi : kPhi)
        for (const Psi psi : kPsi)
            for (int64_t neurons : {1, 15, 16, 255, 300}) test_gate_rows(kernels, phi, psi, neurons, random);
}
