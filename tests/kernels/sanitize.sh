#!/bin/sh
# Builds the native kernels with sanitizers in a temporary folder and runs the kernel tests on them.
#
#   tests/kernels/sanitize.sh [address,undefined | thread] [pytest arguments]
#
# Tests of plain torch alone are left out, unless pytest arguments say otherwise. Needs cmake, ninja
# and a compiler with the sanitizer libraries; PYTHON names the interpreter.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
sanitizers=${1:-address,undefined}
[ $# -eq 0 ] || shift
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

cmake -S "$root" -B "$build/cmake" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DPython_EXECUTABLE="$python" -DSPARSEINFER_SANITIZE="$sanitizers" >"$build/log"
cmake --build "$build/cmake" >>"$build/log" || { cat "$build/log"; exit 1; }
mkdir "$build/package"
cp -r "$root/sparseinfer" "$build/package/"
rm -f "$build"/package/sparseinfer/kernels/_native*.so
cp "$build"/cmake/_native*.so "$build/package/sparseinfer/kernels/"

# Python itself is not instrumented, so the runtime has to be loaded first, and the C++ library
# with it for the interception of exceptions. Python's own leaks at exit are not ours. pytest may
# not capture the file descriptors, or a report would be lost with the process that it ends.
runtimes=
for library in asan tsan; do
  case $library,$sanitizers in
    asan,*address* | tsan,*thread*) runtimes=$(${CXX:-c++} -print-file-name=lib$library.so) ;;
  esac
done
runtimes="$runtimes $(${CXX:-c++} -print-file-name=libstdc++.so)"

cd "$build"
LD_PRELOAD="$runtimes" PYTHONPATH="$build/package" EXPECTED="$build/package" \
ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
"$python" - -p no:cacheprovider --capture=sys --rootdir="$root" -c "$root/pyproject.toml" \
  "$root/tests/kernels" -k "not reference" --ignore="$root/tests/kernels/test_quantize.py" \
  --ignore="$root/tests/kernels/test_matrix.py" "$@" <<'EOF'
import os
import sys

# An editable install redirects imports to its own, uninstrumented module.
sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in type(f).__name__
                    and "Redirecting" not in type(f).__name__]
import sparseinfer.kernels._native as native

assert native.__file__.startswith(os.environ["EXPECTED"]), native.__file__
import pytest

sys.exit(pytest.main(sys.argv[1:]))
EOF
