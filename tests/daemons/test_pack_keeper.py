"""The keeper of the daemon's packs, asked directly: what it lists while packs come, fail and go."""

import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from appliance.daemons.pack_keeper import PackKeeper, PackStatus
from appliance.daemons.packs import _running
from appliance.domain.gpu import GpuState
from appliance.domain.manifest import EncoderVariant
from appliance.governance.selection import Selected, write_selection
from appliance.inference.engine_store import EngineStore
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.generated.open_inference_pb2_grpc import GRPCInferenceServiceStub
from appliance.inference.runner import PackRunner
from appliance.inference.server import InferenceServer
from appliance.inference.tensorrt_engine import TENSORRT_RTX, TensorRt
from appliance.settings import Settings
from appliance.telemetry import logger_for
from tests.fakes.fake_gpu import FAKE_TENSORRT, HOST, FakeCuda
from tests.fakes.inference_daemon import settings_for
from tests.fakes.tiny_pack import TinyPack, rewritten, tiny_pack
from tests.fakes.watched_runtime import Outputs, WatchedRuntime

SOUND = GpuState("NVIDIA L4", "GPU-1", "8.9", "580", 24 << 30, 20 << 30)


@pytest.fixture
def settings(tmp_path: Path, pack: TinyPack) -> Settings:
    """A site with one pack installed."""
    return settings_for(tmp_path, pack)


def keeper_of(settings: Settings, runner: PackRunner, broken: threading.Event) -> PackKeeper:
    """A keeper whose trials answer nonsense once they are broken."""

    def watch(_: str, outputs: Outputs) -> Outputs:
        return {name: array * 0 for name, array in outputs.items()} if broken.is_set() else outputs

    return PackKeeper(settings, runner, lambda: PackRunner((), runtimes=[WatchedRuntime(watch)]), logger_for("test"))


def test_a_release_that_can_not_be_served_anew_goes_on_serving_and_is_said_to(settings: Settings) -> None:
    """It stays active, so that nobody removes it, and the list has what failed."""
    broken = threading.Event()
    with PackRunner((), 1) as runner:
        keeper = keeper_of(settings, runner, broken)
        keeper.start(threading.Event())
        broken.set()
        keeper.refresh("chest-xray")
        (status,) = keeper.statuses()
        assert runner.served()
    assert (status.state, status.precision) == ("active", "fp32")
    assert status.reason
    assert _running(settings, "chest-xray", "active") == [1]


def test_an_unloaded_pack_leaves_no_shadow(settings: Settings, pack: TinyPack, tmp_path: Path) -> None:
    """Its shadow goes with it, and neither is listed as running."""
    second = tiny_pack(tmp_path / "two", release=2, keys=pack.keys)
    second.folder.rename(settings.packs_folder / "chest-xray-2")
    write_selection(settings.packs_folder, {"chest-xray": Selected(active=1, shadow=2)})
    with PackRunner((), 1) as runner:
        keeper = keeper_of(settings, runner, threading.Event())
        keeper.start(threading.Event())
        assert [each.release for each in runner.shadows()] == [2]
        keeper.unload("chest-xray")
        assert (runner.served(), runner.shadows()) == ((), ())
    assert {each.state for each in keeper.statuses()} == {"installed"}


def test_the_index_is_listed_while_packs_come(settings: Settings) -> None:
    """A pack that is noted meanwhile, by the thread that loads it, breaks no listing."""
    with PackRunner(()) as runner:
        keeper = keeper_of(settings, runner, threading.Event())

        class Meanwhile(PackStatus):
            """A pack during whose listing another one comes."""

            def __getattribute__(self, name: str) -> Any:
                if name == "state":
                    keeper._statuses["another", 1] = PackStatus("another", "", 1, "", "", "", "", "refused", "")
                return super().__getattribute__(name)

        keeper._statuses["first", 1] = Meanwhile("first", "", 1, "", "", "", "", "refused", "")
        assert [each.name for each in keeper.index()] == ["first"]
        assert [each.name for each in keeper.index()] == ["first", "another"]


def test_a_pack_without_its_engine_is_a_failed_precondition(settings: Settings, pack: TinyPack, tmp_path: Path) -> None:
    """Loaded over the protocol where only an engine that is not built could serve it, it is refused by that code."""
    rewritten(pack, variants=(EncoderVariant("fp32", "encoder.onnx", (TENSORRT_RTX,)),))
    store = EngineStore(tmp_path / "engines", (), lambda _: None)
    runtime = TensorRt(
        TENSORRT_RTX, store, HOST, FakeCuda, gpu=lambda: SOUND, trial=lambda *_: None, library=FAKE_TENSORRT
    )
    path = tmp_path / "s.sock"
    with PackRunner((), runtimes=[runtime]) as runner:
        keeper = PackKeeper(settings, runner, lambda: PackRunner((), runtimes=[runtime]), logger_for("test"))
        with (
            InferenceServer(runner, path, version="1", log=logger_for("test"), repository=keeper),
            grpc.insecure_channel(f"unix:{path}") as channel,
        ):
            stub: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.RpcError, match="until it is built") as refused:
                stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="chest-xray"), timeout=30)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
