"""Single tokens as bytes, and answers held to a grammar: both by the library llguidance.

llguidance walks the grammar over the bytes of all tokens at once and says which may come next. Its
limits bound the time and memory that a client's schema can take.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from sparseinfer.serve.errors import ApiError
from sparseinfer.tokenizer import Tokenizer

_WHITESPACE = r"[ \n]{0,32}"
"""Between two tokens of JSON; without a bound some models write nothing else."""

_NOTHING_FITS = "NoExtension"

_LIMITS = LLParserLimits(
    # At about 50,000 a millisecond: 10 ms to read a regular expression of the schema.
    initial_lexer_fuel=500_000,
    # At about 14,000 a millisecond: 7 ms for one token of one answer.
    step_lexer_fuel=100_000,
    step_max_items=50_000,
    # 1 to 2 kB each.
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)


class Vocabulary:
    """The tokens of one tokenizer.

    Args:
        size: of the model's vocabulary, which may be larger than the tokenizer's.
        end_ids: ids that end a text.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, end_ids: Collection[int]) -> None:
        self.size = size
        self._names = {token: name for name, token in tokenizer.backend.vocabulary.items()}
        serialized = tokenizer.backend.serialized
        self._tokens: LLTokenizer | None = None
        if serialized is not None:
            known = max(self._names, default=0) + 1
            ends = sorted(end_ids) or None
            self._tokens = LLTokenizer(serialized, n_vocab=max(size, known), eos_token=ends)

    @property
    def longest(self) -> int:
        """Characters of the longest token: no token stands for more of a text."""
        return max(map(len, self._names.values()), default=1)

    @property
    def is_known(self) -> bool:
        """Whether the bytes of tokens are known: false for a tokenizer that is not a "fast" one."""
        return self._tokens is not None

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; the name of a special token."""
        assert self._tokens is not None
        return self._tokens.decode_bytes([token])

    def names(self, ids: Sequence[int]) -> list[str]:
        """How the tokenizer's own files spell tokens; empty for ids that they lack."""
        return [self._names.get(token, "") for token in ids]

    def grammar(self, lark: str, param: str) -> Grammar:
        """A grammar in llguidance's dialect of Lark.

        Raises:
            ApiError: as `Grammar`.
        """
        return Grammar(self._tokens, LLMatcher.grammar_from_lark(lark), self.size, param)

    def json_grammar(self, schema: Mapping[str, Any], param: str) -> Grammar:
        """The grammar of the JSON texts that fit a schema.

        Raises:
            ApiError: as `Grammar`.
        """
        bounded = json.dumps(with_bounded_whitespace(schema))
        return Grammar(self._tokens, LLMatcher.grammar_from_json_schema(bounded), self.size, param)


def with_bounded_whitespace(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with the options of llguidance that this server sets; requests cannot have any."""
    return {**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE}}


class Grammar:
    """What answers of one request are held to.

    Raises:
        ApiError: 400 naming `param` for a grammar that is not valid, not supported, impossible to
            satisfy or too complex.
    """

    def __init__(self, tokens: LLTokenizer | None, grammar: str, size: int, param: str) -> None:
        if tokens is None:
            raise ApiError(400, f"{param}: not supported with this model's tokenizer", param=param)
        self._size = size
        self._param = param
        self._matcher = LLMatcher(tokens, grammar, log_level=0, limits=_LIMITS)
        self._check(self._matcher)
        # The first mask may find that nothing fits, or take longest.
        self._matcher.compute_bitmask()
        self._check(self._matcher)

    def mask(self) -> GrammarMask:
        """For one answer."""
        return GrammarMask(self._matcher.deep_copy(), self._size, self._param)

    def _check(self, matcher: LLMatcher) -> None:
        if matcher.is_error() or (matcher.is_stopped() and not matcher.is_accepting()):
            raise _refused(matcher, self._param)


class GrammarMask:
    """Follows one answer token by token; a `TokenMask` of the engine."""

    def __init__(self, matcher: LLMatcher, size: int, param: str) -> None:
        self._matcher = matcher
        self._size = size
        self._param = param

    @property
    def finished(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> np.ndarray:
        """Which tokens may come next, one bit each.

        Raises:
            ApiError: 400 where finding out is too much work.
        """
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise _refused(self._matcher, self._param)
        return packed[: (self._size + 7) // 8]

    def accept(self, token: int) -> None:
        """Goes on behind a token, one of those allowed."""
        self._matcher.consume_token(token)


def _refused(matcher: LLMatcher, param: str) -> ApiError:
    reason = (matcher.get_error().strip() or _NOTHING_FITS).splitlines()[0]
    if reason.startswith(_NOTHING_FITS):
        reason = "no text fits it"
    return ApiError(400, f"{param}: this schema cannot be followed: {reason[:200]}", param=param)
