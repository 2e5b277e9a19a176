"""What one HTTP request asks of the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparseinfer.engine.scheduling import TokenRequest
from sparseinfer.serve.text import AnswerText


@dataclass(frozen=True)
class Prompt:
    """One prompt, and what of it is shown before its answers."""

    ids: tuple[int, ...]
    echo: str = ""
    offsets: tuple[int, ...] = ()
    """Characters of `echo` before each token, where their log-probabilities are to be shown."""


@dataclass(frozen=True)
class Task:
    """One answer to make."""

    prompt: Prompt
    request: TokenRequest
    new_text: Callable[[], AnswerText]


@dataclass(frozen=True)
class Work:
    """All answers that one request asks for: for each prompt in order, its candidates."""

    tasks: tuple[Task, ...]
    candidates: int
    """Answers made for each prompt,"""
    choices: int
    """and how many of them are shown: the most likely ones, per token."""

    @property
    def prompts(self) -> list[Prompt]:
        return [task.prompt for task in self.tasks[:: self.candidates]]

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, each counted once."""
        return sum(len(prompt.ids) for prompt in self.prompts)
