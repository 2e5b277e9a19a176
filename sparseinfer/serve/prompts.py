"""From a validated request to token ids that fit the model's context."""

from __future__ import annotations

from sparseinfer.config import ModelConfig
from sparseinfer.errors import PromptError
from sparseinfer.serve.errors import ApiError
from sparseinfer.serve.job import Work
from sparseinfer.serve.schema import ChatRequest, CompletionRequest
from sparseinfer.tokenizer import Tokenizer

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's own default of `max_tokens` on /v1/completions."""


def completion_work(request: CompletionRequest, tokenizer: Tokenizer, config: ModelConfig) -> Work:
    """Raises ApiError (400) for ids outside the vocabulary or more tokens than fit the context."""
    if isinstance(request.prompt, str):
        ids = tokenizer.encode(request.prompt)
    else:
        ids = request.prompt
        for token in ids:
            if not 0 <= token < config.vocab_size:
                raise ApiError(
                    400,
                    f"prompt: a token id is outside the vocabulary [0, {config.vocab_size})",
                    param="prompt",
                )
    room = _room(ids, config, "prompt")
    if request.max_tokens is None:
        max_tokens = min(DEFAULT_COMPLETION_TOKENS, room)
    else:
        max_tokens = _fitting(request.max_tokens, "max_tokens", ids, config)
    return Work(tuple(ids), max_tokens, request.sampling(), request.stop)


def chat_work(request: ChatRequest, tokenizer: Tokenizer, config: ModelConfig) -> Work:
    """Raises ApiError (400) where the template refuses or the context does not hold the tokens."""
    try:
        ids = tokenizer.encode_chat([message.for_template() for message in request.messages])
    except PromptError as error:
        raise ApiError(400, str(error), param="messages") from error
    room = _room(ids, config, "messages")
    if request.max_completion_tokens is not None:
        max_tokens = _fitting(request.max_completion_tokens, "max_completion_tokens", ids, config)
    elif request.max_tokens is not None:
        max_tokens = _fitting(request.max_tokens, "max_tokens", ids, config)
    else:
        max_tokens = room
    return Work(tuple(ids), max_tokens, request.sampling(), request.stop)


def _room(ids: list[int], config: ModelConfig, param: str) -> int:
    """Tokens that the context leaves for the answer, at least 1."""
    if not ids:
        raise ApiError(400, f"{param}: gives no tokens", param=param)
    if len(ids) >= config.context_length:
        raise ApiError(
            400,
            f"{param}: has {len(ids)} tokens, but the model's context holds "
            f"{config.context_length} including the answer; shorten it",
            param=param,
            code="context_length_exceeded",
        )
    return config.context_length - len(ids)


def _fitting(asked: int, param: str, ids: list[int], config: ModelConfig) -> int:
    if len(ids) + asked > config.context_length:
        raise ApiError(
            400,
            f"{param}: the model's context holds {config.context_length} tokens, but "
            f"{len(ids) + asked} were asked for ({len(ids)} of the prompt, {asked} of the answer)",
            param=param,
            code="context_length_exceeded",
        )
    return asked
