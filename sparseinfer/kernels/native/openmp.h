// Work on the threads of the OpenMP runtime that torch uses, where there is one.
//
// Between two matrix products of torch its threads wait awake for some milliseconds, and a thread of
// our own pool would get half a core at best. So what has to be done there is done by them.
#pragma once

#include <cstdint>

namespace sparseinfer {

// Calls body(chunk) once for each chunk in [0, chunks), on up to `threads` threads, and returns when
// all are done. False, with nothing done, where no such runtime is loaded. `body` must not throw.
bool run_on_openmp(int64_t threads, int64_t chunks, void (*body)(const void *ctx, int64_t chunk),
                   const void *ctx);

// Sends the threads that worked for this thread's last call away: they would wait awake, on cores
// that others need. They are made anew when next needed, in some tens of microseconds.
void rest_openmp();

}  // namespace sparseinfer
