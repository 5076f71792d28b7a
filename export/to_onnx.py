"""Step `to_onnx`: the student as one encoder graph and one graph for each head, with all preprocessing inside."""

import copy
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from appliance.domain.errors import EngineFileError
from appliance.domain.manifest import InputSpec
from export.artefacts import read_json
from export.exporter_errors import WAY_FORWARD, refusal_from_exporter
from export.guard import GUARD_STRIDES, GuardHead
from export.onnx_parity import refuse_other_answers
from export.operators import refuse_unknown_operators
from export.phantoms import phantom
from export.student import ARCHITECTURES, FEATURE_STRIDES, LungDecoder, MultiTaskNet, TriageHead

ENCODER, HALF = "encoder.onnx", "encoder.fp16.onnx"
FEATURE_NAMES = tuple(f"stride{stride}" for stride in FEATURE_STRIDES)
ENCODER_OUTPUTS = ("embedding", *FEATURE_NAMES)
GUARD_INPUTS = ("embedding", *(f"stride{stride}" for stride in GUARD_STRIDES))
TASK_OUTPUTS = {
    "guard": ("score", "distance"),
    "lungs": ("mask",),
    "adult-triage": ("score",),
    "paediatric-pneumonia": ("score",),
}
TASK_INPUTS = {
    "guard": GUARD_INPUTS,
    "lungs": FEATURE_NAMES,
    "adult-triage": ("embedding",),
    "paediatric-pneumonia": ("embedding",),
}
MAXIMUM_BATCH = 64
PHANTOMS = (0, 1)
"""Seeds of the pictures on which graphs are held against torch."""


class _Probability(nn.Module):
    """A triage head with its temperature: embedding to `score`."""

    def __init__(self, head: TriageHead, temperature: float) -> None:
        super().__init__()
        self.head = head
        self.temperature = temperature

    def forward(self, embedding: Tensor) -> Tensor:
        return torch.sigmoid(self.head(embedding) / self.temperature)


class _Half(nn.Module):
    """An encoder in half precision that answers in FP32, as heads read it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).half()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(feature.float() for feature in self.encoder(image))


class _Mask(nn.Module):
    """The lung decoder up to probabilities at the masks' resolution."""

    def __init__(self, decoder: LungDecoder, side: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.side = side

    def forward(self, stride4: Tensor, stride8: Tensor, stride16: Tensor, stride32: Tensor) -> Tensor:
        logits = self.decoder((stride4, stride8, stride16, stride32))
        size = (self.side, self.side)
        return torch.sigmoid(functional.interpolate(logits, size=size, mode="bilinear", align_corners=False))


def heads(net: MultiTaskNet, guard: GuardHead, temperatures: dict[str, float], mask_side: int) -> dict[str, nn.Module]:
    """The head of each task as it is exported, by the task's name."""
    return {
        "guard": guard,
        "lungs": _Mask(net.lungs, mask_side),
        "adult-triage": _Probability(net.adult, temperatures["adult-triage"]),
        "paediatric-pneumonia": _Probability(net.paediatric, temperatures["paediatric-pneumonia"]),
    }


def export_graphs(net: MultiTaskNet, tasks: dict[str, nn.Module], spec: InputSpec, out: Path) -> None:
    """Write `encoder.onnx`, `encoder.fp16.onnx` and `tasks/<task>/head.onnx`; hold those in FP32 against torch.

    Half precision is exported from weights in half precision: a graph converted afterwards keeps casts that ONNX
    Runtime rejects.

    Args:
        net: The student, in evaluation mode.
        tasks: As made by `heads`.
        spec: Name and size of the input.
        out: Folder to write to.

    Raises:
        EngineFileError: A module can't be exported, or its graph says something else of phantoms than torch does.
    """
    encoder = net.eval().encoder.fused()
    export_features(encoder, spec, out / ENCODER)
    export_features(_Half(encoder).eval(), spec, out / HALF)
    pictures = torch.from_numpy(np.stack([phantom(spec, seed) for seed in PHANTOMS])[:, None])
    with torch.no_grad():
        features = dict(zip(ENCODER_OUTPUTS, encoder(_example(spec)), strict=True))
        seen = dict(zip(ENCODER_OUTPUTS, encoder(pictures), strict=True))
    refuse_other_answers(encoder, (pictures,), ENCODER_OUTPUTS, out / ENCODER)
    for task, head in tasks.items():
        path = out / "tasks" / task / "head.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        inputs, outputs = TASK_INPUTS[task], TASK_OUTPUTS[task]
        export_module(head.eval(), tuple(features[name] for name in inputs), inputs, outputs, path)
        refuse_other_answers(head, tuple(seen[name] for name in inputs), outputs, path)


def export_encoder(architecture: str, spec: InputSpec, student: Path, out: Path) -> None:
    """Write the student's `encoder.onnx` alone, for what is fitted on its features.

    Args:
        architecture: Name of the student's architecture.
        spec: The pack's input.
        student: The student's weights.
        out: Folder to write to.
    """
    net = MultiTaskNet(ARCHITECTURES[architecture])
    net.load_state_dict(load_file(student))
    export_features(net.eval().encoder.fused(), spec, out / ENCODER)


def to_onnx(architecture: str, spec: InputSpec, mask_side: int, student: Path, *, calibration: Path, out: Path) -> None:
    """The step: weights and calibration in, graphs out.

    Args:
        architecture: Name of the student's architecture.
        spec: The pack's input.
        mask_side: Rows and columns of the lung mask.
        student: The student's weights.
        calibration: The artefact of the step `calibrate`.
        out: Folder to write to.
    """
    net = MultiTaskNet(ARCHITECTURES[architecture])
    net.load_state_dict(load_file(student))
    widths = net.encoder.architecture.feature_widths
    chosen = [widths[FEATURE_STRIDES.index(stride)] for stride in GUARD_STRIDES]
    guard = GuardHead(net.encoder.architecture.embedding, (chosen[0], chosen[1]))
    guard.load_state_dict(load_file(calibration / "guard.safetensors"))
    temperatures = read_json(calibration / "temperatures.json")
    export_graphs(net, heads(net, guard, temperatures, mask_side), spec, out)


def export_features(encoder: nn.Module, spec: InputSpec, path: Path) -> None:
    """Write an encoder, fused and in evaluation mode, as one graph from the picture to `ENCODER_OUTPUTS`."""
    export_module(encoder, (_example(spec),), (spec.name,), ENCODER_OUTPUTS, path)


def _example(spec: InputSpec) -> Tensor:
    return torch.zeros((2, 1, spec.rows, spec.columns), dtype=torch.uint8)


def export_module(
    module: nn.Module, inputs: tuple[Tensor, ...], names: Sequence[str], outputs: Sequence[str], path: Path
) -> None:
    """Write one module as ONNX with a free batch dimension; nothing of this machine is left in the file.

    Raises:
        EngineFileError: The exporter fails, or gives an operator that ONNX does not know or a graph that is not valid.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch", min=1, max=MAXIMUM_BATCH)
    dynamic_shapes = tuple({0: batch} for _ in inputs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about its own internals
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                input_names=list(names),
                output_names=list(outputs),
                dynamic_shapes=dynamic_shapes,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise refusal_from_exporter(error, module, inputs, dynamic_shapes, path.name) from error
    if program is None:
        raise EngineFileError(f"torch.onnx.export gave nothing for {path.name}.", WAY_FORWARD)
    model = program.model_proto
    strip_traces(model)
    refuse_unknown_operators(model, "ONNX", onnx.defs.has)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise EngineFileError(f"{path.name} is no valid ONNX: {str(error).strip()}", WAY_FORWARD) from error
    path.write_bytes(model.SerializeToString(deterministic=True))


def strip_traces(model: onnx.ModelProto) -> None:
    """Remove stack traces, source paths and symbolic hints that the exporter leaves in a model."""
    del model.metadata_props[:]
    model.doc_string = ""
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    model.graph.doc_string = ""
    for item in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
