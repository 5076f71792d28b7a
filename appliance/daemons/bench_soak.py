"""`insite bench soak`: whether the daemon grows, over many load and unload cycles and many requests.

Cycles and requests come in rounds, and after each the daemon's resident set is looked at. A session of ONNX Runtime
takes memory with its first run, and a pack has two for each graph: for batches that are alone, and for several at once.
So each round ends with a crowd and then with one client alone, both asking every task, so that every look finds all of
them at work. What is left moves by a few percent, up and down, as allocators fill and give back; so growth is the
median of the last third of the rounds against the median of the first third, after a warm-up, and every look is told.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from appliance.daemons.bench_background import LOAD
from appliance.daemons.bench_inference import first_pack
from appliance.daemons.bench_peers import Running, child_json, our_daemon, trusted
from appliance.domain.manifest import PackManifest
from appliance.inference.client import OipClient
from appliance.settings import Settings

LOAD_SECONDS = 300.0
LOOKS = 5
MOST_ROUNDS, LEAST_ROUNDS, WARM_UP_ROUNDS = 33, 6, 3
CYCLES_A_ROUND = 3
"""At least, unless there are too few for a trend."""
CLIENTS = 16
FRESH_SHARE = 20
"""Of so many requests one brings a new image; the others cost only a head."""
ALONE = 4
"""Images of the client that asks alone."""


@dataclass(frozen=True, slots=True)
class Soak:
    """How much: cycles of unload and load, and requests."""

    cycles: int = 1000
    requests: int = 100_000


def bench_soak(settings: Settings, soak: Soak) -> dict[str, Any]:
    """Load, unload and ask, and compare what the daemon holds after the first rounds and after the last.

    Returns:
        `{"growth", "mib", "cycles", "requests", "failures"}`; growth as a part, 0.02 for 2 %; `mib` after each round.

    Raises:
        PackError: There is no pack.
    """
    manifest = first_pack(settings).manifest
    mib: list[float] = []
    failures = 0
    with (
        tempfile.TemporaryDirectory(prefix="insite-soak-") as folder,
        our_daemon(settings.packs_folder, Path(folder), trusted(settings)) as daemon,
    ):
        rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, soak.cycles // CYCLES_A_ROUND))
        for number in range(rounds):
            _cycle(daemon, manifest, _part(soak.cycles, number, rounds))
            failures += _ask(daemon, manifest, _part(soak.requests, number, rounds))
            mib.append(_mib(daemon))
    return {
        "growth": growth_of(mib),
        "mib": mib,
        "cycles": soak.cycles,
        "requests": soak.requests,
        "failures": failures,
    }


def growth_of(mib: Sequence[float]) -> float:
    """How much more there is in the last third of the rounds than in the first, as a part; the warm-up left out."""
    steady = mib[WARM_UP_ROUNDS:]
    third = len(steady) // 3
    return statistics.median(steady[-third:]) / statistics.median(steady[:third]) - 1


def _part(whole: int, number: int, rounds: int) -> int:
    """What one round does, so that all do the whole."""
    return whole * (number + 1) // rounds - whole * number // rounds


def _cycle(daemon: Running, manifest: PackManifest, cycles: int) -> None:
    with OipClient(daemon.target, LOAD_SECONDS) as client:
        for _ in range(cycles):
            client.unload_pack(manifest.name, LOAD_SECONDS)
            client.load_pack(manifest.name, LOAD_SECONDS)


def _ask(daemon: Running, manifest: PackManifest, requests: int) -> int:
    """Send at least so many requests by shared memory, the last of them by one client alone; say how many failed."""
    spec = manifest.input
    every = {
        "target": daemon.target,
        "models": [manifest.model_name(task.name) for task in manifest.tasks],
        "input_name": spec.name,
        "rows": spec.rows,
        "columns": spec.columns,
        "clients": CLIENTS,
        "shared": True,
    }
    each = math.ceil(requests / CLIENTS)
    fresh = math.ceil(each / FRESH_SHARE / len(manifest.tasks))
    known = max(1, each - fresh * len(manifest.tasks))
    found = [
        child_json(LOAD, every | {"count": known, "same_image": True, "models": [manifest.model_name(manifest.guard)]}),
        child_json(LOAD, every | {"count": fresh}),
        child_json(LOAD, every | {"count": ALONE, "clients": 1}),
    ]
    return sum(sum(one["failures"].values()) for one in found)


def _mib(daemon: Running) -> float:
    looks = []
    for _ in range(LOOKS):
        looks.append(psutil.Process(daemon.process.pid).memory_info().rss / 2**20)
        time.sleep(0.2)
    return statistics.median(looks)
