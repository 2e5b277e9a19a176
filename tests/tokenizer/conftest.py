"""Small trained tokenizers of the two kinds whose tokens may end within a character."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sparseinfer.tokenizer import Tokenizer
from sparseinfer.tokenizer.backends import TransformersBackend

CORPUS = [
    "the cat sat on the mat ",
    "déjà vu à la carte ",
    "日本語の文章 ",
    "😀😃😀😃 ",
    "a  b   c\n\n",
] * 20


def wrap(rust: RustTokenizer, **special: str) -> Tokenizer:
    return Tokenizer(TransformersBackend(PreTrainedTokenizerFast(tokenizer_object=rust, **special)))


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, SmolLM: merges of bytes, some of which cut characters in two."""
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"],
        show_progress=False,
    )  # fmt: skip
    rust.train_from_iterator(CORPUS, trainer)
    return wrap(rust, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral: pieces of characters, and single bytes for what has no piece."""
    trained = RustTokenizer(models.BPE())
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    trained.normalizer = normalizers.Sequence(spaces)
    trainer = trainers.BpeTrainer(vocab_size=80, show_progress=False, limit_alphabet=40)
    trained.train_from_iterator(["▁the▁cat▁sat", "▁on▁the▁mat", "▁a", "▁▁b", "日本"] * 20, trainer)
    import json

    learnt = json.loads(trained.to_str())["model"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in learnt["vocab"]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [tuple(merge) for merge in learnt["merges"]]
    rust = RustTokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    rust.normalizer = normalizers.Sequence(spaces)
    rust.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    rust.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return wrap(rust, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def metaspace() -> Tokenizer:
    """As newer sentencepiece conversions: the decoder drops a leading space itself."""
    rust = RustTokenizer(models.BPE(unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    rust.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>"], show_progress=False
    )
    rust.train_from_iterator([*CORPUS, "abcdefghijklmnopqrstuvwxyz"], trainer)
    return wrap(rust, unk_token="<unk>", bos_token="<s>")


@pytest.fixture(params=["byte_level", "byte_fallback", "metaspace"], scope="session")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.fixture
def folder_with_template(make_model, tmp_path) -> Callable[[str | None], Path]:
    """folder_with_template(jinja) -> a model folder with this chat template."""
    import shutil

    def make(template: str | None) -> Path:
        folder = shutil.copytree(make_model(), tmp_path / "model")
        (folder / "chat_template.jinja").unlink()
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return folder

    return make
