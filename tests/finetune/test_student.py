"""The model that is trained, before its first step."""

from __future__ import annotations

import pytest
import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import ConfigError
from sparseinfer.finetune.student import load_parent, load_student


@pytest.mark.parametrize("act", ["silu", "relu", "relu2", "drelu"])
def test_the_dense_control_computes_what_its_model_does(make_model, write_sparse, tmp_path, act):
    folder = make_model(hidden_act=act if act != "drelu" else "relu")
    if act == "drelu":
        folder = write_sparse(folder, tmp_path / "drelu", hidden_act="drelu")
    checkpoint = Checkpoint.open(folder)
    student = load_student(checkpoint, None)
    ids = torch.arange(3, 35)[None]
    with torch.no_grad(), student.record.collect() as record:
        found = student.model(input_ids=ids).logits
        wanted = load_parent(checkpoint, torch.float32)(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    gate, output = record.resting().mean(1).tolist()
    assert (gate > 0.3) == (act != "silu")
    assert (output > gate + 0.1) == (act == "drelu")


def test_out_of_memory_while_a_model_is_loaded(make_model, monkeypatch):
    import transformers

    def exhausted(*_args, **_kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", exhausted)
    with pytest.raises(ConfigError, match="out of memory while loading the model"):
        load_parent(Checkpoint.open(make_model()), torch.float32)
