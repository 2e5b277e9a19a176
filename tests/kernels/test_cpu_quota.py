"""CPU quotas of control groups, and what they do to the number of threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparseinfer.kernels import cpu_quota as quota_module
from sparseinfer.kernels import threads as threads_module
from sparseinfer.kernels.cpu_quota import cpu_quota
from sparseinfer.kernels.threads import physical_cores


@pytest.fixture
def groups(monkeypatch, tmp_path):
    """groups(lines of /proc/self/cgroup, {path below /sys/fs/cgroup: content})."""

    def make(lines: list[str], files: dict[str, str]) -> None:
        own = tmp_path / "self"
        own.write_text("".join(line + "\n" for line in lines))
        for name, content in files.items():
            path = tmp_path / "mount" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")
        monkeypatch.setattr(quota_module, "_GROUPS", own)
        monkeypatch.setattr(quota_module, "_MOUNT", tmp_path / "mount")

    return make


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000", None),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("100001 100000", 2),
        ("10000 100000", 1),
        ("0 100000", None),
        ("nonsense", None),
        ("1 2 3", None),
        ("200000 0", None),
    ],
)
def test_version_2(groups, content, expected):
    groups(["0::/"], {"cpu.max": content})
    assert cpu_quota() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", None), ("250000", 3), ("50000", 1)])
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_version_1(groups, mount, quota, expected):
    groups(
        ["12:cpuset:/", "4:cpu,cpuacct:/", "0::/"],
        {f"{mount}/cpu.cfs_quota_us": quota, f"{mount}/cpu.cfs_period_us": "100000"},
    )
    assert cpu_quota() == expected


def test_another_controller_does_not_count(groups):
    groups(["12:cpuset:/"], {"cpuset/cpu.cfs_quota_us": "1000", "cpuset/cpu.cfs_period_us": "1000"})
    assert cpu_quota() is None


def test_the_tightest_group_around_the_process_counts(groups):
    files = {"a/cpu.max": "300000 100000", "a/b/cpu.max": "500000 100000", "cpu.max": "max 100000"}
    groups(["0::/a/b"], files)
    assert cpu_quota() == 3


def test_a_path_of_the_host_falls_back_to_what_is_mounted(groups):
    groups(["0::/docker/0123456789ab"], {"cpu.max": "400000 100000"})
    assert cpu_quota() == 4


def test_half_a_version_1_group_has_no_say(groups):
    groups(["4:cpu:/"], {"cpu/cpu.cfs_quota_us": "100000"})
    assert cpu_quota() is None


def test_no_control_groups(monkeypatch, tmp_path):
    monkeypatch.setattr(quota_module, "_GROUPS", tmp_path / "none")
    assert cpu_quota() is None


def cores(folder: Path, count: int) -> None:
    for cpu in range(count):
        topology = folder / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text("0\n")
        (topology / "core_id").write_text(f"{cpu}\n")


@pytest.mark.parametrize(
    ("content", "expected"), [("150000 100000", 2), ("6400000 100000", 4), ("max 100000", 4)]
)
def test_threads_are_cores_within_the_quota(groups, monkeypatch, tmp_path, content, expected):
    cores(tmp_path / "topology", 4)
    monkeypatch.setattr(threads_module, "_TOPOLOGY", tmp_path / "topology")
    monkeypatch.setattr(threads_module.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    groups(["0::/"], {"cpu.max": content})
    assert physical_cores() == expected
