"""Settings refuse what cannot be meant; plans fill in what is left open."""

from __future__ import annotations

import pytest

from sparseinfer.bench.plan import make_plan
from sparseinfer.bench.settings import BenchSettings
from sparseinfer.errors import ConfigError

SKETCHED = {"has_thresholds": True, "sketch_bits": 4}
RANDOM = {"model": None, "random_weights": "llama2-7b"}


def plan(
    packed_as=None,
    has_thresholds=False,
    has_tokenizer=True,
    sketch_bits=None,
    has_relu=False,
    **settings,
):
    asked = BenchSettings(**({"model": "m"} | settings))
    return make_plan(
        asked,
        packed_as=packed_as,
        has_thresholds=has_thresholds,
        has_tokenizer=has_tokenizer,
        threads=2,
        sketch_bits=sketch_bits,
        has_relu=has_relu,
    )


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"weights": ("int3",)}, "int3"),
        ({"weights": ("fp32",)}, "fp32"),
        ({"weights": ()}, "--weights is empty"),
        ({"weights": ("bf16", "bf16")}, "twice"),
        ({"baselines": ("vllm",)}, "vllm"),
        ({"baselines": ()}, "--baseline is empty"),
        ({"sparsity": (1.0,)}, "1.0"),
        ({"sparsity": (-0.1,)}, "-0.1"),
        ({"sparsity": (float("nan"),)}, "nan"),
        ({"sparsity": ()}, "--sparsity is empty"),
        ({"rules": ("layers",)}, "--rule 'layers' is not one of neurons, chess, inputs"),
        ({"rules": ("chess", "chess")}, "--rule names a value twice"),
        ({"rules": ()}, "--rule is empty"),
        ({"rules": ("inputs",), "sparsity": (0.5, "own")}, "own goes with --rule neurons"),
        (
            {"rules": ("sketch",), "weights": ("bf16", "int4")},
            "sketch does not go with int4",
        ),
        ({"rules": ("lowrank",)}, "--rule lowrank goes with --random-weights"),
        (
            {**RANDOM, "rules": ("sign", "sketch")},
            "sketch does not go with lowrank and sign",
        ),
        ({**RANDOM, "rules": ("sign",), "sparsity": (0.8, 0.9)}, "--sparsity: planted"),
        ({**RANDOM, "rules": ("sign",), "sparsity": (0.4,)}, "--sparsity: planted"),
        ({"predictor": "p", "sparsity": (0.0, 0.5)}, "--predictor goes with --sparsity own"),
        ({**RANDOM, "predictor": "p"}, "--predictor: random weights have none"),
        ({"batch": (0,)}, "--batch 0"),
        ({"batch": (17,)}, "--batch 17"),
        ({"pairs": 0}, "--pairs 0"),
        ({"steps": 0}, "--tokens 0"),
        ({"context": 0}, "--context 0"),
        ({"prefill": -1}, "--prefill -1"),
        ({"quality_tokens": 1}, "--quality-tokens 1"),
        ({"layers": 2}, "--layers"),
        ({"random_weights": "llama2-7b"}, "not both"),
        ({"model": None}, "either"),
        ({"model": None, "random_weights": "gpt"}, "gpt"),
        ({"model": None, "random_weights": "llama2-7b", "layers": 33}, "--layers 33"),
        ({"model": None, "random_weights": "llama2-7b", "sparsity": ("own",)}, "own"),
        ({"model": None, "random_weights": "llama2-7b", "quality_tokens": 9}, "--quality-tokens"),
    ],
)
def test_refusals_name_the_option(settings, word):
    with pytest.raises(ConfigError, match=word):
        BenchSettings(**({"model": "m"} | settings))


def test_defaults_follow_the_model():
    dense = plan()
    assert dense.weights == ("bf16", "int8", "int4")
    assert dense.targets == (0.0, 0.5, 0.9)
    assert dense.baselines == ("llama.cpp", "dense")
    assert (dense.prefill, dense.quality_tokens) == (512, 1024)
    assert dense.calibrates
    converted = plan(has_thresholds=True)
    assert converted.targets == (0.0, "own")
    assert not converted.calibrates
    packed = plan(packed_as="int8", has_thresholds=True)
    assert (packed.weights, packed.baselines) == (("int8",), ("dense",))
    assert packed.targets == (0.0, "own")
    assert plan(packed_as="int8").targets == (0.0,)
    assert plan(has_tokenizer=False).quality_tokens == 0
    random = plan(model=None, random_weights="llama2-7b", has_tokenizer=False)
    assert (random.prefill, random.quality_tokens) == (0, 0)
    assert plan(model=None, random_weights="llama2-7b", prefill=64).prefill == 64


def test_inputs_have_targets_of_their_own():
    found = plan(rules=("inputs",), has_thresholds=True)
    assert found.targets == (0.0, 0.25, 0.5)
    assert plan(rules=("chess", "inputs")).targets == (0.0, 0.3, 0.5)


def test_sketches_are_of_weights_that_gain_by_them():
    alone = plan(rules=("sketch",))
    assert alone.weights == ("bf16", "int8")
    assert alone.targets == (0.0, 0.5, 0.7)
    beside = plan(rules=("chess", "sketch"))
    assert beside.weights == ("bf16", "int8", "int4")
    assert beside.rules_of("int8") == ("chess", "sketch")
    assert beside.rules_of("int4") == ("chess",)


def test_a_model_with_a_sketch_of_its_own():
    found = plan(**SKETCHED)
    assert (found.weights, found.targets) == (("bf16", "int8"), (0.0, "own"))
    packed = plan(**SKETCHED, packed_as="int8")
    assert (packed.weights, packed.targets, packed.baselines) == (("int8",), ("own",), ())


def test_a_predictor_is_for_the_models_own_thresholds():
    found = plan(has_thresholds=True, predictor="p", rules=("chess", "sketch"))
    assert found.targets == (0.0, "own")
    assert found.predictor == "p"


def test_relu_models_run_as_they_are_and_dense():
    """llama.cpp has no ReLU for this architecture."""
    found = plan(has_relu=True)
    assert found.baselines == ("dense",)
    assert found.targets == (0.0, "own")
    assert plan(has_relu=True, sparsity=("own",), baselines=("transformers",)).targets == ("own",)


def test_planted_weights_have_one_sparsity_and_no_rival_that_lacks_relus():
    found = plan(**RANDOM, rules=("neurons", "lowrank"), has_tokenizer=False)
    assert found.targets == (0.0, 0.9)
    assert found.baselines == ("dense",)
    assert BenchSettings(**RANDOM, rules=("sign",)).planted_sparsity == 0.9
    assert BenchSettings(**RANDOM, rules=("sign",), sparsity=(0.0, 0.8)).planted_sparsity == 0.8
    assert BenchSettings(**RANDOM, sparsity=(0.8,)).planted_sparsity is None


def test_dense_comes_first_where_anything_is_compared_with_it():
    assert plan(sparsity=(0.9, 0.5), baselines=("dense",)).targets == (0.0, 0.9, 0.5)
    assert plan(sparsity=(0.9, 0.0), baselines=("llama.cpp",)).targets == (0.0, 0.9)
    assert plan(sparsity=(0.9,), baselines=("llama.cpp",)).targets == (0.9,)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"packed_as": "int8", "weights": ("int4",)}, "packed as int8"),
        ({"packed_as": "int8", "weights": ("int8", "int4")}, "packed as int8"),
        ({"packed_as": "int8", "baselines": ("llama.cpp",)}, "before packing"),
        ({"packed_as": "int8", "sparsity": (0.5,)}, "calibrate"),
        ({"packed_as": "int8", "sparsity": ("own",)}, "without thresholds"),
        ({"packed_as": "int8", "rules": ("inputs",), "sparsity": (0.5,)}, "calibrate"),
        ({"sparsity": ("own",)}, "without thresholds"),
        ({"huge_pages": True}, "--huge-pages"),
        ({"predictor": "p"}, "--predictor: this model came without thresholds"),
        ({**SKETCHED, "weights": ("int4",)}, "which int4 weights do not"),
        ({**SKETCHED, "sketch_bits": 3, "rules": ("sketch",)}, "its own of 3; give its parent"),
        ({**SKETCHED, "packed_as": "int8", "baselines": ("dense",)}, "has no dense mode"),
        ({**SKETCHED, "packed_as": "int8", "sparsity": (0.0, "own")}, "has no dense mode"),
    ],
)
def test_what_a_model_cannot_give_is_refused(settings, word):
    with pytest.raises(ConfigError, match=word):
        plan(**settings)


def test_what_a_packed_artifact_can_give():
    assert plan(packed_as="int4", weights=("int4",), huge_pages=True).huge_pages
