"""A tiny dense model, a sparse one made of it, and tokenizers with and without a first token."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import transformers
from tokenizers.processors import TemplateProcessing

from sparseinfer.convert import convert
from sparseinfer.tokenizer import Tokenizer, load_tokenizer
from sparseinfer.tokenizer.backends import TransformersBackend

TEXT_TOKENS = 700


@pytest.fixture(scope="session")
def dense(make_model) -> Path:
    return make_model()


@pytest.fixture(scope="session")
def sparse(dense, prose_file, tmp_path_factory) -> Path:
    """`dense`, converted by CHESS at neuron sparsity 0.5."""
    out = tmp_path_factory.mktemp("sparse") / "tiny-chess"
    convert(
        str(dense), "chess", out=out, sparsity=0.5, text=str(prose_file), calibration_tokens=1024
    )
    return out


@pytest.fixture
def orphan(make_model, tmp_path) -> tuple[Path, Path]:
    """(parent, converted child), both free to be changed."""
    parent, child = tmp_path / "parent", tmp_path / "child"
    shutil.copytree(make_model(), parent)
    convert(str(parent), "relu", out=child)
    return parent, child


@pytest.fixture(scope="session")
def short_text(prose_file, tmp_path_factory) -> str:
    """Path of a text of `TEXT_TOKENS` bytes, which are as many tokens."""
    path = tmp_path_factory.mktemp("short") / "short.txt"
    path.write_bytes(prose_file.read_bytes()[:TEXT_TOKENS])
    return str(path)


def _with_first_token(folder: Path) -> transformers.PreTrainedTokenizerFast:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def with_bos(dense, tmp_path_factory) -> Path:
    """`dense` with a tokenizer that begins every text with <s>."""
    folder = tmp_path_factory.mktemp("bos") / "tiny-bos"
    shutil.copytree(dense, folder)
    _with_first_token(dense).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=["without-bos", "with-bos"])
def tokenizer(request, dense) -> Tokenizer:
    if request.param == "with-bos":
        return Tokenizer(TransformersBackend(_with_first_token(dense)))
    return load_tokenizer(dense)
