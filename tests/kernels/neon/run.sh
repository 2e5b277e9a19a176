#!/bin/sh
# Builds the native kernels without Python, for variants that the other tests cannot reach, and holds
# them against plain loops:
#
#   tests/kernels/neon/run.sh [native] [lanes] [neon]      (default: all three)
#
#   native   for this machine
#   lanes    for this machine, as for one that has no known vector instructions
#   neon     for 64-bit ARM, run by qemu
#
# CXX and CXX_AARCH64 name the compilers, QEMU_AARCH64 the emulator. What is missing for neon
# (Debian: qemu-user, g++-aarch64-linux-gnu) skips it with a message.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
native=$here/../../../sparseinfer/kernels/native
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

# Code generation as in CMakeLists.txt.
flags="-std=c++17 -O3 -Wall -Wextra -Werror -pthread
       -fno-math-errno -fno-trapping-math -ffp-contract=off"
shared="choose dispatch gated_ffn linear decode_ffn decode_projections decode_step decoder prefill openmp
        thread_pool top_k kernels_portable"

# compile NAME COMPILER [OPTIONS]: makes $build/NAME/test
compile() {
  name=$1 compiler=$2
  shift 2
  mkdir "$build/$name"
  for source in $shared; do
    # shellcheck disable=SC2086
    $compiler $flags "$@" -c "$native/$source.cpp" -o "$build/$name/$source.o"
  done
  for source in main products ffn decode candidates; do
    # shellcheck disable=SC2086
    $compiler $flags -O1 "$@" -I"$native" -c "$here/$source.cpp" -o "$build/$name/test_$source.o"
  done
  # shellcheck disable=SC2086
  $compiler $flags "$@" "$build/$name"/*.o -o "$build/$name/test" -ldl
}

[ $# -gt 0 ] || set -- native lanes neon
for variant; do
  printf '%s: ' "$variant"
  case $variant in
    native)
      compile native "${CXX:-c++}"
      "$build/native/test" portable
      ;;
    lanes)
      compile lanes "${CXX:-c++}" -U__SSE2__ -U__aarch64__
      "$build/lanes/test" portable
      ;;
    neon)
      compiler=${CXX_AARCH64:-aarch64-linux-gnu-g++}
      emulator=${QEMU_AARCH64:-qemu-aarch64}
      if ! command -v "$compiler" >/dev/null || ! command -v "$emulator" >/dev/null; then
        echo "skipped: needs $compiler and $emulator"
        continue
      fi
      compile neon "$compiler" -static
      "$emulator" "$build/neon/test" portable
      ;;
    *)
      echo "unknown; choose from native, lanes, neon" >&2
      exit 2
      ;;
  esac
done
