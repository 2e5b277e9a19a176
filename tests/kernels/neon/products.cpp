// linear, sparse_input_linear and unpack_rows against loops in double.

#include "dispatch.h"
#include "linear.h"
#include "prefill.h"
#include "tests.h"
#include "weights.h"

using namespace sparseinfer;

namespace {

constexpr int64_t kSizes[][2] = {{1, 1}, {3, 7}, {17, 33}, {40, 64}, {37, 96}, {70, 131}, {33, 520}};

std::string label(const char *op, const Kernels &kernels, Format format, int64_t rows,
                  int64_t columns, int64_t batch) {
    return std::string(op) + " " + kernels.isa + " " + name(format) + " " + std::to_string(rows) +
           "x" + std::to_string(columns) + " batch " + std::to_string(batch);
}

void test_linear(const Kernels &kernels, Format format, int64_t rows, int64_t columns,
                 int64_t batch, Random &random) {
    const Weights weight(format, rows, columns, random, 4 * random.below(5));
    const std::vector<float> x = exact_input(batch, columns, random), bias = random.vector(rows);
    std::vector<double> expected(batch * rows);
    for (int64_t b = 0; b < batch; b++)
        for (int64_t r = 0; r < rows; r++) {
            double sum = bias[r];
            for (int64_t k = 0; k < columns; k++) sum += x[b * columns + k] * weight(r, k);
            expected[b * rows + r] = sum;
        }
    const std::string what = label("linear", kernels, format, rows, columns, batch);
    std::vector<float> first;
    for (int64_t threads : {1, 2, 3}) {
        ThreadPool pool(threads);
        std::vector<float> y = unwritten(batch * rows);
        linear(weight.view(), bias.data(), kernels, pool, x.data(), y.data(), batch);
        if (threads == 1) {
            check_near(y, expected, 2e-6, what);
            first = y;
        }
        check(y == first, what + ": bits depend on threads");
    }
    ThreadPool pool(2);
    for (int64_t b = 0; b < batch; b++) {
        std::vector<float> y = unwritten(rows);
        linear(weight.view(), bias.data(), kernels, pool, x.data() + b * columns, y.data(), 1);
        check(y == std::vector<float>(first.begin() + b * rows, first.begin() + (b + 1) * rows),
              what + ": bits depend on the batch");
    }
}

void test_sparse_input(const Kernels &kernels, Format format, int64_t inputs, int64_t outputs,
                       int64_t batch, double density, Random &random) {
    Weights weight(format, inputs, outputs, random);
    const std::vector<float> x = exact_input(batch, inputs, random), bias = random.vector(outputs);
    std::vector<float> threshold(inputs);
    for (int64_t j = 0; j < inputs; j++) {
        threshold[j] = random.uniform() < density ? 0.0f : INFINITY;
        if (threshold[j] > 0.0f) weight.poison(j);
    }
    std::vector<double> expected(batch * outputs);
    std::vector<int64_t> kept(batch), reads(batch, -1);
    for (int64_t b = 0; b < batch; b++) {
        for (int64_t i = 0; i < outputs; i++) expected[b * outputs + i] = bias[i];
        for (int64_t j = 0; j < inputs; j++) {
            const double v = x[b * inputs + j];
            if (std::fabs(v) < threshold[j] || v == 0.0) continue;
            kept[b]++;
            for (int64_t i = 0; i < outputs; i++) expected[b * outputs + i] += v * weight(j, i);
        }
    }
    SparseInputWeights weights{weight.view(), threshold.data(), bias.data(),
                               std::max<int64_t>(8, inputs / 3)};
    const std::string what =
        label("sparse_input_linear", kernels, format, inputs, outputs, batch) + " density " +
        std::to_string(density);
    std::vector<float> first;
    for (int64_t threads : {1, 2}) {
        ThreadPool pool(threads);
        std::vector<float> y = unwritten(batch * outputs);
        sparse_input_linear(weights, kernels, pool, x.data(), y.data(), reads.data(), batch);
        if (threads == 1) {
            check_near(y, expected, 2e-6, what);
            first = y;
        }
        check(y == first, what + ": bits depend on threads");
        check(reads == kept, what + ": rows read");
    }
}

void test_unpack(const Kernels &kernels, Format format, int64_t rows, int64_t columns,
                 Random &random) {
    const Weights weight(format, rows, columns, random, 4);
    ThreadPool pool(2);
    const int64_t begin = rows / 3;
    const int64_t count = (rows - begin) * columns;
    const std::string what = label("unpack_rows", kernels, format, rows, columns, 0);
    std::vector<float> plain = unwritten(count);
    unpack_rows(weight.view(), begin, rows, Format::fp32, plain.data(), kernels, pool);
    std::vector<uint16_t> rounded(count, 0xffff);
    unpack_rows(weight.view(), begin, rows, Format::bf16, rounded.data(), kernels, pool);
    bool exact = true, near = true;
    for (int64_t i = 0; i < count; i++) {
        const double value = weight(begin + i / columns, i % columns);
        exact = exact && plain[i] == static_cast<float>(value);
        near = near && std::fabs(from_bf16(rounded[i]) - value) <= std::fabs(value) / 256.0;
    }
    check(exact, what + " to fp32");
    check(near, what + " to bf16");
}

}  // namespace

void test_products(const Kernels &kernels) {
    Random random(1);
    for (const Format format : kFormats)
        for (const auto &size : kSizes) {
            for (int64_t batch : {1, 2, 5, 17})
                test_linear(kernels, format, size[0], size[1], batch, random);
            for (double density : {0.0, 0.5, 1.0})
                test_sparse_input(kernels, format, size[0], size[1], density < 1.0 ? 1 : 3, density,
                                  random);
            test_unpack(kernels, format, size[0], size[1], random);
        }
}
