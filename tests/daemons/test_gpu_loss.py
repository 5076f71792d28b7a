"""A GPU that is lost while packs are served costs a few answers, not the service: the CPU takes over."""

import json
import time
from collections.abc import Mapping
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
from appliance.inference.client import OipClient
from appliance.inference.nvml import GpuMonitor
from appliance.inference.onnxruntime_cuda import NAME, OnnxRuntimeCuda, OnnxRuntimeCudaEngine, OrtTensor
from appliance.inference.runner import Choice
from appliance.inference.scheduler import Batching
from appliance.inference.tensors import Tensor
from tests.fakes.fake_gpu import FakeNvml
from tests.fakes.inference_daemon import running, settings_for
from tests.fakes.tiny_pack import TinyPack, bright_picture, rewritten

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
        (status,) = json.loads((settings.state / "run" / "packs.json").read_text())
        assert status["state"] == "active"
        assert "XIDs [79]" in status["reason"]
    assert refreshed == ["chest-xray"]


def test_a_pack_is_moved_once_and_only_from_a_gpu_that_is_not_sound() -> None:
    """A failed run on a sound GPU is the request's own; what fails again after the move is not moved for ever."""
    moved, said = list[str](), list[GpuState | None]([SOUND, SOUND, LOST, None])

    def refresh(pack: str) -> None:
        moved.append(pack)
        raise RuntimeError(pack)

    with GpuLoss(lambda: said.pop(0), refresh) as loss:
        for pack in ("a", "b", "a", "a", "b", "b"):
            loss.failed(pack)
    assert (moved, said) == (["a", "b"], [])
