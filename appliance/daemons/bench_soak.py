"""`insite bench soak`: whether the daemon grows, over many load and unload cycles and many requests.

Growth is judged after a warm-up of a tenth of both: allocators and caches fill first. Memory is the daemon's resident
set, the median of several looks.
"""

import statistics
import tempfile
import time
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
WARM_UP_SHARE = 0.1
CLIENTS = 16


@dataclass(frozen=True, slots=True)
class Soak:
    """How much: cycles of unload and load, and requests."""

    cycles: int = 1000
    requests: int = 100_000


def bench_soak(settings: Settings, soak: Soak) -> dict[str, Any]:
    """Load, unload and ask, and compare the daemon's memory before and after.

    Returns:
        `{"growth", "mib_after_warm_up", "mib_at_the_end", "cycles", "requests", "failures"}`; growth as a part, 0.02
        for 2 %.

    Raises:
        PackError: There is no pack.
    """
    manifest = first_pack(settings).manifest
    with (
        tempfile.TemporaryDirectory(prefix="insite-soak-") as folder,
        our_daemon(settings.packs_folder, Path(folder), trusted(settings)) as daemon,
    ):
        failures = _through(daemon, manifest, soak, WARM_UP_SHARE)
        before = _mib(daemon)
        failures += _through(daemon, manifest, soak, 1.0)
        after = _mib(daemon)
    return {
        "growth": after / before - 1,
        "mib_after_warm_up": before,
        "mib_at_the_end": after,
        "cycles": soak.cycles,
        "requests": soak.requests,
        "failures": failures,
    }


def _through(daemon: Running, manifest: PackManifest, soak: Soak, share: float) -> int:
    """Cycles first, then requests: some on new images, most on one image, which cost only a head."""
    with OipClient(daemon.target, LOAD_SECONDS) as client:
        for _ in range(int(soak.cycles * share)):
            client.unload_pack(manifest.name, LOAD_SECONDS)
            client.load_pack(manifest.name, LOAD_SECONDS)
    spec = manifest.input
    each = int(soak.requests * share) // CLIENTS
    order = {
        "target": daemon.target,
        "models": [manifest.model_name(manifest.guard)],
        "input_name": spec.name,
        "rows": spec.rows,
        "columns": spec.columns,
        "clients": CLIENTS,
        "shared": True,
    }
    fresh = child_json(LOAD, order | {"count": each // 20})
    known = child_json(LOAD, order | {"count": each - each // 20, "same_image": True})
    return sum([*fresh["failures"].values(), *known["failures"].values()])


def _mib(daemon: Running) -> float:
    looks = []
    for _ in range(LOOKS):
        looks.append(psutil.Process(daemon.process.pid).memory_info().rss / 2**20)
        time.sleep(0.2)
    return statistics.median(looks)
