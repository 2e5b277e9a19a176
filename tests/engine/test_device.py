"""Devices by name, and whether a model fits one."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from sparseinfer.engine import device as devices
from sparseinfer.engine.device import check_room, checked_device, gpu_memory
from sparseinfer.errors import ConfigError, DeviceMemoryError, UnsupportedError

GPU = torch.device("cuda", 0)


@pytest.fixture
def a_gpu(monkeypatch):
    """One GPU of compute capability 9.0 with 8 GiB free, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU X")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 << 30, 16 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)


def without_triton(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(devices, "find_spec", lambda name: None if name == "triton" else find(name))


def test_the_cpu_and_gpus_have_names(a_gpu):
    assert checked_device("cpu") == torch.device("cpu")
    assert checked_device("cuda") == checked_device("cuda:0") == GPU


@pytest.mark.parametrize("name", ["mps", "cuda:", "cuda:x", "cuda0", "cpu:0", "", "CUDA"])
def test_other_names_are_refused(a_gpu, name):
    with pytest.raises(UnsupportedError, match="not one of cpu, cuda, cuda:N"):
        checked_device(name)


def test_a_gpu_that_is_not_there(a_gpu):
    with pytest.raises(ConfigError, match="has 1 GPUs"):
        checked_device("cuda:1")


@pytest.mark.parametrize(
    ("built_with", "reason"), [(None, "built without CUDA"), ("13.0", "no GPU or no driver")]
)
def test_without_cuda_the_cpu_is_suggested(monkeypatch, built_with, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_with)
    without_triton(monkeypatch)
    with pytest.raises(UnsupportedError, match=f"{reason}.*use --device cpu"):
        checked_device("cuda")


def test_without_triton_its_installation_is_suggested(a_gpu, monkeypatch):
    without_triton(monkeypatch)
    with pytest.raises(UnsupportedError, match=r"pip install 'sparseinfer\[gpu\]'.*--device cpu"):
        checked_device("cuda")


def test_an_old_gpu_is_refused_by_name(a_gpu, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UnsupportedError, match=r"GPU X has compute capability 7\.5.*--device cpu"):
        checked_device("cuda")


def test_a_model_that_does_not_fit_says_what_it_needs(a_gpu):
    check_room(GPU, 7 << 30, 1 << 30)
    with pytest.raises(DeviceMemoryError) as refused:
        check_room(GPU, 13 << 30, 2 << 30)
    message = str(refused.value)
    for part in ("15.0 GiB", "13.0 GiB of weights", "8.0 GiB free", "--gpu-memory", "--weights"):
        assert part in message
    check_room(torch.device("cpu"), 1 << 60, 1 << 60)


def test_memory_that_runs_out_while_running_is_one_line(a_gpu):
    with (
        pytest.raises(DeviceMemoryError, match=r"a sequence of 9 tokens.*8\.0 GiB free") as refused,
        gpu_memory(GPU, "a sequence of 9 tokens"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
    assert "\n" not in str(refused.value)
