"""A GPU that is lost while packs are served costs a few answers, not the service: the CPU takes over."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event

import onnxruntime
import pytest

from appliance.daemons import inference, runtimes
from appliance.daemons.gpu_loss import GpuLoss
from appliance.daemons.pack_keeper import MEASURED_FILE, PackKeeper
from appliance.domain.errors import InferenceError
from appliance.domain.gpu import GpuState
from appliance.domain.manifest import EncoderVariant
from appliance.governance.measured import Measured, machine_name
from appliance.governance.selection import Selected, write_selection
from appliance.inference.client import OipClient
from appliance.inference.nvml import GpuMonitor
from appliance.inference.onnxruntime_cpu import OnnxRuntimeCpu
from appliance.inference.onnxruntime_cuda import NAME, OnnxRuntimeCuda, OnnxRuntimeCudaEngine, OrtTensor
from appliance.inference.runner import Choice, PackRunner
from appliance.inference.scheduler import Batching
from appliance.inference.sound_gpu import check_sound
from appliance.inference.tensors import Tensor
from appliance.telemetry import logger_for
from tests.fakes.fake_gpu import FakeNvml
from tests.fakes.inference_daemon import running, settings_for
from tests.fakes.tiny_pack import TinyPack, bright_picture, rewritten, tiny_pack

SOUND = GpuState("NVIDIA L4", "GPU-1", "8.9", "580", 24 << 30, 20 << 30)
LOST = GpuState("NVIDIA L4", "GPU-1", "8.9", "580", 24 << 30, 20 << 30, xid_errors=(79,))


@dataclass
class Gpu(FakeNvml):
    """One whose driver reports errors while it is watched."""

    events: list[int] = field(default_factory=list)

    def nvmlEventSetCreate(self) -> list[int]:  # noqa: N802 - the library's name
        """The events that wait, and those to come."""
        return self.events


class OnGpu(OnnxRuntimeCuda):
    """ONNX Runtime's binding on the CPU's provider, under the GPU's name, until the GPU is lost."""

    def __init__(self, budget: int, *, lost: Event, **more: object) -> None:
        super().__init__(budget, **{**more, "provider": "CPUExecutionProvider", "device": "cpu"})  # type: ignore[arg-type]
        self._lost = lost

    def shared_by(self, heads: int) -> tuple[OnnxRuntimeCuda, OnnxRuntimeCuda]:
        """Memory is no matter here."""
        return self, self

    def load(self, graph: bytes, *, title: str, precision: str) -> OnnxRuntimeCudaEngine:
        """Load for real."""
        engine = super().load(graph, title=title, precision=precision)
        computed = engine._computed

        def until_lost(inputs: Mapping[str, Tensor]) -> dict[str, OrtTensor]:
            if self._lost.is_set():
                raise InferenceError("CUDA failed: an unrecoverable error.", "See the log.")
            return computed(inputs)

        engine._computed = until_lost  # type: ignore[method-assign]
        return engine


def answers(client: OipClient) -> bool:
    """Ask once."""
    try:
        return client.infer("chest-xray.guard", bright_picture()).provenance.pack == "chest-xray"
    except InferenceError:
        return False


@pytest.mark.timeout(600)
def test_the_cpu_takes_over_from_a_gpu_that_is_lost(
    tmp_path: Path, pack: TinyPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an XID 79 the pack is moved, once, without a restart; the list of packs says why."""
    gpu, lost, refreshed = Gpu(), Event(), list[str]()
    refresh = PackKeeper.refresh

    def counted(keeper: PackKeeper, name: str) -> None:
        refreshed.append(name)
        refresh(keeper, name)

    monkeypatch.setattr(inference, "GpuMonitor", partial(GpuMonitor, library=gpu))
    monkeypatch.setattr(runtimes, "OnnxRuntimeCuda", partial(OnGpu, lost=lost))
    monkeypatch.setattr(PackKeeper, "refresh", counted)
    again = rewritten(pack, variants=(EncoderVariant("fp32", "encoder.onnx", (NAME, "onnxruntime-cpu")),))
    settings = settings_for(tmp_path, again)
    (tmp_path / "run").mkdir()
    measured = Measured(settings.state / MEASURED_FILE, machine_name(1))
    for runtime, seconds in ((NAME, 0.001), ("onnxruntime-cpu", 0.01)):
        choice = Choice("fp32", runtime, onnxruntime.__version__)
        measured.keep(again.manifest.digest, choice, Batching(1, 0.0, seconds))
    with running(settings) as client:
        assert answers(client)
        lost.set()
        gpu.events.append(79)
        assert not answers(client)
        deadline = time.monotonic() + 300
        while not answers(client):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        list_ = settings.state / "run" / "packs.json"
        while "XIDs [79]" not in (status := json.loads(list_.read_text())[0])["reason"]:  # it serves, then is listed
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert status["state"] == "active"
    assert refreshed == ["chest-xray"]


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds, or twenty seconds."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_pack_is_moved_only_from_a_gpu_that_is_not_sound() -> None:
    """A failed run on a sound GPU is the request's own; one that is told after the move moves nothing."""
    moved, on_gpu, said = list[str](), {"a", "b"}, list[GpuState | None]([SOUND, SOUND, LOST, None])

    def move(pack: str) -> None:
        moved.append(pack)
        on_gpu.remove(pack)

    with GpuLoss(lambda: said.pop(0), move, on_gpu.__contains__) as loss:
        for pack in ("a", "b", "a", "a", "b", "b"):
            loss.failed(pack)
    assert (moved, said) == (["a", "b"], [])


def test_a_pack_that_is_back_on_the_gpu_is_moved_again() -> None:
    """A second loss counts as the first did."""
    moved, on_gpu = list[str](), {"a"}

    def move(pack: str) -> None:
        moved.append(pack)
        on_gpu.remove(pack)

    with GpuLoss(lambda: LOST, move, on_gpu.__contains__) as loss:
        loss.failed("a")
        wait_for(lambda: not on_gpu)
        on_gpu.add("a")
        loss.failed("a")
    assert moved == ["a", "a"]


def test_a_move_that_fails_is_tried_again_after_a_pause() -> None:
    """Whether it raises or changes nothing; by itself, no faster however often the pack fails, and others go on."""
    moved, on_gpu, times = list[str](), {"a", "b"}, list[float]()

    def move(pack: str) -> None:
        moved.append(pack)
        if pack == "b":
            on_gpu.remove(pack)
            return
        times.append(time.monotonic())
        if len(times) == 1:
            raise RuntimeError(pack)
        if len(times) == 3:
            on_gpu.remove(pack)

    with GpuLoss(lambda: LOST, move, on_gpu.__contains__, pause=0.2) as loss:
        for pack in ("a", "a", "a", "b", "a"):
            loss.failed(pack)
        wait_for(lambda: not on_gpu)
        assert times[1] - times[0] >= 0.2
        assert times[2] - times[1] >= 0.4
        assert moved == ["a", "b", "a", "a"]
        wait_for(lambda: not loss._pauses)
        assert loss._again_at == {}


def test_a_gpu_that_is_sound_again_keeps_its_pack() -> None:
    """It was reset while a move waited for its second try."""
    states, moved = list[GpuState]([LOST, SOUND]), list[str]()
    with GpuLoss(lambda: states.pop(0), moved.append, lambda _: True, pause=0.01) as loss:
        loss.failed("a")
        wait_for(lambda: not states and not loss._pauses)
    assert moved == ["a"]


def test_a_shadow_leaves_the_gpu_with_its_pack(tmp_path: Path, pack: TinyPack) -> None:
    """It would fail unseen for ever: it runs on the CPU, or not at all."""
    variants = (EncoderVariant("fp32", "encoder.onnx", (NAME, "onnxruntime-cpu")),)
    again = rewritten(pack, variants=variants)
    second = rewritten(tiny_pack(tmp_path / "two", release=2, keys=pack.keys), variants=variants)
    second.folder.rename(tmp_path / "packs" / "chest-xray-2")
    settings = settings_for(tmp_path, again)
    write_selection(settings.packs_folder, {"chest-xray": Selected(active=1, shadow=2)})
    lost = Event()

    def check() -> None:
        if lost.is_set():
            check_sound(LOST)

    (tmp_path / "run").mkdir()
    measured = Measured(settings.state / MEASURED_FILE, machine_name(1))
    for manifest in (again.manifest, second.manifest):
        for runtime, seconds in ((NAME, 0.001), ("onnxruntime-cpu", 0.01)):
            measured.keep(manifest.digest, Choice("fp32", runtime, onnxruntime.__version__), Batching(1, 0.0, seconds))
    both = [OnGpu(1 << 30, lost=lost, check=check), OnnxRuntimeCpu(1)]
    with PackRunner((), runtimes=both) as runner:
        keeper = PackKeeper(settings, runner, lambda: PackRunner((), runtimes=both), logger_for("test"))
        keeper.start(Event())
        assert (runner.on_device("chest-xray"), runner.shadow_on_device("chest-xray")) == (True, True)
        lost.set()
        keeper.move("chest-xray")
        assert (runner.on_device("chest-xray"), runner.shadow_on_device("chest-xray")) == (False, False)
        assert [each.release for each in runner.shadows()] == [2]
    assert {each.release: each.state for each in keeper.statuses()} == {1: "active", 2: "shadow"}
