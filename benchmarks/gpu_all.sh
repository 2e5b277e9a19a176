#!/usr/bin/env bash
# Everything that waits for a GPU: tests compiled, then both benchmarks. Tables and JSON go to a folder.
#
#   bash benchmarks/gpu_all.sh [FOLDER]       (docs/results by default; PYTHON=... chooses another Python)
#
# The fine-tuning run has a command of its own: benchmarks/finetuning/run.py.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-docs/results}
python=${PYTHON:-.venv/bin/python}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
mkdir -p "$out"
failed=0

step() { # name, command...
  local name=$1
  shift
  echo "== $name"
  "$@" 2>&1 | tee "$out/$name.txt" || failed=1
}

step gpu-tests "$python" -m pytest -q -m gpu tests/kernels/gpu tests/engine/gpu -o addopts="--strict-markers"
step gpu "$python" benchmarks/gpu.py
step gpu-residency "$python" benchmarks/gpu_residency.py
for name in gpu gpu-residency; do
  tail -n 1 "$out/$name.txt" | "$python" -m json.tool > "$out/$name.json" || failed=1
done
exit $failed
