"""Text to token ids and back, also piece by piece.

Reading order: `tokenizer` (encode, decode, chat), `stream` (text of a growing list of ids),
`stops` (stop strings that may straddle tokens).
"""

from sparseinfer.tokenizer.stops import StopStrings
from sparseinfer.tokenizer.stream import TextStream
from sparseinfer.tokenizer.tokenizer import Tokenizer, load_tokenizer

__all__ = ["StopStrings", "TextStream", "Tokenizer", "load_tokenizer"]
