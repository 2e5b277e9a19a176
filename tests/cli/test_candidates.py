"""Sketches and predictors on the command line: shown, used, refused in one line."""

from __future__ import annotations

import pytest
from predictor_files import write_predictor


def test_inspect_shows_a_sketch_and_bytes_by_part(cli, make_sparse, make_model, tmp_path):
    dense = cli("inspect", make_model(), "--json").json
    assert (dense["mask"], dense["sketch"], dense["predictor"]) == ("gate", None, None)
    parts = dense["bytes_per_token_parts"]
    assert parts["calibrated"] is None
    assert parts["dense"]["gate"] == parts["dense"]["up"] == 3 * 112 * 48 * 4
    assert sum(parts["dense"].values()) == dense["bytes_per_token_dense"]
    folder = make_sparse(mask="sketch:4,64", gate_threshold=0.1)
    content = cli("inspect", folder, "--json").json
    assert content["mask"] == "sketch:4,64"
    rows = 2 * 3 * 112
    assert content["sketch"] == {"bits": 4, "stored": "side copy", "bytes": rows * (2 + 32)}
    text = cli("inspect", folder).out
    assert "4 bits: a copy of gate and up" in text
    assert "dense bytes by part" in text
    out = tmp_path / "packed"
    assert cli("pack", folder, "--weights", "int8", "-o", out).code == 0
    content = cli("inspect", out, "--json", "--verify").json
    assert content["sketch"] == {"bits": 4, "stored": "planes", "bytes": rows * 36}
    assert "4 bits: the high plane of gate and up" in cli("inspect", out).out


def test_a_sketch_is_not_packed_in_int4(cli, make_sparse, tmp_path):
    folder = make_sparse(mask="sketch:4,64", gate_threshold=0.1)
    for arguments in (
        ("pack", folder, "--weights", "int4", "-o", tmp_path / "out"),
        ("generate", folder, "hello", "--weights", "int4"),
    ):
        refused = cli(*arguments)
        assert refused.code == 2
        assert refused.err.count("\n") == 1
        assert "reads as much as int4 weights do" in refused.err
    assert not (tmp_path / "out").exists()


def test_bytes_by_part_at_calibrated_sparsity_add_up(cli, converted):
    content = cli("inspect", converted, "--json").json
    parts = content["bytes_per_token_parts"]["calibrated"]
    assert sum(parts.values()) == pytest.approx(content["bytes_per_token_calibrated"], abs=8)
    assert parts["up"] < 0.6 * parts["gate"]


@pytest.mark.parametrize("kind", ["lowrank", "sign"])
def test_a_predictor_is_used_shown_and_refused_for_another_model(
    cli, converted, make_model, tmp_path, kind
):
    folder = write_predictor(converted, tmp_path / kind, kind)
    prompt = ("hello", "--max-tokens", "4", "--raw", "--json")
    plain = cli("generate", converted, *prompt).json
    found = cli("generate", converted, *prompt, "--predictor", folder).json
    assert found["decode_sparsities"]["neuron"] > plain["decode_sparsities"]["neuron"]
    content = cli("inspect", converted, "--predictor", folder, "--json").json
    assert content["predictor"] == {"kind": kind, "recall": 0.9, "bytes_per_token": 3}
    assert f"{kind} for recall 0.9" in cli("inspect", converted, "--predictor", folder).out
    for command in (("generate", make_model(), "hello"), ("serve", make_model()),
                    ("inspect", make_model())):  # fmt: skip
        refused = cli(*command, "--predictor", folder)
        assert refused.code == 2
        assert refused.err.count("\n") == 1
        assert "does not fit the model" in refused.err
    missing = cli("generate", converted, "hello", "--predictor", tmp_path / "none")
    assert missing.code == 2
    assert "no predictor.json" in missing.err
