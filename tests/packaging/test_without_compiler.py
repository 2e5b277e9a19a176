"""The build where there is no compiler: it succeeds, says so, and installs nothing native."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CMAKE = shutil.which("cmake")
COMPILER = shutil.which(os.environ.get("CXX") or "c++")

pytestmark = pytest.mark.skipif(CMAKE is None, reason="needs cmake")


def cmake(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(CMAKE), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def configure(build: Path, compiler: str) -> subprocess.CompletedProcess[str]:
    # Ninja where the build itself would take it, else make.
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    return cmake(
        "-S", ROOT, "-B", build, *generator, f"-DPython_EXECUTABLE={sys.executable}", CXX=compiler
    )


@pytest.mark.parametrize("compiler", ["/nonexistent/c++", "false"])
def test_it_installs_without_native_kernels_and_says_so(tmp_path, compiler):
    if compiler == "false" and shutil.which("false") is None:
        pytest.skip("needs a program that fails")
    configured = configure(tmp_path / "build", compiler)
    assert configured.returncode == 0, configured.stderr
    assert "WITHOUT its native kernels" in " ".join(configured.stderr.split())
    assert cmake("--build", tmp_path / "build").returncode == 0
    installed = cmake("--install", tmp_path / "build", "--prefix", tmp_path / "installed")
    assert installed.returncode == 0, installed.stderr
    assert not list(tmp_path.glob("installed/**/*.so"))


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_a_compiler_that_comes_later_is_found_in_the_same_build_folder(tmp_path):
    configure(tmp_path / "build", "/nonexistent/c++")
    configured = configure(tmp_path / "build", str(COMPILER))
    # What follows needs nanobind, which only a build environment is sure to have.
    assert "CXX compiler identification" in configured.stdout, configured.stderr
    assert "WITHOUT its native kernels" not in " ".join(configured.stderr.split())
