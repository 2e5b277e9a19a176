#include "openmp.h"

#include <atomic>

#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#endif

namespace sparseinfer {
namespace {

// What a compiler makes of `#pragma omp parallel`; part of libgomp's binary interface since GCC 4.9.
using Parallel = void (*)(void (*)(void *), void *, unsigned threads, unsigned flags);

// omp_pause_resource_all of OpenMP 5.0; 1 is omp_pause_soft, which keeps settings.
using Pause = int (*)(int kind);

template <class Function>
Function find(const char *name) {
#if __has_include(<dlfcn.h>)
    // torch loads its runtime with global symbols.
    return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
#else
    return nullptr;
#endif
}

thread_local bool awake = false;

struct Job {
    void (*body)(const void *, int64_t);
    const void *ctx;
    int64_t chunks;
    std::atomic<int64_t> next;
};

}  // namespace

bool run_on_openmp(int64_t threads, int64_t chunks, void (*body)(const void *ctx, int64_t chunk),
                   const void *ctx) {
    static const Parallel parallel = find<Parallel>("GOMP_parallel");
    if (!parallel) return false;
    awake = true;
    Job job{body, ctx, chunks, {0}};
    parallel(
        [](void *data) {
            Job &job = *static_cast<Job *>(data);
            for (int64_t i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.chunks;)
                job.body(job.ctx, i);
        },
        &job, static_cast<unsigned>(threads < chunks ? threads : chunks), 0);
    return true;
}

void rest_openmp() {
    static const Pause pause = find<Pause>("omp_pause_resource_all");
    if (awake && pause) pause(1);
    awake = false;
}

}  // namespace sparseinfer
