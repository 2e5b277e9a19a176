"""Our engine and transformers as sides."""

from __future__ import annotations

import pytest
import torch

from sparseinfer.bench.sides import open_side
from sparseinfer.bench.sides.sparseinfer_side import SparseInferSide
from sparseinfer.kernels.matrix import row_bytes


@pytest.fixture
def ours(make_checkpoint):
    return SparseInferSide(str(make_checkpoint().path), weights="bf16", threads=1)


@pytest.fixture
def theirs(make_checkpoint):
    folder = str(make_checkpoint().path)
    before = torch.get_num_threads()
    yield open_side("transformers", model=folder, threads=1, positions=64)
    torch.set_num_threads(before)


def test_both_generate_the_same_tokens(ours, theirs, ids):
    ours.set_dense()
    run, other = ours.decode([ids], 12), theirs.decode([ids], 12)
    assert (run.steps, len(run.ids[0])) == (12, 13)
    # transformers rounds activations to bf16, which changes few tokens if any.
    assert sum(a == b for a, b in zip(run.ids[0], other.ids[0], strict=True)) >= 6
    assert other.up_rows is None
    assert theirs.decode([ids], 12).ids == other.ids


def test_thresholds_switch_and_rows_are_counted(ours, ids):
    ours.set_thresholds([float("inf"), 0.0, float("inf")])
    assert ours.decode([ids], 5).up_rows == [0, 5 * 128, 0]
    ours.set_dense()
    assert ours.decode([ids], 5).down_rows == [5 * 128] * 3
    ours.set_thresholds(None)
    assert ours.decode([ids], 5).up_rows == [5 * 128] * 3


def test_thresholds_on_inputs_switch_and_are_counted(make_checkpoint, ours, ids):
    by_input = SparseInferSide(
        str(make_checkpoint().path), weights="bf16", threads=1, layout="by input"
    )
    by_input.set_dense()
    dense = by_input.decode([ids], 5)
    assert dense.inputs == {}
    ours.set_dense()
    assert dense.ids == ours.decode([ids], 5).ids
    off = {"up": [float("inf")] * 3, "o": [0.0, float("inf"), 0.0]}
    by_input.set_thresholds([0.0] * 3, off)
    run = by_input.decode([ids], 5)
    assert run.inputs == {"o": [5 * 64, 0, 5 * 64], "up": [0, 0, 0]}
    account = by_input.account(run.up_rows, run.down_rows, 5, 20.0, run.inputs)
    whole = by_input.account(dense.up_rows, dense.down_rows, 5, 20.0)
    skipped = 3 * 2 * 128 * row_bytes("bf16", 64) + 64 * row_bytes("bf16", 64)
    assert whole["weight_bytes"] - account["weight_bytes"] == skipped
    by_input.set_dense()
    assert by_input.decode([ids], 5).ids == dense.ids


def test_all_rules_that_a_model_came_with_return(make_sparse, ids):
    side = SparseInferSide(
        str(make_sparse(("q", "down"), mask="topk:9")), weights="bf16", threads=1
    )
    own = side.decode([ids], 4)
    assert own.up_rows == [4 * 9] * len(own.up_rows)
    side.set_dense()
    dense = side.decode([ids], 4)
    assert dense.inputs == {}
    assert dense.up_rows[0] > own.up_rows[0]
    side.set_thresholds(None)
    again = side.decode([ids], 4)
    assert (again.ids, again.up_rows, again.inputs) == (own.ids, own.up_rows, own.inputs)
    assert own.inputs.keys() == {"q", "down"}


def test_a_batch_is_what_its_sequences_are_alone(ours, ids):
    ours.set_thresholds([0.3] * 3)
    prompts = [ids, ids[::-1], ids[5:] + ids[:5]]
    alone = [ours.decode([prompt], 6) for prompt in prompts]
    batch = ours.decode(prompts, 6)
    assert batch.ids == [run.ids[0] for run in alone]
    assert batch.up_rows == [
        sum(rows) for rows in zip(*(run.up_rows for run in alone), strict=True)
    ]
    assert 0 < sum(batch.down_rows) < 3 * 3 * 6 * 128


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_account_is_of_the_format_in_memory(make_checkpoint, weights):
    side = SparseInferSide(str(make_checkpoint().path), weights=weights, threads=1)
    dense = side.account([1280] * 3, [1280] * 3, 10, 20.0)
    half = side.account([640] * 3, [640] * 3, 10, 20.0)
    assert dense["weight_bytes"] - half["weight_bytes"] == 3 * 128 * row_bytes(weights, 64)
    assert dense["kv_bytes"] == 20 * 2 * 3 * 32 * 2
    assert half["sparsities"]["neuron"] == 0.5
    bits = side.describe()["bits"]
    assert bits["ffn"] == {"bf16": 16, "int8": 8.5, "int4": 4.5}[weights]
    assert bits["lm_head"] == {"bf16": 16, "int8": 8.5, "int4": 8.5}[weights]


def test_account_of_transformers(theirs, make_checkpoint):
    checkpoint = make_checkpoint()
    found = theirs.account(10.0)
    shapes = [info.shape for name, info in checkpoint.tensors.items() if "embed" not in name]
    weights = sum(torch.Size(shape).numel() for shape in shapes) + 64
    assert found == {"weights": "bf16", "weight_bytes": 2 * weights, "kv_bytes": 10 * 4 * 3 * 32}


def test_prompts_are_timed_from_an_empty_context(ours, theirs, ids):
    for side in (ours, theirs):
        assert 0 < side.prefill(ids) < 10
        assert 0 < side.prefill(ids) < 10


def test_score_is_the_mean_loss_of_a_window(ours, ids):
    import sparseinfer

    model = sparseinfer.load(ours._model.path, weights="bf16", threads=1)
    assert ours.score([ids]) == [pytest.approx(float(-model.score(ids).mean()))]


def test_an_unknown_engine_is_a_mistake_of_ours():
    with pytest.raises(ValueError, match="vllm"):
        open_side("vllm")
