"""Text that the server streams: what it does not stream, and what the engine alone writes."""

from __future__ import annotations

import codecs
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sparseinfer
from acceptance.figure import Figure, at_least, at_most
from acceptance.serving import THREADS, WEIGHTS, served, streamed, whole
from sparseinfer.engine import Model, Sampling
from sparseinfer.serve.vocabulary import Vocabulary
from sparseinfer.tokenizer import Tokenizer

MODEL = "smollm2-135m"
CASES = 200
CLIENTS = 8
SLOTS = 4
LEAST = 40
"""Cases of each kind without which the figures would say little."""

SCRIPTS = (
    "Les élèves ont répété : « café, thé, crème brûlée, forêt, où ça ? »",
    "日本語の文章を続けてください。東京は日本の首都です。",
    "Привет! Как дела? Всё хорошо, спасибо.",
    "🙂🎉🚀🌍🙂🎉🚀🌍🙂🎉🚀",
    "Πάντα ῥεῖ καὶ οὐδὲν μένει.",
    "한국어로 계속 쓰세요: 안녕하세요, 반갑습니다.",
    "€ 5, £ 6, ¥ 700 → naïve façade…",
    "مرحبا بالعالم، كيف حالك؟",
)


@dataclass(frozen=True)
class Case:
    """A request, and what the engine alone says to it."""

    fields: dict[str, Any]
    text: str
    finish_reason: str
    splits: bool
    """Whether a stop string ended the text within a token or spread over several."""
    wide: bool
    """Whether a character of the text is spread over several tokens."""


def server_streams(_work: Path) -> list[Figure]:
    """Random prompts, stop strings and seeds; the server answers several clients at a time."""
    cases = make_cases(CASES)
    with served(MODEL, slots=SLOTS) as client, ThreadPoolExecutor(CLIENTS) as clients:
        # Both kinds at once: whatever else runs, the answers are to be the same.
        streams = [clients.submit(streamed, client, **case.fields) for case in cases]
        wholes = [clients.submit(whole, client, **case.fields) for case in cases]
        found = [future.result() for future in streams]
        plain = [future.result() for future in wholes]
    joined = [(one.text, one.finish_reason) for one in found]
    expected = [(case.text, case.finish_reason) for case in cases]
    leaks = sum(
        any(stop in text for stop in case.fields["stop"])
        for case, (text, _) in zip(cases, joined, strict=True)
    )
    broken = sum(
        text.count("\ufffd") > case.text.count("\ufffd")
        for case, (text, _) in zip(cases, joined, strict=True)
    )
    about = f"{len(cases)} random prompts, seeds and stop strings, {CLIENTS} clients, {SLOTS} slots"
    return [
        at_most("server: streams that differ from answers not streamed", differing(joined, plain),
                0, about),
        at_most("server: answers that differ from the engine's alone for that seed",
                differing(plain, expected), 0, about),
        at_most("server: answers with a part of a stop string or more", leaks, 0,
                f"{sum(case.finish_reason == 'stop' for case in cases)} stopped"),
        at_most("server: answers with a broken character that the model did not write", broken, 0),
        at_least("server, of these: ended by a stop string that is not one token",
                 sum(case.splits for case in cases), LEAST),
        at_least("server, of these: with characters spread over tokens",
                 sum(case.wide for case in cases), LEAST),
    ]  # fmt: skip


def differing(ours: list[tuple[str, str]], theirs: list[tuple[str, str]]) -> int:
    return sum(a != b for a, b in zip(ours, theirs, strict=True))


def make_cases(count: int) -> list[Case]:
    """The same ones each time."""
    folder = sparseinfer.resolve_model(MODEL).path
    model = sparseinfer.load(folder, weights=WEIGHTS, threads=THREADS)
    tokenizer = sparseinfer.load_tokenizer(folder)
    vocabulary = Vocabulary(tokenizer, model.config.vocab_size, model.stop_ids)
    prose = sparseinfer.load_text("lambada").joined
    dice = random.Random(0)
    return [make_case(dice, prose, model, tokenizer, vocabulary) for _ in range(count)]


def make_case(
    dice: random.Random, prose: str, model: Model, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> Case:
    start, size = dice.randrange(len(prose) - 500), dice.randrange(1, 400)
    prompt = prose[start : start + size]
    if dice.random() < 0.6:
        prompt += " " + dice.choice(SCRIPTS) * dice.choice((1, 2))
    sampling = Sampling(
        temperature=dice.choice((0.0, 0.7, 1.0)),
        top_p=dice.choice((0.9, 1.0)),
        seed=dice.randrange(1 << 63),
    )
    max_tokens = dice.randrange(1, 64)
    ids = list(model.generate(tokenizer.encode(prompt), max_tokens=max_tokens, sampling=sampling))
    content = [vocabulary.bytes_of(token) for token in ids]
    # What a limit cuts of a character is left out.
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(content))
    stops = stop_strings(dice, text)
    fields = {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": stops,
    }
    shown, finish = cut(text, stops, "length" if len(ids) == max_tokens else "stop")
    wide = any(not is_text(part) for part in content)
    splits = shown != text and not ends_between(content, text, shown, stops)
    return Case(fields, shown, finish, splits, wide)


def stop_strings(dice: random.Random, text: str) -> list[str]:
    """Pieces of the text from anywhere in it, and some that hardly occur."""
    stops = []
    for _ in range(dice.randrange(4)):
        size, start = dice.randrange(1, 9), dice.randrange(len(text) + 1)
        piece = text[start : start + size]
        if dice.random() < 0.3:
            piece += dice.choice("éx€ 🙂")
        if piece:
            stops.append(piece)
    return stops


def cut(text: str, stops: list[str], finish: str) -> tuple[str, str]:
    """The text before the stop string that is complete first; the longest of several such."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return (text[: min(found)[1]], "stop") if found else (text, finish)


def is_text(part: bytes) -> bool:
    """Whether bytes are whole characters."""
    return "\ufffd" not in part.decode(errors="replace")


def ends_between(content: list[bytes], text: str, shown: str, stops: list[str]) -> bool:
    """Whether the stop string that follows the shown text is one token exactly."""
    begin, end = 0, len(shown.encode())
    for part in content:
        if begin == end:
            return part.decode(errors="replace") in stops and text[len(shown) :].startswith(
                part.decode(errors="replace")
            )
        begin += len(part)
    return False
