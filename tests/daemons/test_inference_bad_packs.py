"""Packs that must not serve, asked for over the protocol: each its own code and sentence; others go on."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import onnx
import pytest
from onnx import TensorProto, helper

from appliance.domain.manifest import EncoderVariant
from appliance.inference.client import OipClient
from appliance.inference.engine_build import SUFFIX, BuildPlan, build_engine
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.generated.open_inference_pb2_grpc import GRPCInferenceServiceStub
from appliance.packs.signing import generate_keys, sign_file, sign_pack
from appliance.settings import Settings
from tests.fakes.inference_daemon import running, settings_for
from tests.fakes.tiny_pack import TinyPack, bright_picture, encoder_graph, rewritten, tiny_pack

Code = grpc.StatusCode


@pytest.fixture
def good(tmp_path: Path) -> TinyPack:
    """A pack that serves."""
    return tiny_pack(tmp_path / "packs", name="good")


@pytest.fixture
def settings(tmp_path: Path, good: TinyPack) -> Iterator[Settings]:
    """A running daemon that serves it."""
    site = settings_for(tmp_path, good)
    with running(site):
        yield site


def load(settings: Settings, name: str) -> grpc.RpcError | None:
    """Ask for a pack by name; what came back when it was refused."""
    with grpc.insecure_channel(f"unix:{settings.inference_socket}") as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name=name), timeout=60)
        except grpc.RpcError as error:
            return error
    return None


def unsigned(pack: TinyPack) -> None:
    """Take the signature away."""
    (pack.folder / "model.sig").unlink()


def altered(pack: TinyPack) -> None:
    """Change a file after it was signed."""
    (pack.folder / "MODEL_CARD.md").write_text("better than it was")


def strange(pack: TinyPack) -> None:
    """Sign it with a key that nobody trusts."""
    sign_pack(pack.folder, generate_keys(pack.folder.parent / ".other").private)


def other_base(pack: TinyPack) -> None:
    """Bind a task to another base, in a manifest that is signed all the same."""
    task = pack.folder / "tasks" / "guard" / "manifest.json"
    task.write_text(json.dumps(json.loads(task.read_text()) | {"base_digest": "0" * 64}))
    resigned(pack, "tasks/guard/manifest.json")


def truncated(pack: TinyPack) -> None:
    """Cut the encoder."""
    (pack.folder / "encoder.onnx").write_bytes(encoder_graph().SerializeToString()[:-100])
    rewritten(pack)


def outside_weights(pack: TinyPack) -> None:
    """Let the encoder keep weights in a file outside of the pack."""
    model = encoder_graph()
    weight = model.graph.initializer[0]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../../etc/passwd")
    (pack.folder / "encoder.onnx").write_bytes(model.SerializeToString())
    rewritten(pack)


def custom_operator(pack: TinyPack) -> None:
    """Let the encoder call code that is not of the ONNX standard."""
    model = encoder_graph()
    model.graph.node.append(helper.make_node("Dial", ["image"], ["home"], domain="com.example"))
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    (pack.folder / "encoder.onnx").write_bytes(model.SerializeToString())
    rewritten(pack)


def no_runtime(pack: TinyPack) -> None:
    """Offer the encoder for a runtime that this machine has not."""
    rewritten(pack, variants=(EncoderVariant("fp32", "encoder.onnx", ("onnxruntime-rocm",)),))


def resigned(pack: TinyPack, path: str) -> None:
    """Hash one changed file into the manifest, and sign."""
    from appliance.packs.files import file_sha256  # noqa: PLC0415 - only here

    manifest = pack.folder / "manifest.json"
    values = json.loads(manifest.read_text())
    values["files"][path] = file_sha256(pack.folder / path)
    manifest.write_text(json.dumps(values))
    sign_pack(pack.folder, pack.keys.private)


@pytest.mark.parametrize(
    ("spoil", "code", "sentence"),
    [
        (unsigned, Code.PERMISSION_DENIED, "has no model.sig"),
        (altered, Code.PERMISSION_DENIED, "changed after it was signed"),
        (strange, Code.PERMISSION_DENIED, "signed by none of the trusted keys"),
        (other_base, Code.FAILED_PRECONDITION, "was made for the base 000000000000"),
        (truncated, Code.DATA_LOSS, "is no valid ONNX graph"),
        (outside_weights, Code.DATA_LOSS, "keeps the weights"),
        (custom_operator, Code.DATA_LOSS, "com.example.Dial, which is not of the ONNX standard"),
        (no_runtime, Code.DATA_LOSS, "has no encoder for"),
    ],
)
def test_a_pack_that_must_not_serve_is_refused_by_its_own_code(
    settings: Settings, good: TinyPack, spoil: Callable[[TinyPack], None], code: grpc.StatusCode, sentence: str
) -> None:
    """Unsigned, altered, foreign, damaged, or reaching outside: the reason is told, and the good pack goes on."""
    spoil(tiny_pack(good.folder.parent, name="bad", keys=good.keys))
    error = load(settings, "bad")
    assert error is not None
    assert (error.code(), sentence in error.details()) == (code, True), error.details()
    with OipClient(f"unix://{settings.inference_socket}", 10) as client:
        assert client.infer("good.guard", bright_picture()).provenance.pack == "good"
    listed = {each["name"]: each["state"] for each in json.loads((settings.state / "run" / "packs.json").read_text())}
    assert listed == {"good": "active", "bad": "refused"}


def test_a_pack_that_is_loading_is_listed_so(settings: Settings, good: TinyPack) -> None:
    """Before it serves a pack's models are not found, and the index has the reason of whatever does not serve."""
    other = tiny_pack(good.folder.parent, name="late", keys=good.keys)
    with grpc.insecure_channel(f"unix:{settings.inference_socket}") as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        assert not stub.ModelReady(oip.ModelReadyRequest(name="late.guard"), timeout=10).ready
        assert load(settings, "late.guard") is None
        assert stub.ModelReady(oip.ModelReadyRequest(name="late.guard"), timeout=10).ready
        stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="late"), timeout=10)
        index = stub.RepositoryIndex(oip.RepositoryIndexRequest(), timeout=10).models
        assert ("late", "UNAVAILABLE", "It was unloaded.") in {(each.name, each.state, each.reason) for each in index}
        ready = stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=True), timeout=10).models
        assert {each.state for each in ready} == {"READY"}
    shutil.rmtree(other.folder)


@pytest.mark.parametrize("capabilities", [("8.6", "8.9"), ("12.0",)])
def test_an_engine_for_a_gpu_waits_while_onnx_runtime_serves(tmp_path: Path, capabilities: tuple[str, ...]) -> None:
    """A pack with a signed TensorRT-RTX engine, on a machine without its GPU: the reason is listed, the pack serves."""
    pack = tiny_pack(tmp_path / "packs")
    variants = (EncoderVariant("fp32", "encoder.onnx", ("tensorrt-rtx", "onnxruntime-cpu")),)
    rewritten(pack, variants=variants)
    engine = pack.folder / f"encoder{SUFFIX}"
    build_engine((pack.folder / "encoder.onnx").read_bytes(), engine, BuildPlan("fp32", capabilities))
    sign_file(engine.with_name(engine.name + ".json"), pack.keys.private)
    settings = settings_for(tmp_path, pack)
    with running(settings) as client:
        assert client.infer("chest-xray.guard", bright_picture()).provenance.precision == "fp32"
    (status,) = json.loads((settings.state / "run" / "packs.json").read_text())
    assert status["state"] == "active"
    assert f"needs an NVIDIA GPU of compute capability {' or '.join(capabilities)}" in status["reason"]


def test_an_onnx_graph_is_never_loaded_from_a_request(settings: Settings) -> None:
    """A model that comes with the call is refused: nobody signed it."""
    graph = onnx.ModelProto().SerializeToString()
    request = oip.RepositoryModelLoadRequest(model_name="good")
    request.parameters["file:1/model.onnx"].bytes_param = graph
    with grpc.insecure_channel(f"unix:{settings.inference_socket}") as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError, match="only signed packs are served") as refused:
            stub.RepositoryModelLoad(request, timeout=10)
    assert refused.value.code() is Code.UNIMPLEMENTED
