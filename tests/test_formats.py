"""Weight types: names, defaults of the head, and what is refused."""

from __future__ import annotations

import logging

import pytest

from sparseinfer.errors import ConfigError
from sparseinfer.formats import WeightFormats, check_weight_type, choose_formats, import_dtype


@pytest.mark.parametrize(
    ("weights", "head"), [("fp32", "fp32"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "int8")]
)
def test_default_head(weights, head):
    assert WeightFormats.of(weights) == WeightFormats(weights, head)


@pytest.mark.parametrize(
    ("weights", "head"), [("int4", "int4"), ("int4", "bf16"), ("int8", "bf16"), ("bf16", "fp32")]
)
def test_a_head_of_as_many_bits_or_more(weights, head):
    assert WeightFormats.of(weights, head).head == head


@pytest.mark.parametrize(
    ("weights", "head"), [("int8", "int4"), ("bf16", "int8"), ("fp32", "bf16")]
)
def test_a_head_of_fewer_bits_than_the_layers_is_refused(weights, head):
    with pytest.raises(ConfigError, match=f"head {head} has fewer bits than the {weights}"):
        WeightFormats.of(weights, head)


@pytest.mark.parametrize("name", ["int3", "", "INT8", "q4_0", "fp16", "auto"])
def test_unknown_formats_are_refused_with_the_known_ones(name):
    for make in (lambda: WeightFormats.of(name), lambda: WeightFormats.of("int4", name)):
        with pytest.raises(ConfigError, match="fp32, bf16, int8, int4") as refused:
            make()
        assert repr(name) in str(refused.value)


def test_weight_types_are_the_formats_and_auto():
    for name in ("auto", "fp32", "bf16", "int8", "int4"):
        assert check_weight_type(name) == name
    with pytest.raises(ConfigError, match="auto, fp32, bf16, int8, int4"):
        check_weight_type("int3")


@pytest.mark.parametrize(
    ("stored", "chosen"), [("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "bf16")]
)
def test_auto_is_as_stored(stored, chosen, caplog):
    with caplog.at_level(logging.WARNING, "sparseinfer"):
        assert choose_formats(stored, "auto") == WeightFormats.of(chosen)
    assert ("rounded" in caplog.text) == (stored == "fp16")
    assert choose_formats(stored, "int4") == WeightFormats("int4", "int8")


def test_only_exact_weights_have_an_exact_cache():
    kv = [WeightFormats.of(name).kv for name in ("fp32", "bf16", "int8", "int4")]
    assert kv == ["fp32", "bf16", "bf16", "bf16"]


def test_gguf_files_are_unpacked_to_fp32_only_where_that_is_asked_for():
    asked = ("auto", "fp32", "bf16", "int8", "int4")
    assert [import_dtype(name) for name in asked] == ["auto", "fp32", "auto", "auto", "auto"]
    with pytest.raises(ConfigError):
        import_dtype("int3")


def test_formats_as_text():
    assert str(WeightFormats.of("bf16")) == "bf16"
    assert str(WeightFormats.of("int4")) == "int4, head int8"
