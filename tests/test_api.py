"""The public surface of `import sparseinfer`."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import sparseinfer
from sparseinfer import engine, errors

NAMES = {
    "Checkpoint",
    "Generation",
    "Model",
    "Sampling",
    "SparseInferError",
    "Sparsities",
    "SparsityCounts",
    "__version__",
    "evaluate",
    "load",
    "load_text",
    "load_tokenizer",
    "resolve_model",
    "sparsities",
    "watched_windows",
}

SAID_BY_THEIR_NAMES = {"Checkpoint.shard_files", "Checkpoint.weight_bytes"}

EMPTY = inspect.Parameter.empty
SIGNATURES = {
    sparseinfer.load: {
        "model": "smollm2-135m",
        "device": "cpu",
        "gpu_memory": None,
        "windows": None,
        "weights": "auto",
        "threads": None,
        "huge_pages": False,
        "prefill": "auto",
        "predictor": None,
    },
    sparseinfer.Model.set_thresholds: {"thresholds": EMPTY},
    sparseinfer.Model.set_input_thresholds: {"thresholds": EMPTY},
    sparseinfer.Model.set_top_k: {"k": EMPTY},
    sparseinfer.Model.set_sketch: {"bits": EMPTY},
    sparseinfer.Model.set_predictors: {"predictors": EMPTY},
    sparseinfer.Model.generate: {
        "ids": EMPTY,
        "max_tokens": None,
        "sampling": engine.GREEDY,
        "stop_ids": None,
    },
    sparseinfer.Model.logits: {"ids": EMPTY, "by": "prefill"},
    sparseinfer.Model.score: {"ids": EMPTY, "by": "prefill"},
    sparseinfer.Model.sparsity: {"phase": None},
    sparseinfer.Model.reset_sparsity: {},
    sparseinfer.Sampling: {
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": None,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": None,
    },
}


def test_the_public_names_are_these_and_all_resolve():
    assert set(sparseinfer.__all__) == NAMES
    assert len(sparseinfer.__all__) == len(NAMES)
    for name in NAMES:
        assert getattr(sparseinfer, name) is not None
    assert set(dir(sparseinfer)) == NAMES
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = sparseinfer.no_such_name


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signatures_are_as_documented(function):
    parameters = inspect.signature(function).parameters
    found = {name: p.default for name, p in parameters.items() if name != "self"}
    assert found == SIGNATURES[function]


def test_all_but_the_first_argument_are_given_by_name():
    for function in (sparseinfer.load, sparseinfer.Model.generate, sparseinfer.evaluate):
        kinds = [
            p.kind for name, p in inspect.signature(function).parameters.items() if name != "self"
        ]
        assert all(kind is inspect.Parameter.KEYWORD_ONLY for kind in kinds[1:])


def _public_members(owner):
    own = [one for one in owner.__mro__ if one.__module__.startswith("sparseinfer")]
    for name, member in (pair for one in own for pair in vars(one).items()):
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            yield name, member.fget
        elif isinstance(member, (classmethod, staticmethod)):
            yield name, member.__func__
        elif inspect.isfunction(member):
            yield name, member


def test_every_public_function_class_and_method_says_what_it_does():
    silent = []
    for name in NAMES - {"__version__"}:
        value = getattr(sparseinfer, name)
        members = list(_public_members(value)) if inspect.isclass(value) else []
        for label, member in [(name, value), *((f"{name}.{n}", m) for n, m in members)]:
            own = member.__dict__.get("__doc__") if inspect.isclass(member) else member.__doc__
            # A dataclass without a docstring gets its signature for one.
            if not own or own.startswith(f"{name}("):
                silent.append(label)
    assert set(silent) <= SAID_BY_THEIR_NAMES


def test_every_error_has_the_one_base_and_says_when_it_is_raised():
    own = [
        one for one in vars(errors).values() if getattr(one, "__module__", "") == errors.__name__
    ]
    kinds = [one for one in own if inspect.isclass(one)]
    assert len(kinds) > 5
    for kind in kinds:
        assert issubclass(kind, sparseinfer.SparseInferError)
        assert kind.__dict__["__doc__"]


def test_importing_it_loads_neither_torch_nor_transformers():
    code = (
        "import sys, sparseinfer; sparseinfer.__version__; dir(sparseinfer);"
        "sparseinfer.SparseInferError;"
        "heavy = {'torch', 'transformers', 'numpy', 'safetensors', 'pydantic'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
