"""Request bodies, validated strictly. Knows no model: what depends on one (vocabulary, context,
what its template takes) is checked in `serve.prompts`.

Reading order: `fields` (how strict), `generation` (what both routes share), `completions`,
`schemas`, `tools`, `messages`, `variables`, `chat`, `tokens`.
"""

from sparseinfer.serve.schema.chat import ChatRequest
from sparseinfer.serve.schema.completions import CompletionRequest
from sparseinfer.serve.schema.fields import RequestType, parse_request
from sparseinfer.serve.schema.generation import GenerationRequest
from sparseinfer.serve.schema.tokens import DetokenizeRequest, TokenizeRequest
from sparseinfer.serve.schema.tools import Tool

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "GenerationRequest",
    "RequestType",
    "TokenizeRequest",
    "Tool",
    "parse_request",
]
