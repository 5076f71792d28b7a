"""ONNX Runtime on the CPU passes the contract of engines."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from appliance.domain.errors import InferenceError
from appliance.inference.onnxruntime_cpu import OnnxRuntimeCpu
from tests.contracts.engine_contract import EngineContract


class TestOnnxRuntimeCpu(EngineContract):
    """The suite, on one thread."""

    @pytest.fixture
    def runtime(self) -> OnnxRuntimeCpu:
        """One thread."""
        return OnnxRuntimeCpu(1)


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
