"""Quantisation-aware fine-tuning, the last resort of the step `quantise`: a few steps with the rounding switched on.

The FP32 graph is computed in torch, each tensor rounded where the INT8 graph rounds it: activations as it does it,
unsigned with the measured range of the whole tensor; weights signed, each output channel by its own largest value.
The gradient goes straight through the rounding (Jacob et al., CVPR 2018). What is learned is to say again what the
graph said before it was rounded, features and logits: no label is read, so heads and thresholds stay what they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from export.graph_in_torch import Through, as_it_is, computed, constants
from export.learning import schedule

BATCH = 8
RATE = 1e-4
"""Adam's rate as a share of a tensor's mean magnitude. With ten times as much the first steps undo more than the
rounding did, and a few dozen do not bring it back."""
SAID_EVERY = 10
_UNSIGNED, _SIGNED = (0, 255), (-127, 127)
_BEFORE_OUTPUT = "_QuantizeLinear_Input"
_QUANTISED = "_quantized"
"""How ONNX Runtime's quantiser names an output before it is rounded, and a constant behind it."""


@dataclass(frozen=True, eq=False, slots=True)
class Lesson:
    """What the fine-tuning needs beside the graph.

    Attributes:
        images: uint8 [n, rows, columns].
        rows: Which of them are learned from.
        heads: Graphs whose `score` is the sigmoid of a logit, out of the embedding.
        steps: How many batches of `BATCH`.
        seed: Fixes which images a step sees.
    """

    images: NDArray[np.uint8]
    rows: Sequence[int]
    heads: Sequence[onnx.ModelProto]
    steps: int
    seed: int


def fine_tuned(
    graph: onnx.ModelProto, rounded: onnx.ModelProto, lesson: Lesson, say: Callable[[str], None]
) -> onnx.ModelProto:
    """The graph with weights and biases that lose less when they are rounded.

    Args:
        graph: The FP32 encoder.
        rounded: What the quantiser made of it; says which tensors are rounded, and how.
        lesson: What to learn from, and for how long.
        say: Told about progress.
    """
    before, learned = constants(graph), constants(graph)
    names = [name for node in graph.graph.node if node.op_type == "Conv" for name in node.input[1:]]
    groups = [{"params": [learned[name]], "lr": RATE * float(learned[name].abs().mean())} for name in names]
    optimiser = torch.optim.Adam(groups)
    rates = [group["lr"] for group in optimiser.param_groups]
    through = fake_quantisation(rounded)
    for name in names:
        learned[name].requires_grad_()
    for step in range(lesson.steps):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step, lesson.steps)
        pictures = {graph.graph.input[0].name: _batch(lesson, step)}
        with torch.no_grad():
            wanted = _said(graph, {**before, **pictures}, lesson.heads)
        loss = _difference(_said(graph, {**learned, **pictures}, lesson.heads, through), wanted)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        if (step + 1) % SAID_EVERY == 0:
            say(f"INT8 fine-tuning: step {step + 1}/{lesson.steps}, loss {float(loss.detach()):.4f}")
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    for tensor in result.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(onnx.numpy_helper.from_array(learned[tensor.name].detach().numpy(), tensor.name))
    return result


def fake_quantisation(rounded: onnx.ModelProto) -> Through:
    """Rounds tensors of an FP32 graph as its INT8 graph does, with the gradient as if it had not."""
    known = constants(rounded)
    ranges = {
        node.input[0].removesuffix(_BEFORE_OUTPUT): (float(known[node.input[1]]), int(known[node.input[2]]))
        for node in rounded.graph.node
        if node.op_type == "QuantizeLinear"
    }
    weights = {
        name.removesuffix(_QUANTISED)
        for name, values in known.items()
        if name.endswith(_QUANTISED) and values.dtype == torch.int8
    }

    def through(name: str, values: Tensor) -> Tensor:
        if name in ranges:
            return torch.fake_quantize_per_tensor_affine(values, *ranges[name], *_UNSIGNED)
        if name in weights:
            largest = values.detach().abs().flatten(1).amax(dim=1)
            scales = (largest / _SIGNED[1]).clamp_min(torch.finfo(torch.float32).tiny)
            return torch.fake_quantize_per_channel_affine(values, scales, torch.zeros_like(scales), 0, *_SIGNED)
        return values

    return through


def _batch(lesson: Lesson, step: int) -> Tensor:
    rng = np.random.default_rng((lesson.seed, step))
    chosen = sorted(rng.choice(lesson.rows, min(BATCH, len(lesson.rows)), replace=False))
    return torch.from_numpy(np.stack([lesson.images[row] for row in chosen])[:, None])


def _said(
    graph: onnx.ModelProto, known: Mapping[str, Tensor], heads: Sequence[onnx.ModelProto], through: Through = as_it_is
) -> tuple[list[Tensor], list[Tensor]]:
    """(the encoder's outputs, each head's logits)."""
    values = computed(graph, known, through)
    features = {output.name: values[output.name] for output in graph.graph.output}
    return list(features.values()), [_logits(head, features) for head in heads]


def _logits(head: onnx.ModelProto, features: Mapping[str, Tensor]) -> Tensor:
    last = next(node for node in head.graph.node if node.op_type == "Sigmoid")
    return computed(head, {**constants(head), **features})[last.input[0]]


def _difference(said: tuple[list[Tensor], list[Tensor]], wanted: tuple[list[Tensor], list[Tensor]]) -> Tensor:
    """Squared differences: of features as shares of their variance, of logits as they are."""
    features = [functional.mse_loss(one, other) / other.var() for one, other in zip(said[0], wanted[0], strict=True)]
    logits = [functional.mse_loss(one, other) for one, other in zip(said[1], wanted[1], strict=True)]
    return torch.stack(features + logits).sum()
