"""GPU kernels: compiled where there is a GPU, else by Triton's interpreter on CPU tensors."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def _interpret_with_new_numpy() -> None:
    """Numbers of Triton 3.6's interpreter are arrays of one element, which numpy refuses to take as
    an int from 2.4 on; later interpreters ask for the element."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


if find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
elif not torch.cuda.is_available():
    # Before the first import of Triton: its own functions are made for one or the other.
    os.environ["TRITON_INTERPRET"] = "1"
    _interpret_with_new_numpy()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("gpu")
