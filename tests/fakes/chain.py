"""Stand-ins for what a study meets on its way: models, a reporter, a receiving peer; and a pack that describes them."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from appliance.domain.findings import ModelProvenance, ResultObject, StudyAnalysis
from appliance.domain.identifiers import uid_from_content
from appliance.domain.manifest import (
    Code,
    EligibilityRules,
    InputSpec,
    OperatingPoint,
    PackManifest,
    TaskKind,
    TaskManifest,
    TensorSpec,
    UnknownAge,
    Validation,
)
from appliance.domain.ports import Answer, Destination, ServedModel

SIDE = 64
DIGEST, BASE = "d" * 64, "b" * 64
OUTPUTS = {
    TaskKind.GUARD: ("score", "distance"),
    TaskKind.CLASSIFICATION: ("score",),
    TaskKind.SEGMENTATION: ("mask",),
    TaskKind.EMBEDDING: ("embedding",),
}
ANYONE = EligibilityRules(("CR", "DX"), ("CHEST",), ("PA", "AP"), None, None, UnknownAge.RUN_AND_SAY)
ADULTS = replace(ANYONE, min_age_years=18.0)
CHILDREN = replace(ANYONE, max_age_years=6.0, unknown_age=UnknownAge.REFUSE)


def task(name: str, kind: TaskKind, rules: EligibilityRules = ANYONE) -> TaskManifest:
    """A task with an operating point at fp32."""
    return TaskManifest(
        name=name,
        title=f"Title of {name}",
        kind=kind,
        release=1,
        base_digest=BASE,
        head=f"tasks/{name}/head.onnx",
        inputs=("embedding",),
        outputs=tuple(TensorSpec(output, "FP32", (-1, 1)) for output in OUTPUTS[kind]),
        finding=Code(name, "99TEST", name),
        operating_points=(OperatingPoint("fp32", 0.5, 10.0 if kind is TaskKind.GUARD else None, "Invented."),),
        eligibility=rules,
        intended_use="Tests.",
        not_for="Patients.",
    )


TASKS = (
    task("guard", TaskKind.GUARD),
    task("triage", TaskKind.CLASSIFICATION, ADULTS),
    task("pneumonia", TaskKind.CLASSIFICATION, CHILDREN),
    task("lungs", TaskKind.SEGMENTATION),
    task("embedding", TaskKind.EMBEDDING),
)


def pack(*tasks: TaskManifest, name: str = "chest", digest: str = DIGEST, guard: str = "guard") -> PackManifest:
    """A pack of these tasks, or of one of every kind."""
    return PackManifest(
        name=name,
        title="the test pack",
        release=1,
        version="1.0.0",
        licence="Apache-2.0",
        validation=Validation.SYNTHETIC,
        intended_use="Tests.",
        not_for="Patients.",
        udi="",
        input=InputSpec("image", SIDE, SIDE, 0.5, 99.5),
        encoder_outputs=(),
        variants=(),
        guard=guard,
        tasks=tasks or TASKS,
        files={},
        gate_report_id="e" * 64,
        base_digest=BASE,
        digest=digest,
    )


Output = Mapping[str, float | NDArray[np.float32]]


@dataclass
class ScriptedModels:
    """Implements `Inference`: each model answers by what a function of the picture says, or raises.

    Args:
        answers: By task, a function from the picture (uint8 [rows, columns]) to outputs, or an error.
        manifest: What is served; answers bear its digests.
    """

    answers: dict[str, Callable[[NDArray[np.uint8]], Output] | Exception]
    manifest: PackManifest = field(default_factory=pack)
    precision: str = "fp32"
    down: bool = False
    asked: list[str] = field(default_factory=list)

    def infer(self, model: str, image: NDArray[np.uint8]) -> Answer:
        """As the Protocol says."""
        assert image.dtype == np.uint8
        assert image.shape == (1, 1, SIDE, SIDE)
        self.asked.append(model)
        answer = self.answers[model.removeprefix(f"{self.manifest.name}.")]
        if isinstance(answer, Exception):
            raise answer
        outputs = {name: _tensor(value) for name, value in answer(image[0, 0]).items()}
        return Answer(outputs, self.provenance())

    def served(self) -> Sequence[ServedModel]:
        """As the Protocol says."""
        names = [self.manifest.model_name(each.name) for each in self.manifest.tasks]
        return [ServedModel(name, self.provenance(), ()) for name in names]

    def provenance(self) -> ModelProvenance:
        """What every answer bears."""
        made = self.manifest
        return ModelProvenance(made.name, made.release, made.digest, made.base_digest, self.precision)


def agreeable() -> ScriptedModels:
    """Models that accept everything and find something."""
    half = np.zeros((8, 8), np.float32)
    half[:, :4] = 0.9
    return ScriptedModels(
        {
            "guard": lambda _: {"score": 0.9, "distance": 2.0},
            "triage": lambda _: {"score": 0.7},
            "pneumonia": lambda _: {"score": 0.2},
            "lungs": lambda _: {"mask": half},
        }
    )


@dataclass
class PlainReporter:
    """Implements `Reporter`: one file that says what it was made from, and when."""

    error: Exception | None = None

    def write(
        self,
        analysis: StudyAnalysis,
        sources: Mapping[str, Path],
        created: datetime,
        folder: Path,
        earlier: Sequence[ResultObject] = (),
    ) -> Sequence[ResultObject]:
        """As the Protocol says."""
        if self.error is not None:
            raise self.error
        uid = uid_from_content("SR", "", [(source, "") for source in sources], [])
        said = {outcome.task: outcome.state.value for outcome in analysis.outcomes}
        file = folder / "SR.dcm"
        file.write_text(json.dumps({"uid": uid, "created": created.isoformat(), "said": said}))
        return [ResultObject("SR", uid, "1.2.840.10008.5.1.4.1.1.88.34", str(file))]


@dataclass
class ScriptedPeer:
    """Implements `Sender`: takes everything, but what its scripts refuse first.

    Args:
        errors: By destination, the errors of the first calls.
    """

    errors: dict[str, list[Exception]] = field(default_factory=dict)
    taken: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))

    def send(self, destination: Destination, paths: Sequence[Path]) -> None:
        """As the Protocol says."""
        script = self.errors.get(destination.name, [])
        if script:
            raise script.pop(0)
        self.taken[destination.name] += [path.read_bytes() for path in paths]

    def echo(self, destination: Destination) -> None:
        """As the Protocol says."""


def _tensor(value: float | NDArray[np.float32]) -> NDArray[np.float32]:
    if isinstance(value, np.ndarray):
        return value[np.newaxis, np.newaxis]
    return np.array([[value]], np.float32)
