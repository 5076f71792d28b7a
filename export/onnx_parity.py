"""Holds an exported graph against the module that it was made from: both must say the same of the same input."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from appliance.domain.errors import EngineFileError
from appliance.inference.onnxruntime_cpu import OnnxRuntimeCpu

TOLERANCE = 1e-4
"""The largest difference; of an output with values above 1, as a share of the largest."""
THREADS = 2
WAY_FORWARD = "The export is wrong: don't use the graph, and report it with the versions of torch and onnxruntime."


def refuse_other_answers(module: nn.Module, inputs: Sequence[Tensor], outputs: Sequence[str], graph: Path) -> None:
    """Refuse a graph on the appliance's engine that does not say what its module says in torch.

    Args:
        module: In evaluation mode, FP32.
        inputs: The graph's inputs in its order, with a batch.
        outputs: Names of what the module gives, in its order.
        graph: The ONNX file.

    Raises:
        EngineFileError: The first output that differs, in its shape or with the largest difference.
    """
    with torch.no_grad():
        said = module(*inputs)
    expected = said if isinstance(said, tuple) else (said,)
    engine = OnnxRuntimeCpu(THREADS).load(graph.read_bytes(), title=graph.name, precision="")
    answers = engine.run({spec.name: each.numpy() for spec, each in zip(engine.inputs, inputs, strict=True)})
    for name, values in zip(outputs, expected, strict=True):
        answer, ours = np.asarray(answers[name]), values.numpy()
        if answer.shape != ours.shape:  # numpy would stretch one to the other
            raise EngineFileError(
                f"The output {name} of {graph} has the shape {list(answer.shape)}, in torch {list(ours.shape)}.",
                WAY_FORWARD,
            )
        difference = float(np.abs(answer - ours).max())
        allowed = TOLERANCE * max(1.0, float(np.abs(ours).max()))
        if not difference <= allowed:  # what is not a number differs
            raise EngineFileError(
                f"The output {name} of {graph} differs from torch by {difference:.3g}, allowed are {allowed:.3g}.",
                WAY_FORWARD,
            )
