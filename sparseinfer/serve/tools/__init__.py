"""Calls of tools in the text of an answer: how models write them, told by their chat templates.

Reading order: `calls` (what a call is), `readers` (finding calls in a text), `formats` (which
models write them how, and grammars that leave them no choice).
"""

from sparseinfer.serve.tools.calls import ToolCall
from sparseinfer.serve.tools.formats import HERMES, ToolFormat, format_of
from sparseinfer.serve.tools.readers import ToolReader

__all__ = ["HERMES", "ToolCall", "ToolFormat", "ToolReader", "format_of"]
