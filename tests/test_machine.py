"""What a measurement ran on."""

from __future__ import annotations

import os
import platform

import torch

from sparseinfer.machine import hardware, versions


def test_versions_are_those_installed_and_others_are_left_out():
    found = versions(("torch", "no-such-package"))
    assert found == {"python": platform.python_version(), "torch": torch.__version__}


def test_the_machine_is_described_by_what_can_be_found_out():
    found = hardware()
    assert found["machine"] == platform.machine()
    assert 1 <= found["logical_cpus"] <= (os.cpu_count() or 1)
    assert found.get("memory_bytes", 2**30) > 2**28
