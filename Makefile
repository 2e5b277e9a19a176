# Every target sets up what it needs: a virtual environment in .venv, dependencies, native kernels.
# Needs Python >= 3.10 with venv, make and a C++17 compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt $(wildcard sparseinfer/kernels/native/*)

.PHONY: demo test check accept gpu format schema sanitize neon clean
.DELETE_ON_ERROR:

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("needs Python 3.10 or newer: make PYTHON=..." if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## convert, generate, evaluate the embedded model; writes demo-report/
	$(BIN)/sparseinfer demo

test: $(VENV)/.installed  ## all tests, with the real model
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed  ## what CI checks besides tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# Speed and 4-bit quality need the bench extra: CMAKE_ARGS=-DGGML_NATIVE=ON pip install -e ".[bench]"
accept: $(VENV)/.installed  ## every promised figure at full size (two hours); writes docs/results/
	$(BIN)/python benchmarks/accept.py

gpu: $(VENV)/.installed  ## on a machine with an NVIDIA GPU: tests compiled, benchmarks; writes docs/results/
	bash benchmarks/gpu_all.sh docs/results

sanitize: $(VENV)/.installed  ## kernel tests under address and undefined-behaviour sanitizers
	bash tests/kernels/sanitize.sh

neon:  ## kernels for 64-bit ARM (under qemu) and without vector instructions, against plain loops
	sh tests/kernels/neon/run.sh

schema: $(VENV)/.installed  ## docs/report.schema.json, from the models of sparseinfer.report
	$(BIN)/python -c "from sparseinfer.report import schema_text; print(schema_text(), end='')" > docs/report.schema.json

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist demo-report smollm2-135m-sketch
