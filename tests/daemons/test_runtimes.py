"""Runtimes and engines of a machine with a GPU, on fakes: what is built, what is offered, whose the folder is."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime
import pytest

from appliance.daemons.bench_gpu import bench_gpu
from appliance.daemons.runtimes import ENGINES_FOLDER, engine_store, orders_for, runtimes_of, write_progress
from appliance.domain.engine_file import EngineHost
from appliance.domain.errors import EngineFileError, PackError, SettingsError
from appliance.domain.gpu import GpuState
from appliance.domain.manifest import EncoderVariant, VerifiedPack
from appliance.governance.serving import serve_best
from appliance.inference.engine_builds import BuildProgress
from appliance.inference.engine_store import EngineStore
from appliance.inference.loaded_pack import LoadedPack
from appliance.inference.nvml import GpuMonitor
from appliance.inference.onnxruntime_cpu import OnnxRuntimeCpu
from appliance.inference.onnxruntime_cuda import OnnxRuntimeCuda
from appliance.inference.runner import PackRunner
from appliance.inference.tensorrt_engine import TENSORRT_RTX, TensorRt
from appliance.packs.open import open_pack
from tests.fakes.fake_gpu import FAKE_TENSORRT, HOST, FakeCuda, FakeNvml, fake_engine
from tests.fakes.inference_daemon import running, settings_for
from tests.fakes.tiny_pack import bright_picture, rewritten, tiny_pack

GPU = GpuState("NVIDIA L4", "GPU-1", "8.9", "580", 24 << 30, 20 << 30)


@pytest.fixture
def pack(tmp_path: Path) -> VerifiedPack:
    """A pack that may be served by TensorRT for RTX or on the CPU."""
    made = tiny_pack(tmp_path / "packs")
    variants = (EncoderVariant("fp32", "encoder.onnx", ("tensorrt-rtx", "onnxruntime-cpu")),)
    again = rewritten(made, variants=variants)
    return open_pack(again.folder, [again.keys.public], allow_unvalidated=True)


def test_on_a_gpu_encoder_and_heads_are_served_by_engines(pack: VerifiedPack, tmp_path: Path) -> None:
    """With an engine for each graph the pack reproduces its golden cases on the (fake) GPU, features staying there."""
    for path in pack.manifest.files:
        if path.endswith(".onnx"):
            fake_engine(tmp_path / "engines", (pack.folder / path).read_bytes())
    cuda = FakeCuda()
    store = EngineStore(tmp_path / "engines", (), lambda _: None)
    runtime = TensorRt(
        TENSORRT_RTX, store, HOST, lambda: cuda, gpu=lambda: GPU, trial=lambda *_: None, library=FAKE_TENSORRT
    )
    with PackRunner((), runtimes=[runtime, OnnxRuntimeCpu(1)]) as runner:
        serving = serve_best(pack, runner)
        assert serving.rejected == ()
        assert runner.describe("chest-xray.lungs").runtime == TENSORRT_RTX
        on_gpu = runner.infer("chest-xray.lungs", bright_picture()).outputs["mask"]
    with PackRunner([pack], 1) as runner:
        on_cpu = runner.infer("chest-xray.lungs", bright_picture()).outputs["mask"]
    assert abs(on_gpu - on_cpu).max() < 1e-5


def test_what_a_gpu_lacks_is_ordered(pack: VerifiedPack, tmp_path: Path) -> None:
    """Each graph without a fitting engine is built for exactly this GPU; on a machine without one nothing is."""
    graphs = {path for path in pack.manifest.files if path.endswith(".onnx")}
    store = EngineStore(tmp_path / "engines", (), lambda _: None)
    orders = list(orders_for(pack, store, HOST))
    assert {str(order.graph.relative_to(pack.folder)) for order in orders} == graphs
    assert {order.plan.compute_capabilities for order in orders} == {("8.9",)}
    fake_engine(tmp_path / "engines", (pack.folder / "encoder.onnx").read_bytes())
    assert len(list(orders_for(pack, store, HOST))) == len(graphs) - 1
    newer = EngineHost((("tensorrt-rtx", "1.8.0.1"),), "8.9")
    assert len(list(orders_for(pack, store, newer))) == len(graphs)
    for none_for in (None, "9.0"):  # no GPU, and one that the library does not compile for
        assert list(orders_for(pack, store, dataclasses.replace(HOST, compute_capability=none_for))) == []


def test_the_best_runtime_comes_first_and_the_cpu_is_always_there(tmp_path: Path) -> None:
    """A sound GPU brings its runtimes; those of one that reported errors, or is lost, refuse to compute and say why."""
    settings = settings_for(tmp_path)
    store = engine_store(settings)
    names = [each.name for each in runtimes_of(settings, HOST, store, lambda: GPU, FAKE_TENSORRT)]
    assert names == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu"]
    doubtful = dataclasses.replace(GPU, ecc_errors=1)
    for state, reason in ((doubtful, "reported errors"), (None, "does not answer")):
        *_, cuda, cpu = runtimes_of(settings, HOST, store, lambda state=state: state, FAKE_TENSORRT)
        assert (cuda.name, cpu.name) == ("onnxruntime-cuda", "onnxruntime-cpu")
        with pytest.raises(EngineFileError, match=reason):
            cuda.load(b"", title="encoder.onnx", precision="fp32")
    assert [each.name for each in runtimes_of(settings, EngineHost((), None), store, lambda: None)] == [
        "onnxruntime-cpu"
    ]


def test_the_graphs_of_a_pack_share_the_gpus_memory(
    pack: VerifiedPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tasks a pack has, its encoder has most of what is free for a pack, and all together no more."""
    session, limits = onnxruntime.InferenceSession, list[int]()

    def on_cpu(graph: bytes, *_: object, providers: Sequence[tuple[str, Mapping[str, int]]], **__: object) -> object:
        limits.append(providers[0][1]["gpu_mem_limit"])
        made = session(graph, providers=["CPUExecutionProvider"])
        made.get_providers = lambda: ["CUDAExecutionProvider"]
        return made

    settings = settings_for(tmp_path)
    *_, cuda, _ = runtimes_of(settings, HOST, engine_store(settings), lambda: GPU, FAKE_TENSORRT)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", on_cpu)
    LoadedPack(pack, (pack.manifest.variants[0], cuda)).close()
    assert len(limits) == 1 + len(pack.manifest.tasks) == 5
    budget = 0.5 * GPU.free_bytes
    assert (limits[0], set(limits[1:])) == (budget / 2, {budget / 8})
    for heads in (1, 4, 9, 100):
        encoder, head = (OnnxRuntimeCuda(1 << 30).shared_by(heads)[part]._budget for part in (0, 1))
        assert encoder >= 1 << 29
        assert head <= 1 << 27
        assert encoder + heads * head == 1 << 30


def test_a_folder_that_others_can_write_is_not_trusted(tmp_path: Path) -> None:
    """Engines built here need no signature, so nobody else may put one there."""
    settings = settings_for(tmp_path)
    engine_store(settings)
    folder = settings.state / ENGINES_FOLDER
    folder.chmod(0o770)
    with pytest.raises(SettingsError, match="written by others"):
        engine_store(settings)


def test_what_a_killed_builder_left_is_cleared_at_the_next_start(tmp_path: Path) -> None:
    """Half-written engines and descriptions go; whole ones, and files of others, stay."""
    settings = settings_for(tmp_path)
    folder = engine_store(settings).built
    engine = fake_engine(folder, b"graph")
    for left in (f".{engine.name}.4711", f".{engine.name}.json.4711"):
        (folder / left).write_bytes(b"half")
    (folder / ".notes.4711").touch()
    with running(settings):
        pass
    assert {each.name for each in folder.iterdir()} == {engine.name, f"{engine.name}.json", ".notes.4711"}


def test_an_order_knows_when_its_engine_is_good(pack: VerifiedPack, tmp_path: Path) -> None:
    """What was ordered is asked for again before it is built: it may have come meanwhile."""
    store = EngineStore(tmp_path / "engines", (), lambda _: None)
    first = next(iter(orders_for(pack, store, HOST)))
    assert first.is_good is not None
    assert not first.is_good()
    fake_engine(tmp_path / "engines", first.graph.read_bytes())
    assert first.is_good()


def test_progress_is_left_where_the_page_reads_it(tmp_path: Path) -> None:
    """One file, replaced in one move."""
    write_progress(tmp_path / "engines.json", [BuildProgress("chest-xray", "e", "building", "Tactics", 1, 2)])
    (entry,) = json.loads((tmp_path / "engines.json").read_text())
    assert (entry["state"], entry["phase"], entry["steps"]) == ("building", "Tactics", 2)
    assert [file.name for file in tmp_path.iterdir()] == ["engines.json"]


def test_the_gpu_bench_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one it says why; with one every way to serve a pack is tried, and a refusal is part of the answer."""
    pack = tiny_pack(tmp_path / "packs")
    variants = (EncoderVariant("fp32", "encoder.onnx", ("tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu")),)
    rewritten(pack, variants=variants)
    settings = settings_for(tmp_path, pack)
    with GpuMonitor() as monitor:
        if monitor.state() is None:
            with pytest.raises(PackError, match="no GPU to measure"):
                bench_gpu(settings)
    with GpuMonitor(library=FakeNvml()) as monitor:
        monkeypatch.setattr("appliance.daemons.bench_gpu.GpuMonitor", lambda: GpuMonitor(library=FakeNvml()))
        found = bench_gpu(settings)
    assert found["gpu"]["name"] == "NVIDIA L4"
    by_runtime = {each["runtime"]: each for each in found["tried"]}
    assert set(by_runtime["onnxruntime-cpu"]["seconds"]) == {"1", "2", "4", "8"}
    assert "until it is built" in by_runtime["tensorrt-rtx"]["refused"]
