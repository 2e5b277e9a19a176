"""Requests of all kinds for a soak test, and what must hold of the answer to each."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LEAVING = 0.1
"""Of the clients, those that go away before they have their answer."""
_TEXT = "the river runs past an old mill where seven green boats wait for spring rain"
_LONG_WORDS = 600
_SHORT = ("Once upon a time", "The capital of France is", "2 + 2 =")
"""Asked again and again, greedily: the answer must be the same every time."""


@dataclass(frozen=True)
class Asked:
    """One request."""

    id: str
    path: str
    body: dict[str, Any]
    leaves_after: int | None = None
    """Chunks after which its client goes away: 0, before anything comes; None: it stays."""

    @property
    def is_chat(self) -> bool:
        return "messages" in self.body

    @property
    def is_repeated(self) -> bool:
        """Whether others ask the same and must get the same."""
        return self.body.get("prompt") in _SHORT


def mixed_requests(count: int, seed: int) -> Iterator[Asked]:
    """So many requests, the same ones for a seed, each with a text of its own in the prompt."""
    draw, words = random.Random(seed), _TEXT.split()
    for number in range(count):
        body: dict[str, Any] = {"max_tokens": draw.randint(1, 24)}
        body["temperature"] = draw.choice((0, 1))
        length = _LONG_WORDS if draw.random() < 0.05 else draw.randint(3, 30)
        text = f"[{number}] " + " ".join(draw.choices(words, k=length))
        kind = draw.choice(("chat", "chat", "echo", "echo", "repeated"))
        if kind == "chat":
            body["messages"] = [{"role": "user", "content": text}]
            if draw.random() < 0.3:
                body |= {"logprobs": True, "top_logprobs": draw.randint(0, 5)}
        elif kind == "echo":
            body |= {"prompt": text, "echo": True}
            if draw.random() < 0.3:
                body["logprobs"] = draw.randint(0, 5)
        else:
            body |= {"prompt": draw.choice(_SHORT), "max_tokens": 12, "temperature": 0}
        if kind != "repeated":
            body["n"] = draw.choice((1, 1, 1, 2, 3))
            if draw.random() < 0.3:
                body["stop"] = draw.sample((" the", "e", "\n\n", "zzzz"), 2)
        if draw.random() < 0.5:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        leaves = draw.randint(0, 4) if draw.random() < LEAVING else None
        path = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
        yield Asked(f"soak-{number}", path, body, leaves)


def whole_answer(asked: Asked, lines: list[str]) -> dict[str, Any]:
    """A streamed answer, put together to the body that it would have been in one piece.

    Args:
        lines: of the response; empty ones and comments do not count.

    Raises:
        AssertionError: a stream of another shape.
    """
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events.index("[DONE]") == len(events) - 1, f"{asked.id}: does not end at its end"
    chunks = [json.loads(one) for one in events[:-1]]
    assert not any("error" in chunk for chunk in chunks), f"{asked.id}: {chunks[-1]}"
    assert len({chunk["id"] for chunk in chunks}) == 1, f"{asked.id}: parts of several answers"
    choices: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        one = choices.setdefault(choice["index"], {"text": "", "finish_reason": None})
        assert one["finish_reason"] is None, f"{asked.id}: goes on behind its end"
        one["text"] += (choice["delta"].get("content") or "") if asked.is_chat else choice["text"]
        one["finish_reason"] = choice["finish_reason"]
    return {
        "id": chunks[0]["id"],
        "choices": [{"index": index, **one} for index, one in sorted(choices.items())],
        "usage": chunks[-1]["usage"],
    }


def check_answer(asked: Asked, answer: dict[str, Any]) -> list[str]:
    """The texts of an answer to this request.

    Raises:
        AssertionError: it answers something else, or not all of it.
    """
    choices, most = answer["choices"], asked.body["max_tokens"]
    wanted = list(range(asked.body.get("n", 1)))
    assert [choice["index"] for choice in choices] == wanted, f"{asked.id}: wrong choices"
    assert all(choice["finish_reason"] in ("stop", "length") for choice in choices), asked.id
    assert answer["usage"]["completion_tokens"] <= most * len(choices), f"{asked.id}: too long"
    if asked.is_chat and "message" in choices[0]:
        texts = [choice["message"]["content"] or "" for choice in choices]
    else:
        texts = [choice["text"] for choice in choices]
    if asked.body.get("echo"):
        assert all(text.startswith(asked.body["prompt"]) for text in texts), (
            f"{asked.id}: the answer to another request"
        )
    return texts
