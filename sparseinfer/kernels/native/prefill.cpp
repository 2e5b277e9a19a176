#include "prefill.h"

#include <algorithm>

#include "openmp.h"
#include "top_k.h"

namespace sparseinfer {
namespace {

constexpr int64_t kUnpackChunk = 32;    // rows
constexpr int64_t kGateChunk = 8;       // rows
constexpr int64_t kRotateChunk = 16;    // tokens

// Queries that share the work of unpacking keys and values. It decides nothing about the result.
constexpr int64_t kQueries = 192;

int64_t chunks(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Calls body(chunk) for all chunks; on torch's threads rather than on the pool's, see openmp.h.
template <class Body>
void share(ThreadPool &pool, int64_t count, const Body &body) {
    const auto call = [](const void *ctx, int64_t chunk) {
        (*static_cast<const Body *>(ctx))(chunk);
    };
    if (!run_on_openmp(pool.threads(), count, call, &body)) pool.run(count, body);
}

int64_t row_size(Format format) { return format == Format::fp32 ? 4 : 2; }

}  // namespace

void unpack_rows(const MatrixView &matrix, int64_t begin, int64_t end, Format to, void *out,
                 const Kernels &kernels, ThreadPool &pool) {
    uint8_t *bytes = static_cast<uint8_t *>(out);
    const int64_t stride = matrix.columns * row_size(to);
    const auto lock = pool.exclusive();
    share(pool, chunks(end - begin, kUnpackChunk), [&](int64_t chunk) {
        const int64_t first = begin + chunk * kUnpackChunk;
        for (int64_t row = first; row < std::min(first + kUnpackChunk, end); row++)
            kernels.unpack_row(matrix, row, to, bytes + (row - begin) * stride);
    });
}

void gate_rows(const GateRow &first, int64_t rows, const Kernels &kernels, ThreadPool &pool) {
    const int64_t stride = first.neurons * row_size(first.format);
    const auto lock = pool.exclusive();
    share(pool, chunks(rows, kGateChunk), [&](int64_t chunk) {
        const int64_t begin = chunk * kGateChunk;
        for (int64_t i = begin; i < std::min(begin + kGateChunk, rows); i++) {
            GateRow row = first;
            row.g = static_cast<const uint8_t *>(first.g) + i * stride;
            row.u = static_cast<const uint8_t *>(first.u) + i * stride;
            row.h = static_cast<uint8_t *>(first.h) + i * stride;
            row.reads = first.reads + 2 * i;
            kernels.gate_row(row);
        }
    });
}

void keep_largest_rows(float *a, int64_t rows, int64_t n, int64_t k, ThreadPool &pool) {
    const auto lock = pool.exclusive();
    share(pool, chunks(rows, kGateChunk), [&](int64_t chunk) {
        const int64_t begin = chunk * kGateChunk;
        for (int64_t i = begin; i < std::min(begin + kGateChunk, rows); i++)
            keep_largest(a + i * n, n, k);
    });
}

void attend_prompt(const PromptLayer &l, const Kernels &kernels, ThreadPool &pool) {
    const int64_t n = l.head_dim;
    const int64_t stride = (l.heads + 2 * l.kv_heads) * n;
    const auto lock = pool.exclusive();
    share(pool, chunks(l.tokens, kRotateChunk), [&](int64_t chunk) {
        const int64_t begin = chunk * kRotateChunk;
        for (int64_t t = begin; t < std::min(begin + kRotateChunk, l.tokens); t++) {
            float *row = l.qkv + t * stride;
            for (int64_t head = 0; head < l.heads + l.kv_heads; head++)
                kernels.rotate(row + head * n, l.cos + t * n, l.sin + t * n, n);
            for (int64_t head = 0; head < l.kv_heads; head++) {
                const float *key = row + (l.heads + head) * n;
                kernels.store_cache(l.keys, head, l.start + t, key, n);
                kernels.store_cache(l.values, head, l.start + t, key + l.kv_heads * n, n);
            }
        }
    });

    const int64_t group = l.heads / l.kv_heads;
    const int64_t size = std::max<int64_t>(8, kQueries / group);    // tokens
    const int64_t blocks = chunks(l.tokens, size);
    const int64_t threads = std::min(pool.threads(), blocks * l.kv_heads);
    const int64_t bytes = (kernels.prompt_scratch(size * group, n) + 63) / 64 * 64;
    uint8_t *memory = static_cast<uint8_t *>(pool.scratch(threads * bytes));
    int64_t next = 0;
    share(pool, threads, [&](int64_t thread) {
        for (int64_t job;
             (job = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < blocks * l.kv_heads;) {
            // The last tokens see most: they come first, so that no thread is left with them.
            const int64_t block = blocks - 1 - job / l.kv_heads;
            const int64_t head = job % l.kv_heads;
            PromptAttention p{};
            p.query = l.qkv + head * group * n;
            p.query_stride = stride;
            p.out = l.attended + head * group * n;
            p.out_stride = l.heads * n;
            p.keys = l.keys;
            p.values = l.values;
            p.kv_head = head;
            p.group = group;
            p.head_dim = n;
            p.start = l.start;
            p.begin = block * size;
            p.end = std::min(p.begin + size, l.tokens);
            p.window = l.window;
            kernels.attend_prompt(p, memory + thread * bytes);
        }
    });
}

}  // namespace sparseinfer
