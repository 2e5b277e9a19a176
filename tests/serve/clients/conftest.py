"""Tiny models behind real servers, as a user runs them but for the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import httpx
import openai
import pytest

from sparseinfer.engine import Model, Sampling, load
from sparseinfer.serve import Served, serve_model
from sparseinfer.tokenizer import Tokenizer, load_tokenizer

from ..conftest import serving
from .writer import write_writer

CONTEXT = 2048
SLOTS = 4


@dataclass(frozen=True)
class Client:
    """A server, and the same model once more for what the server should answer."""

    url: str
    http: httpx.Client
    checkpoint: Path

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    @cached_property
    def alone(self) -> Model:
        return load(self.checkpoint, threads=1)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.checkpoint)

    def text_alone(self, prompt: str, max_tokens: int, sampling: Sampling, **options) -> str:
        """What the engine answers by itself, a character cut by the limit left out."""
        ids = self.tokenizer.encode(prompt)
        new = self.alone.generate(ids, max_tokens=max_tokens, sampling=sampling, **options)
        return self.tokenizer.decode(list(new)).rstrip("\ufffd")


@contextmanager
def client_of(checkpoint: Path) -> Iterator[Client]:
    def load_it() -> Served:
        model = load(checkpoint, threads=1)
        return serve_model(model, load_tokenizer(checkpoint), "tiny", slots=SLOTS)

    with serving(load_it) as (server, http):
        yield Client(server.url, http, checkpoint)


@pytest.fixture(scope="session")
def writer(make_model: Callable[..., Path], tmp_path_factory) -> Iterator[Client]:
    """Of a model that writes letters of one to four tokens."""
    parent = make_model(max_position_embeddings=CONTEXT, tie_word_embeddings=False)
    with client_of(write_writer(parent, tmp_path_factory.mktemp("writer") / "model")) as client:
        yield client
