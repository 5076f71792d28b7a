"""Step `quantise`: the encoder in INT8 for ONNX Runtime on a CPU, its first block left in FP32.

Unsigned activations with signed weights per channel (U8S8) are what x86 CPUs multiply fastest; quantising the stem and
the first block, whose channels differ most in range, costs accuracy and saves little.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from appliance.domain.errors import InputError

ENCODER, QUANTISED = "encoder.onnx", "encoder.int8.onnx"
CALIBRATION_BATCH = 8
QUANTISED_OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "Clip"]


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Hands calibration images to ONNX Runtime, a batch at a time."""

    def __init__(self, name: str, images: Iterable[NDArray[np.uint8]]) -> None:
        self._name = name
        self._batches = _batches(images)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def quantise(graphs: Path, images: Iterable[NDArray[np.uint8]], fp32_convolutions: int, out: Path) -> None:
    """Copy the exported graphs to `out` and add `encoder.int8.onnx`.

    Args:
        graphs: The artefact of the step `to_onnx`.
        images: Calibration images, uint8 [512, 512] each, of training patients.
        fp32_convolutions: How many convolutions from the input stay in FP32.
        out: Folder to write to.

    Raises:
        InputError: Quantisation gave a weight that is not a number.
    """
    shutil.copytree(graphs, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("done.json"))
    model = onnx.load(out / ENCODER)
    name = model.graph.input[0].name
    excluded = nodes_before(model, fp32_convolutions)
    logging.getLogger().addFilter(_drop_advice)
    try:
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            target = Path(scratch) / QUANTISED
            quantize_static(
                model,
                target,
                _Images(name, images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=QUANTISED_OPERATORS,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True, "CalibMovingAverage": True},
            )
            quantised = onnx.load(target)
    finally:
        logging.getLogger().removeFilter(_drop_advice)
    refuse_nan(quantised)
    onnx.checker.check_model(quantised, full_check=True)
    (out / QUANTISED).write_bytes(quantised.SerializeToString(deterministic=True))


def nodes_before(model: onnx.ModelProto, convolutions: int) -> list[str]:
    """Names of the nodes up to and with the first `convolutions` convolutions, and the activation behind each."""
    names: list[str] = []
    seen = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            seen += 1
        if seen > convolutions:
            break
        names.append(node.name)
    return names


def refuse_nan(model: onnx.ModelProto) -> None:
    """Refuse a graph that holds a constant which is not finite; the tensor is named."""
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise InputError(f"Quantisation made {tensor.name} not a number.", "Leave its layer in higher precision.")


def _drop_advice(record: logging.LogRecord) -> bool:
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
