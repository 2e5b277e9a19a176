import json
from pathlib import Path

import numpy as np
import pytest

from sparseinfer.errors import CheckpointError, ConfigError, SourceError, UnsupportedError
from sparseinfer.sources.gguf import import_gguf
from sparseinfer.sources.gguf_header import _LLAMA3_ROPE, _llama3_divisors


def stored_tensors(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def test_tensors_are_the_ones_written(write_gguf):
    written = write_gguf()
    tensors = stored_tensors(import_gguf(written.path, dtype="fp32"))
    assert tensors.keys() == written.tensors.keys()
    for name, values in written.tensors.items():
        np.testing.assert_array_equal(tensors[name], values, err_msg=name)


def test_folder_is_a_normal_checkpoint(write_gguf, cache, capfd):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    written = write_gguf(tied=True)
    folder = import_gguf(written.path)
    assert folder.parent == cache / "models"
    assert folder.name.startswith("tiny-bf16-")
    assert "%|" not in capfd.readouterr().err  # no progress bars

    tensors = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(tensors) == set(written.tensors)  # lm_head is tied: not stored again
    assert set(tensors.values()) == {"model.safetensors"}
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500000.0
    assert config["rms_norm_eps"] == 1e-6
    assert config["tie_word_embeddings"] is True
    assert not {"quantization_config", "_model_name_or_path", "auto_map"} & config.keys()

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert str(model.dtype) == "torch.bfloat16"
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 2
    assert model.generation_config.bos_token_id == model.config.bos_token_id == 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template.startswith("{% for m in messages %}")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.model_max_length == 128
    assert tokenizer.tokenize("hell<|im_end|>") == ["hell", "<|im_end|>"]
    assert tokenizer.tokenize("a  12") == ["a", "Ġ", "Ġ", "1", "2"]


def test_second_use_is_cached_and_a_changed_file_is_not(write_gguf):
    path = write_gguf().path
    first = import_gguf(path)
    stamp = (first / "config.json").stat().st_mtime_ns
    assert import_gguf(path) == first
    assert (first / "config.json").stat().st_mtime_ns == stamp
    assert import_gguf(write_gguf(tied=True).path) != first
    (first / "model.safetensors").unlink()  # a damaged cache is repaired
    write_gguf()
    assert import_gguf(path) == first
    assert (first / "model.safetensors").is_file()


def test_files_beside_it_are_not_read(write_gguf):
    path = write_gguf().path
    (path.parent / "adapter_config.json").write_text("{broken")
    (path.parent / "generation_config.json").write_text('{"eos_token_id": 77}')
    folder = import_gguf(path)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2


def test_settings_of_transformers_are_restored(write_gguf):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    import_gguf(write_gguf().path)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_llama3_rope_scaling_is_recovered(write_gguf):
    divisors = _llama3_divisors(500000.0, 4, {**_LLAMA3_ROPE, "factor": 32.0})
    assert divisors[0] == 1.0
    assert divisors[-1] == 32.0
    written = write_gguf(extra={"rope_freqs.weight": np.array(divisors, dtype=np.float32)})
    rope = json.loads((import_gguf(written.path) / "config.json").read_text())["rope_parameters"]
    assert rope == {**_LLAMA3_ROPE, "factor": 32.0, "rope_theta": 500000.0}


def test_llama3_divisors_are_those_of_transformers():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {**_LLAMA3_ROPE, "factor": 8.0}
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=131072,
        rope_parameters={**scaling, "rope_theta": 500000.0},
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** (-np.arange(64) / 64)
    expected = plain / scaled.numpy()
    np.testing.assert_allclose(_llama3_divisors(500000.0, 64, scaling), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "qwen2"}, ["'qwen2'", "'llama'"]),
        ({"extra": {"blk.0.attn_q.bias": np.ones(32, np.float32)}}, ["blk.0.attn_q.bias"]),
        ({"extra": {"rope_freqs.weight": np.arange(1, 5, dtype=np.float32)}}, ["rotary"]),
        ({"settings": lambda writer: writer.add_expert_count(8)}, ["expert_count = 8"]),
        ({"settings": lambda writer: writer.add_sliding_window(64)}, ["sliding window"]),
        (
            {"settings": lambda writer: writer.add_string("llama.rope.scaling.type", "yarn")},
            ["'yarn'"],
        ),
    ],
)
def test_what_would_load_wrongly_is_refused(write_gguf, refuses, changes, words, cache):
    path = write_gguf(**changes).path
    with refuses(UnsupportedError, "tiny.gguf", *words):
        import_gguf(path)
    assert list((cache / "models").iterdir()) == []


def test_lacking_tensor_is_refused(write_gguf, refuses):
    path = write_gguf(without="blk.1.ffn_up.weight").path
    with refuses(CheckpointError, str(path), "blk.1.ffn_up.weight"):
        import_gguf(path)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_truncated_file_is_refused(write_gguf, refuses, share):
    path = write_gguf().path
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with refuses(CheckpointError, str(path), "truncated"):
        import_gguf(path)


@pytest.mark.parametrize("data", [b"", b"GG", b"\x80\x04not a model"])
def test_other_file_is_refused(tmp_path, refuses, data):
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with refuses(CheckpointError, str(path), "not a GGUF file"):
        import_gguf(path)


def test_missing_file_is_refused(tmp_path, refuses):
    with refuses(SourceError, str(tmp_path / "x.gguf")):
        import_gguf(tmp_path / "x.gguf")


def test_unknown_dtype_is_refused(write_gguf, refuses):
    with refuses(ConfigError, "'int3'", "bf16"):
        import_gguf(write_gguf().path, dtype="int3")


def test_full_disk_is_refused(write_gguf, refuses, monkeypatch, cache):
    from transformers import PreTrainedModel

    def save(self, folder, **options):
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    with refuses(SourceError, "no space left", str(cache)):
        import_gguf(write_gguf().path)
    assert list((cache / "models").iterdir()) == []
