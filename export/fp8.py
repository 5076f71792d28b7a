"""FP8 (E4M3) for GPUs of compute capability 8.9 and later: the INT8 graph for TensorRT with other types in its nodes.

Post-training: the measured ranges and the layers in FP32 are the INT8 graph's. FLOAT8E4M3FN reaches to 448
(Micikevicius et al., FP8 Formats for Deep Learning, 2022), so the largest value of a range is put there instead of at
127. No CPU serves it: whether an FP8 engine is as exact and faster is for a machine with such a GPU to say.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from appliance.domain.errors import EngineFileError

CAPABILITIES = ("8.9", "12.0", "12.1")
"""Those of the compute capabilities of TensorRT for RTX whose GPUs multiply FP8: Ada and Blackwell."""
_LARGEST_INT8, _LARGEST_FP8 = 127.0, 448.0
_FLOAT8 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.FLOAT8E4M3FN)
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")
_QUANTISED = "_quantized"


def fp8_from_int8(int8: onnx.ModelProto, graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in FP8.

    Args:
        int8: The graph in INT8 for TensorRT: signed, symmetric, FP32 biases.
        graph: The FP32 graph that it was made of; weights are rounded from it, not from INT8.
    """
    model = onnx.ModelProto()
    model.CopyFrom(int8)
    full = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    scales: dict[str, NDArray[np.float32]] = {}
    for node in model.graph.node:
        if node.op_type not in _ROUNDING:
            continue
        values, scale, zero = node.input
        if scale not in scales:
            wider = onnx.numpy_helper.to_array(constants[scale]) * np.float32(_LARGEST_INT8 / _LARGEST_FP8)
            scales[scale] = wider.astype(np.float32)
            _put(constants[scale], scales[scale])
            _put(constants[zero], np.zeros(wider.shape, _FLOAT8))
        if values in constants:
            weight = full[values.removesuffix(_QUANTISED)]
            by_channel = scales[scale].reshape(-1, *[1] * (weight.ndim - 1))
            _put(constants[values], (weight / by_channel).astype(_FLOAT8))
    onnx.checker.check_model(model, full_check=True)
    return model


def is_fp8(model: onnx.ModelProto) -> bool:
    """Whether a graph computes in FP8."""
    return any(tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN for tensor in model.graph.initializer)


def refuse_capabilities_without_fp8(capabilities: Sequence[str]) -> None:
    """Refuse to compile FP8 for GPUs that do not have it.

    Raises:
        EngineFileError: One of them is not among `CAPABILITIES`; it is named.
    """
    for each in capabilities:
        if each not in CAPABILITIES:
            raise EngineFileError(
                f"GPUs of compute capability {each} have no FP8.",
                f"Compile for {', '.join(CAPABILITIES)}, or take the FP16 graph.",
            )


def _put(tensor: onnx.TensorProto, values: NDArray[np.generic]) -> None:
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
