"""ONNX Runtime on the CPU passes the contract of engines."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from appliance.domain.errors import InferenceError
from appliance.inference.onnxruntime_cpu import OnnxRuntimeCpu
from appliance.inference.tensors import MAX_BATCH
from tests.contracts.engine_contract import EngineContract
from tests.fakes.tiny_pack import bright_picture, encoder_graph


class TestOnnxRuntimeCpu(EngineContract):
    """The suite, on one thread."""

    @pytest.fixture
    def runtime(self) -> OnnxRuntimeCpu:
        """One thread."""
        return OnnxRuntimeCpu(1)


class TestSeveralThreads(EngineContract):
    """The suite, with all threads on one batch."""

    @pytest.fixture
    def runtime(self) -> OnnxRuntimeCpu:
        """Two threads; nobody else works."""
        return OnnxRuntimeCpu(2)


class TestBesideOthers(EngineContract):
    """The suite, with one thread for each batch."""

    @pytest.fixture
    def runtime(self) -> Iterator[OnnxRuntimeCpu]:
        """Two threads, while two batches are worked on."""
        runtime = OnnxRuntimeCpu(2)
        with runtime.working(), runtime.working():
            yield runtime


def test_who_works_alone_takes_all_threads_and_others_one_each() -> None:
    """Which of an engine's two sessions runs hangs on how many batches are worked on, of any engine of the runtime."""
    runtime = OnnxRuntimeCpu(2)
    encoder = runtime.load(encoder_graph().SerializeToString(), title="encoder.onnx", precision="fp32")
    ran: list[int] = []
    encoder._sessions = tuple(_Watched(each, number, ran) for number, each in enumerate(encoder._sessions))  # type: ignore[assignment]
    image = {"image": bright_picture()}
    encoder.run(image)
    with runtime.working():
        encoder.run(image)
        with runtime.for_heads().working():
            encoder.run(image)
        encoder.run(image)
    assert ran == [0, 0, 1, 0]


def test_a_machine_of_many_cpus_has_a_bounded_number_of_lanes() -> None:
    """One lane a thread, up to as many as one request may hold images."""
    assert [OnnxRuntimeCpu(threads).lanes for threads in (1, 2, 8, 64)] == [1, 2, 8, MAX_BATCH]


class _Watched:
    def __init__(self, session: Any, number: int, ran: list[int]) -> None:
        self._session, self._number, self._ran = session, number, ran

    def run(self, *arguments: Any) -> Any:
        self._ran.append(self._number)
        return self._session.run(*arguments)


def test_a_failure_of_the_runtime_is_no_crash() -> None:
    """An operator that fails on its input's values ends in an error of ours, named by the graph."""
    picture = helper.make_tensor_value_info("x", TensorProto.INT64, (1,))
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    table = helper.make_tensor("table", TensorProto.FLOAT, (2,), [1.0, 2.0])
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    model: onnx.ModelProto = helper.make_model(
        helper.make_graph([node], "lookup", [picture], [answer], [table]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    engine = OnnxRuntimeCpu(1).load(model.SerializeToString(), title="lookup.onnx", precision="fp32")
    with pytest.raises(InferenceError, match=r"failed on lookup\.onnx"):
        engine.run({"x": np.array([99], np.int64)})


def test_a_layer_in_full_precision_stays_so_between_integers() -> None:
    """Channels of very different weights, the layer's input and output in INT8: the small ones are not rounded away."""
    weight = np.array([[[[100.0]]], [[[0.25]]]], np.float32)
    scale, zero = np.array(0.01, np.float32), np.array(0, np.uint8)
    out_scale = np.array(1.0 / 256, np.float32)
    constants = {"w": weight, "s": scale, "z": zero, "so": out_scale}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["xf"]),
        helper.make_node("Conv", ["xf", "w"], ["c"], group=2),
        helper.make_node("QuantizeLinear", ["c", "so", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "so", "z"], ["y"]),
    ]
    model: onnx.ModelProto = helper.make_model(
        helper.make_graph(
            nodes,
            "between",
            [helper.make_tensor_value_info("x", TensorProto.UINT8, ("n", 2, 1, 1))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 2, 1, 1))],
            [onnx.numpy_helper.from_array(values, name) for name, values in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    engine = OnnxRuntimeCpu(1).load(model.SerializeToString(), title="between.onnx", precision="int8")
    found = engine.run({"x": np.array([0, 200], np.uint8).reshape(1, 2, 1, 1)})["y"]
    np.testing.assert_allclose(found.ravel(), [0.0, 2.0 * 0.25], atol=1.0 / 256)
