"""How long each student's encoder takes beside EfficientNet-Lite0's, on one thread of this CPU.

`python -m tests.export.student_speeds` prints the table that docs/export.md quotes. Weights are random, which does not
change the speed; INT8 is every layer, calibrated on phantoms.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx

from appliance.domain.manifest import InputSpec
from export.latency import compare
from export.phantoms import phantom
from export.quantise import Target, measured_ranges, quantised
from export.runner import Runner
from export.student import ARCHITECTURES
from export.to_onnx import ENCODER, export_features
from tests.export.students import seasoned

SPEC = InputSpec("image", 512, 512, 0.5, 99.5)
REFERENCE = "efficientnet_lite0"
INT8 = "encoder.int8.onnx"
PICTURES = [phantom(SPEC, seed) for seed in range(4)]


def graphs(name: str, root: Path) -> Path:
    """The folder of a student's encoder in FP32 and in INT8."""
    folder = root / name
    folder.mkdir()
    export_features(seasoned(ARCHITECTURES[name]).encoder.fused(), SPEC, folder / ENCODER)
    graph = onnx.load(folder / ENCODER)
    model = quantised(graph, measured_ranges(graph, PICTURES, "minmax"), (), Target.ONNXRUNTIME_CPU)
    (folder / INT8).write_bytes(model.SerializeToString())
    return folder


def table(root: Path) -> str:
    """Time over the reference's in the same precision, median and quartiles, for one picture at a time."""
    reference, lines = graphs(REFERENCE, root), []
    for name in sorted(set(ARCHITECTURES) - {REFERENCE, "narrow"}):
        folder, figures = graphs(name, root), []
        for graph in (ENCODER, INT8):
            runners = (Runner(each, graph, (), threads=1) for each in (folder, reference))
            ratio = compare(*runners, np.stack(PICTURES[:1])[:, None])
            figures.append(f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")
        lines.append(f"{name}: FP32 {figures[0]}, INT8 {figures[1]}")
    return "\n".join(lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(table(Path(scratch)))  # noqa: T201 - a table for the docs
