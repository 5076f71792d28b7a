"""Every known task of every pack on one study: each one runs, is refused with a reason, or failed; never silence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from appliance.domain.eligibility import notes_of, refusal_of
from appliance.domain.errors import InferenceError, InferenceUnavailableError, ProvenanceError
from appliance.domain.findings import Refusal, RefusalCode, SegmentationMask, StudyAnalysis, TaskOutcome, TaskState
from appliance.domain.instance import AgeSource, Patient, StudyKey
from appliance.domain.manifest import PackManifest, TaskKind, TaskManifest
from appliance.domain.ports import Inference, StoredInstance
from appliance.imaging.mask import mask_from_probability
from appliance.pipeline.guard import Look, Picture, Pictures, guard_of, look_at
from appliance.pipeline.question import Reading, ask, failure_sentence
from appliance.telemetry import logger_for

NO_IMAGES = Refusal(RefusalCode.NO_IMAGES, "The study holds no image.")

_C = RefusalCode
HOW_FAR: tuple[RefusalCode, ...] = (
    _C.NO_IMAGES,
    _C.NO_PIXELS,
    _C.MODALITY,
    _C.MULTI_FRAME,
    _C.COLOUR,
    _C.FOR_PROCESSING,
    _C.BODY_PART,
    _C.VIEW,
    _C.AGE_UNKNOWN,
    _C.AGE_OUT_OF_RANGE,
    _C.PIXELS_UNREADABLE,
    _C.ORIENTATION,
    _C.NO_CONTRAST,
    _C.GUARD_UNAVAILABLE,
    _C.NOT_RECOGNISED,
    _C.OUT_OF_DISTRIBUTION,
)
"""How far an image got: where all images of a study are refused, the refusal of the one that got furthest is told."""

NAMED_AT_MOST = 5
"""Images left out that a note names one by one."""


class StudyAnalyser:
    """Asks every task of the packs about a study.

    Args:
        max_images: Images of one study that are decoded and looked at, per pack.
    """

    def __init__(self, inference: Inference, manifests: Sequence[PackManifest], max_images: int) -> None:
        self._inference = inference
        self._manifests = tuple(manifests)
        self._max_images = max_images

    def analyse(self, key: StudyKey, revision: int, images: Sequence[StoredInstance]) -> StudyAnalysis:
        """Look at the images and say what each task of each pack makes of them.

        Several eligible images: a classification reports the image with the highest score, a segmentation the image
        that the guard recognised best; notes say how many were looked at. Own results among the images are left out.

        Raises:
            InferenceUnavailableError: Nobody answers now; the same call later may succeed.
            ProvenanceError: Another pack answered than the one given here.
            ManifestError: A pack has no guard.
        """
        foreign = [stored for stored in images if not stored.own_result]
        ordered = _with_known_age(sorted(foreign, key=lambda stored: stored.instance.identity.sop_instance_uid))
        pictures = Pictures()
        outcomes: list[TaskOutcome] = []
        for manifest in self._manifests:
            looks = look_at(ordered, manifest, self._inference, pictures, self._max_images)
            outcomes += _PackRound(manifest, looks, self._inference, pictures).outcomes()
        return StudyAnalysis(
            key=key,
            revision=revision,
            patient=_patient_of(key, ordered),
            sources=tuple(stored.instance.identity for stored in ordered),
            outcomes=tuple(outcomes),
            pack_digests={manifest.name: manifest.digest for manifest in self._manifests},
            gate_reports={manifest.name: manifest.gate_report_id for manifest in self._manifests},
            validations={manifest.name: manifest.validation.value for manifest in self._manifests},
        )


@dataclass(frozen=True, eq=False, slots=True)
class _Told:
    """What one task says of one image it may look at."""

    look: Look
    reading: Reading | None = None
    score: float | None = None
    mask: SegmentationMask | None = None
    failure: str = ""


class _PackRound:
    """One pack's tasks on one study, after the guard has looked."""

    def __init__(self, manifest: PackManifest, looks: Sequence[Look], inference: Inference, pictures: Pictures) -> None:
        self._manifest = manifest
        self._looks = looks
        self._inference = inference
        self._pictures = pictures
        self._shown = sum(look.picture is not None for look in looks)
        self._left_out = [look.stored.instance.identity.sop_instance_uid for look in looks if look.left_out]

    def outcomes(self) -> list[TaskOutcome]:
        """One outcome for every task of the pack, in the manifest's order; an embedding says nothing of a study."""
        by_kind: dict[TaskKind, Callable[[TaskManifest], TaskOutcome]] = {
            TaskKind.GUARD: self._guard,
            TaskKind.CLASSIFICATION: self._classification,
            TaskKind.SEGMENTATION: self._segmentation,
        }
        return [by_kind[task.kind](task) for task in self._manifest.tasks if task.kind in by_kind]

    def _guard(self, task: TaskManifest) -> TaskOutcome:
        if task.name != guard_of(self._manifest).name:
            return self._failed(task, "A pack has one guard; this one is not asked.")
        read = [look for look in self._looks if look.reading is not None]
        if not read:
            failures = [look for look in self._looks if look.failure]
            if failures:
                return self._failed(task, failures[0].failure, failures[0])
            return self._refused(task, [(look, look.refusal) for look in self._looks if look.refusal is not None])
        best = max(read, key=lambda look: (look.refusal is None, look.score))
        told = _Told(best, best.reading, best.score)
        notes = (f"The best of {len(read)} images looked at.",) if len(read) > 1 else ()
        return self._ran(task, told, notes, positive=best.refusal is None)

    def _classification(self, task: TaskManifest) -> TaskOutcome:
        eligible, refusals = self._eligible(task)
        told = [self._classify(task, look, picture) for look, picture in eligible]
        if not told:
            return self._refused(task, refusals)
        scored = [each for each in told if each.score is not None]
        if not scored:
            return self._failed(task, told[0].failure, told[0].look)
        best = max(scored, key=lambda each: each.score or 0.0)
        notes = []
        if len(scored) > 1:
            notes.append(f"The highest score of {len(scored)} images looked at.")
        if len(scored) < len(told):
            notes.append(f"{len(told) - len(scored)} of {len(told)} images could not be analysed.")
        return self._ran(task, best, tuple(notes))

    def _segmentation(self, task: TaskManifest) -> TaskOutcome:
        eligible, refusals = self._eligible(task)
        if not eligible:
            return self._refused(task, refusals)
        best, picture = max(eligible, key=lambda shown: shown[0].score)
        told = self._segment(task, best, picture)
        if told.mask is None:
            return self._failed(task, told.failure, best)
        notes = []
        if len(eligible) > 1:
            notes.append(f"Segmented on the image that the guard recognised best, of {len(eligible)} looked at.")
        if not told.mask.pixels.any():
            notes.append("The segmentation is empty.")
        return self._ran(task, told, tuple(notes))

    def _eligible(self, task: TaskManifest) -> tuple[list[tuple[Look, Picture]], list[tuple[Look, Refusal]]]:
        eligible: list[tuple[Look, Picture]] = []
        refusals: list[tuple[Look, Refusal]] = []
        for look in self._looks:
            refusal = refusal_of(look.stored.instance, task.eligibility) or look.refusal
            if refusal is not None:
                refusals.append((look, refusal))
            elif look.picture is not None:
                eligible.append((look, look.picture))
        return eligible, refusals

    def _classify(self, task: TaskManifest, look: Look, picture: Picture) -> _Told:
        try:
            reading = ask(self._inference, self._manifest, task, picture)
            return _Told(look, reading, reading.probability(task.outputs[0].name))
        except (InferenceUnavailableError, ProvenanceError):
            raise
        except InferenceError as error:
            return self._could_not(task, look, error)

    def _segment(self, task: TaskManifest, look: Look, picture: Picture) -> _Told:
        try:
            reading = ask(self._inference, self._manifest, task, picture)
            plane = reading.plane(task.outputs[0].name)
        except (InferenceUnavailableError, ProvenanceError):
            raise
        except InferenceError as error:
            return self._could_not(task, look, error)
        display = self._pictures.display(look.stored.path)
        return _Told(look, reading, mask=mask_from_probability(plane, display, reading.point.threshold))

    def _could_not(self, task: TaskManifest, look: Look, error: InferenceError) -> _Told:
        logger_for("pipeline").error(
            "task could not answer", pack=self._manifest.name, task=task.name, error=str(error)
        )
        return _Told(look, failure=failure_sentence(task, error))

    def _ran(
        self, task: TaskManifest, told: _Told, notes: tuple[str, ...], *, positive: bool | None = None
    ) -> TaskOutcome:
        point = told.reading.point if told.reading is not None else None
        if positive is None and told.score is not None and point is not None:
            positive = told.score >= point.threshold
        return replace(
            self._outcome(task, TaskState.RAN),
            image=told.look.stored.instance.identity,
            score=told.score,
            operating_point=point,
            positive=positive,
            provenance=told.reading.provenance if told.reading is not None else None,
            mask=told.mask,
            notes=(*notes_of(told.look.stored.instance, task.eligibility), *notes, *self._left_out_note()),
        )

    def _refused(self, task: TaskManifest, refusals: Sequence[tuple[Look, Refusal]]) -> TaskOutcome:
        outcome = self._outcome(task, TaskState.REFUSED)
        if not refusals:
            return replace(outcome, refusal=NO_IMAGES)
        look, refusal = max(refusals, key=lambda each: (HOW_FAR.index(each[1].code), each[0].score))
        looked_at = HOW_FAR.index(refusal.code) >= HOW_FAR.index(RefusalCode.PIXELS_UNREADABLE)
        image = look.stored.instance.identity if looked_at else None
        return replace(outcome, refusal=refusal, image=image, notes=self._left_out_note())

    def _failed(self, task: TaskManifest, sentence: str, look: Look | None = None) -> TaskOutcome:
        image = look.stored.instance.identity if look is not None else None
        return replace(self._outcome(task, TaskState.FAILED), error=sentence, image=image)

    def _outcome(self, task: TaskManifest, state: TaskState) -> TaskOutcome:
        return TaskOutcome(task.name, task.title, task.kind, task.finding, state, pack=self._manifest.name)

    def _left_out_note(self) -> tuple[str, ...]:
        if not self._left_out:
            return ()
        named = ", ".join(self._left_out[:NAMED_AT_MOST])
        more = f" and {len(self._left_out) - NAMED_AT_MOST} more" if len(self._left_out) > NAMED_AT_MOST else ""
        return (f"Looked at were {self._shown} eligible images, the most of one study; not looked at: {named}{more}.",)


def _with_known_age(images: Sequence[StoredInstance]) -> list[StoredInstance]:
    """Where one image of a study states the patient's age, it holds for those that don't."""
    known = next((s.instance.patient for s in images if s.instance.patient.age_years is not None), None)
    if known is None:
        return list(images)
    return [_aged(stored, known) if stored.instance.patient.age_years is None else stored for stored in images]


def _aged(stored: StoredInstance, known: Patient) -> StoredInstance:
    patient = replace(stored.instance.patient, age_years=known.age_years, age_source=known.age_source)
    return replace(stored, instance=replace(stored.instance, patient=patient))


def _patient_of(key: StudyKey, images: Sequence[StoredInstance]) -> Patient:
    if images:
        return images[0].instance.patient
    return Patient(key.patient_id, key.issuer, "", "", "", None, AgeSource.UNKNOWN)
