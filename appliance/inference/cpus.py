"""How many CPUs this process may use: its affinity and its control group's quota, not what the machine has."""

import math
import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")

MOST_THREADS = 16
"""Threads of one run unless a setting says otherwise: several packs, each with a successor that is tried beside it,
must stay within the 128 tasks of the daemon's unit on a machine of any size."""


def run_threads() -> int:
    """Threads of one run of a graph where no setting names them."""
    return min(usable_cpus(), MOST_THREADS)


def usable_cpus(cgroup_root: Path = CGROUP_ROOT, own_cgroup: Path = OWN_CGROUP) -> int:
    """At least 1; a quota of two and a half CPUs counts as two.

    Args:
        cgroup_root: Where the unified hierarchy (cgroup v2) is mounted.
        own_cgroup: The file that says where in it this process is.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = _quota(cgroup_root, own_cgroup)
    return max(1, math.floor(min(allowed, quota)))


def _quota(root: Path, own: Path) -> float:
    """CPUs that every group from this process's own up to the root leaves to it; infinite without a limit."""
    try:
        line = next(line for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return math.inf
    group = root / line.removeprefix("0::").lstrip("/")
    inside = [group, *group.parents]
    return min((_limit(each / "cpu.max") for each in inside if each.is_relative_to(root)), default=math.inf)


def _limit(file: Path) -> float:
    try:
        quota, period = file.read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
