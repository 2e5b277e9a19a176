"""Bodies of /v1/chat/completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from sparseinfer.serve.answers.logprobs import chat_logprobs
from sparseinfer.serve.answers.shape import Answer, Choice, Json
from sparseinfer.serve.text import Piece
from sparseinfer.serve.tools import ToolCall
from sparseinfer.serve.vocabulary import Vocabulary


class ChatAnswer(Answer):
    """One response of /v1/chat/completions.

    Args:
        new_call_id: makes ids of tool calls.
    """

    prefix = "chatcmpl"
    object_whole = "chat.completion"
    object_chunk = "chat.completion.chunk"

    def __init__(
        self,
        model: str,
        vocabulary: Vocabulary,
        *,
        with_logprobs: bool,
        include_usage: bool,
        new_call_id: Callable[[], str],
    ) -> None:
        super().__init__(
            model, vocabulary, with_logprobs=with_logprobs, include_usage=include_usage
        )
        self._new_call_id = new_call_id
        self._calls: Counter[int] = Counter()
        """Tool calls streamed so far, by answer."""

    def opening(self, choices: int) -> list[Json]:
        first = {"role": "assistant", "content": "", "refusal": None}
        return [self._chunk(index, {"delta": first}, Piece()) for index in range(choices)]

    def _choice(self, choice: Choice) -> Json:
        text, calls = choice.content.text, choice.content.calls
        message: Json = {
            "role": "assistant",
            "content": None if calls and not text else text,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = [self._call(call) for call in calls]
        return {
            "message": message,
            "logprobs": self._shown_logprobs(choice.content),
            "finish_reason": choice.end.finish_reason,
        }

    def _delta(self, piece: Piece | None, number: int) -> Json:
        delta: Json = {}
        if piece is not None and (piece.text or not piece.calls):
            delta["content"] = piece.text
        if piece is not None and piece.calls:
            before = self._calls[number]
            self._calls[number] += len(piece.calls)
            delta["tool_calls"] = [
                {"index": index, **self._call(call)}
                for index, call in enumerate(piece.calls, start=before)
            ]
        return {"delta": delta}

    def _logprobs(self, piece: Piece) -> Json:
        return chat_logprobs(piece.entries, self._vocabulary)

    def _call(self, call: ToolCall) -> Json:
        return {
            "id": self._new_call_id(),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
