"""`insite bench gpu`: what the GPU is, which runtimes may use it, and how fast each serves the installed packs."""

from collections.abc import Iterator
from typing import Any

from appliance.daemons.runtimes import engine_store, runtimes_of
from appliance.domain.errors import InsiteError, PackError
from appliance.domain.manifest import VerifiedPack
from appliance.governance.activation import activate
from appliance.inference.latency import latency_table
from appliance.inference.nvml import GpuMonitor
from appliance.inference.runner import PackRunner
from appliance.inference.tensorrt_engine import host_of
from appliance.packs.open import installed_packs
from appliance.settings import Settings


def bench_gpu(settings: Settings) -> dict[str, Any]:
    """Try every runtime on every pack: does it reproduce the golden cases, and how long does a batch take.

    Returns:
        `{"gpu": {…}, "runtimes": […], "tried": [{"pack", "precision", "runtime", "seconds", "refused"}]}`.

    Raises:
        PackError: There is no GPU; says why.
    """
    with GpuMonitor() as monitor:
        state = monitor.state()
        if state is None:
            raise PackError(f"There is no GPU to measure: {monitor.problem}.", "`insite bench inference` needs none.")
        host = host_of(state)
        runtimes = runtimes_of(settings, host, engine_store(settings), monitor.state)
        found = installed_packs(settings.packs_folder, settings.packs.trusted_keys, allow_unvalidated=True)
        packs = [each for each in found if isinstance(each, VerifiedPack)]
        tried = [one for pack in packs for one in _tried(pack, PackRunner((), runtimes=runtimes))]
        return {
            "gpu": {
                "name": state.name,
                "compute_capability": state.compute_capability,
                "driver": state.driver,
                "free_mib": state.free_bytes >> 20,
                "temperature": state.temperature,
                "throttled": list(state.throttled),
                "sound": state.sound,
            },
            "runtimes": [{"name": each.name, "version": each.version} for each in runtimes],
            "tried": tried,
        }


def _tried(pack: VerifiedPack, runner: PackRunner) -> Iterator[dict[str, Any]]:
    with runner:
        for choice in runner.choices(pack):
            line: dict[str, Any] = {
                "pack": pack.manifest.name,
                "precision": choice.precision,
                "runtime": choice.runtime,
                "seconds": {},
                "refused": "",
            }
            try:
                runner.add(pack, choice)
                activate(pack, runner)
                loaded = runner.give(pack.manifest.name)
                line["seconds"] = {str(batch): seconds for batch, seconds in latency_table(loaded).items()}
                loaded.close()
            except InsiteError as error:
                runner.remove(pack.manifest.name)
                line["refused"] = str(error)
            yield line
