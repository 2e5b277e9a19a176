// Whole decode steps, and attention of prompts, against loops in double.

#include <memory>

#include "decoder.h"
#include "dispatch.h"
#include "gated_ffn.h"
#include "prefill.h"
#include "tests.h"
#include "weights.h"

using namespace sparseinfer;

namespace {

struct Heads {
    int64_t heads, kv_heads, head_dim, window;

    int64_t q() const { return heads * head_dim; }
    int64_t kv() const { return kv_heads * head_dim; }
};

constexpr double kBase = 1000.0;    // of the rotations' angles

std::vector<float> rotations(int64_t positions, int64_t head_dim, double (*f)(double)) {
    std::vector<float> table(positions * head_dim);
    for (int64_t p = 0; p < positions; p++)
        for (int64_t i = 0; i < head_dim; i++) {
            const int64_t pair = i % (head_dim / 2);
            table[p * head_dim + i] =
                static_cast<float>(f(p * std::pow(kBase, -2.0 * pair / head_dim)));
        }
    return table;
}

void rotate(double *x, const float *cos, const float *sin, int64_t n) {
    for (int64_t i = 0; i < n / 2; i++) {
        const double a = x[i], b = x[i + n / 2];
        x[i] = a * cos[i] - b * sin[i];
        x[i + n / 2] = b * cos[i + n / 2] + a * sin[i + n / 2];
    }
}

// One token's query heads over keys and values [positions][kv], of which it sees up to `position`.
std::vector<double> attended(const Heads &h, const double *query,
                             const std::vector<std::vector<double>> &keys,
                             const std::vector<std::vector<double>> &values, int64_t position) {
    std::vector<double> out(h.q());
    const int64_t begin = h.window > 0 ? std::max<int64_t>(0, position + 1 - h.window) : 0;
    for (int64_t head = 0; head < h.heads; head++) {
        const int64_t kv = head / (h.heads / h.kv_heads) * h.head_dim, at = head * h.head_dim;
        std::vector<double> weight;
        double most = -INFINITY, total = 0.0;
        for (int64_t p = begin; p <= position; p++) {
            double score = 0.0;
            for (int64_t k = 0; k < h.head_dim; k++) score += query[at + k] * keys[p][kv + k];
            weight.push_back(score / std::sqrt(static_cast<double>(h.head_dim)));
            most = std::max(most, weight.back());
        }
        for (double &w : weight) total += w = std::exp(w - most);
        for (int64_t p = begin; p <= position; p++)
            for (int64_t k = 0; k < h.head_dim; k++)
                out[at + k] += weight[p - begin] / total * values[p][kv + k];
    }
    return out;
}

// What one layer needs, and its weights as the decoder takes them.
struct Layer {
    Weights qkv, o, gate, up, down;
    std::vector<float> input_norm, qkv_bias, o_bias, ffn_norm, threshold;

    Layer(Format format, int64_t hidden, int64_t intermediate, const Heads &h, Random &random)
        : qkv(format, h.q() + 2 * h.kv(), hidden, random), o(format, hidden, h.q(), random),
          gate(format, intermediate, hidden, random), up(format, intermediate, hidden, random),
          down(format, intermediate, hidden, random), input_norm(random.vector(hidden)),
          qkv_bias(random.vector(h.q() + 2 * h.kv())), o_bias(random.vector(hidden)),
          ffn_norm(random.vector(hidden)), threshold(intermediate) {
        for (float &t : threshold) t = random.below(2) ? 0.0f : INFINITY;
        for (float &w : ffn_norm) w *= 0.25f;    // no gate so low that its SiLU counts as 0
    }

    LayerView view() const {
        LayerView v{};
        v.input_norm = input_norm.data();
        v.qkv = qkv.view();
        v.qkv_bias = qkv_bias.data();
        v.o = o.view();
        v.o_bias = o_bias.data();
        v.ffn_norm = ffn_norm.data();
        v.ffn.gate = gate.view();
        v.ffn.up = up.view();
        v.ffn.down = down.view();
        v.ffn.threshold = threshold.data();
        v.ffn.hidden = gate.columns();
        v.ffn.intermediate = gate.rows();
        v.ffn.range = range_size(gate.rows());
        v.ffn.phi = Phi::silu;
        v.ffn.psi = Psi::id;
        return v;
    }
};

constexpr float kEps = 1e-5f;

std::vector<double> normed(const std::vector<double> &x, const std::vector<float> &weight) {
    double squares = 0.0;
    for (double v : x) squares += v * v;
    const double factor = 1.0 / std::sqrt(squares / x.size() + kEps);
    std::vector<double> out(x.size());
    for (size_t i = 0; i < x.size(); i++) out[i] = x[i] * factor * weight[i];
    return out;
}

std::vector<double> product(const Weights &w, const std::vector<double> &x, const float *bias) {
    std::vector<double> y(w.rows());
    for (int64_t r = 0; r < w.rows(); r++) {
        y[r] = bias ? bias[r] : 0.0;
        for (int64_t k = 0; k < w.columns(); k++) y[r] += w(r, k) * x[k];
    }
    return y;
}

struct Model {
    Heads heads;
    Format cache_format;
    Weights embedding, head;
    std::vector<float> final_norm;
    std::vector<Layer> layers;

    Model(Format format, Format cache, int64_t hidden, int64_t intermediate, int64_t vocabulary,
          const Heads &h, Random &random)
        : heads(h), cache_format(cache), embedding(format, vocabulary, hidden, random),
          head(format, vocabulary, hidden, random), final_norm(random.vector(hidden)) {
        for (int i = 0; i < 2; i++) layers.emplace_back(format, hidden, intermediate, h, random);
    }

    ModelView view() const {
        ModelView v{embedding.view(), head.view(), final_norm.data(), kEps, heads.heads,
                    heads.kv_heads, heads.head_dim, heads.window, cache_format, {}};
        for (const Layer &layer : layers) v.layers.push_back(layer.view());
        return v;
    }

    // Logits of every token of a sequence.
    std::vector<double> answer(const std::vector<int64_t> &ids, const std::vector<float> &cos,
                               const std::vector<float> &sin) const {
        const int64_t hidden = embedding.columns(), n = heads.head_dim;
        std::vector<std::vector<std::vector<double>>> keys(layers.size()), values(layers.size());
        std::vector<double> logits;
        for (size_t p = 0; p < ids.size(); p++) {
            std::vector<double> x(hidden);
            for (int64_t k = 0; k < hidden; k++) x[k] = embedding(ids[p], k);
            for (size_t l = 0; l < layers.size(); l++) {
                const Layer &layer = layers[l];
                std::vector<double> qkv =
                    product(layer.qkv, normed(x, layer.input_norm), layer.qkv_bias.data());
                for (int64_t h = 0; h < heads.heads + heads.kv_heads; h++)
                    rotate(qkv.data() + h * n, cos.data() + p * n, sin.data() + p * n, n);
                const auto at = qkv.begin() + heads.q();
                keys[l].emplace_back(at, at + heads.kv());
                values[l].emplace_back(at + heads.kv(), qkv.end());
                const std::vector<double> o =
                    product(layer.o, attended(heads, qkv.data(), keys[l], values[l], p),
                            layer.o_bias.data());
                for (int64_t k = 0; k < hidden; k++) x[k] += o[k];
                const std::vector<double> y = normed(x, layer.ffn_norm);
                const std::vector<double> g = product(layer.gate, y, nullptr);
                const std::vector<double> u = product(layer.up, y, nullptr);
                for (size_t i = 0; i < g.size(); i++) {
                    if (layer.threshold[i] > 0.0f) continue;
                    const double act = g[i] / (1.0 + std::exp(-g[i])) * u[i];
                    for (int64_t k = 0; k < hidden; k++) x[k] += act * layer.down(i, k);
                }
            }
            const std::vector<double> out = product(head, normed(x, final_norm), nullptr);
            logits.insert(logits.end(), out.begin(), out.end());
        }
        return logits;
    }
};

// Caches of one sequence: [layers, kv_heads, positions, head_dim].
class Cache {
public:
    Cache(const Model &model, int64_t positions)
        : element_(model.cache_format == Format::fp32 ? 4 : 2),
          head_(positions * model.heads.head_dim * element_),
          layer_(head_ * model.heads.kv_heads), keys_(layer_ * model.layers.size(), 0xff),
          values_(keys_) {}

    TokenRow row(int64_t token, int64_t position) {
        return {token, position, keys_.data(), values_.data(), layer_, head_};
    }

private:
    int64_t element_, head_, layer_;
    std::vector<uint8_t> keys_, values_;
};

// Logits of all tokens, `batch` of them per step.
std::vector<float> decoded(const Model &model, const Kernels &kernels, int64_t threads,
                           const std::vector<int64_t> &ids, int64_t batch,
                           const std::vector<float> &cos, const std::vector<float> &sin,
                           std::vector<int32_t> *counts) {
    const int64_t vocabulary = model.head.rows();
    Decoder decoder(model.view(), std::make_shared<ThreadPool>(threads), kernels);
    Cache cache(model, static_cast<int64_t>(ids.size()) + 3);
    std::vector<float> logits = unwritten(ids.size() * vocabulary);
    for (size_t begin = 0; begin < ids.size(); begin += batch) {
        std::vector<TokenRow> rows;
        for (size_t p = begin; p < std::min(ids.size(), begin + batch); p++)
            rows.push_back(cache.row(ids[p], p));
        counts->assign(2 * model.layers.size() * rows.size(), -1);
        decoder.step(rows.data(), rows.size(), cos.data(), sin.data(), 0,
                     logits.data() + begin * vocabulary, counts->data());
    }
    return logits;
}

void test_decoder(const Kernels &kernels, Format format, Format cache, const Heads &heads,
                  Random &random) {
    constexpr int64_t kVocabulary = 45;
    const Model model(format, cache, 72, 90, kVocabulary, heads, random);
    std::vector<int64_t> ids(19);
    for (int64_t &id : ids) id = random.below(kVocabulary);
    const std::vector<float> cos = rotations(ids.size(), heads.head_dim, std::cos);
    const std::vector<float> sin = rotations(ids.size(), heads.head_dim, std::sin);
    const std::string what = std::string("decoder ") + kernels.isa + " " + name(format) +
                             " cache " + name(cache) + " window " + std::to_string(heads.window);

    std::vector<int32_t> counts;
    const std::vector<float> logits = decoded(model, kernels, 1, ids, 1, cos, sin, &counts);
    // Products with int4 rows see 8-bit inputs, and a bf16 cache holds 8 bits of keys and values.
    const double tolerance = format == Format::int4 ? 0.1 : cache == Format::bf16 ? 0.05 : 2e-3;
    check_near(logits, model.answer(ids, cos, sin), tolerance, what);
    for (size_t l = 0; l < model.layers.size(); l++) {
        const Layer &layer = model.layers[l];
        int64_t on = 0;
        for (int64_t i = 0; i < layer.gate.rows(); i++)
            on += layer.threshold[i] == 0.0f && !layer.gate.is_zero(i);
        check(counts[2 * l] == on && counts[2 * l + 1] == on,
              what + ": read " + std::to_string(counts[2 * l]) + " and " +
                  std::to_string(counts[2 * l + 1]) + " rows of " + std::to_string(on));
    }
    constexpr int64_t kRuns[][2] = {{2, 1}, {1, 2}, {2, 7}, {3, 16}};    // threads, batch
    for (const auto &run : kRuns)
        check(decoded(model, kernels, run[0], ids, run[1], cos, sin, &counts) == logits,
              what + ": bits depend on threads or batch");

    // Two sequences in one step, of which only the second one's logits are wanted.
    Decoder decoder(model.view(), std::make_shared<ThreadPool>(2), kernels);
    Cache one(model, 8), other(model, 8);
    std::vector<float> both = unwritten(kVocabulary), alone = unwritten(kVocabulary);
    const TokenRow rows[] = {one.row(ids[0], 0), other.row(ids[1], 0)};
    counts.assign(4 * model.layers.size(), -1);
    decoder.step(rows, 2, cos.data(), sin.data(), 1, both.data(), counts.data());
    Cache fresh(model, 8);
    const TokenRow row = fresh.row(ids[1], 0);
    decoder.step(&row, 1, cos.data(), sin.data(), 0, alone.data(), counts.data());
    check(both == alone, what + ": bits depend on the other sequence");
}

void test_prompt(const Kernels &kernels, const Heads &h, int64_t tokens, int64_t start,
                 Random &random) {
    const int64_t n = h.head_dim, end = start + tokens, capacity = end + 5;
    const int64_t width = h.q() + 2 * h.kv();
    std::vector<float> qkv = random.vector(tokens * width), out = unwritten(tokens * h.q());
    const std::vector<float> cos = rotations(end, n, std::cos), sin = rotations(end, n, std::sin);
    std::vector<float> keys = unwritten(h.kv() * capacity), values = keys;
    std::vector<std::vector<double>> all_keys, all_values;
    for (int64_t p = 0; p < end; p++) {
        std::vector<double> key(h.kv()), value(h.kv());
        for (int64_t j = 0; j < h.kv(); j++) {
            const int64_t slot = (j / n * capacity + p) * n + j % n;
            if (p < start) {
                key[j] = keys[slot] = random.symmetric();
                value[j] = values[slot] = random.symmetric();
            } else {
                key[j] = qkv[(p - start) * width + h.q() + j];
                value[j] = qkv[(p - start) * width + h.q() + h.kv() + j];
            }
        }
        if (p >= start)
            for (int64_t head = 0; head < h.kv_heads; head++)
                rotate(key.data() + head * n, cos.data() + p * n, sin.data() + p * n, n);
        all_keys.push_back(key);
        all_values.push_back(value);
    }
    std::vector<double> expected;
    for (int64_t t = 0; t < tokens; t++) {
        std::vector<double> query(qkv.begin() + t * width, qkv.begin() + t * width + h.q());
        const int64_t p = start + t;
        for (int64_t head = 0; head < h.heads; head++)
            rotate(query.data() + head * n, cos.data() + p * n, sin.data() + p * n, n);
        const std::vector<double> y = attended(h, query.data(), all_keys, all_values, p);
        expected.insert(expected.end(), y.begin(), y.end());
    }

    PromptLayer layer{};
    layer.attended = out.data();
    layer.cos = cos.data() + start * n;
    layer.sin = sin.data() + start * n;
    layer.tokens = tokens;
    layer.start = start;
    layer.heads = h.heads;
    layer.kv_heads = h.kv_heads;
    layer.head_dim = n;
    layer.window = h.window;
    const std::string what = std::string("attend_prompt ") + kernels.isa + " " +
                             std::to_string(tokens) + " after " + std::to_string(start) +
                             " head_dim " + std::to_string(n) + " window " +
                             std::to_string(h.window);
    std::vector<float> first;
    for (int64_t threads : {1, 3}) {
        ThreadPool pool(threads);
        std::vector<float> rows = qkv, own_keys = keys, own_values = values;
        layer.qkv = rows.data();
        layer.keys = {reinterpret_cast<uint8_t *>(own_keys.data()), capacity * n * 4, Format::fp32};
        layer.values = {reinterpret_cast<uint8_t *>(own_values.data()), capacity * n * 4,
                        Format::fp32};
        attend_prompt(layer, kernels, pool);
        if (threads == 1) {
            check_near(out, expected, 1e-5, what);
            first = out;
        }
        check(out == first, what + ": bits depend on threads");
    }
}

}  // namespace

void test_decoders(const Kernels &kernels) {
    Random random(3);
    constexpr Heads kShapes[] = {{4, 2, 12, 0}, {3, 1, 24, 9}};
    for (const Heads &heads : kShapes)
        for (const Format format : kFormats)
            for (const Format cache : {Format::fp32, Format::bf16})
                test_decoder(kernels, format, cache, heads, random);
    test_prompt(kernels, {2, 1, 4, 0}, 1, 0, random);
    test_prompt(kernels, {4, 2, 12, 0}, 37, 0, random);
    test_prompt(kernels, {6, 2, 16, 7}, 65, 64, random);
    test_prompt(kernels, {3, 3, 20, 0}, 50, 30, random);
}
