"""Response bodies in the exact shapes of the OpenAI API, whole and in chunks.

Reading order: `logprobs` (of tokens, in two shapes), `shape` (what all bodies share), `completion`,
`chat`.
"""

from sparseinfer.serve.answers.chat import ChatAnswer
from sparseinfer.serve.answers.completion import CompletionAnswer
from sparseinfer.serve.answers.shape import Answer, Choice, Json, Usage

__all__ = ["Answer", "ChatAnswer", "Choice", "CompletionAnswer", "Json", "Usage"]
