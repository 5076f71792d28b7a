"""Which runtimes this machine has, best first, and the engines that are to be built for its GPU."""

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from appliance.domain.engine_file import EngineHost
from appliance.domain.errors import EngineFileError, SettingsError
from appliance.domain.gpu import GpuState
from appliance.domain.manifest import VerifiedPack
from appliance.inference.cpus import run_threads
from appliance.inference.cuda import Cuda, CudaRuntime
from appliance.inference.engine import Runtime
from appliance.inference.engine_build import PORTABLE, SUFFIX, BuildPlan
from appliance.inference.engine_builds import BuildOrder, BuildProgress
from appliance.inference.engine_file import checked_engine
from appliance.inference.engine_store import EngineStore
from appliance.inference.engine_trial import try_engine
from appliance.inference.onnxruntime_cpu import Crowd, OnnxRuntimeCpu
from appliance.inference.onnxruntime_cuda import OnnxRuntimeCuda
from appliance.inference.sound_gpu import check_sound
from appliance.inference.tensorrt_engine import TENSORRT_RTX, TensorRt
from appliance.packs.signing import verify_file
from appliance.settings import Settings

ENGINES_FOLDER = Path("run", "engines")
PROGRESS_FILE = Path("run", "engines.json")
ARENA_SHARE = 0.5
"""Part of the GPU's free memory that the graphs of one pack may take together on ONNX Runtime."""


def engine_store(settings: Settings) -> EngineStore:
    """Engines built here, in a folder that only this service can write, and signed ones beside the packs.

    Raises:
        SettingsError: The folder belongs to somebody else: what lies in it can't be trusted.
    """
    folder = settings.state / ENGINES_FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise SettingsError(f"{folder} can be written by others than this service.", "Remove it.")
    keys = settings.packs.trusted_keys
    return EngineStore(folder, (settings.packs_folder,), lambda file: verify_file(file, keys))


def runtimes_of(
    settings: Settings,
    host: EngineHost,
    store: EngineStore,
    gpu: Callable[[], GpuState | None],
    library: Any = None,
    *,
    crowd: Crowd | None = None,
) -> tuple[Runtime, ...]:
    """What this machine can run graphs on, best first; ONNX Runtime on the CPU is always among them.

    Args:
        crowd: Shared by all who compute on this machine's CPUs.
    """
    found: list[Runtime] = []
    for name, _ in host.runtimes:
        cuda: Callable[[], Cuda] = cache(CudaRuntime)
        trial = partial(try_engine, name)
        found.append(TensorRt(name, store, host, cuda, gpu=gpu, trial=trial, library=library))
    if host.compute_capability is not None:  # a GPU that was lost since is offered, to be refused with the reason
        state = gpu()
        budget = int(state.free_bytes * ARENA_SHARE) if state is not None else 0
        found.append(OnnxRuntimeCuda(budget, check=lambda: check_sound(gpu())))
    found.append(OnnxRuntimeCpu(settings.inference.threads or run_threads(), crowd))
    return tuple(found)


def orders_for(pack: VerifiedPack, store: EngineStore, host: EngineHost) -> Iterator[BuildOrder]:
    """The engines of TensorRT for RTX that a pack asks for and this GPU lacks: none, outdated, or damaged.

    For a GPU that the library does not compile for, none: ONNX Runtime serves it for good.
    """
    if host.compute_capability not in PORTABLE or host.version(TENSORRT_RTX) is None:
        return
    for variant in pack.manifest.variants:
        if TENSORRT_RTX in variant.runtimes:
            for path in (variant.file, *(task.head for task in pack.manifest.tasks)):
                source = pack.manifest.files[path]
                is_good = partial(_is_good, store, source, host)
                if not is_good():
                    plan = BuildPlan(variant.precision, (host.compute_capability,))
                    engine = store.place_for(source, SUFFIX)
                    yield BuildOrder(pack.manifest.name, pack.folder / path, engine, plan, is_good)


def write_progress(file: Path, progress: Sequence[BuildProgress]) -> None:
    """Put how far the builds are where the page and `insite status` find it, in one move."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(json.dumps([asdict(each) for each in progress], indent=2) + "\n", encoding="utf-8")
    draft.replace(file)


def _is_good(store: EngineStore, source: str, host: EngineHost) -> bool:
    engine = store.find(source, TENSORRT_RTX)
    if engine is None:
        return False
    try:
        checked_engine(engine, source, host)
    except EngineFileError:
        return False
    return True
