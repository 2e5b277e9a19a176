"""A scheduler whose output a test decides, and a tokenizer that makes one token of each byte.

Run as a program it serves such a model, for tests that need a process of its own.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerFast

from sparseinfer.config import ModelConfig
from sparseinfer.engine.recall import Recall
from sparseinfer.engine.sampling import Sampler
from sparseinfer.engine.scheduling import (
    Finished,
    SchedulerState,
    Sink,
    Ticket,
    Timings,
    TokenEvent,
    TokenRequest,
)
from sparseinfer.errors import UnsupportedError
from sparseinfer.formats import WeightFormats
from sparseinfer.serve import Served
from sparseinfer.serve.live import ModelFacts
from sparseinfer.sparsity import SparsityCounts
from sparseinfer.tokenizer import Tokenizer
from sparseinfer.tokenizer.backends import TransformersBackend

END = 256
"""The end-of-text token; ids below are bytes."""
CALLS = 257
"""A special token that a tool format knows."""

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}"
    "{{ m.role[0] }}:{{ m.content }}|{% endfor %}"
    "{% if note is defined %}{{ note }}{% endif %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)

Script = Callable[[TokenRequest], Iterator[int]]

CONFIG = ModelConfig(
    family="llama",
    vocab_size=CALLS + 1,
    hidden_size=8,
    intermediate_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    rms_norm_eps=1e-5,
    context_length=512,
    sliding_window=None,
    attention_bias=False,
    mlp_bias=False,
    tied_embeddings=True,
    phi="silu",
    psi="id",
    eos_token_ids=frozenset({END}),
)


def byte_tokenizer(template: str | None = TEMPLATE) -> Tokenizer:
    # ByteLevel writes each byte as one printable character; the order makes ids equal bytes.
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = {_letter(alphabet, byte): byte for byte in range(256)}
    rust = RustTokenizer(models.BPE(vocab={**vocab, "<end>": END}, merges=[]))
    rust.pre_tokenizer = alphabet
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True)])
    hf = PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<end>")
    hf.chat_template = template
    return Tokenizer(TransformersBackend(hf))


def _letter(alphabet: pre_tokenizers.ByteLevel, byte: int) -> str:
    # GPT-2's table: printable Latin-1 stands for itself, the rest for U+0100 and up in order.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in plain:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in plain].index(byte))


def echo(request: TokenRequest) -> Iterator[int]:
    """Answers with the prompt."""
    yield from request.ids


def noise(request: TokenRequest) -> Iterator[int]:
    """Draws letters from fixed logits with the engine's own sampler."""
    sampler = Sampler(request.sampling)
    fixed = torch.Generator().manual_seed(7)
    while True:
        yield 97 + sampler(torch.randn(26, generator=fixed))


def endless(request: TokenRequest) -> Iterator[int]:
    while True:
        yield 120


def saying(*texts: str) -> Script:
    """Answers with each text in turn, whatever is asked; then with the last one."""
    waiting = deque(texts)

    def script(request: TokenRequest) -> Iterator[int]:
        text = waiting.popleft() if len(waiting) > 1 else waiting[0]
        yield from text.encode()

    return script


def logprob(token: int) -> float:
    """What the scripted model thinks of a token, wherever it comes."""
    return -1.0 - token / 512


def event(token: int, top: int | None) -> TokenEvent:
    if top is None:
        return TokenEvent(token)
    return TokenEvent(token, logprob(token), tuple((id, logprob(id)) for id in range(top)))


class _Running:
    def __init__(self, ticket: Ticket, sink: Sink, tokens: Iterator[int]) -> None:
        self.ticket, self.sink, self.tokens = ticket, sink, tokens
        self.produced = 0


class ScriptedScheduler:
    """Plays a script for each request; where `permits` is set, each token waits for one."""

    def __init__(self, script: Script = echo, *, context: int = 512, slots: int = 1) -> None:
        self.script = script
        self.context = context
        self.slots = slots
        self.permits: threading.Semaphore | None = None
        self.pause = 0.0
        self.cached = 0
        self.requests: list[TokenRequest] = []
        """Those that got a slot, in order."""
        self.produced = 0
        self.cancelled = 0
        self.can_be_dense = True
        self.recall: Recall | None = None
        self._waiting: deque[tuple[Ticket, Sink]] = deque()
        self._running: list[_Running] = []

    @property
    def started(self) -> list[str]:
        """Prompts that got a slot, in order."""
        return [bytes(request.ids).decode(errors="replace") for request in self.requests]

    @property
    def waiting(self) -> int:
        return sum(not ticket.cancelled for ticket, _ in list(self._waiting))

    @property
    def running(self) -> int:
        return len(self._running)

    def check(self, request: TokenRequest) -> None:
        assert request.ids
        assert len(request.ids) + request.max_tokens <= self.context
        assert request.max_tokens > 0 or request.prompt_logprobs is not None
        if request.dense and not self.can_be_dense:
            raise UnsupportedError("this model has a ReLU, whose zeros are exact")

    def submit(self, request: TokenRequest, sink: Sink) -> Ticket:
        self.check(request)
        ticket = Ticket(request, np.array(request.ids), sink)
        self._waiting.append((ticket, sink))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        ticket.cancelled = True

    def snapshot(self) -> SchedulerState:
        rows = self.produced * CONFIG.intermediate_size // 2
        counts = SparsityCounts(self.produced, (rows, rows), (rows, rows))
        nothing = SparsityCounts(0, (0, 0), (0, 0))
        return SchedulerState(
            slots=self.slots,
            prefilling=0,
            decoding=self.running,
            waiting=self.waiting,
            finished=0,
            failed=0,
            cancelled=self.cancelled,
            prompt_tokens=0,
            cached_tokens=0,
            completion_tokens=self.produced,
            prefill=nothing,
            decode=counts,
            recent=counts,
            recall=self.recall,
        )

    def step(self) -> bool:
        """One token for each request in a slot."""
        self._forget_cancelled()
        while self._waiting and len(self._running) < self.slots:
            ticket, sink = self._waiting.popleft()
            self.requests.append(ticket.request)
            ticket.cached_tokens = self.cached
            self._running.append(_Running(ticket, sink, self.script(ticket.request)))
        for one in list(self._running):
            if not self._advance(one):
                self._running.remove(one)
        return bool(self._running or self._waiting)

    def _forget_cancelled(self) -> None:
        for ticket, _ in [pair for pair in self._waiting if pair[0].cancelled]:
            self.cancelled += 1
            self._waiting = deque(pair for pair in self._waiting if pair[0] is not ticket)
        self.cancelled += sum(one.ticket.cancelled for one in self._running)
        self._running = [one for one in self._running if not one.ticket.cancelled]

    def _advance(self, one: _Running) -> bool:
        """Produces a token; says whether the request goes on."""
        request = one.ticket.request
        if one.produced == 0 and request.prompt_logprobs is not None:
            events = [event(token, request.prompt_logprobs) for token in request.ids]
            one.sink.prompt([None, *events[1:]])
        if one.produced == request.max_tokens:
            return self._finish(one, "length", None)
        if self.permits is not None:
            assert self.permits.acquire(timeout=20)
        time.sleep(self.pause)
        try:
            token = next(one.tokens, END)
            if request.mask is not None:
                request.mask.allowed()
        except Exception as error:
            one.sink.failed(error)
            return False
        self.produced += 1
        if token == END and not request.ignore_eos:
            end = None if request.logprobs is None else event(END, request.logprobs)
            return self._finish(one, "stop", end)
        one.produced += 1
        one.sink.token(event(token, request.logprobs))
        return True

    def _finish(self, one: _Running, reason, end: TokenEvent | None) -> bool:
        timings = Timings(0.0, 0.0, 0.0)
        prompt = len(one.ticket.request.ids)
        one.sink.finished(Finished(reason, prompt, one.produced, self.cached, timings, end))
        return False


def scripted(
    scheduler: ScriptedScheduler,
    tokenizer: Tokenizer | None = None,
    *,
    method: str | None = "test",
    calibrated: tuple[float, ...] | None = (0.5, 0.25),
) -> Served:
    """A scheduler, as the server wants it."""
    return Served(
        name="scripted",
        tokenizer=tokenizer or byte_tokenizer(),
        scheduler=scheduler,
        context=scheduler.context,
        vocab_size=CONFIG.vocab_size,
        end_ids={END},
        facts=ModelFacts(CONFIG, WeightFormats.of("fp32"), method, calibrated),
    )


def main(arguments: Sequence[str]) -> None:
    from sparseinfer.serve import Access, Limits, create_app, run_server

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")

    def load() -> Served:
        if "--broken" in arguments:
            raise UnsupportedError("nothing to load")
        if "--slow" in arguments:
            time.sleep(60)
        scheduler = ScriptedScheduler(endless, context=100_000, slots=4)
        scheduler.pause = 0.02
        return scripted(scheduler)

    app = create_app(load, limits=Limits(drain_seconds=1.5), access=Access())
    run_server(app, port=0)


if __name__ == "__main__":
    main(sys.argv[1:])
