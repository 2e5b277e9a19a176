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
#include <vector>

#include "bandwidth.h"
#include "choose.h"
#include "decoder.h"
#include "dispatch.h"
#include "gated_ffn.h"
#include "linear.h"
#include "prefill.h"
#include "thread_pool.h"

namespace nb = nanobind;

namespace sparseinfer {
namespace {

using Rows = nb::ndarray<nb::ro, nb::ndim<2>, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MaybeFloats = std::optional<Floats>;

const float *floats(const MaybeFloats &array, int64_t size, const char *name) {
    if (!array) return nullptr;
    if (static_cast<int64_t>(array->shape(0)) != size)
        throw std::invalid_argument(std::string(name) + " must have " + std::to_string(size) +
                                    " elements");
    return array->data();
}

// Addresses come as integers: handing over a tensor costs several microseconds each time, and a
// token makes many calls. Weights come as arrays, whose lifetime the handles then share.
template <class T>
T *at(uintptr_t address) {
    return reinterpret_cast<T *>(address);
}

class Matrix {
public:
    Matrix(Rows data, int format, int64_t columns) : data_(data) {
        if (format < 0 || format > 3) throw std::invalid_argument("format out of range");
        const int64_t element = (data.dtype().bits + 7) / 8;
        view_.data = static_cast<const uint8_t *>(data.data());
        view_.rows = static_cast<int64_t>(data.shape(0));
        view_.columns = columns;
        view_.format = static_cast<Format>(format);
        view_.stride = view_.rows > 1 ? data.stride(0) * element
                                      : static_cast<int64_t>(data.shape(1)) * element;
        const int64_t groups = (columns + 2 * kGroup - 1) / (2 * kGroup) * 2;
        const int64_t needed = view_.format == Format::fp32   ? 4 * columns
                               : view_.format == Format::bf16 ? 2 * columns
                               : view_.format == Format::int8 ? groups * (2 + kGroup)
                                                              : groups * (2 + kGroup / 2);
        if (columns < 1 || data.stride(1) != 1 ||
            static_cast<int64_t>(data.shape(1)) * element != needed || view_.stride < needed)
            throw std::invalid_argument("rows do not fit the format");
    }
    const MatrixView &view() const { return view_; }
    const Rows &data() const { return data_; }

private:
    Rows data_;
    MatrixView view_{};
};

// Rows of two matrices at the same places: a sketch, or a plane of gate and up.
struct RowPair {
    RowPair(Rows gate_rows, Rows up_rows, int64_t width, const char *name)
        : gate(static_cast<const uint8_t *>(gate_rows.data())),
          up(static_cast<const uint8_t *>(up_rows.data())),
          rows(static_cast<int64_t>(gate_rows.shape(0))),
          stride(rows > 1 ? gate_rows.stride(0) : width) {
        for (const Rows &one : {gate_rows, up_rows})
            if (one.dtype().bits != 8 || static_cast<int64_t>(one.shape(0)) != rows ||
                static_cast<int64_t>(one.shape(1)) != width || one.stride(1) != 1 ||
                (rows > 1 && one.stride(0) != stride))
                throw std::invalid_argument(std::string(name) + " of gate and up do not fit");
    }
    const uint8_t *gate, *up;
    int64_t rows, stride;
};

// What decides which neurons are computed.
class Chooser {
public:
    static Chooser lowrank(Matrix inward, Matrix outward, Floats bias) {
        Chooser made;
        made.keep_ = {{inward.data(), outward.data()}};
        made.floats_ = {bias};
        ChooserView &v = made.view_;
        v.kind = Choice::lowrank;
        v.inward = inward.view();
        v.outward = outward.view();
        v.hidden = v.inward.columns;
        v.neurons = v.outward.rows;
        v.bias = floats(bias, v.neurons, "bias");
        if (v.outward.columns != v.inward.rows)
            throw std::invalid_argument("inward and outward do not fit");
        return made;
    }

    static Chooser sign(Rows bits, int64_t hidden, int64_t most) {
        Chooser made;
        made.keep_ = {{bits}};
        ChooserView &v = made.view_;
        v.kind = Choice::sign;
        v.hidden = hidden;
        v.neurons = static_cast<int64_t>(bits.shape(0));
        v.bits = static_cast<const uint8_t *>(bits.data());
        v.most = most;
        const int64_t width = (hidden + 63) / 64 * 8;
        if (hidden < 1 || bits.dtype().bits != 8 ||
            static_cast<int64_t>(bits.shape(1)) != width || bits.stride(1) != 1 ||
            (v.neurons > 1 && bits.stride(0) != width))
            throw std::invalid_argument("bits do not fit");
        return made;
    }

    // code_bits: 2, 3 or 4, of sketches; 8: these are the high planes of int8 rows.
    static Chooser sketch(Rows gate, Rows up, int64_t hidden, int code_bits, Floats threshold,
                          MaybeFloats gate_bias, MaybeFloats up_bias, int phi, int psi) {
        if (hidden < 1 || phi < 0 || phi > 2 || psi < 0 || psi > 1 ||
            !(code_bits == 8 || (code_bits >= 2 && code_bits <= 4)))
            throw std::invalid_argument("hidden, code_bits, phi or psi out of range");
        const int64_t width = code_bits == 8
                                  ? (hidden + 2 * kGroup - 1) / (2 * kGroup) * 2 * (2 + kGroup / 2)
                                  : (hidden + 63) / 64 * (2 + 8 * code_bits);
        const RowPair rows(gate, up, width, "sketches");
        Chooser made;
        made.keep_ = {{gate, up}};
        made.floats_ = {threshold, gate_bias, up_bias};
        ChooserView &v = made.view_;
        v.kind = code_bits == 8 ? Choice::planes : Choice::sketch;
        v.hidden = hidden;
        v.neurons = rows.rows;
        v.gate = rows.gate;
        v.up = rows.up;
        v.stride = rows.stride;
        v.code_bits = code_bits;
        v.threshold = floats(threshold, v.neurons, "threshold");
        v.gate_bias = floats(gate_bias, v.neurons, "gate_bias");
        v.up_bias = floats(up_bias, v.neurons, "up_bias");
        v.phi = static_cast<Phi>(phi);
        v.psi = static_cast<Psi>(psi);
        return made;
    }

    void call(const ThreadPool *pool, const std::string &isa, uintptr_t x, uintptr_t chosen,
              int64_t rows) const {
        choose_rows(view_, kernels_for(isa), const_cast<ThreadPool &>(*pool), at<const float>(x),
                    at<uint16_t>(chosen), rows);
    }

    const ChooserView &view() const { return view_; }

private:
    std::vector<Rows> keep_;
    std::vector<MaybeFloats> floats_;
    ChooserView view_{};
};

class GatedFfn {
public:
    GatedFfn(Matrix gate, Matrix up, Matrix down, Floats threshold, MaybeFloats gate_bias,
             MaybeFloats up_bias, MaybeFloats down_bias, int phi, int psi, MaybeFloats gate_input,
             MaybeFloats up_input, MaybeFloats down_input, bool gate_by_input, bool up_by_input,
             int64_t top_k, std::optional<Chooser> chooser)
        : gate_(gate.data()), up_(up.data()), down_(down), threshold_(threshold),
          gate_bias_(gate_bias), up_bias_(up_bias), down_bias_(down_bias), gate_input_(gate_input),
          up_input_(up_input), down_input_(down_input), chooser_(chooser) {
        const int64_t intermediate = down.view().rows, hidden = down.view().columns;
        const auto fits = [&](const MatrixView &m, bool by_input) {
            return m.rows == (by_input ? hidden : intermediate) &&
                   m.columns == (by_input ? intermediate : hidden) &&
                   m.format == down.view().format;
        };
        if (!fits(gate.view(), gate_by_input) || !fits(up.view(), up_by_input))
            throw std::invalid_argument("gate, up and down differ in shape or format");
        fill(gate.view(), up.view(), phi, psi, gate_by_input, up_by_input, top_k);
    }

    // Of gate and up in planes: their low halves here, the high ones in the chooser.
    GatedFfn(Rows gate_low, Rows up_low, Matrix down, Floats threshold, MaybeFloats gate_bias,
             MaybeFloats up_bias, MaybeFloats down_bias, int phi, int psi, Chooser planes)
        : gate_(gate_low), up_(up_low), down_(down), threshold_(threshold), gate_bias_(gate_bias),
          up_bias_(up_bias), down_bias_(down_bias), chooser_(planes) {
        const int64_t hidden = down.view().columns;
        const int64_t width = (hidden + 2 * kGroup - 1) / (2 * kGroup) * kGroup;
        const RowPair rows(gate_low, up_low, width, "low planes");
        if (planes.view().kind != Choice::planes || down.view().format != Format::int8 ||
            rows.rows != down.view().rows)
            throw std::invalid_argument("planes do not fit");
        const auto view = [&](const uint8_t *data) {
            return MatrixView{data, rows.rows, hidden, rows.stride, Format::int8};
        };
        fill(view(rows.gate), view(rows.up), phi, psi, false, false, 0);
    }

    const FfnWeights &weights() const { return weights_; }

    void call(const ThreadPool *pool, const std::string &isa, uintptr_t x, uintptr_t candidates,
              uintptr_t y, uintptr_t counts, int64_t rows) const {
        if (needs_all_gates(weights_) || weights_.gate_input || weights_.up_input)
            throw std::invalid_argument("these weights run in a decode step only");
        if (candidates && weights_.chooser.kind != Choice::none)
            throw std::invalid_argument("these weights choose candidates themselves");
        gated_ffn(weights_, kernels_for(isa), const_cast<ThreadPool &>(*pool), at<const float>(x),
                  at<const uint16_t>(candidates), at<float>(y), at<int64_t>(counts), rows);
    }

private:
    void fill(const MatrixView &gate, const MatrixView &up, int phi, int psi, bool gate_by_input,
              bool up_by_input, int64_t top_k) {
        const int64_t intermediate = down_.view().rows, hidden = down_.view().columns;
        if (phi < 0 || phi > 2 || psi < 0 || psi > 1 || top_k < 0)
            throw std::invalid_argument("phi, psi or top_k out of range");
        weights_.gate = gate;
        weights_.up = up;
        weights_.down = down_.view();
        weights_.threshold = floats(threshold_, intermediate, "threshold");
        weights_.gate_bias = floats(gate_bias_, intermediate, "gate_bias");
        weights_.up_bias = floats(up_bias_, intermediate, "up_bias");
        weights_.down_bias = floats(down_bias_, hidden, "down_bias");
        weights_.hidden = hidden;
        weights_.intermediate = intermediate;
        weights_.range = range_size(intermediate);
        weights_.phi = static_cast<Phi>(phi);
        weights_.psi = static_cast<Psi>(psi);
        weights_.gate_input = floats(gate_input_, hidden, "gate_input");
        weights_.up_input = floats(up_input_, hidden, "up_input");
        weights_.down_input = floats(down_input_, intermediate, "down_input");
        weights_.gate_by_input = gate_by_input;
        weights_.up_by_input = up_by_input;
        weights_.top_k = top_k;
        if (!chooser_) return;
        weights_.chooser = chooser_->view();
        if (weights_.chooser.hidden != hidden || weights_.chooser.neurons != intermediate ||
            needs_all_gates(weights_) || gate_input_ || up_input_ || down_input_)
            throw std::invalid_argument("a chooser does not fit these weights");
    }

    Rows gate_, up_;
    Matrix down_;
    MaybeFloats threshold_, gate_bias_, up_bias_, down_bias_;
    MaybeFloats gate_input_, up_input_, down_input_;
    std::optional<Chooser> chooser_;
    FfnWeights weights_{};
};

class Linear {
public:
    Linear(Matrix weight, MaybeFloats bias) : weight_(weight), bias_(bias) {
        bias_data_ = floats(bias_, weight.view().rows, "bias");
    }

    const MatrixView &view() const { return weight_.view(); }
    const float *bias() const { return bias_data_; }

    void call(const ThreadPool *pool, const std::string &isa, uintptr_t x, uintptr_t y,
              int64_t rows) const {
        linear(view(), bias_data_, kernels_for(isa), const_cast<ThreadPool &>(*pool),
               at<const float>(x), at<float>(y), rows);
    }

private:
    Matrix weight_;
    MaybeFloats bias_;
    const float *bias_data_;
};

class SparseInputLinear {
public:
    SparseInputLinear(Matrix weight, Floats threshold, MaybeFloats bias)
        : weight_(weight), threshold_(threshold), bias_(bias) {
        weights_.weight = weight.view();
        weights_.threshold = floats(threshold_, weight.view().rows, "threshold");
        weights_.bias = floats(bias_, weight.view().columns, "bias");
        weights_.range = range_size(weight.view().rows);
    }

    void call(const ThreadPool *pool, const std::string &isa, uintptr_t x, uintptr_t y,
              uintptr_t reads, int64_t rows) const {
        sparse_input_linear(weights_, kernels_for(isa), const_cast<ThreadPool &>(*pool),
                            at<const float>(x), at<float>(y), at<int64_t>(reads), rows);
    }

private:
    Matrix weight_;
    MaybeFloats threshold_, bias_;
    SparseInputWeights weights_{};
};

class Projection {
public:
    Projection(Matrix weight, MaybeFloats bias, MaybeFloats threshold, bool by_input)
        : weight_(weight), bias_(bias), threshold_(threshold) {
        view_.weight = weight.view();
        view_.by_input = by_input;
        view_.bias = floats(bias_, view_.outputs(), "bias");
        view_.threshold = floats(threshold_, view_.inputs(), "threshold");
    }

    const ProjectionView &view() const { return view_; }

private:
    Matrix weight_;
    MaybeFloats bias_, threshold_;
    ProjectionView view_{};
};

struct Layer {
    Floats input_norm;
    std::optional<Linear> qkv, o;    // or:
    std::vector<Projection> parts;    // q, k, v, o
    Floats ffn_norm;
    GatedFfn ffn;
};

class BoundDecoder {
public:
    BoundDecoder(Matrix embedding, std::vector<Layer> layers, Floats final_norm, Matrix head,
                 float eps, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t window,
                 bool bf16_cache, bool input_relu, bool counts_all,
                 std::shared_ptr<ThreadPool> pool, const std::string &isa)
        : embedding_(embedding), layers_(std::move(layers)), final_norm_(final_norm), head_(head) {
        ModelView model{};
        const int64_t hidden = head.view().columns;
        const auto norm = [&](const Floats &array) {
            return floats(MaybeFloats(array), hidden, "norm");
        };
        if (heads < 1 || kv_heads < 1 || heads % kv_heads || head_dim < 2 || head_dim % 2 ||
            window < 0)
            throw std::invalid_argument("heads, kv_heads, head_dim or window out of range");
        if (embedding.view().columns != hidden)
            throw std::invalid_argument("embedding and head differ in width");
        model.embedding = embedding.view();
        model.head = head.view();
        model.final_norm = norm(final_norm_);
        model.eps = eps;
        model.heads = heads;
        model.kv_heads = kv_heads;
        model.head_dim = head_dim;
        model.window = window;
        model.cache_format = bf16_cache ? Format::bf16 : Format::fp32;
        model.input_relu = input_relu;
        model.counts_all = counts_all;
        const int64_t q = heads * head_dim, kv = kv_heads * head_dim;
        const int64_t shapes[4][2] = {{q, hidden}, {kv, hidden}, {kv, hidden}, {hidden, q}};
        const auto misfit = [] {
            throw std::invalid_argument("a layer does not fit the model's shape");
        };
        for (const Layer &layer : layers_) {
            LayerView view{};
            view.input_norm = norm(layer.input_norm);
            view.apart = !layer.parts.empty();
            if (view.apart) {
                if (layer.parts.size() != 4) misfit();
                for (int p = 0; p < 4; p++) {
                    view.parts[p] = layer.parts[p].view();
                    if (view.parts[p].outputs() != shapes[p][0] ||
                        view.parts[p].inputs() != shapes[p][1])
                        misfit();
                }
            } else {
                if (!layer.qkv || !layer.o) misfit();
                view.qkv = layer.qkv->view();
                view.qkv_bias = layer.qkv->bias();
                view.o = layer.o->view();
                view.o_bias = layer.o->bias();
                if (view.qkv.columns != hidden || view.qkv.rows != q + 2 * kv ||
                    view.o.rows != hidden || view.o.columns != q)
                    misfit();
            }
            view.ffn_norm = norm(layer.ffn_norm);
            view.ffn = layer.ffn.weights();
            if (view.ffn.hidden != hidden) misfit();
            if (view.ffn.chooser.kind != Choice::none && !counts_all) misfit();
            predicted_ = predicted_ && is_predictor(view.ffn.chooser.kind);
            model.layers.push_back(view);
        }
        vocabulary_ = embedding.view().rows;
        decoder_ = std::make_unique<Decoder>(std::move(model), std::move(pool), kernels_for(isa));
    }

    void step(uintptr_t rows, int64_t count, uintptr_t cos, uintptr_t sin, int64_t first_logits,
              uintptr_t logits, uintptr_t counts, uintptr_t firing) {
        const TokenRow *tokens = at<const TokenRow>(rows);
        if (count < 1 || count > kMaxRows || first_logits < 0 || first_logits >= count)
            throw std::invalid_argument("rows out of range");
        if (firing && !predicted_)
            throw std::invalid_argument("firing is counted where every layer has a predictor");
        for (int64_t b = 0; b < count; b++)
            if (tokens[b].token < 0 || tokens[b].token >= vocabulary_ || tokens[b].position < 0)
                throw std::invalid_argument("token or position out of range");
        decoder_->step(tokens, count, at<const float>(cos), at<const float>(sin), first_logits,
                       at<float>(logits), at<int32_t>(counts), at<int32_t>(firing));
    }

private:
    Matrix embedding_;
    std::vector<Layer> layers_;
    Floats final_norm_;
    Matrix head_;
    int64_t vocabulary_ = 0;
    bool predicted_ = true;
    std::unique_ptr<Decoder> decoder_;
};

// What is between the matrix products of a prompt. Sizes are the Python callers' to check.

void unpack(const Matrix &matrix, int64_t begin, int64_t end, bool to_bf16, uintptr_t out,
            const ThreadPool *pool, const std::string &isa) {
    if (begin < 0 || begin > end || end > matrix.view().rows)
        throw std::invalid_argument("rows out of range");
    unpack_rows(matrix.view(), begin, end, to_bf16 ? Format::bf16 : Format::fp32, at<void>(out),
                kernels_for(isa), const_cast<ThreadPool &>(*pool));
}

void gate(uintptr_t g, uintptr_t u, bool bf16, uintptr_t threshold, uintptr_t gate_bias,
          uintptr_t up_bias, uintptr_t down_input, int64_t neurons, int phi, int psi,
          uintptr_t reads, int64_t rows, const ThreadPool *pool, const std::string &isa) {
    if (phi < 0 || phi > 2 || psi < 0 || psi > 1)
        throw std::invalid_argument("phi or psi out of range");
    GateRow row{};
    row.g = at<const void>(g);
    row.u = at<const void>(u);
    row.h = at<void>(g);
    row.format = bf16 ? Format::bf16 : Format::fp32;
    row.threshold = at<const float>(threshold);
    row.gate_bias = at<const float>(gate_bias);
    row.up_bias = at<const float>(up_bias);
    row.down_input = at<const float>(down_input);
    row.neurons = neurons;
    row.phi = static_cast<Phi>(phi);
    row.psi = static_cast<Psi>(psi);
    row.reads = at<int64_t>(reads);
    gate_rows(row, rows, kernels_for(isa), const_cast<ThreadPool &>(*pool));
}

void keep_largest_of(uintptr_t values, int64_t rows, int64_t count, int64_t k,
                     const ThreadPool *pool) {
    if (rows < 0 || count < 0 || k < 0)
        throw std::invalid_argument("rows, count or k out of range");
    keep_largest_rows(at<float>(values), rows, count, k, const_cast<ThreadPool &>(*pool));
}

void attend(uintptr_t qkv, uintptr_t attended, uintptr_t cos, uintptr_t sin, uintptr_t keys,
            uintptr_t values, int64_t head_stride, bool bf16_cache, int64_t tokens, int64_t start,
            int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t window,
            const ThreadPool *pool, const std::string &isa) {
    if (heads < 1 || kv_heads < 1 || heads % kv_heads || head_dim < 2 || head_dim % 2 ||
        window < 0 || tokens < 1 || start < 0)
        throw std::invalid_argument("heads, kv_heads, head_dim, window or tokens out of range");
    const Format format = bf16_cache ? Format::bf16 : Format::fp32;
    PromptLayer layer{};
    layer.qkv = at<float>(qkv);
    layer.attended = at<float>(attended);
    layer.cos = at<const float>(cos);
    layer.sin = at<const float>(sin);
    layer.keys = {at<uint8_t>(keys), head_stride, format};
    layer.values = {at<uint8_t>(values), head_stride, format};
    layer.tokens = tokens;
    layer.start = start;
    layer.heads = heads;
    layer.kv_heads = kv_heads;
    layer.head_dim = head_dim;
    layer.window = window;
    attend_prompt(layer, kernels_for(isa), const_cast<ThreadPool &>(*pool));
}

}  // namespace
}  // namespace sparseinfer

NB_MODULE(_native, m) {
    using namespace sparseinfer;
    using namespace nb::literals;
    // Handles often live in module globals until the interpreter ends; that is no leak.
    nb::set_leak_warnings(false);
    using Unlocked = nb::call_guard<nb::gil_scoped_release>;

    m.attr("MAX_ROWS") = kMaxRows;
    m.def("isa_available", &isa_available);
    m.def("unpack", &unpack, "matrix"_a, "begin"_a, "end"_a, "to_bf16"_a, "out"_a, "pool"_a,
          "isa"_a, Unlocked());
    m.def("gate", &gate, "g"_a, "u"_a, "bf16"_a, "threshold"_a, "gate_bias"_a, "up_bias"_a,
          "down_input"_a, "neurons"_a, "phi"_a, "psi"_a, "reads"_a, "rows"_a, "pool"_a, "isa"_a,
          Unlocked());
    m.def("keep_largest", &keep_largest_of, "values"_a, "rows"_a, "count"_a, "k"_a, "pool"_a,
          Unlocked());
    m.def("attend", &attend, "qkv"_a, "attended"_a, "cos"_a, "sin"_a, "keys"_a, "values"_a,
          "head_stride"_a, "bf16_cache"_a, "tokens"_a, "start"_a, "heads"_a, "kv_heads"_a,
          "head_dim"_a, "window"_a, "pool"_a, "isa"_a, Unlocked());
    m.def("read_bandwidth", &read_bandwidth, "pool"_a, "address"_a, "bytes"_a, Unlocked());

    nb::class_<ThreadPool>(m, "ThreadPool")
        .def(nb::init<int64_t>(), "threads"_a)
        .def_prop_ro("threads", &ThreadPool::threads);

    nb::class_<Matrix>(m, "Matrix")
        .def(nb::init<Rows, int, int64_t>(), "data"_a.noconvert(), "format"_a, "columns"_a);

    nb::class_<Chooser>(m, "Chooser")
        .def_static("lowrank", &Chooser::lowrank, "inward"_a, "outward"_a, "bias"_a.noconvert())
        .def_static("sign", &Chooser::sign, "bits"_a.noconvert(), "hidden"_a, "most"_a)
        .def_static("sketch", &Chooser::sketch, "gate"_a.noconvert(), "up"_a.noconvert(),
                    "hidden"_a, "code_bits"_a, "threshold"_a.noconvert(),
                    "gate_bias"_a.noconvert().none(), "up_bias"_a.noconvert().none(), "phi"_a,
                    "psi"_a)
        .def("call", &Chooser::call, "pool"_a, "isa"_a, "x"_a, "chosen"_a, "rows"_a, Unlocked());

    nb::class_<GatedFfn>(m, "GatedFfn")
        .def(nb::init<Rows, Rows, Matrix, Floats, MaybeFloats, MaybeFloats, MaybeFloats, int, int,
                      Chooser>(),
             "gate_low"_a.noconvert(), "up_low"_a.noconvert(), "down"_a, "threshold"_a.noconvert(),
             "gate_bias"_a.noconvert().none(), "up_bias"_a.noconvert().none(),
             "down_bias"_a.noconvert().none(), "phi"_a, "psi"_a, "planes"_a)
        .def(nb::init<Matrix, Matrix, Matrix, Floats, MaybeFloats, MaybeFloats, MaybeFloats, int,
                      int, MaybeFloats, MaybeFloats, MaybeFloats, bool, bool, int64_t,
                      std::optional<Chooser>>(),
             "gate"_a, "up"_a, "down"_a, "threshold"_a.noconvert(),
             "gate_bias"_a.noconvert().none(), "up_bias"_a.noconvert().none(),
             "down_bias"_a.noconvert().none(), "phi"_a, "psi"_a,
             "gate_input"_a.noconvert().none(), "up_input"_a.noconvert().none(),
             "down_input"_a.noconvert().none(), "gate_by_input"_a, "up_by_input"_a, "top_k"_a,
             "chooser"_a.none())
        .def("call", &GatedFfn::call, "pool"_a, "isa"_a, "x"_a, "candidates"_a, "y"_a, "counts"_a,
             "rows"_a, Unlocked());

    nb::class_<Linear>(m, "Linear")
        .def(nb::init<Matrix, MaybeFloats>(), "weight"_a, "bias"_a.noconvert().none())
        .def("call", &Linear::call, "pool"_a, "isa"_a, "x"_a, "y"_a, "rows"_a, Unlocked());

    nb::class_<SparseInputLinear>(m, "SparseInputLinear")
        .def(nb::init<Matrix, Floats, MaybeFloats>(), "weight"_a, "threshold"_a.noconvert(),
             "bias"_a.noconvert().none())
        .def("call", &SparseInputLinear::call, "pool"_a, "isa"_a, "x"_a, "y"_a, "reads"_a,
             "rows"_a, Unlocked());

    nb::class_<Projection>(m, "Projection")
        .def(nb::init<Matrix, MaybeFloats, MaybeFloats, bool>(), "weight"_a,
             "bias"_a.noconvert().none(), "threshold"_a.noconvert().none(), "by_input"_a);

    nb::class_<Layer>(m, "Layer")
        .def("__init__",
             [](Layer *self, Floats input_norm, std::optional<Linear> qkv, std::optional<Linear> o,
                std::vector<Projection> parts, Floats ffn_norm, GatedFfn ffn) {
                 new (self) Layer{input_norm, qkv, o, parts, ffn_norm, ffn};
             },
             "input_norm"_a.noconvert(), "qkv"_a.none(), "o"_a.none(), "parts"_a,
             "ffn_norm"_a.noconvert(), "ffn"_a);

    nb::class_<BoundDecoder>(m, "Decoder")
        .def(nb::init<Matrix, std::vector<Layer>, Floats, Matrix, float, int64_t, int64_t, int64_t,
                      int64_t, bool, bool, bool, std::shared_ptr<ThreadPool>,
                      const std::string &>(),
             "embedding"_a, "layers"_a, "final_norm"_a.noconvert(), "head"_a, "eps"_a, "heads"_a,
             "kv_heads"_a, "head_dim"_a, "window"_a, "bf16_cache"_a, "input_relu"_a,
             "counts_all"_a, "pool"_a, "isa"_a)
        .def("step", &BoundDecoder::step, "rows"_a, "count"_a, "cos"_a, "sin"_a, "first_logits"_a,
             "logits"_a, "counts"_a, "firing"_a = 0, Unlocked());
}
