"""Every known task of every pack says something of every study: it ran, was refused for a reason, or failed."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.domain.errors import (
    InferenceUnavailableError,
    InvalidTensorError,
    ManifestError,
    ProvenanceError,
    UnknownModelError,
)
from appliance.domain.findings import RefusalCode, StudyAnalysis, TaskOutcome, TaskState
from appliance.domain.instance import StudyKey, key_of
from appliance.domain.manifest import TaskKind
from appliance.domain.ports import StoredInstance
from appliance.imaging.header import read_instance
from appliance.pipeline.analyse import StudyAnalyser
from tests.fakes.chain import DIGEST, TASKS, ScriptedModels, agreeable, pack, task
from tests.fakes.radiographs import ROOT, chest_like, write_radiograph

KEY = StudyKey(f"{ROOT}.1", "SYN-1", "")
NOW = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)
Image = Callable[..., StoredInstance]


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """Makes an image of study 1 on disk; the n-th has SOP Instance UID `….n`."""

    def make(n: int = 1, seed: int = 0, *, own_result: bool = False, **attributes: Any) -> StoredInstance:
        uid = f"{ROOT}.1.1.{n}"
        file = write_radiograph(tmp_path / f"{n}.dcm", 1, chest_like(seed=seed), SOPInstanceUID=uid, **attributes)
        return StoredInstance(read_instance(file), file, NOW, "MODALITY", own_result=own_result)

    return make


def analysed(models: ScriptedModels, *images: StoredInstance, max_images: int = 16) -> StudyAnalysis:
    """What the served pack says of study 1."""
    key = key_of(images[0].instance) if images else KEY
    return StudyAnalyser(models, [models.manifest], max_images).analyse(key, 3, images)


def by_task(analysis: StudyAnalysis) -> dict[str, TaskOutcome]:
    """Outcomes by the task's name."""
    return {outcome.task: outcome for outcome in analysis.outcomes}


def codes(analysis: StudyAnalysis) -> dict[str, str]:
    """What each task says, in a word: its refusal's code, or its state."""
    said = {}
    for outcome in analysis.outcomes:
        said[outcome.task] = outcome.refusal.code.value if outcome.refusal else outcome.state.value
    return said


def test_an_eligible_radiograph_is_read_by_every_task_meant_for_it(image: Image) -> None:
    """An adult's chest radiograph gets score, mask and guard's score; the child's task says why it did not look."""
    analysis = analysed(agreeable(), image())
    outcomes = by_task(analysis)
    assert codes(analysis) == {
        "guard": "ran",
        "triage": "ran",
        "pneumonia": RefusalCode.AGE_OUT_OF_RANGE.value,
        "lungs": "ran",
    }
    assert (outcomes["triage"].score, outcomes["triage"].positive) == (pytest.approx(0.7), True)
    assert (outcomes["guard"].score, outcomes["guard"].positive) == (pytest.approx(0.9), True)
    assert outcomes["triage"].provenance is not None
    assert outcomes["triage"].provenance.pack_digest == DIGEST
    assert outcomes["triage"].image == analysis.sources[0]
    assert {outcome.pack for outcome in analysis.outcomes} == {"chest"}
    assert analysis.pack_digests == {"chest": DIGEST}
    assert analysis.gate_reports == {"chest": "e" * 64}
    assert analysis.revision == 3


def test_a_mask_lies_on_the_grid_of_the_file(image: Image) -> None:
    """A segmentation's mask has the rows and columns of its source, and an area where there is a spacing."""
    mask = by_task(analysed(agreeable(), image()))["lungs"].mask
    assert mask is not None
    assert mask.pixels.shape == (96, 80)
    assert mask.pixels[:, :36].all()
    assert not mask.pixels[:, 44:].any()
    assert mask.area_mm2 == pytest.approx(4.0 * mask.pixels.sum())


def test_an_empty_mask_is_said(image: Image) -> None:
    """A segmentation without a pixel ran, and a note says that it is empty."""
    models = agreeable()
    models.answers["lungs"] = lambda _: {"mask": np.zeros((8, 8), np.float32)}
    lungs = by_task(analysed(models, image()))["lungs"]
    assert lungs.state is TaskState.RAN
    assert "The segmentation is empty." in lungs.notes


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"score": 0.1, "distance": 2.0}, RefusalCode.NOT_RECOGNISED),
        ({"score": 0.9, "distance": 11.0}, RefusalCode.OUT_OF_DISTRIBUTION),
    ],
)
def test_what_the_guard_does_not_accept_no_task_reads(
    image: Image, answer: dict[str, float], code: RefusalCode
) -> None:
    """A picture that the guard turns away refuses every other task with the guard's reason."""
    models = agreeable()
    models.answers["guard"] = lambda _: answer
    analysis = analysed(models, image())
    assert codes(analysis)["triage"] == codes(analysis)["lungs"] == code.value
    guard = by_task(analysis)["guard"]
    assert (guard.state, guard.positive) == (TaskState.RAN, False)
    assert models.asked == ["chest.guard"]


@pytest.mark.parametrize(
    "wrong",
    [
        UnknownModelError("x"),
        InvalidTensorError("x"),
        lambda _: {"score": float("nan"), "distance": 1.0},
        lambda _: {"score": 1.5, "distance": 1.0},
        lambda _: {"score": 0.9},
        lambda _: {"score": np.zeros((2, 2), np.float32), "distance": 1.0},
    ],
)
def test_without_a_guard_no_task_speaks(image: Image, wrong: Any) -> None:
    """A guard that can't answer, or answers nonsense, has failed, and every other task is refused."""
    models = agreeable()
    models.answers["guard"] = wrong
    analysis = analysed(models, image())
    assert codes(analysis)["guard"] == "failed"
    assert codes(analysis)["triage"] == codes(analysis)["lungs"] == RefusalCode.GUARD_UNAVAILABLE.value


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("triage", InvalidTensorError("secret")),
        ("triage", lambda _: {"score": float("inf")}),
        ("lungs", UnknownModelError("secret")),
        ("lungs", lambda _: {"mask": np.full((4, 4), np.nan, np.float32)}),
        ("lungs", lambda _: {"mask": 0.5 * np.ones((2, 4, 4), np.float32)}),
    ],
)
def test_a_task_that_can_not_answer_has_failed(image: Image, name: str, wrong: Any) -> None:
    """A failed task says so in a plain sentence, without the error's own text; the others are not touched."""
    models = agreeable()
    models.answers[name] = wrong
    outcomes = by_task(analysed(models, image()))
    assert outcomes[name].state is TaskState.FAILED
    assert outcomes[name].reason
    assert "secret" not in outcomes[name].reason
    assert outcomes["guard"].state is TaskState.RAN


def test_a_precision_without_an_operating_point_is_no_result(image: Image) -> None:
    """Where nothing was measured at the precision that answered, nothing is called positive or negative."""
    models = agreeable()
    models.precision = "int8"
    assert codes(analysed(models, image()))["guard"] == "failed"


def test_another_pack_than_planned_ends_the_analysis(image: Image) -> None:
    """An answer of another pack is never taken."""
    models = agreeable()
    other = StudyAnalyser(models, [pack(digest="f" * 64)], 16)
    with pytest.raises(ProvenanceError):
        other.analyse(KEY, 1, [image()])


def test_a_daemon_that_is_away_is_no_refusal(image: Image) -> None:
    """Without the inference daemon there is no analysis: it is made later."""
    for name in ("guard", "triage", "lungs"):
        models = agreeable()
        models.answers[name] = InferenceUnavailableError("down")
        with pytest.raises(InferenceUnavailableError):
            analysed(models, image())


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"Modality": "CT"}, RefusalCode.MODALITY),
        ({"BodyPartExamined": "LEG"}, RefusalCode.BODY_PART),
        ({"ViewPosition": "LL"}, RefusalCode.VIEW),
        ({"NumberOfFrames": 2}, RefusalCode.MULTI_FRAME),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, RefusalCode.COLOUR),
        ({"PresentationIntentType": "FOR PROCESSING"}, RefusalCode.FOR_PROCESSING),
        ({"PixelData": None}, RefusalCode.NO_PIXELS),
        ({"PatientOrientation": ["A", "F"]}, RefusalCode.ORIENTATION),
        ({"PixelData": b"\0" * 10}, RefusalCode.PIXELS_UNREADABLE),
        ({"PixelData": b"\0" * (96 * 80 * 2)}, RefusalCode.NO_CONTRAST),
    ],
)
def test_an_image_that_does_not_fit_is_refused_with_its_reason(
    image: Image, attributes: dict[str, Any], code: RefusalCode
) -> None:
    """A leg, a slice, a lateral view, broken pixels and a blank picture refuse every task, the guard among them."""
    models = agreeable()
    analysis = analysed(models, image(PatientAge="064Y", **attributes))
    assert set(codes(analysis).values()) <= {code.value, RefusalCode.AGE_OUT_OF_RANGE.value}
    assert codes(analysis)["guard"] == codes(analysis)["triage"] == code.value
    assert models.asked == []


def test_a_study_without_images_is_refused(image: Image) -> None:
    """A study that holds no image, or only our own results, says so for each task."""
    for images in ((), (image(own_result=True),)):
        analysis = analysed(agreeable(), *images)
        assert set(codes(analysis).values()) == {RefusalCode.NO_IMAGES.value}
        assert analysis.sources == ()


def test_of_several_images_the_highest_score_counts(image: Image) -> None:
    """A classification reports its highest score, a segmentation the image that the guard knew best."""
    models = agreeable()
    seen: list[float] = []

    def by_order(_: Any) -> dict[str, float]:
        seen.append(0.1)
        return {"score": 0.3 + 0.1 * len(seen)}

    guarded = iter([0.8, 0.95, 0.7])
    models.answers["guard"] = lambda _: {"score": next(guarded), "distance": 1.0}
    models.answers["triage"] = by_order
    outcomes = by_task(analysed(models, image(3), image(1), image(2)))
    assert outcomes["triage"].score == pytest.approx(0.6)
    assert outcomes["triage"].image is not None
    assert outcomes["triage"].image.sop_instance_uid.endswith(".3")
    assert outcomes["lungs"].image is not None
    assert outcomes["lungs"].image.sop_instance_uid.endswith(".2")
    assert outcomes["triage"].notes == ("The highest score of 3 images looked at.",)
    assert "of 3 looked at" in outcomes["lungs"].notes[0]


def test_images_beyond_the_limit_are_named(image: Image) -> None:
    """A study of many images is looked at up to the limit, and the result names the rest."""
    models = agreeable()
    outcomes = by_task(analysed(models, *(image(n) for n in range(1, 4)), max_images=2))
    assert models.asked.count("chest.guard") == 2
    assert f"{ROOT}.1.1.3" in outcomes["triage"].notes[-1]


def test_an_image_that_fits_speaks_for_the_study(image: Image) -> None:
    """A lateral view and a presentation state beside a frontal view do not hinder it."""
    analysis = analysed(agreeable(), image(1, ViewPosition="LL"), image(2))
    triage = by_task(analysis)["triage"]
    assert triage.state is TaskState.RAN
    assert triage.image is not None
    assert triage.image.sop_instance_uid.endswith(".2")
    assert len(analysis.sources) == 2


def test_the_refusal_of_the_image_that_got_furthest_is_told(image: Image) -> None:
    """Where nothing fits, the reason of the image that came nearest is given."""
    images = image(1, Modality="CT"), image(2, ViewPosition="LL"), image(3, BodyPartExamined="LEG")
    assert codes(analysed(agreeable(), *images))["triage"] == RefusalCode.VIEW.value


def test_one_image_of_several_that_fails_does_not_hide_the_others(image: Image) -> None:
    """A score of the images that could be analysed is reported with the number of those that could not."""
    models = agreeable()
    answers = iter([{"score": float("nan")}, {"score": 0.6}])
    models.answers["triage"] = lambda _: next(answers)
    triage = by_task(analysed(models, image(1), image(2)))["triage"]
    assert triage.score == pytest.approx(0.6)
    assert triage.notes == ("1 of 2 images could not be analysed.",)


def test_an_unknown_age_runs_the_adult_task_and_says_so(image: Image) -> None:
    """Without an age the adult task runs with a note, and the child's task refuses."""
    analysis = analysed(agreeable(), image(PatientAge=None, PatientBirthDate=""))
    assert "age is unknown" in by_task(analysis)["triage"].notes[0]
    assert codes(analysis)["pneumonia"] == RefusalCode.AGE_UNKNOWN.value
    assert analysis.age_unknown


def test_an_age_in_one_image_holds_for_the_study(image: Image) -> None:
    """A child's image that states no age is no adult's, when another image of the study says whose it is."""
    images = image(1, PatientAge=None, PatientBirthDate=""), image(2, PatientAge="004Y", PatientBirthDate="20200101")
    analysis = analysed(agreeable(), *images)
    assert codes(analysis)["triage"] == RefusalCode.AGE_OUT_OF_RANGE.value
    assert codes(analysis)["pneumonia"] == "ran"


def test_every_pack_speaks(image: Image) -> None:
    """Tasks of two packs stand side by side, each under its pack's name and digest."""
    models = agreeable()
    away = pack(name="leg", digest="9" * 64)
    rules = replace(TASKS[0].eligibility, body_parts=("LEG",))
    away = replace(away, tasks=tuple(replace(each, eligibility=rules) for each in away.tasks))
    analysis = StudyAnalyser(models, [models.manifest, away], 16).analyse(KEY, 1, [image()])
    said = {(each.pack, each.task): each.state for each in analysis.outcomes}
    assert said["chest", "triage"] is TaskState.RAN
    assert said["leg", "triage"] is TaskState.REFUSED
    assert analysis.pack_digests == {"chest": DIGEST, "leg": "9" * 64}


def test_a_pack_without_a_guard_is_not_used(image: Image) -> None:
    """A pack that names no guard can't speak of any image; a second guard is not asked."""
    with pytest.raises(ManifestError):
        StudyAnalyser(agreeable(), [pack(guard="missing")], 16).analyse(KEY, 1, [image()])
    models = agreeable()
    models.manifest = pack(*TASKS, task("second", TaskKind.GUARD))
    assert codes(analysed(models, image()))["second"] == "failed"


def test_a_guard_without_a_greatest_distance_accepts_nothing(image: Image) -> None:
    """An incomplete guard fails instead of guessing."""
    bare = replace(TASKS[0], operating_points=(replace(TASKS[0].operating_points[0], max_distance=None),))
    models = agreeable()
    models.manifest = pack(bare, *TASKS[1:])
    assert codes(analysed(models, image()))["guard"] == "failed"
