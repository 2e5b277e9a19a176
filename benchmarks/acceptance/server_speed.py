"""What a server costs one client, and what eight of them gain together."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

import sparseinfer
from acceptance.figure import Figure, at_least, at_most, shown
from acceptance.serving import THREADS, WEIGHTS, Streamed, served, streamed
from sparseinfer.engine import Model
from sparseinfer.kernels.isa import choose_isa

MODEL = "smollm2-135m"
TOKENS = 128
"""Of each answer,"""
PROMPT = 64
"""and of each prompt."""
ROUNDS = 7
CLIENTS = 8
ONE_CLIENT = 0.9
"""Of `generate`'s tokens/s."""
TOGETHER = 2.5
"""Times one client's tokens/s."""


def server_speed(_work: Path) -> list[Figure]:
    """Alternating; no prompt comes twice within a comparison, so that none is cached."""
    folder = sparseinfer.resolve_model(MODEL).path
    model = sparseinfer.load(folder, weights=WEIGHTS, threads=THREADS)
    prose = sparseinfer.load_tokenizer(folder).encode(
        sparseinfer.load_text("lambada").joined[:200_000]
    )
    prompts = [prose[at : at + PROMPT] for at in range(0, len(prose) - PROMPT, PROMPT)]
    with served(folder, slots=CLIENTS) as client, ThreadPoolExecutor(CLIENTS) as clients:
        alone(model, prompts.pop())
        ask(client, prompts.pop())
        engine, single, together, gaps, answers = [], [], [], [], {}
        for _ in range(ROUNDS):
            engine.append(alone(model, prompt := prompts.pop()))
            one = ask(client, prompt)
            single.append(one.tokens / one.seconds)
            asked = [prompts.pop() for _ in range(CLIENTS)]
            began = time.perf_counter()
            found = list(clients.map(lambda ids: ask(client, ids), asked))
            seconds = time.perf_counter() - began
            together.append(sum(answer.tokens for answer in found) / seconds)
            gaps += [gap for answer in found for gap in answer.gaps]
            answers |= {tuple(ids): one.text for ids, one in zip(asked, found, strict=True)}
        wrong = sum(ask(client, list(ids)).text != text for ids, text in answers.items())
    ratios = [ours / theirs for ours, theirs in zip(single, engine, strict=True)]
    gains = [many / ours for many, ours in zip(together, single, strict=True)]
    p50, p99 = (1000 * float(np.quantile(gaps, q)) for q in (0.5, 0.99))
    about = (
        f"{MODEL}, {WEIGHTS}, {choose_isa()}, {THREADS} threads, {PROMPT} tokens of prompt and "
        f"{TOKENS} of answer, {ROUNDS} rounds"
    )
    return [
        at_least("server: one client's tokens/s over generate's", statistics.median(ratios),
                 ONE_CLIENT, f"{spread(ratios)}; {rates(single)} over {rates(engine)}; {about}"),
        at_least(f"server: {CLIENTS} clients' tokens/s over one's", statistics.median(gains),
                 TOGETHER, f"{spread(gains)}; {rates(together)} over {rates(single)}; {about}"),
        shown(f"server, {CLIENTS} clients: p99 of ms between pieces of text", p99,
              f"median {p50:.2f} ms, {len(gaps)} pieces"),
        at_most(f"server: greedy answers to {CLIENTS} clients that differ from those to one",
                wrong, 0, f"of {len(answers)}"),
    ]  # fmt: skip


def alone(model: Model, ids: list[int]) -> float:
    """Tokens/s of `generate`."""
    began = time.perf_counter()
    count = len(list(model.generate(ids, max_tokens=TOKENS, stop_ids=())))
    return count / (time.perf_counter() - began)


def ask(client: httpx.Client, ids: list[int]) -> Streamed:
    return streamed(client, prompt=ids, max_tokens=TOKENS, temperature=0, ignore_eos=True)


def spread(values: list[float]) -> str:
    return f"min {min(values):.3f}, max {max(values):.3f}"


def rates(values: list[float]) -> str:
    return f"{statistics.median(values):.1f}"
