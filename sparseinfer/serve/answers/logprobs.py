"""Log-probabilities in the two shapes that OpenAI gives them.

A token that is only part of a character has no text of its own: OpenAI writes its bytes in hex,
`\\xe2\\x82`, with `bytes:` before them on /v1/completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparseinfer.serve.text import Entry
from sparseinfer.serve.vocabulary import Vocabulary

_LEAST = -9999.0
"""What OpenAI shows for a token that is impossible; JSON has no infinity."""


def legacy_logprobs(entries: Sequence[Entry], vocabulary: Vocabulary) -> dict[str, Any]:
    """As /v1/completions shows them; null for the first token of a prompt, which has none."""
    tokens, values, tops = [], [], []
    for entry in entries:
        event = entry.event
        tokens.append(_legacy_name(event.token, vocabulary))
        if event.logprob is None:
            values.append(None)
            tops.append(None)
            continue
        value = max(event.logprob, _LEAST)
        top: dict[str, float] = {}
        # Best first: where two tokens have the same text, the better one is shown.
        for token, logprob in event.top:
            top.setdefault(_legacy_name(token, vocabulary), max(logprob, _LEAST))
        top.setdefault(tokens[-1], value)
        values.append(value)
        tops.append(top)
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": tops,
        "text_offset": [entry.offset for entry in entries],
    }


def chat_logprobs(entries: Sequence[Entry], vocabulary: Vocabulary) -> dict[str, Any]:
    """As /v1/chat/completions shows them."""
    content = []
    for entry in entries:
        event = entry.event
        top = [_chat_token(token, logprob, vocabulary) for token, logprob in event.top]
        own = _chat_token(event.token, event.logprob or 0.0, vocabulary)
        content.append({**own, "top_logprobs": top})
    return {"content": content, "refusal": None}


def _chat_token(token: int, logprob: float, vocabulary: Vocabulary) -> dict[str, Any]:
    content = vocabulary.bytes_of(token)
    return {
        "token": _text(content) or _hex(content),
        "logprob": max(logprob, _LEAST),
        "bytes": list(content),
    }


def _legacy_name(token: int, vocabulary: Vocabulary) -> str:
    content = vocabulary.bytes_of(token)
    return _text(content) or f"bytes:{_hex(content)}"


def _text(content: bytes) -> str | None:
    """The text of whole characters; None for parts of them, and for no bytes."""
    try:
        return content.decode() or None
    except UnicodeDecodeError:
        return None


def _hex(content: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in content)
