"""Q/DQ graphs in INT8: measured ranges in, one graph for each kind of target out.

ONNX Runtime on a CPU wants unsigned activations with signed weights per channel (U8S8), which is what x86 multiplies
fastest. TensorRT wants signed, symmetric activations and FP32 biases; it refuses INT32 ones. What each layer costs is
found by `quantise_search.py`; here a setting becomes a graph.
"""

import contextlib
import enum
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer

from appliance.domain.errors import InputError

CALIBRATION_BATCH = 8
QUANTISED_OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "Clip")
METHODS = {
    "minmax": (CalibrationMethod.MinMax, {"moving_average": True}),
    "percentile": (CalibrationMethod.Percentile, {"percentile": 99.99, "symmetric": False}),
    "entropy": (CalibrationMethod.Entropy, {"symmetric": False}),
}
"""How activations' ranges are read off calibration images, with the library's options."""


class Target(enum.Enum):
    """Who reads the graph."""

    ONNXRUNTIME_CPU = "onnxruntime-cpu"
    TENSORRT = "tensorrt"


_OPTIONS: dict[Target, dict[str, bool]] = {
    Target.ONNXRUNTIME_CPU: {"ActivationSymmetric": False, "WeightSymmetric": True},
    Target.TENSORRT: {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
}
_ACTIVATIONS = {Target.ONNXRUNTIME_CPU: QuantType.QUInt8, Target.TENSORRT: QuantType.QInt8}


@dataclass(frozen=True, eq=False, slots=True)
class Ranges:
    """What values each tensor takes on the calibration images, by one of `METHODS`."""

    method: str
    tensors: Any


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Hands one batch of calibration images to ONNX Runtime."""

    def __init__(self, name: str, batch: NDArray[np.uint8]) -> None:
        self._pending: list[dict[str, NDArray[np.uint8]]] = [{name: batch}]

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return self._pending.pop() if self._pending else None


def measured_ranges(graph: onnx.ModelProto, images: Iterable[NDArray[np.uint8]], method: str) -> Ranges:
    """The ranges of all tensors of a graph over images, uint8 [rows, columns] each.

    Raises:
        InputError: A weight or a range is not a number; the tensor is named.
    """
    refuse_nan(graph)
    kind, options = METHODS[method]
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        source = Path(scratch) / "graph.onnx"
        onnx.save(graph, source)
        calibrator = create_calibrator(
            source,
            list(QUANTISED_OPERATORS),
            augmented_model_path=str(Path(scratch) / "augmented.onnx"),
            calibrate_method=kind,
            extra_options=options,
        )
        for batch in _batches(images):
            calibrator.collect_data(_Images(graph.graph.input[0].name, batch))
        tensors = calibrator.compute_data()
    for name, values in tensors.items():
        if not np.isfinite([np.asarray(each) for each in values.range_value]).all():
            raise InputError(
                f"The tensor {name} of the graph is not a number on calibration images.",
                "Look for a layer that overflows; the training diverged, or a picture is damaged.",
            )
    return Ranges(method, tensors)


def quantised(graph: onnx.ModelProto, ranges: Ranges, full: Collection[str], target: Target) -> onnx.ModelProto:
    """A graph with Q/DQ nodes around everything but the nodes named in `full`.

    Raises:
        InputError: A constant came out as not a number; its tensor is named.
    """
    constants = _constants(graph)
    within = [node.name for node in graph.graph.node if _is_within(node, constants)]
    with _quiet():
        quantizer = QDQQuantizer(
            save_and_reload_model_with_shape_infer(graph),
            True,  # noqa: FBT003 - per channel; the library's own positions
            False,  # noqa: FBT003 - no reduced range: VNNI does not saturate
            QuantType.QInt8,
            _ACTIVATIONS[target],
            ranges.tensors,
            [],
            [*full, *within],
            list(QUANTISED_OPERATORS),
            dict(_OPTIONS[target]),
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    model: onnx.ModelProto = quantizer.model.model
    refuse_nan(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def refuse_nan(model: onnx.ModelProto) -> None:
    """Refuse a graph that holds a constant which is not finite; the tensor and a layer that reads it are named."""
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            reader = next((node.name for node in model.graph.node if tensor.name in node.input), "no layer")
            raise InputError(
                f"The constant {tensor.name}, read by {reader}, is not a number.",
                "The training diverged there, or leave the layer in higher precision.",
            )


def layers(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """The layers that may stay in higher precision: the convolution's weight name to the names of its nodes.

    A layer is a convolution with the activation or addition behind it.
    """
    constants = _constants(model)
    result: dict[str, list[str]] = {}
    current = ""
    for node in model.graph.node:
        if _is_within(node, constants):
            continue
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            current = next((name for name in node.input if name in constants), node.name).removesuffix(".weight")
            result[current] = []
        if current and node.op_type in QUANTISED_OPERATORS:
            result[current].append(node.name)
    return {name: tuple(nodes) for name, nodes in result.items()}


def _constants(model: onnx.ModelProto) -> dict[str, int]:
    """How many numbers each constant holds, by its name."""
    return {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}


def _is_within(node: onnx.NodeProto, constants: Mapping[str, int]) -> bool:
    """Whether a node is a step within attention, which stays in FP32: a product of activations, or a sum with a number.

    The small number that keeps a denominator from zero would be zero itself in INT8, and TensorRT builds no graph in
    which it is quantised.
    """
    sizes = [constants[name] for name in node.input if name in constants]
    return (node.op_type == "MatMul" and not sizes) or (node.op_type == "Add" and 1 in sizes)


def nodes_of(model: onnx.ModelProto, chosen: Sequence[str]) -> list[str]:
    """Names of the nodes of the chosen layers."""
    known = layers(model)
    return [node for name in chosen for node in known[name]]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's talk to itself: its advice to preprocess, and what its calibrators print."""
    logging.getLogger().addFilter(_is_no_advice)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # about NaN, which is refused by name afterwards
            yield
    finally:
        logging.getLogger().removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return "pre-process" not in record.getMessage()


def _batches(images: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    pending: list[NDArray[np.uint8]] = []
    for image in images:
        pending.append(image)
        if len(pending) == CALIBRATION_BATCH:
            yield np.stack(pending)[:, None]
            pending = []
    if pending:
        yield np.stack(pending)[:, None]
