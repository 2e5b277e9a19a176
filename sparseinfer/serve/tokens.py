"""The tokenizer over HTTP, in the shapes that vLLM gave these routes and lm-eval reads."""

from __future__ import annotations

from typing import Any

from sparseinfer.serve.errors import ApiError
from sparseinfer.serve.schema import DetokenizeRequest, TokenizeRequest
from sparseinfer.serve.served import Served

Json = dict[str, Any]


def tokenize(request: TokenizeRequest, served: Served) -> Json:
    """The body of a response of /tokenize.

    Raises:
        ApiError: 400 where the chat template refuses.
    """
    if request.prompt is None:
        if request.tools:
            served.template.tool_format()
        ids = served.template.encode(
            [message.for_template() for message in request.messages],
            request.tools,
            request.chat_template_kwargs,
            add_generation_prompt=request.add_generation_prompt,
        )
    elif request.add_special_tokens is False:
        ids = served.tokenizer.encode_plain(request.prompt)
    else:
        ids = served.tokenizer.encode(request.prompt)
    return {
        "count": len(ids),
        "max_model_len": served.context,
        "tokens": ids,
        "token_strs": served.vocabulary.names(ids) if request.return_token_strs else None,
    }


def detokenize(request: DetokenizeRequest, served: Served) -> Json:
    """The body of a response of /detokenize; special tokens are part of the text.

    Raises:
        ApiError: 400 for an id outside the vocabulary.
    """
    for token in request.tokens:
        if token >= served.vocab_size:
            raise ApiError(
                400,
                f"tokens: a token id is outside the vocabulary [0, {served.vocab_size})",
                param="tokens",
            )
    return {"prompt": served.tokenizer.decode_all(request.tokens)}


def tokenizer_info(served: Served) -> Json:
    """The body of a response of /tokenizer_info."""
    special = served.tokenizer.special_tokens
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: special.get(name) for name in names},
        "chat_template": served.tokenizer.chat_template(),
        "model_max_length": served.context,
        "vocab_size": served.vocab_size,
    }
