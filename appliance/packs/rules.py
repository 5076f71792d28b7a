"""What a manifest must not contradict: a table of rules over the parsed whole, each with its sentence."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

from appliance.domain.errors import ManifestError
from appliance.domain.manifest import ALL, EMBEDDING, PackManifest, TaskKind, TensorSpec

OUTPUTS_OF_KIND: dict[TaskKind, tuple[str, ...]] = {
    TaskKind.CLASSIFICATION: ("score",),
    TaskKind.SEGMENTATION: ("mask",),
    TaskKind.GUARD: ("score", "distance"),
    TaskKind.EMBEDDING: ("embedding",),
}

DATATYPES = frozenset(
    "BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64".split()  # noqa: SIM905 - reads as a table
)
"""Open Inference Protocol datatypes that a pack's tensors may have (BYTES has no place in a graph of numbers)."""


def is_path_in_pack(path: str) -> bool:
    """Whether a path is relative, in normal form, and can't leave the pack."""
    parts = PurePosixPath(path).parts
    plain = re.fullmatch(r"[A-Za-z0-9._/-]+", path) is not None and not path.startswith("/")
    return plain and ".." not in parts and str(PurePosixPath(*parts)) == path and path != "."


def _paths(manifest: PackManifest) -> Iterator[str]:
    for path in manifest.files:
        if not is_path_in_pack(path):
            yield f"The listed path {path!r} could leave the pack"


def _input(manifest: PackManifest) -> Iterator[str]:
    spec = manifest.input
    if not 0 <= spec.low_percentile < spec.high_percentile <= 100:  # noqa: PLR2004 - a percentage
        yield f"The percentiles {spec.low_percentile:g} and {spec.high_percentile:g} do not rise within 0 to 100"


def _encoder_outputs(manifest: PackManifest) -> Iterator[str]:
    names = [tensor.name for tensor in manifest.encoder_outputs]
    if EMBEDDING not in names:
        yield f"No encoder output is named {EMBEDDING}"
    if len(set(names)) != len(names):
        yield "Two encoder outputs have the same name"
    yield from _tensors("encoder output", manifest.encoder_outputs)
    yield from _reals("encoder output", [t for t in manifest.encoder_outputs if t.name == EMBEDDING])


def _variants(manifest: PackManifest) -> Iterator[str]:
    precisions = [variant.precision for variant in manifest.variants]
    if not precisions:
        yield "There is no encoder variant"
    if len(set(precisions)) != len(precisions):
        yield "Two encoder variants have the same precision"
    for variant in manifest.variants:
        if not variant.runtimes:
            yield f"The encoder variant {variant.precision} names no runtime"
        if not variant.file.endswith(".onnx"):
            yield f"The encoder file {variant.file} is no .onnx file"


def _tasks(manifest: PackManifest) -> Iterator[str]:
    names = [task.name for task in manifest.tasks]
    if len(set(names)) != len(names):
        yield "Two tasks have the same name"
    if EMBEDDING in names:
        yield f"A task is named {EMBEDDING}, which is the encoder's own model"
    if ALL in names:
        yield f"A task is named {ALL}, which is the model that answers for every task"
    guard = manifest.task(manifest.guard)
    if guard is None or guard.kind is not TaskKind.GUARD:
        yield f"The guard {manifest.guard} is no task of kind {TaskKind.GUARD.value}"
    known = {tensor.name for tensor in manifest.encoder_outputs}
    for task in manifest.tasks:
        if not task.inputs or not set(task.inputs) <= known:
            yield f"The inputs of the task {task.name} are not outputs of the encoder"
        if tuple(tensor.name for tensor in task.outputs) != OUTPUTS_OF_KIND[task.kind]:
            yield f"The outputs of the task {task.name} are not {' and '.join(OUTPUTS_OF_KIND[task.kind])}"
        yield from _tensors(f"output of the task {task.name}", task.outputs)
        yield from _reals(f"output of the task {task.name}", task.outputs)


def _heads(manifest: PackManifest) -> Iterator[str]:
    for task in manifest.tasks:
        if PurePosixPath(task.head).parent != PurePosixPath("tasks", task.name) or not task.head.endswith(".onnx"):
            yield f"The head of the task {task.name} is {task.head!r}, not an .onnx file in tasks/{task.name}"
        for path in (task.head, f"tasks/{task.name}/manifest.json"):
            if path not in manifest.files:
                yield f"The file {path} of the task {task.name} is not listed"


def _operating_points(manifest: PackManifest) -> Iterator[str]:
    for task in manifest.tasks:
        for point in task.operating_points:
            if not 0 <= point.threshold <= 1:
                yield f"The threshold {point.threshold:g} of the task {task.name} is not within 0 to 1"
        if task.kind is TaskKind.EMBEDDING:
            continue
        for variant in manifest.variants:
            measured = task.operating_point(variant.precision)
            if measured is None:
                yield f"The task {task.name} has no operating point for the precision {variant.precision}"
            elif task.kind is TaskKind.GUARD and measured.max_distance is None:
                yield f"The guard {task.name} has no max_distance for the precision {variant.precision}"


def _reals(what: str, tensors: Sequence[TensorSpec]) -> Iterator[str]:
    for tensor in tensors:
        if tensor.datatype != "FP32":
            yield f"The {what} {tensor.name} is {tensor.datatype}, but answers are FP32"


def _tensors(what: str, tensors: Sequence[TensorSpec]) -> Iterator[str]:
    for tensor in tensors:
        if tensor.datatype not in DATATYPES:
            yield f"The {what} {tensor.name} has the unknown datatype {tensor.datatype}"
        if not tensor.shape or tensor.shape[0] != -1 or min(tensor.shape[1:], default=1) < 1:
            yield f"The {what} {tensor.name} has the shape {list(tensor.shape)}, not -1 and then positive lengths"


RULES: tuple[Callable[[PackManifest], Iterator[str]], ...] = (
    _paths,
    _input,
    _encoder_outputs,
    _variants,
    _tasks,
    _heads,
    _operating_points,
)


def check_manifest(manifest: PackManifest) -> None:
    """Refuse a manifest that contradicts itself.

    Raises:
        ManifestError: The first contradiction.
    """
    for rule in RULES:
        for sentence in rule(manifest):
            raise ManifestError(
                f"The manifest of the pack {manifest.name} does not fit together: {sentence}.",
                "Correct the recipe and build the pack again.",
            )
