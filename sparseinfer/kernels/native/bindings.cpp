// The Python face of the kernels. Shapes and dtypes are checked by the Python callers first, with
// better messages; what is checked again here is what could otherwise read out of bounds.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "gated_ffn.h"
#include "linear.h"
#include "thread_pool.h"

namespace nb = nanobind;

namespace sparseinfer {
namespace {

using Matrix = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MaybeFloats = std::optional<Floats>;

bool is_bf16(const Matrix &matrix) {
    if (matrix.dtype() == nb::dtype<float>()) return false;
    const nb::dlpack::dtype bfloat{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};
    if (matrix.dtype() == bfloat) return true;
    throw std::invalid_argument("weights must be float32 or bfloat16");
}

const float *floats(const MaybeFloats &array, size_t size, const char *name) {
    if (!array) return nullptr;
    if (array->shape(0) != size)
        throw std::invalid_argument(std::string(name) + " must have " + std::to_string(size) +
                                    " elements");
    return array->data();
}

// Addresses come as integers: handing over a tensor costs several microseconds each time, and a
// token makes hundreds of calls. Weights come as arrays, whose lifetime the handle then shares.
template <class T>
T *at(uintptr_t address) {
    return reinterpret_cast<T *>(address);
}

class GatedFfn {
public:
    GatedFfn(Matrix gate, Matrix up, Matrix down, Floats threshold, MaybeFloats gate_bias,
             MaybeFloats up_bias, MaybeFloats down_bias, int phi, int psi,
             std::shared_ptr<ThreadPool> pool, const std::string &isa)
        : gate_(gate), up_(up), down_(down), threshold_(threshold), gate_bias_(gate_bias),
          up_bias_(up_bias), down_bias_(down_bias), pool_(pool), kernels_(kernels_for(isa)) {
        const size_t intermediate = gate.shape(0), hidden = gate.shape(1);
        for (const Matrix *other : {&up, &down})
            if (other->shape(0) != intermediate || other->shape(1) != hidden ||
                other->dtype() != gate.dtype())
                throw std::invalid_argument("gate, up and down differ in shape or dtype");
        if (phi < 0 || phi > 2 || psi < 0 || psi > 1)
            throw std::invalid_argument("phi or psi out of range");
        weights_.gate = gate.data();
        weights_.up = up.data();
        weights_.down = down.data();
        weights_.threshold = floats(threshold_, intermediate, "threshold");
        weights_.gate_bias = floats(gate_bias_, intermediate, "gate_bias");
        weights_.up_bias = floats(up_bias_, intermediate, "up_bias");
        weights_.down_bias = floats(down_bias_, hidden, "down_bias");
        weights_.hidden = static_cast<int64_t>(hidden);
        weights_.intermediate = static_cast<int64_t>(intermediate);
        weights_.is_bf16 = is_bf16(gate);
        weights_.phi = static_cast<Phi>(phi);
        weights_.psi = static_cast<Psi>(psi);
    }

    void call(uintptr_t x, uintptr_t y, uintptr_t counts, int64_t rows) const {
        gated_ffn(weights_, kernels_, *pool_, at<const float>(x), at<float>(y),
                  at<int64_t>(counts), rows);
    }

private:
    Matrix gate_, up_, down_;
    MaybeFloats threshold_, gate_bias_, up_bias_, down_bias_;
    std::shared_ptr<ThreadPool> pool_;
    const Kernels &kernels_;
    FfnWeights weights_{};
};

class Linear {
public:
    Linear(Matrix weight, MaybeFloats bias, std::shared_ptr<ThreadPool> pool,
           const std::string &isa)
        : weight_(weight), bias_(bias), pool_(pool), kernels_(kernels_for(isa)) {
        weights_.weight = weight.data();
        weights_.bias = floats(bias_, weight.shape(0), "bias");
        weights_.outputs = static_cast<int64_t>(weight.shape(0));
        weights_.inputs = static_cast<int64_t>(weight.shape(1));
        weights_.is_bf16 = is_bf16(weight);
    }

    void call(uintptr_t x, uintptr_t y, int64_t rows) const {
        linear(weights_, kernels_, *pool_, at<const float>(x), at<float>(y), rows);
    }

private:
    Matrix weight_;
    MaybeFloats bias_;
    std::shared_ptr<ThreadPool> pool_;
    const Kernels &kernels_;
    LinearWeights weights_{};
};

}  // namespace
}  // namespace sparseinfer

NB_MODULE(_native, m) {
    using namespace sparseinfer;
    using namespace nb::literals;
    // Handles often live in module globals until the interpreter ends; that is no leak.
    nb::set_leak_warnings(false);

    m.def("isa_available", &isa_available);

    nb::class_<ThreadPool>(m, "ThreadPool")
        .def(nb::init<int64_t>(), "threads"_a)
        .def_prop_ro("threads", &ThreadPool::threads);

    nb::class_<GatedFfn>(m, "GatedFfn")
        .def(nb::init<Matrix, Matrix, Matrix, Floats, MaybeFloats, MaybeFloats, MaybeFloats, int,
                      int, std::shared_ptr<ThreadPool>, const std::string &>(),
             "gate"_a.noconvert(), "up"_a.noconvert(), "down"_a.noconvert(),
             "threshold"_a.noconvert(), "gate_bias"_a.noconvert().none(),
             "up_bias"_a.noconvert().none(), "down_bias"_a.noconvert().none(), "phi"_a, "psi"_a,
             "pool"_a, "isa"_a)
        .def("call", &GatedFfn::call, "x"_a, "y"_a, "counts"_a, "rows"_a,
             nb::call_guard<nb::gil_scoped_release>());

    nb::class_<Linear>(m, "Linear")
        .def(nb::init<Matrix, MaybeFloats, std::shared_ptr<ThreadPool>, const std::string &>(),
             "weight"_a.noconvert(), "bias"_a.noconvert().none(), "pool"_a, "isa"_a)
        .def("call", &Linear::call, "x"_a, "y"_a, "rows"_a,
             nb::call_guard<nb::gil_scoped_release>());
}
