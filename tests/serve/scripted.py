"""A model whose output a test decides, and a tokenizer that makes one token of each byte.

Run as a program it serves that model, for tests that need a process of its own.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparseinfer.engine import GREEDY, Sampling
from sparseinfer.engine.sampling import Sampler
from sparseinfer.tokenizer import Tokenizer
from sparseinfer.tokenizer.backends import TransformersBackend

END = 256
"""The end-of-text token; ids below are bytes."""

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}"
    "{{ m.role[0] }}:{{ m.content }}|{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)

Script = Callable[[Sequence[int], Sampling], Iterator[int]]


def byte_tokenizer(template: str | None = TEMPLATE) -> Tokenizer:
    # ByteLevel writes each byte as one printable character; the order makes ids equal bytes.
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = {_letter(alphabet, byte): byte for byte in range(256)}
    rust = RustTokenizer(models.BPE(vocab={**vocab, "<end>": END}, merges=[]))
    rust.pre_tokenizer = alphabet
    rust.decoder = decoders.ByteLevel()
    hf = PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<end>")
    hf.chat_template = template
    return Tokenizer(TransformersBackend(hf))


def _letter(alphabet: pre_tokenizers.ByteLevel, byte: int) -> str:
    # GPT-2's table: printable Latin-1 stands for itself, the rest for U+0100 and up in order.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in plain:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in plain].index(byte))


def echo(ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
    """Answers with the prompt."""
    yield from ids


def noise(ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
    """Draws letters from fixed logits with the engine's own sampler."""
    sampler = Sampler(sampling)
    fixed = torch.Generator().manual_seed(7)
    while True:
        yield 97 + sampler(torch.randn(26, generator=fixed))


def endless(ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
    while True:
        yield 120


class ScriptedModel:
    """Plays a script; where `permits` is set, each token waits for one."""

    def __init__(self, script: Script = echo, *, context_length: int = 512) -> None:
        self.script = script
        self.config = SimpleNamespace(context_length=context_length, vocab_size=END + 1)
        self.permits: threading.Semaphore | None = None
        self.pause = 0.0
        self.started: list[str] = []
        self.produced = 0

    def generate(
        self, ids: Sequence[int], *, max_tokens: int | None = None, sampling: Sampling = GREEDY
    ) -> ScriptedTokens:
        assert max_tokens is not None
        assert len(ids) + max_tokens <= self.config.context_length
        self.started.append(bytes(ids).decode(errors="replace"))
        return ScriptedTokens(self, self.script(ids, sampling), max_tokens)


class ScriptedTokens:
    def __init__(self, model: ScriptedModel, tokens: Iterator[int], max_tokens: int) -> None:
        self._model, self._tokens, self._max_tokens = model, tokens, max_tokens
        self.completion_tokens = 0
        self.finish_reason: str | None = None

    def __iter__(self) -> ScriptedTokens:
        return self

    def __next__(self) -> int:
        if self.completion_tokens == self._max_tokens:
            self.finish_reason = "length"
            raise StopIteration
        if self._model.permits is not None:
            assert self._model.permits.acquire(timeout=20)
        time.sleep(self._model.pause)
        token = next(self._tokens, END)
        self._model.produced += 1
        if token == END:
            self.finish_reason = "stop"
            raise StopIteration
        self.completion_tokens += 1
        return token


def main() -> None:
    from sparseinfer.serve import Limits, create_app, run_server

    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    model = ScriptedModel(endless, context_length=100_000)
    model.pause = 0.05
    limits = Limits(drain_seconds=1.0)
    run_server(create_app(model, byte_tokenizer(), "scripted", limits=limits), port=0)


if __name__ == "__main__":
    main()
