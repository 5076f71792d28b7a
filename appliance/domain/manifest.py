"""The pack manifest: what a base pack and its tasks say of themselves, in typed form.

`manifest.json` of a base pack lists every other file by SHA-256; its own canonical form is hashed to the pack's
digest (`model.sig`, engines and measured times stand outside). A task manifest is bound to the base's digest, which
covers name, input and encoder only, so that a task can be added without touching the base.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PACK_SCHEMA = "insite-pack-manifest/1"
TASK_SCHEMA = "insite-task-manifest/1"
EMBEDDING = "embedding"
"""The encoder output that every pack has, and the model name under which it is served."""
ALL = "all"
"""The model name under which all tasks of a pack are served together: its outputs are `<task>.<output>`."""


class TaskKind(enum.Enum):
    """What a head's outputs mean.

    CLASSIFICATION: output `score`, FP32 [N, 1], a probability.
    SEGMENTATION: output `mask`, FP32 [N, 1, rows, columns], a probability per pixel of the stretched input.
    GUARD: outputs `score`, FP32 [N, 1], probability that the image is what the pack was trained on, and `distance`,
    FP32 [N, 1], Mahalanobis distance of the embedding to the training set.
    EMBEDDING: output `embedding`, FP32 [N, D].
    """

    CLASSIFICATION = "classification"
    SEGMENTATION = "segmentation"
    GUARD = "guard"
    EMBEDDING = "embedding"


class Validation(enum.Enum):
    """How far a pack was validated; anything but VALIDATED needs `--allow-unvalidated` to be activated."""

    VALIDATED = "validated"
    UNTRAINED = "untrained"
    SYNTHETIC = "synthetic"
    RESEARCH_ONLY = "research-only"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a model: its name, Open Inference Protocol datatype and shape, -1 for the batch dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How a picture becomes the encoder's input; the only home of these numbers.

    The displayed MONOCHROME2 picture is stretched (aspect ratio not kept) to `rows` x `columns` with an antialiased
    bilinear filter, its intensity percentiles `low_percentile` and `high_percentile` are mapped to 0 and 255, clipped
    and rounded to UINT8 [N, 1, rows, columns]. Every later step (resize, normalisation) is inside the ONNX graph.
    """

    name: str
    rows: int
    columns: int
    low_percentile: float
    high_percentile: float


@dataclass(frozen=True, slots=True)
class EncoderVariant:
    """One encoder file: `precision` (`int8`, `fp32`), its path in the pack and the runtimes that it is made for."""

    precision: str
    file: str
    runtimes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept (PS3.3 8.8): value, coding scheme designator, meaning."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """The score at or above which a finding is called positive, for one precision, and what was measured there.

    Attributes:
        threshold: Score in [0, 1].
        max_distance: For a guard: the distance above which an image is out of distribution; None elsewhere.
        meaning: One sentence with n, data set and interval, for SR and page.
    """

    precision: str
    threshold: float
    max_distance: float | None
    meaning: str


class UnknownAge(enum.Enum):
    """What a task does when the patient's age is unknown."""

    RUN_AND_SAY = "run-and-say"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class EligibilityRules:
    """Which images a task takes. An empty tuple means any value.

    Attributes:
        body_parts: Accepted Body Part Examined values; an absent value is accepted (the guard looks at the pixels).
        views: Accepted View Position values; an absent value is accepted for the same reason.
        min_age_years, max_age_years: Half-open interval [min, max) of ages; None for no bound.
    """

    modalities: tuple[str, ...]
    body_parts: tuple[str, ...]
    views: tuple[str, ...]
    min_age_years: float | None
    max_age_years: float | None
    unknown_age: UnknownAge


@dataclass(frozen=True, slots=True)
class TaskManifest:
    """One head on a base: tensors, coded finding, operating points per precision, eligibility, intended use."""

    name: str
    title: str
    kind: TaskKind
    release: int
    base_digest: str
    head: str
    inputs: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    finding: Code
    operating_points: tuple[OperatingPoint, ...]
    eligibility: EligibilityRules
    intended_use: str
    not_for: str

    def operating_point(self, precision: str) -> OperatingPoint | None:
        """The operating point measured at this precision, or None for a task that has none."""
        return next((point for point in self.operating_points if point.precision == precision), None)


@dataclass(frozen=True, slots=True)
class PackManifest:
    """A base pack: identity, input, encoder variants, tasks, files with digests, provenance.

    Attributes:
        release: The integer that is the Open Inference Protocol's model version.
        encoder_outputs: Tensors that heads may read; one is named `embedding`.
        variants: In order of preference on a CPU.
        guard: The name of the task that must accept an image before any other may speak.
        files: Path in the pack to hex SHA-256, for every file but `manifest.json`, `model.sig`, engines and
            measured times (`packs.files.UNLISTED`).
        gate_report_id: Hex SHA-256 of `gate-report.json`.
        udi: Unique device identifier, or empty: a pack that is no medical device says so by leaving it out.
    """

    name: str
    title: str
    release: int
    version: str
    licence: str
    validation: Validation
    intended_use: str
    not_for: str
    udi: str
    input: InputSpec
    encoder_outputs: tuple[TensorSpec, ...]
    variants: tuple[EncoderVariant, ...]
    guard: str
    tasks: tuple[TaskManifest, ...]
    files: Mapping[str, str]
    gate_report_id: str
    base_digest: str
    digest: str

    def task(self, name: str) -> TaskManifest | None:
        """The task of this name, or None."""
        return next((task for task in self.tasks if task.name == name), None)

    def model_name(self, task: str) -> str:
        """The Open Inference Protocol's model name of a task: `<pack>.<task>`."""
        return f"{self.name}.{task}"


@dataclass(frozen=True, slots=True)
class VerifiedPack:
    """A pack on disk whose signature, digests and gate were checked: the only thing that engines accept.

    Attributes:
        unlisted: Path in the pack to hex SHA-256, for files that are signed and that the manifest does not list.
    """

    manifest: PackManifest
    folder: Path
    unlisted: Mapping[str, str] = field(default_factory=dict)
