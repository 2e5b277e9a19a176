"""Conversions that are refused: before any work where possible, and with nothing left behind."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.convert import METHODS
from sparseinfer.errors import (
    CalibrationError,
    CheckpointError,
    ConfigError,
    OutputError,
    SourceError,
    SparseInferError,
    UnsupportedError,
)

from .conftest import files_of, listing


@pytest.fixture
def refused(convert, tmp_path):
    """refused(model, act, kind, *words, **options): converts, and checks that it fails cleanly."""

    def check(model, act, kind, *words, **options):
        before = files_of(tmp_path)
        with pytest.raises(SparseInferError) as caught:
            convert(model, act, **options)
        message = str(caught.value)
        assert type(caught.value) is kind, message
        assert "\n" not in message
        for word in words:
            assert word in message
        assert files_of(tmp_path) == before
        assert not list(tmp_path.rglob("*.partial"))

    return check


@pytest.mark.parametrize("sparsity", [1.0, 1.5, -0.1, -1e-9, float("nan"), float("inf")])
@pytest.mark.parametrize("act", ["cats", "chess", "fatrelu", "teal", "wina", "topk", "sketch"])
def test_sparsity_outside_its_domain(make_model, refused, act, sparsity):
    refused(make_model(), act, ConfigError, "[0, 1)", sparsity=sparsity)


@pytest.mark.parametrize("act", ["cats", "chess", "teal", "wina", "topk", "sketch"])
def test_search_without_something_that_runs_the_model(make_model, refused, prose_file, act):
    model, text = make_model(), str(prose_file)
    options = {"text": text, "calibration_tokens": 512}
    refused(model, act, ConfigError, "open_probe", "sparsity", **options)


@pytest.mark.parametrize("budget", [0.0, -0.01, 10.0, 1.0001, float("nan"), float("inf")])
def test_budget_outside_its_domain(make_model, refused, budget):
    refused(make_model(), "cats", ConfigError, "(0, 1]", "1%", ppl_budget=budget)


def test_budget_and_target(make_model, refused):
    refused(make_model(), "cats", ConfigError, "not both", ppl_budget=0.01, sparsity=0.5)


@pytest.mark.parametrize("act", ["relu", "relu2", "drelu"])
def test_budget_that_means_nothing(make_model, refused, act):
    refused(make_model(), act, ConfigError, act, "--ppl-budget", ppl_budget=0.01)


def test_unknown_allocation(make_model, refused):
    refused(make_model(), "cats", ConfigError, "'best'", "uniform", allocate="best")


@pytest.mark.parametrize("act", ["relu", "relu2", "drelu"])
def test_target_that_means_nothing(make_model, refused, act):
    refused(make_model(), act, ConfigError, act, "--sparsity", sparsity=0.5)


TAKEN_BY = {
    "threshold": (0.1, {"fatrelu"}),
    "chess_score": ("l1", {"chess"}),
    "attention": (True, {"chess"}),
    "within_block": ("uniform", {"teal", "wina"}),
    "stage": (2, {"relu"}),
    "shift": (0.1, {"relu"}),
    "sketch_bits": (3, {"sketch"}),
}


@pytest.mark.parametrize("option", TAKEN_BY)
@pytest.mark.parametrize("act", METHODS)
def test_options_of_other_methods(make_model, refused, act, option):
    value, takers = TAKEN_BY[option]
    if act in takers:
        return
    sparsity = 0.5 if METHODS[act].needs_sparsity else None
    flag = "--" + option.replace("_", "-")
    refused(make_model(), act, ConfigError, act, flag, sparsity=sparsity, **{option: value})


@pytest.mark.parametrize(
    "options",
    [
        {"allocate": "uniform"},
        {"search_text": "pydoc"},
        {"search_tokens": 2048},
        {"test_text": "pydoc"},
        {"allow_same_text": True},
    ],
    ids=str,
)
def test_search_options_without_a_search(make_model, refused, options):
    flag = "--" + next(iter(options)).replace("_", "-")
    refused(make_model(), "cats", ConfigError, flag, "--ppl-budget", sparsity=0.5, **options)
    refused(make_model(), "relu", ConfigError, flag, "--ppl-budget", **options)


@pytest.mark.parametrize("options", [{"text": "pydoc"}, {"calibration_tokens": 512}], ids=str)
@pytest.mark.parametrize("act", ["relu", "fatrelu"])
def test_calibration_options_without_a_calibration(make_model, refused, act, options):
    refused(make_model(), act, ConfigError, "calibration", act, **options)


def test_one_k_for_all_layers(make_model, refused):
    refused(make_model(), "topk", ConfigError, "equally sparse", allocate="cett", ppl_budget=0.01)


@pytest.mark.parametrize(
    ("act", "options", "words"),
    [
        ("relu", {"stage": 3}, "not one of 1, 2"),
        ("relu", {"shift": float("nan")}, "finite"),
        ("teal", {"within_block": "best", "sparsity": 0.5}, "greedy, uniform"),
        ("sketch", {"sketch_bits": 5, "sparsity": 0.5}, "--sketch-bits 5 is not one of 2, 3, 4"),
        ("sketch", {"sketch_bits": 1, "sparsity": 0.5}, "--sketch-bits 1 is not one of 2, 3, 4"),
    ],
)
def test_method_options_outside_their_domain(make_model, refused, act, options, words):
    refused(make_model(), act, ConfigError, words, **options)


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_threshold_outside_its_domain(make_model, refused, threshold):
    refused(make_model(), "fatrelu", ConfigError, "threshold", ">= 0", threshold=threshold)


@pytest.mark.parametrize("other", [{"sparsity": 0.5}, {"ppl_budget": 0.01}])
def test_threshold_and_target(make_model, refused, other):
    words = ("--sparsity", "--ppl-budget", "--threshold")
    refused(make_model(), "fatrelu", ConfigError, *words, threshold=0.1, **other)


@pytest.mark.parametrize(
    "options",
    [
        {"chess_score": "l3"},
        {"calibration_tokens": 0},
        {"calibration_tokens": -5},
        {"dtype": "fp16"},
        {"dtype": "int8"},
        {"seed": 1 << 63},
        {"seed": -(1 << 64)},
    ],
    ids=str,
)
def test_other_options_outside_their_domain(make_model, refused, options):
    refused(make_model(), "chess", ConfigError, sparsity=0.5, **options)


def test_unknown_method_is_answered_with_the_list(make_model, refused):
    refused(make_model(), "swiglu", ConfigError, "swiglu", "relu2", "chess")


def test_options_are_checked_before_the_model(refused):
    refused("/nowhere", "relu", ConfigError, "--sparsity", sparsity=0.5)


@pytest.mark.parametrize(
    ("act", "options"),
    [
        ("cats", {"sparsity": 0.5}),
        ("fatrelu", {"sparsity": 0.5}),
        ("topk", {"sparsity": 0.5}),
        ("teal", {"sparsity": 0.5}),
        ("relu", {"shift": 0.1}),
    ],
)
def test_parent_that_has_masks(make_model, convert, refused, tmp_path, act, options):
    first = convert(make_model(), act, **options).out
    refused(
        first, "relu", UnsupportedError, act, str(make_model()), "already", out=tmp_path / "second"
    )


def test_thresholds_on_drelu(make_model, convert, refused, tmp_path):
    first = convert(make_model(), "drelu").out
    refused(first, "cats", UnsupportedError, "dReLU", sparsity=0.5, out=tmp_path / "second")


def test_tuned_relu_model_can_get_thresholds(make_model, convert, tmp_path):
    first = convert(make_model(), "relu").out
    done = convert(first, "fatrelu", threshold=0.1, out=tmp_path / "second")
    assert done.record.parent.reference == str(first)
    assert not any("fine-tuned" in note for note in done.notes)


# ---- calibration text


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"", SourceError, "empty"),
        (b" \n\t\n", SourceError, "empty"),
        (b"text\0text" * 1000, SourceError, "binary"),
        (b"\xff\xfe" * 1000, SourceError, "UTF-8"),
        (b"too short", CalibrationError, "9 tokens"),
        (b"x" * 511, CalibrationError, "511 tokens"),
    ],
    ids=["empty", "blank", "binary", "not UTF-8", "short", "one token short"],
)
def test_useless_calibration_text(make_model, refused, tmp_path, content, kind, words):
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    refused(make_model(), "cats", kind, words, str(text), sparsity=0.5, text=str(text))


def test_shortest_useful_text_is_used_whole_with_a_warning(make_model, convert, tmp_path, caplog):
    text = tmp_path / "text.txt"
    text.write_text("word and " * 57)  # 513 bytes
    done = convert(make_model(), "cats", sparsity=0.5, text=str(text))
    assert done.record.calibration.tokens == 512
    assert "calibrating on all of them" in caplog.text


def test_missing_calibration_text(make_model, refused):
    refused(make_model(), "cats", SourceError, "nowhere.txt", sparsity=0.5, text="./nowhere.txt")


def test_model_without_tokenizer(make_model, refused, tmp_path):
    parent = shutil.copytree(make_model(), tmp_path / "parent")
    for path in parent.glob("tokenizer*"):
        path.unlink()
    refused(parent, "cats", CheckpointError, "tokenizer", sparsity=0.5)


def test_tokenizer_of_another_model(make_model, refused):
    parent = make_model(vocab_size=64)
    refused(parent, "cats", CalibrationError, "vocabulary has 64", sparsity=0.5)


def test_activations_that_overflow(make_model, refused, tmp_path):
    parent = shutil.copytree(make_model(), tmp_path / "parent")
    tensors = load_file(parent / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"].mul_(1e38)
    save_file(tensors, parent / "model.safetensors", {"format": "pt"})
    refused(parent, "chess", CalibrationError, "layer 1", "overflow", sparsity=0.5)


# ---- outputs


def spoil(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_existing_output(make_model, convert, refused):
    convert(make_model(), "relu")
    refused(make_model(), "relu", OutputError, "already exists", "--force")


@pytest.mark.parametrize("kind", ["file", "empty folder", "dangling link"])
def test_whatever_is_in_the_way_needs_force(make_model, refused, tmp_path, kind):
    out = tmp_path / "out"
    {
        "file": out.touch,
        "empty folder": out.mkdir,
        "dangling link": lambda: out.symlink_to("nowhere"),
    }[kind]()
    refused(make_model(), "relu", OutputError, "already exists", out=out)
    assert os.path.lexists(out)


def test_force_replaces_a_converted_checkpoint(make_model, convert, tmp_path):
    first = convert(make_model(), "cats", sparsity=0.5, out=tmp_path / "out")
    second = convert(make_model(), "relu", out=tmp_path / "out", force=True)
    assert first.out == second.out
    assert Checkpoint.open(second.out).record.method == "relu"
    assert not (second.out / "sparsity.safetensors").exists()
    assert listing(tmp_path) == ["out"]


def test_force_replaces_an_empty_folder(make_model, convert, tmp_path):
    (tmp_path / "out").mkdir()
    convert(make_model(), "relu", out=tmp_path / "out", force=True)
    Checkpoint.open(tmp_path / "out")


@pytest.mark.parametrize(
    "content",
    [
        {"notes.txt": "precious"},
        {"config.json": '{"name": "a web project"}', "index.js": "precious"},
        {"config.json": "not json at all", "data": "precious"},
    ],
    ids=["no config", "another program's config", "broken config"],
)
def test_force_spares_folders_that_are_no_converted_checkpoint(
    make_model, refused, tmp_path, content
):
    out = tmp_path / "out"
    out.mkdir()
    for name, text in content.items():
        (out / name).write_text(text)
    refused(make_model(), "relu", OutputError, "--force only replaces", out=out, force=True)


def test_force_spares_a_file(make_model, refused, tmp_path):
    (tmp_path / "out").write_text("precious")
    refused(make_model(), "relu", OutputError, "--force", out=tmp_path / "out", force=True)


def test_force_spares_dense_models(make_model, refused, tmp_path):
    out = shutil.copytree(make_model(seed=1), tmp_path / "fine-tuned")
    refused(make_model(), "relu", OutputError, "--force only replaces", out=out, force=True)


def test_force_spares_the_model_itself(make_model, convert, refused, tmp_path):
    """Also through another spelling, and where the model is a converted one."""
    dense = shutil.copytree(make_model(), tmp_path / "dense")
    relu = convert(dense, "relu", out=tmp_path / "relu").out
    (tmp_path / "link").symlink_to(relu)
    for model, out in ((dense, dense), (relu, relu), (relu, tmp_path / "link"),
                       (relu, tmp_path / "dense" / ".." / "relu")):  # fmt: skip
        refused(model, "relu2", OutputError, "holds the model", out=out, force=True)


def test_force_spares_folders_that_hold_the_model(make_model, convert, refused, tmp_path):
    outer = convert(make_model(), "relu", out=tmp_path / "outer").out
    model = shutil.copytree(make_model(), outer / "inner" / "model")
    refused(model, "relu", OutputError, "holds the model", out=outer, force=True)


@pytest.mark.parametrize("force", [False, True])
def test_broken_weights_leave_the_old_output_alone(make_model, convert, refused, tmp_path, force):
    parent = shutil.copytree(make_model(), tmp_path / "parent")
    out = tmp_path / "new" / "out"
    if force:
        convert(parent, "cats", sparsity=0.5, out=out)
    spoil(parent)
    for act in ("relu", "cats"):
        sparsity = 0.5 if act == "cats" else None
        refused(parent, act, CheckpointError, "NaN", out=out, sparsity=sparsity, force=force)
    assert (tmp_path / "new").exists() is force
    if force:
        Checkpoint.open(out).thresholds()


@pytest.mark.parametrize("place", ["below a file", "name too long", "proc"])
def test_unwritable_output_is_found_before_the_weights_are_read(
    make_model, refused, tmp_path, place
):
    parent = shutil.copytree(make_model(), tmp_path / "parent")
    spoil(parent)  # reading them would be another error
    (tmp_path / "file").touch()
    out = {
        "below a file": tmp_path / "file" / "a" / "out",
        "name too long": tmp_path / ("x" * 300),
        "proc": "/proc/nowhere/out",
    }[place]
    refused(parent, "relu", OutputError, "cannot write", out=out)


def test_config_of_the_parent_is_checked_before_its_weights(make_model, refused, tmp_path):
    parent = shutil.copytree(make_model(), tmp_path / "parent")
    raw = json.loads((parent / "config.json").read_text())
    (parent / "config.json").write_text(json.dumps({**raw, "vocab_size": 301}))
    refused(parent, "relu", CheckpointError, "301")


def test_nothing_is_left_of_an_interrupted_conversion(make_model, convert, tmp_path):
    def interrupt(what, done, total):
        if what == "writing weights":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(make_model(), "relu", out=tmp_path / "new" / "out", progress=interrupt)
    assert listing(tmp_path) == []


def test_nan_is_found_wherever_it_is(make_model, refused, tmp_path):
    folder = shutil.copytree(make_model(dtype="bfloat16", shard_size="40KB"), tmp_path / "parent")
    for shard in sorted(folder.glob("model-*.safetensors")):
        content = shard.read_bytes()
        tensors = load_file(shard)
        name = sorted(tensors)[-1]
        tensors[name].view(-1)[-1] = torch.nan
        save_file(tensors, shard, {"format": "pt"})
        refused(folder, "relu", CheckpointError, name, shard.name, "NaN")
        shard.write_bytes(content)
