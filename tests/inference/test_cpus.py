"""How many CPUs a process may use: what its control groups leave to it."""

import os
from pathlib import Path

import pytest

from appliance.inference.cpus import MOST_THREADS, run_threads, usable_cpus


@pytest.fixture(autouse=True)
def _eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def count(root: Path, **limits: str) -> int:
    """CPUs of a process in `/outer/inner` with these `cpu.max` files, `__` for the slash."""
    for group, limit in limits.items():
        folder = root / group.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(limit)
    own = root / "self"
    own.write_text("1:cpu:/old\n0::/outer/inner\n")
    return usable_cpus(root, own)


def test_without_a_quota_the_affinity_counts(tmp_path: Path) -> None:
    """`max` and missing files limit nothing."""
    assert count(tmp_path, outer="max 100000\n") == 8


def test_the_tightest_group_counts(tmp_path: Path) -> None:
    """A quota of any group above the process counts; part of a CPU is left out."""
    assert count(tmp_path, outer="350000 100000\n", outer__inner="600000 100000\n") == 3


def test_there_is_always_one(tmp_path: Path) -> None:
    """Half a CPU still runs one thread."""
    assert count(tmp_path, outer__inner="50000 100000") == 1


@pytest.mark.parametrize("content", ["", "1 0", "a b", "100000"])
def test_a_file_that_says_nothing_limits_nothing(tmp_path: Path, content: str) -> None:
    """A kernel that writes something else is no reason not to start."""
    assert count(tmp_path, outer__inner=content) == 8


def test_a_machine_without_control_groups_has_its_affinity(tmp_path: Path) -> None:
    """No unified hierarchy, no limit."""
    assert usable_cpus(tmp_path, tmp_path / "missing") == 8
    (tmp_path / "v1").write_text("1:cpu:/old\n")
    assert usable_cpus(tmp_path, tmp_path / "v1") == 8


def test_a_large_machine_does_not_decide_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of a run follow the CPUs up to sixteen: the unit's limit on tasks is the same on every machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(128)))
    assert run_threads() <= MOST_THREADS == 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert run_threads() == 1
