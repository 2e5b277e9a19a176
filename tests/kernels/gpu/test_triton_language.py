"""Where Triton or the GPU is not what the kernels need."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from sparseinfer.errors import SparseInferError, UnsupportedError
from sparseinfer.kernels import triton_language


def test_without_triton_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("without_triton", triton_language.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"Triton.* is not installed: .*--device cpu") as raised:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert isinstance(raised.value, SparseInferError)
    assert "\n" not in str(raised.value)


def test_an_old_gpu_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(UnsupportedError, match=r"Tesla T4 has compute capability 7\.5"):
        triton_language.check_device(torch.device("cuda"))


def test_the_cpu_will_do_in_the_interpreter_only(monkeypatch):
    monkeypatch.setattr(triton_language, "interpreted", lambda: True)
    triton_language.check_device(torch.device("cpu"))
    monkeypatch.setattr(triton_language, "interpreted", lambda: False)
    with pytest.raises(ValueError, match="not on cpu"):
        triton_language.check_device(torch.device("cpu"))
