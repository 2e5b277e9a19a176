"""Server-sent events of an answer, taken apart."""

from __future__ import annotations

import json

import httpx


def chunks_of(answer: httpx.Response) -> list[dict]:
    """The bodies of all events but the last, which must say that the answer is whole."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.removesuffix("\n\n").split("\n\n")
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def choices_of(chunks: list[dict]) -> dict[int, list[dict]]:
    """Index -> its parts in order; each index ends once, and nothing follows that."""
    parts: dict[int, list[dict]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            parts.setdefault(choice["index"], []).append(choice)
    for index, those in parts.items():
        endings = [part["finish_reason"] is not None for part in those]
        assert endings == [False] * (len(those) - 1) + [True], index
    return parts


def joined_completion(parts: list[dict]) -> dict:
    """What a choice of /v1/completions would be, were it not streamed."""
    logprobs: dict[str, list] | None = None
    for part in parts:
        if part["logprobs"] is not None:
            logprobs = logprobs or {name: [] for name in part["logprobs"]}
            for name, values in part["logprobs"].items():
                logprobs[name] += values
    whole = {
        "text": "".join(part["text"] for part in parts),
        "finish_reason": parts[-1]["finish_reason"],
    }
    return whole if logprobs is None else {**whole, "logprobs": logprobs}
