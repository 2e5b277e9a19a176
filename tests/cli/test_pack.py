"""`sparseinfer pack`, and the other commands on what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import listing


@pytest.fixture(scope="session")
def artifact(converted, tmp_path_factory) -> Path:
    """The converted tiny model in int8. Treat it as read-only."""
    from sparseinfer.packed.pipeline import pack_model

    return pack_model(str(converted), "int8", out=tmp_path_factory.mktemp("cli") / "tiny-int8").out


def test_pack_says_what_it_wrote(cli, converted, tmp_path):
    result = cli("pack", converted, "--weights", "int4", "-o", tmp_path / "out")
    assert result.code == 0
    for text in (str(tmp_path / "out"), "int4, head int8", "MB"):
        assert text in result.out


def test_pack_as_json(cli, make_model, tmp_path):
    out = tmp_path / "out"
    result = cli("pack", make_model(), "--weights", "int4", "--head", "bf16", "-o", out, "--json")
    file = out / "packed.safetensors"
    assert result.json == {
        "output": str(out),
        "weights": "int4",
        "head": "bf16",
        "source_bytes": (make_model() / "model.safetensors").stat().st_size,
        "packed_bytes": file.stat().st_size,
    }


@pytest.mark.parametrize("weights", ["int3", "auto", "", "INT8"])
def test_unknown_weights(fails, make_model, tmp_path, weights):
    message = fails("pack", make_model(), "--weights", weights, "-o", tmp_path / "out")
    assert "fp32, bf16, int8, int4" in message
    assert listing(tmp_path) == []


def test_bad_head_and_missing_weights(fails, make_model, tmp_path):
    out = tmp_path / "out"
    assert "fewer bits" in fails(
        "pack", make_model(), "--weights", "int8", "--head", "int4", "-o", out
    )
    assert "--weights" in fails("pack", make_model(), "-o", out)
    assert listing(tmp_path) == []


def test_existing_output(cli, fails, make_model, tmp_path):
    out = tmp_path / "out"
    assert cli("pack", make_model(), "--weights", "int8", "-o", out).code == 0
    assert "--force" in fails("pack", make_model(), "--weights", "int4", "-o", out)
    assert cli("pack", make_model(), "--weights", "int4", "-o", out, "--force").code == 0
    assert "packed already" in fails("pack", out, "--weights", "int8", "-o", tmp_path / "b")


@pytest.mark.parametrize("extra", [[], ["--huge-pages"]])
def test_generate_takes_an_artifact(cli, converted, artifact, extra):
    common = ["hello", "--raw", "--max-tokens", 8, "--json"]
    found = cli("generate", artifact, *common, *extra).json
    expected = cli("generate", converted, *common, "--weights", "int8").json
    assert found["token_ids"] == expected["token_ids"]
    assert (found["weights"], found["head"]) == ("int8", "int8")
    assert found["decode_sparsities"] == expected["decode_sparsities"]
    assert 0.2 < found["decode_sparsities"]["neuron"] < 0.8


def test_generate_wraps_chats_as_the_checkpoint_does(cli, converted, artifact):
    common = ["hello", "--chat", "--max-tokens", 4, "--json"]
    found = cli("generate", artifact, *common).json
    expected = cli("generate", converted, *common, "--weights", "int8").json
    assert found["prompt_tokens"] == expected["prompt_tokens"] == len("<user>hello\n<assistant>")
    assert found["token_ids"] == expected["token_ids"]


@pytest.mark.parametrize("command", ["generate", "eval", "serve"])
@pytest.mark.parametrize("weights", ["bf16", "int4", "fp32"])
def test_an_artifact_keeps_its_type(fails, artifact, command, weights):
    prompt = ["hello"] if command == "generate" else []
    message = fails(command, artifact, *prompt, "--weights", weights)
    assert "is packed as int8; leave --weights out" in message


def test_eval_compares_a_packed_model_with_its_parent(cli, artifact, make_model, prose_file):
    common = ["--text", prose_file, "--allow-same-text", "--tokens", 200, "--context", 64, "--json"]
    found = cli("eval", artifact, *common).json
    assert found["model"]["weights"] == "int8"
    assert found["conversion"]["record"]["method"] == "chess"
    quality = found["measurements"][0]["quality"]
    assert (quality["dense"]["parent"], quality["dense"]["weights"]) == ("tiny-llama", "fp32")
    assert any("held in fp32, the model in int8" in one for one in found["warnings"])
    assert "packed" in found["no_firing_because"]
    again = cli("eval", artifact, *common, "--weights", "int8", "--huge-pages").json
    assert again["measurements"][0]["quality"]["dense"]["weights"] == "int8"
    assert again["measurements"][0]["quality"]["perplexity"] == quality["perplexity"]


def test_eval_compares_a_packed_dense_model_with_what_was_packed(
    cli, make_model, prose_file, tmp_path
):
    cli("pack", make_model(), "--weights", "int8", "-o", tmp_path / "out")
    result = cli("eval", tmp_path / "out", "--text", prose_file, "--tokens", 200, "--context", 64)
    assert result.code == 0
    assert "(tiny-llama, fp32)" in result.out
    ratio = next(line for line in result.out.splitlines() if line.startswith("ratio to dense"))
    assert float(ratio.split()[3]) == pytest.approx(1, abs=0.05)


def test_inspect_shows_an_artifact(cli, artifact, converted):
    found = cli("inspect", artifact, "--json").json
    expected = cli("inspect", converted, "--json").json
    same = ("parameters", "config", "ffn", "record", "thresholds")
    assert {key: found[key] for key in same} == {key: expected[key] for key in same}
    assert (found["weights"], found["head"]) == ("int8", "int8")
    assert found["packed_from"]["reference"] == str(converted)
    assert expected["packed_from"] is None
    assert found["bytes_per_token_dense"] < 0.5 * expected["bytes_per_token_dense"]
    shown = cli("inspect", artifact).out
    assert "packed as int8, head int8" in shown


def test_inspect_verifies(cli, fails, artifact, converted, tmp_path):
    import shutil

    assert "what was packed (SHA-256)" in cli("inspect", artifact, "--verify").out
    assert "all weights are finite" in cli("inspect", converted, "--verify").out
    assert cli("inspect", artifact, "--verify", "--json").json["verified"] is True
    assert cli("inspect", artifact, "--json").json["verified"] is False
    broken = shutil.copytree(artifact, tmp_path / "broken")
    data = bytearray((broken / "packed.safetensors").read_bytes())
    data[-100] ^= 1
    (broken / "packed.safetensors").write_bytes(data)
    assert cli("inspect", broken).code == 0
    assert "SHA-256 differs" in fails("inspect", broken, "--verify")


def test_other_versions_and_truncated_files(fails, artifact, tmp_path):
    import shutil

    broken = shutil.copytree(artifact, tmp_path / "broken")
    file = broken / "packed.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    for command in ("generate", "inspect"):
        prompt = ["hello"] if command == "generate" else []
        assert "truncated" in fails(command, broken, *prompt)
    other = whole.replace(b'"packed_version":"1"', b'"packed_version":"7"')
    assert other != whole
    file.write_bytes(other)
    assert "packed version '7' is not known" in fails("generate", broken, "hello")


def test_an_artifact_is_not_converted(fails, artifact, tmp_path):
    message = fails("convert", artifact, "--act", "relu", "-o", tmp_path / "out")
    assert "packed" in message
    assert "checkpoint it was packed from" in message


def test_a_parent_may_be_packed(cli, artifact, converted, make_model, prose_file, tmp_path):
    cli("pack", make_model(), "--weights", "bf16", "-o", tmp_path / "parent")
    common = ["--text", prose_file, "--allow-same-text", "--tokens", 200, "--context", 64, "--json"]
    found = cli("eval", converted, "--parent", tmp_path / "parent", *common).json
    assert found["measurements"][0]["quality"]["dense"]["weights"] == "bf16"
    assert found["model"]["weights"] == "fp32"


def test_more_threads_than_cores_are_said(process, make_model):
    child = process("generate", make_model(), "a", "--threads", "900", "--max-tokens", "1",
                    "--json")  # fmt: skip
    out, err = child.communicate(timeout=100)
    assert child.returncode == 0
    assert err.count("900 threads were asked for; using") == 1
    assert json.loads(out)["threads"] < 900
