"""llama.cpp as a side: greedy decode, batches, scores and accounts."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("llama_cpp")

from sparseinfer.bench.gguf_export import write_gguf
from sparseinfer.bench.sides.llama_cpp_side import LlamaCppSide
from sparseinfer.errors import SourceError


@pytest.fixture
def side(make_checkpoint, tmp_path):
    write_gguf(make_checkpoint(), tmp_path / "model.gguf")
    return LlamaCppSide(tmp_path / "model.gguf", threads=1, positions=64, sequences=3)


def test_every_run_starts_from_an_empty_context(side, ids):
    first = side.decode([ids], 8)
    assert (first.steps, len(first.ids[0])) == (8, 9)
    assert first.seconds > 0
    side.prefill(ids[:5])
    assert side.decode([ids], 8).ids == first.ids
    # The tokens are those that follow from the logits.
    assert int(side.logits(ids).argmax()) == first.ids[0][0]
    assert int(side.logits([*ids, first.ids[0][0]]).argmax()) == first.ids[0][1]


def test_sequences_of_a_batch_do_not_see_each_other(side, ids):
    prompts = [ids, ids[::-1], ids[3:] + ids[:3]]
    alone = [side.decode([prompt], 6).ids[0] for prompt in prompts]
    assert side.decode(prompts, 6).ids == alone
    assert len({tuple(one) for one in alone}) == 3


def test_score_is_the_loss_of_the_tokens_after_the_first(side, ids):
    expected = [
        -math.log(float(torch.from_numpy(side.logits(ids[:end])).softmax(0)[ids[end]]))
        for end in range(1, len(ids))
    ]
    assert side.score([ids])[0] == pytest.approx(sum(expected) / len(expected), rel=2e-2)


def test_account_grows_with_the_context(side):
    short, long = side.account(10), side.account(30)
    assert short["weights"] == "BF16"
    assert short["weight_bytes"] == long["weight_bytes"]
    assert long["kv_bytes"] == 3 * short["kv_bytes"]


def test_describe_names_version_and_bits(side):
    found = side.describe()
    assert found["version"].startswith("llama-cpp-python ")
    assert found["bits"] == dict.fromkeys(("ffn", "attention", "embedding", "lm_head"), 16.0)


def test_refuses_a_file_that_is_no_model(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(SourceError, match="cannot load"):
        LlamaCppSide(tmp_path / "bad.gguf", threads=1, positions=8)
