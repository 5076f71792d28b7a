"""The GPU's runtimes pass the suite of every runtime, on fakes where there is no GPU."""

import gc
import hashlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from appliance.domain.engine_file import EngineHost, EngineRefusal
from appliance.domain.errors import EngineFileError, PackContentError, SignatureError
from appliance.domain.gpu import GpuState
from appliance.governance.installing import prepare_folder
from appliance.inference.cuda import CudaRuntime, DeviceArray, _loaded, load_beside
from appliance.inference.engine_build import PORTABLE, SUFFIX, BuildPlan, build_engine
from appliance.inference.engine_store import EngineStore
from appliance.inference.engine_trial import try_engine
from appliance.inference.nvml import GpuMonitor
from appliance.inference.onnxruntime_cuda import OnnxRuntimeCuda, OrtTensor
from appliance.inference.tensorrt_engine import TENSORRT, TENSORRT_RTX, TensorRt, host_of
from appliance.packs.signing import generate_keys, sign_file, verify_file
from tests.contracts.engine_contract import EngineContract
from tests.fakes.fake_gpu import FAKE_TENSORRT, HOST, FakeCuda, fake_engine
from tests.fakes.tiny_pack import bright_picture, encoder_graph

GRAPH = encoder_graph().SerializeToString()
DAMAGED = (
    b"",
    b"not a graph",
    GRAPH[:-100],
    GRAPH.replace(b"image", b"im\xe1ge"),
)


def tensorrt(
    folder: Path,
    *,
    host: EngineHost = HOST,
    free: int = 6 << 30,
    xids: tuple[int, ...] = (),
    answers: bool = True,
    trial: Callable[[str, bytes], None] = lambda *_: None,
    name: str = TENSORRT_RTX,
) -> tuple[TensorRt, FakeCuda]:
    """The runtime on a fake GPU, with the engines that lie in a folder."""
    cuda = FakeCuda()
    state = GpuState("GPU", "GPU-1", "8.9", "580", 8 << 30, free, xid_errors=xids)
    store = EngineStore(folder, (), lambda _: None)
    runtime = TensorRt(
        name,
        store,
        host,
        lambda: cuda,
        gpu=lambda: state if answers else None,
        trial=trial,
        library=FAKE_TENSORRT,
    )
    return runtime, cuda


class TestTensorRt(EngineContract):
    """The suite, on engines of the fake that were built from the suite's graphs, for both libraries."""

    @pytest.fixture(params=[TENSORRT, TENSORRT_RTX])
    def runtime(self, tmp_path: Path, request: pytest.FixtureRequest) -> TensorRt:
        """Engines for every graph of the suite."""
        for graph in (GRAPH, *DAMAGED):
            fake_engine(tmp_path, graph, request.param)
        return tensorrt(tmp_path, name=request.param)[0]


class TestOnnxRuntimeBound(EngineContract):
    """The suite on bound tensors; on a machine without CUDA the same binding runs on the CPU's provider."""

    @pytest.fixture
    def runtime(self) -> OnnxRuntimeCuda:
        """The binding, on this machine's device."""
        return OnnxRuntimeCuda(1 << 30, provider="CPUExecutionProvider", device="cpu")


@pytest.mark.gpu
class TestOnnxRuntimeCuda(EngineContract):
    """The suite on a real GPU."""

    @pytest.fixture
    def runtime(self) -> OnnxRuntimeCuda:
        """The first GPU."""
        try:
            CudaRuntime()
        except EngineFileError as error:
            pytest.skip(f"no GPU: {error}")
        return OnnxRuntimeCuda(1 << 30)


@pytest.mark.gpu
class TestTensorRtRtxOnItsGpu(EngineContract):
    """The suite on a real GPU, with an engine that is built for it."""

    @pytest.fixture
    def runtime(self, tmp_path: Path) -> Iterator[TensorRt]:
        """The first GPU, and the real library."""
        with GpuMonitor() as monitor:
            state = monitor.state()
            if state is None:
                pytest.skip(f"no GPU: {monitor.problem}")
            if state.compute_capability not in PORTABLE:
                pytest.skip(f"TensorRT for RTX does not compile for this GPU's {state.compute_capability}")
            store = EngineStore(tmp_path, (), lambda _: None)
            source = hashlib.sha256(GRAPH).hexdigest()
            build_engine(GRAPH, store.place_for(source, SUFFIX), BuildPlan("fp32", (state.compute_capability,)))
            trial = partial(try_engine, TENSORRT_RTX)
            yield TensorRt(TENSORRT_RTX, store, host_of(state), CudaRuntime, gpu=monitor.state, trial=trial)


def test_features_stay_on_the_device_between_two_graphs(tmp_path: Path) -> None:
    """What one engine left on the device another takes as it is; memory is given back with the last reference."""
    fake_engine(tmp_path, GRAPH)
    runtime, cuda = tensorrt(tmp_path)
    engine = runtime.load(GRAPH, title="encoder.onnx", precision="fp32")
    features = engine.run_on_device({"image": bright_picture()})
    assert all(isinstance(tensor, DeviceArray) for tensor in features.values())
    on_device = DeviceArray(cuda, (1, 1, 512, 512), np.dtype(np.uint8))
    cuda.to_device(on_device.address, bright_picture())
    again = engine.run({"image": on_device})
    np.testing.assert_array_equal(again["embedding"], features["embedding"].on_host())  # type: ignore[union-attr]
    del features, on_device, again
    engine.close()
    gc.collect()
    assert cuda.held == {}


def test_bound_features_are_taken_as_they_are() -> None:
    """ONNX Runtime's own tensors go from one session to the next without a copy."""
    runtime = OnnxRuntimeCuda(1 << 30, provider="CPUExecutionProvider", device="cpu")
    engine = runtime.load(GRAPH, title="encoder.onnx", precision="fp32")
    kept = engine.run_on_device({"image": bright_picture()})
    assert all(isinstance(tensor, OrtTensor) for tensor in kept.values())
    assert kept["embedding"].shape == (1, 8)


def test_without_cuda_the_sentence_says_so() -> None:
    """ONNX Runtime for the CPU has no CUDA provider."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")
    with pytest.raises(PackContentError, match="no CUDAExecutionProvider"):
        OnnxRuntimeCuda(1 << 30).load(GRAPH, title="encoder.onnx", precision="fp32")
    with pytest.raises(EngineFileError, match="no CUDA runtime library"):
        CudaRuntime(("libnothing.so.1",))


def test_a_session_that_went_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a library of CUDA's is missing ONNX Runtime takes the CPU and says nothing; that is no GPU's runtime."""
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda graph, *_, **__: session(graph, providers=["CPUExecutionProvider"])
    )
    with pytest.raises(PackContentError, match=r"can't use CUDAExecutionProvider for encoder\.onnx"):
        OnnxRuntimeCuda(1 << 30).load(GRAPH, title="encoder.onnx", precision="fp32")


def test_cuda_is_found_in_the_wheels_of_its_maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No loader looks where wheels put libraries; one that is damaged is passed over."""
    for folder in ("cu12", "cu13"):
        (tmp_path / "nvidia" / folder / "lib").mkdir(parents=True)
    (tmp_path / "nvidia" / "cu12" / "lib" / "libinsite.so.1").write_bytes(b"no library")
    (tmp_path / "nvidia" / "cu13" / "lib" / "libinsite.so.1").symlink_to(np._core._multiarray_umath.__file__)
    monkeypatch.syspath_prepend(tmp_path)
    load_beside(("libinsite.so.1", "libnothing.so.1"))
    assert hasattr(_loaded(("libnothing.so.1", "libinsite.so.1")), "PyInit__multiarray_umath")
    with pytest.raises(EngineFileError, match="no CUDA runtime library"):
        _loaded(("libnothing.so.1",))


def test_an_engine_without_room_to_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library gives no context where the GPU's memory is taken meanwhile."""
    fake_engine(tmp_path, GRAPH)
    monkeypatch.setattr("tests.fakes.fake_gpu._Engine.create_execution_context", lambda _: None)
    with pytest.raises(EngineFileError, match="no room on the GPU"):
        tensorrt(tmp_path)[0].load(GRAPH, title="encoder.onnx", precision="fp32")


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"host": EngineHost((("tensorrt-rtx", "1.7.1.116"),), None)}, EngineRefusal.NO_GPU),
        ({"host": EngineHost((("tensorrt-rtx", "1.7.1.116"),), "7.5")}, EngineRefusal.OTHER_GPU),
        ({"host": EngineHost((("tensorrt-rtx", "1.8.0.0"),), "8.9")}, EngineRefusal.OTHER_RUNTIME),
        ({"host": EngineHost((), "8.9")}, EngineRefusal.NO_RUNTIME),
        ({"free": 1 << 20}, None),
        ({"xids": (79,)}, None),
        ({"answers": False}, None),
    ],
)
def test_an_engine_that_does_not_fit_is_never_opened(
    tmp_path: Path, changes: dict[str, object], refusal: EngineRefusal | None
) -> None:
    """Another GPU, another version, no GPU, too little memory, a lost GPU: refused before the library sees a byte."""
    fake_engine(tmp_path, GRAPH)
    opened: list[str] = []
    runtime, _ = tensorrt(tmp_path, trial=lambda name, _: opened.append(name), **changes)  # type: ignore[arg-type]
    with pytest.raises(EngineFileError) as refused:
        runtime.load(GRAPH, title="encoder.onnx", precision="fp32")
    assert refused.value.refusal is refusal
    assert opened == []


def test_an_engine_that_was_not_built_yet_leaves_the_pack_to_others(tmp_path: Path) -> None:
    """The sentence says that ONNX Runtime serves meanwhile."""
    with pytest.raises(EngineFileError, match="ONNX Runtime serves until it is built"):
        tensorrt(tmp_path)[0].load(GRAPH, title="encoder.onnx", precision="fp32")


def test_a_file_that_brings_its_reader_down_is_found_out_by_a_child() -> None:
    """The first load happens in a child process: when that one dies, hangs or can't read, the daemon lives on."""
    data = bytes(1 << 20)  # more than a pipe holds, for a child that does not read it
    for code, how, seconds in (
        ("import os; os.abort()", "died of signal 6", 60),
        ("import sys; sys.exit('not an engine')", r"could not read it \(status 1\) not an engine", 60),
        ("import time; time.sleep(60)", "not done with it after 0.5 s", 0.5),
    ):
        with pytest.raises(EngineFileError, match=how) as refused:
            try_engine("tensorrt-rtx", "e.engine", data, command=(sys.executable, "-c", code), seconds=seconds)
        assert refused.value.refusal is EngineRefusal.CRASHED
    code = "import sys; sys.exit(sys.stdin.buffer.read() != bytes(1 << 20))"
    try_engine("tensorrt-rtx", "e.engine", data, command=(sys.executable, "-c", code))


def test_the_child_tries_the_bytes_that_were_checked(tmp_path: Path) -> None:
    """A file that is exchanged after it was checked reaches neither the child nor the daemon."""
    file = fake_engine(tmp_path, GRAPH)
    checked = file.read_bytes()
    tried: list[bytes] = []

    def exchange(name: str, data: bytes) -> None:
        file.write_bytes(b"another one")
        tried.append(data)
        assert name == file.name

    tensorrt(tmp_path, trial=exchange)[0].load(GRAPH, title="encoder.onnx", precision="fp32").close()
    assert tried == [checked]


def test_the_real_library_cannot_read_it_here(tmp_path: Path) -> None:
    """The child with the real library refuses a file that is no engine."""
    file = fake_engine(tmp_path, GRAPH)
    with pytest.raises(EngineFileError, match="could not read it"):
        try_engine("tensorrt-rtx", file.name, file.read_bytes())


def test_a_shipped_engine_needs_a_signature(tmp_path: Path) -> None:
    """Beside a pack an engine counts only when a trusted key signed its description; one built here needs none."""
    keys = generate_keys(tmp_path / "keys")
    shipped = fake_engine(tmp_path / "packs" / "chest-xray", GRAPH)
    source = hashlib.sha256(GRAPH).hexdigest()
    store = EngineStore(
        tmp_path / "built", (tmp_path / "packs",), lambda description: verify_file(description, [keys.public])
    )
    assert store.find(source, TENSORRT_RTX) is None
    description = shipped.with_name(shipped.name + ".json")
    sign_file(description, keys.private)
    assert store.find(source, TENSORRT_RTX) == shipped
    description.write_text(description.read_text() + " ")
    assert store.find(source, TENSORRT_RTX) is None
    with pytest.raises(SignatureError, match="none of the trusted keys"):
        verify_file(description, [keys.public])
    with pytest.raises(SignatureError, match="can't be signed"):
        sign_file(description, keys.public)
    (tmp_path / "built").mkdir()
    built = fake_engine(tmp_path / "built", GRAPH)
    assert store.find(source, TENSORRT_RTX) == built
    assert store.find(source, "tensorrt") is None


def test_an_engine_that_came_with_the_software_is_found(tmp_path: Path) -> None:
    """Shipped packs are linked into the folder of installed ones; what a removal left there is passed over."""
    shipped = fake_engine(tmp_path / "software" / "chest-xray", GRAPH)
    folder = tmp_path / "packs"
    store = EngineStore(tmp_path / "built", (folder,), lambda _: None)
    source = hashlib.sha256(GRAPH).hexdigest()
    assert store.find(source, TENSORRT_RTX) is None
    fake_engine(folder / ".removed-chest-xray", GRAPH)
    assert store.find(source, TENSORRT_RTX) is None
    prepare_folder(tmp_path / "linked", tmp_path / "software")
    linked = EngineStore(tmp_path / "built", (tmp_path / "linked",), lambda _: None)
    assert linked.find(source, TENSORRT_RTX) == shipped


def test_the_host_names_the_installed_library() -> None:
    """Versions come from the installed wheels, without loading them."""
    assert host_of(None).version(TENSORRT_RTX) == "1.7.1.116"
    assert host_of(None).compute_capability is None
    assert host_of(GpuState("GPU", "GPU-1", "8.9", "580", 1, 1)).compute_capability == "8.9"
