"""Text that a model writes itself: its own, the same after an interruption, stored once."""

import json
import shutil

import pytest
import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import ConfigError, NumericalError, OutputError, SourceError
from sparseinfer.finetune.self_generated import _Nucleus, self_generate
from sparseinfer.tokenizer import load_tokenizer

OPTIONS = {"tokens": 700, "rows": 4, "length": 48, "dtype": "fp32", "seed": 3}
"""4 batches of 192 tokens."""


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


def write(folder, model, **changes):
    return self_generate(
        folder,
        checkpoint=Checkpoint.open(model),
        tokenizer=load_tokenizer(model),
        **({"end_of_text": 2} | OPTIONS | changes),
    )


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "self-generated"
    return write(folder, model)


def ids_of(store):
    return store.read(0, len(store))


def test_as_many_tokens_as_asked_for(whole):
    assert len(whole) == 700
    assert whole.record.origin.source["self_generated"]["seed"] == 3
    assert [path.name for path in whole.path.parent.iterdir()] == ["self-generated"]


def test_rows_begin_documents_and_after_each_end_another_begins(model, tmp_path):
    store = write(tmp_path / "s", model, tokens=8000, rows=64, length=128)
    tokenizer = load_tokenizer(model)
    chat = tokenizer.encode_chat([{"role": "user", "content": "x"}])[0]
    ids = ids_of(store)[: 8000 // 128 * 128].view(-1, 128)
    begins = ids[:, 0].tolist()
    assert set(begins) == {2, chat}
    assert 0.3 < begins.count(chat) / len(begins) < 0.7
    after = ids[:, 1:][ids[:, :-1] == 2].tolist()
    bare = [token for token in after if token != chat]
    assert min(len(bare), len(after) - len(bare)) > 5
    assert 2 not in bare  # the end of a document is not written twice
    instructions = [tokenizer.decode(row.tolist()) for row in ids if int(row[0]) == chat]
    assert all(text.startswith("<user>") for text in instructions)
    assert any("<assistant>" in text for text in instructions)


def greedy(model, ids):
    """What the model finds likeliest after each prefix of ids [W, T]."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        return loaded(ids).logits.argmax(-1)


def without_template(model, folder):
    copy = shutil.copytree(model, folder)
    (copy / "chat_template.jinja").unlink()
    return copy


def test_text_is_the_models_own_whatever_its_generation_config(model, tmp_path):
    copy = without_template(model, tmp_path / "model")
    config = json.loads((copy / "generation_config.json").read_text())
    config |= {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "max_length": 3}
    (copy / "generation_config.json").write_text(json.dumps(config))
    store = write(tmp_path / "s", copy, tokens=4 * 48, top_p=1e-6)
    ids = ids_of(store).view(4, 48)
    assert set(ids[:, 0].tolist()) == {2}
    likeliest = greedy(model, ids)
    drawn = torch.zeros_like(ids, dtype=torch.bool)
    drawn[:, 2:] = True  # the first token after the opening is drawn at a high temperature
    for ended in (ids == 2).nonzero().tolist():
        drawn[ended[0], ended[1] + 1] = False
    assert drawn.sum() > 150
    assert torch.equal(ids[:, 1:][drawn[:, 1:]], likeliest[:, :-1][drawn[:, 1:]])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.95), (0.7, 0.5), (2.0, 1.0)])
def test_tokens_that_can_be_drawn_are_those_of_the_nucleus(temperature, top_p):
    from transformers import TopPLogitsWarper

    scores = 3 * torch.randn(20, 900, generator=torch.Generator().manual_seed(0))
    expected = TopPLogitsWarper(top_p)(None, scores / temperature) if top_p < 1 else scores
    found = _Nucleus(temperature, top_p)(None, scores)
    assert torch.equal(found.isfinite(), expected.isfinite())
    assert top_p == 1 or 0 < found.isfinite().float().mean() < 0.9
    kept = found.isfinite()
    assert torch.equal(found[kept], (scores / temperature)[kept])


def test_tokens_beyond_the_likeliest_are_not_drawn():
    scores = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    found = _Nucleus(1.0, 1.0)(None, scores)
    assert found.isfinite().sum(-1).tolist() == [1024, 1024]
    assert found[found.isfinite()].min() >= scores.topk(1024).values[:, -1].min()


def test_seeds_and_batches_differ(model, whole, tmp_path):
    other = write(tmp_path / "s", model, seed=4)
    assert not torch.equal(ids_of(other), ids_of(whole))
    batches = ids_of(whole)[: 3 * 192].view(3, 192)
    assert len(batches.unique(dim=0)) == 3


def test_an_interrupted_run_goes_on(model, whole, tmp_path):
    folder = tmp_path / "self-generated"

    def stop(_what, done, _total):
        if done == 2 * 192:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(folder, model, progress=stop)
    assert not folder.exists()
    parts = tmp_path / "self-generated.parts"
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("batch-*")}
    assert sorted(kept) == ["batch-000000.safetensors", "batch-000001.safetensors"]

    calls = []

    def watch(what, done, total):
        calls.append((what, done, total))
        if done < total:
            assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in parts.iterdir()}.items()

    torch.manual_seed(123)  # what else was drawn before does not matter
    store = write(folder, model, progress=watch)
    assert torch.equal(ids_of(store), ids_of(whole))
    assert store.record == whole.record
    assert not parts.exists()
    assert calls == [("writing text", done, 700) for done in (384, 576, 700)]


def test_it_is_written_once(model, whole):
    stamp = (whole.path / "tokens.bin").stat().st_mtime_ns
    assert write(whole.path, model).record == whole.record
    assert (whole.path / "tokens.bin").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match=r"another run \(tokens_asked 700, not 800\)"):
        write(whole.path, model, tokens=800)


def test_random_numbers_of_others_are_left_alone(model, tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    write(tmp_path / "s", model, tokens=10)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_of_other_settings_are_refused(model, tmp_path):
    def stop(_what, done, _total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "s", model, progress=stop)
    with pytest.raises(ConfigError, match=r"s\.parts holds .* \(top_p 0.95, not 0.9\)"):
        write(tmp_path / "s", model, top_p=0.9)
    part = tmp_path / "s.parts" / "batch-000000.safetensors"
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(SourceError, match=r"batch-000000.safetensors is damaged; delete it"):
        write(tmp_path / "s", model)
    (tmp_path / "s.parts" / "settings.json").write_text("{")
    with pytest.raises(OutputError, match=r"settings.json cannot be read"):
        write(tmp_path / "s", model)


def test_a_full_disk_keeps_what_is_finished(model, small_disk):
    disk = small_disk(16)
    with pytest.raises(OutputError, match="finished batches are kept"):
        write(disk / "s", model, tokens=20_000, rows=16)
    assert not (disk / "s").exists()
    assert not list((disk / "s.parts").glob("*.partial"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": 0}, "0 tokens to write"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"rows": 0}, "0 rows cannot be written"),
        ({"length": 1}, "1 tokens are not between 2 and the model's 128"),
        ({"length": 129}, "129 tokens are not between 2 and the model's 128"),
        ({"temperature": 0.0}, "temperature 0.0 is not"),
        ({"temperature": float("nan")}, "temperature nan is not"),
        ({"top_p": 0.0}, "top_p 0.0 is not"),
        ({"top_p": 1.5}, "top_p 1.5 is not"),
        ({"device": "nonsense"}, "device 'nonsense' cannot be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
    ],
)
def test_settings_outside_their_domain_are_refused(model, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words) as caught:
        write(tmp_path / "s", model, **changes)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_computes_nan_is_refused(model, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(model, tmp_path / "model")
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] *= 3e38
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match="computes NaN or Inf"):
        write(tmp_path / "s", copy)
    assert not (tmp_path / "s").exists()


def test_too_little_memory_says_what_the_command_line_can_change(model, tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    def generate(*_args, **_options):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(LlamaForCausalLM, "generate", generate)
    with pytest.raises(ConfigError, match=r"out of memory while the model writes text: .* --cpu"):
        write(tmp_path / "s", model)
