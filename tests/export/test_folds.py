"""Cross-validation asks each training about patients that it did not see, and never looks at the validation split."""

import dataclasses
import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from typer.testing import CliRunner

from appliance.domain.errors import InputError, SettingsError
from export.artefacts import write_json
from export.cli import app
from export.folds import asked_out_of_fold, changed
from export.folds_report import WITHIN_FOLDS, WITHIN_THIRDS, Measure, compared, cross_validate, measures
from export.folds_training import LEFT_OUT, Folds, folds_of, train_all, without
from export.images import ImageSet, image_set, prepare
from export.line import STEP_VERSIONS
from export.operating import Labelled
from export.progress import Silent
from export.recipe import Recipe, recipe_from_toml

ADULTS = 14
"""NIH images of the tiny data that are not of `val`, each of a patient of its own."""


@pytest.fixture(scope="module")
def prepared(tiny_data: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, ImageSet]:
    """The tiny recipe and its prepared pictures."""
    recipe, folder = recipe_from_toml(tiny_recipe), tmp_path_factory.mktemp("prepared")
    prepare(recipe, tiny_data, folder)
    return recipe, image_set(folder)


def trial(data: ImageSet, root: Path, stage: str = "second_teacher") -> Folds:
    """Two folds of these pictures, which are written into a folder for it."""
    pictures = root / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    np.save(pictures / "images.npy", data.images)
    np.save(pictures / "masks.npy", data.masks)
    rows = zip(data.samples, data.mask_of, strict=True)
    write_json(pictures / "samples.json", [dataclasses.asdict(s) | {"mask_row": row} for s, row in rows])
    return Folds(stage, 2, 1, pictures, "digest", root, STEP_VERSIONS)


def answers(recipe: Recipe, folds: Folds) -> list[Labelled]:
    """Train what is needed, and ask it."""
    train_all([recipe], folds, Silent().say)
    return asked_out_of_fold(recipe, folds)


def relabelled(data: ImageSet, of: Callable[[str, str], bool]) -> ImageSet:
    """The data with turned adult labels and inverted pictures of the samples whose split and person are meant."""
    chosen = [sample.adult is not None and of(sample.split, sample.person) for sample in data.samples]
    samples = tuple(
        dataclasses.replace(sample, adult=1 - (sample.adult or 0)) if turn else sample
        for sample, turn in zip(data.samples, chosen, strict=True)
    )
    images = np.where(np.array(chosen)[:, None, None], 255 - data.images, data.images)
    return dataclasses.replace(data, samples=samples, images=images)


def test_each_training_patient_is_in_one_fold_and_no_validation_patient_in_any(
    prepared: tuple[Recipe, ImageSet],
) -> None:
    """Folds are as large as each other, and what is left to learn from has no patient of the fold or of `val`."""
    recipe, data = prepared
    folds = folds_of(data, 3, recipe.pack.seed)
    dealt = Counter(person for fold in folds for person in fold)
    assert set(dealt.values()) == {1}
    assert sorted(len(fold) for fold in folds) == [4, 5, 5]
    assert set(dealt) == {s.person for s in data.samples if s.dataset == "nih" and s.split != "val"}
    left = without(data, folds[0])
    assert {left.samples[row].person for row in left.select(split=LEFT_OUT)} == folds[0]
    learned = {left.samples[row].person for row in left.select(split="train")}
    assert learned == {s.person for s in data.samples if s.split != "val"} - folds[0]


def test_a_score_does_not_hang_on_the_labels_of_its_fold_nor_on_validation_pictures(
    prepared: tuple[Recipe, ImageSet], tmp_path: Path
) -> None:
    """With the validation split spoilt nothing changes; with one fold's labels turned only the other fold's scores."""
    recipe, data = prepared
    first = folds_of(data, 2, recipe.pack.seed)[0]
    (plain,) = answers(recipe, trial(data, tmp_path / "plain"))
    spoilt = relabelled(data, lambda split, _: split == "val")
    (same,) = answers(recipe, trial(spoilt, tmp_path / "spoilt"))
    assert (same.scores == plain.scores).all()
    turned = dataclasses.replace(data, samples=relabelled(data, lambda _, person: person in first).samples)
    (other,) = answers(recipe, trial(turned, tmp_path / "turned"))
    assert other.patients == plain.patients
    own = np.array([f"nih/{patient}" in first for patient in plain.patients])
    assert (other.scores[own] == plain.scores[own]).all()
    assert (other.scores[~own] != plain.scores[~own]).all()


def test_the_command_compares_recipe_change_and_trivial_classifier(
    tiny_data: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """Each has its AUC and its difference; again, nothing is trained, and the same is printed and written."""
    command = ["folds", str(tiny_recipe), "--data", str(tiny_data), "--out", str(tmp_path), "--folds", "2"]
    command += ["--seeds", "1", "--change", "student.steps = 1, student.frozen_blocks = 2"]
    printed = CliRunner().invoke(app, [*command, "--json"])
    assert printed.exit_code == 0, printed.output
    result = json.loads((tmp_path / "tiny.folds" / "folds.json").read_text())
    assert json.loads(printed.stdout) == result
    assert (result["images"], result["patients"], result["positives"]) == (ADULTS, ADULTS, ADULTS // 2)
    names = ["recipe", "student.steps = 1, student.frozen_blocks = 2"]
    named = [each for name in names for each in (name, f"teachers of {name}")] + ["trivial classifier"]
    assert [each["of"] for each in result["figures"] if each["measure"] == "all"] == named
    assert [each["of"] for each in result["figures"] if each["difference"] is None] == ["recipe"] * 3
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(trained) == 2 * (3 + 2)  # in each fold three trainings of teachers and two of students
    again = CliRunner().invoke(app, command)
    assert "student, 2 folds: 14 images of 14 NIH adults" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == trained


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("student.steps", "can't be read"),
        ("gate.adult_auc_min = 0.1", "no trained section"),
        ("student.epochs = 3", "Unknown key 'epochs'"),
        ("teacher.steps = 'many'", "teacher.steps of the recipe"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(prepared: tuple[Recipe, ImageSet], change: str, sentence: str) -> None:
    """Only numbers of the trained sections may be changed, and the fault is named."""
    with pytest.raises(SettingsError, match=sentence):
        changed(prepared[0], change)


def test_folds_that_can_not_be_are_refused(prepared: tuple[Recipe, ImageSet], tmp_path: Path) -> None:
    """One fold, folds without both labels, unknown stages and foundation teachers end it before anything is trained."""
    recipe, data = prepared
    for count in (1, ADULTS):
        with pytest.raises(SettingsError, match=f"{count} folds"):
            folds_of(data, count, recipe.pack.seed)
    with pytest.raises(SettingsError, match="no stage 'distil'"):
        cross_validate(recipe, (), trial(data, tmp_path, "distil"), tmp_path, Silent().say)
    with pytest.raises(SettingsError, match="0 trainings"):
        cross_validate(recipe, (), dataclasses.replace(trial(data, tmp_path), seeds=0), tmp_path, Silent().say)
    taught = dataclasses.replace(recipe, foundation=("any",))  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="foundation teachers"):
        cross_validate(taught, (), trial(data, tmp_path), tmp_path, Silent().say)


def test_a_faulty_change_ends_the_command_with_a_sentence(tiny_data: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """The exit status is 2, as of every command."""
    command = ["folds", str(tiny_recipe), "--data", str(tiny_data), "--out", str(tmp_path), "--change", "pack.seed = 1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "no trained section" in result.output


def cases(count: int = 80) -> Labelled:
    """Women and men of two views in turn, half of them ill."""
    labels = np.arange(count) // 4 % 2
    sexes, views = (tuple(pair[i % 2] for i in range(count)) for pair in (("F", "M"), ("AP", "PA")))
    patients = tuple(str(number // 2) for number in range(count))
    ages: tuple[float | None, ...] = (50.0,) * count
    return Labelled(labels.astype(float), labels.astype(float), patients, sexes, ages, views, tuple(range(count)))


def test_differences_are_paired_by_patient() -> None:
    """Scores that rank as the first ones do differ by nothing at all; turned ones by everything, without a doubt."""
    given = cases()
    rng = np.random.default_rng(0)
    unsure = given.labels + rng.normal(0.0, 1.0, len(given.labels))
    folds = np.arange(len(given.labels)) * 2 // len(given.labels)
    asked = measures(given, folds, unsure)
    assert {"all", WITHIN_FOLDS, WITHIN_THIRDS, "sex F", "sex M", "view AP", "view PA", "age 40 to 59"} == set(asked)
    chosen = {name: asked[name] for name in ("all", "sex F")}
    scores = {
        name: each[None]
        for name, each in {
            "first": unsure, "scaled": 3 * unsure, "right": given.labels, "wrong": -given.labels,
        }.items()
    }  # fmt: skip
    found = {(each["of"], each["measure"]): each for each in compared(scores, given, chosen, seed=1)}
    assert found["first", "all"]["difference"] is None
    assert found["scaled", "all"]["difference"] == [0.0, 0.0, 0.0]
    assert found["right", "sex F"]["auc"] == [1.0, 1.0, 1.0]
    low, high = found["first", "all"]["auc"][1:]
    assert 0.5 < low < found["first", "all"]["auc"][0] < high < 1.0
    assert found["wrong", "all"]["difference"][2] < -0.5


def test_a_fold_whose_scores_are_shifted_costs_nothing_within_folds() -> None:
    """Trainings of different folds may differ in scale: within folds only their orders count."""
    given = cases()
    folds = np.arange(len(given.labels)) * 2 // len(given.labels)
    shifted = given.labels + 5.0 * folds
    asked = {name: measures(given, folds, given.labels)[name] for name in ("all", WITHIN_FOLDS)}
    found = {each["measure"]: each["auc"][0] for each in compared({"first": shifted[None]}, given, asked, seed=1)}
    assert found["all"] == 0.75
    assert found[WITHIN_FOLDS] == 1.0


def test_trainings_that_disagree_are_in_the_interval() -> None:
    """A gain of one training over its pair and a loss of another are noise, however sure the patients are."""
    given = cases()
    asked = {"all": Measure(np.arange(len(given.labels)), np.zeros(len(given.labels), np.int64))}
    turned = np.stack([given.labels, -given.labels])
    agreeing = {"first": 0 * turned, "second": np.stack([given.labels] * 2)}
    disagreeing = {"first": 0 * turned, "second": turned}
    sure, unsure = (compared(scores, given, asked, seed=1)[1]["difference"] for scores in (agreeing, disagreeing))
    assert sure == [0.5, 0.5, 0.5]
    assert unsure == [0.0, -0.5, 0.5]


def test_each_repeat_is_a_training_of_its_own(prepared: tuple[Recipe, ImageSet], tmp_path: Path) -> None:
    """The same patients in the same folds, by two trainings that chance made different."""
    recipe, data = prepared
    twice = dataclasses.replace(trial(data, tmp_path), seeds=2)
    first, second = answers(recipe, twice)
    assert first.patients == second.patients
    assert (first.scores != second.scores).all()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes in one thread, here and in each process of a pool: sums in another order differ a little."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_many_nets_at_a_time_are_the_same_nets(prepared: tuple[Recipe, ImageSet], tmp_path: Path) -> None:
    """In processes of their own a teacher's trainings differ, answer together, and are those of one process."""
    recipe, data = prepared
    recipe = changed(recipe, "second_teacher.trainings = 2")
    alone = answers(recipe, trial(data, tmp_path / "alone"))[0].scores
    at_once = answers(recipe, dataclasses.replace(trial(data, tmp_path / "at-once"), jobs=2))[0].scores
    np.testing.assert_allclose(at_once, alone, atol=1e-6)
    once = answers(changed(recipe, "second_teacher.trainings = 1"), trial(data, tmp_path / "alone"))[0].scores
    assert (once != alone).all()
    assert len(list((tmp_path / "alone").glob("second_teacher-*"))) == 2 * 2  # the first of them was not done again


@pytest.mark.parametrize(
    ("change", "sentence"), [("student.trainings = 2", "trained once"), ("teacher.trainings = 0", "At least 1")]
)
def test_a_teacher_is_trained_at_all_and_a_student_once(
    prepared: tuple[Recipe, ImageSet], change: str, sentence: str
) -> None:
    """Any other number of trainings is refused."""
    with pytest.raises(SettingsError, match=sentence):
        changed(prepared[0], change)


def left_running() -> list[int]:
    """Processes of this one's pools that live; one that two threads waited for counts as active for ever."""
    pids = [each.pid for each in multiprocessing.active_children() if each.pid is not None]
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def test_a_net_that_fails_ends_the_others(prepared: tuple[Recipe, ImageSet], tmp_path: Path) -> None:
    """What went wrong is told at once, not when all that was queued is trained; no process is left."""
    recipe, data = prepared
    unknown = changed(recipe, 'second_teacher.architecture = "unknown"')
    folds = dataclasses.replace(trial(data, tmp_path), jobs=2, seeds=10)
    with pytest.raises(InputError, match="No architecture is named 'unknown'"):
        train_all([unknown, recipe], folds, Silent().say)
    assert left_running() == []
    assert len(list(tmp_path.glob("*/*.safetensors"))) < 40


def test_an_interrupted_command_trains_nothing_more(prepared: tuple[Recipe, ImageSet], tmp_path: Path) -> None:
    """Nets that wait for their turn are given up, and those that are finished are kept."""
    recipe, data = prepared
    folds = dataclasses.replace(trial(data, tmp_path), jobs=2, seeds=10)

    def say(text: str) -> None:
        if ": 1 of " in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_all([recipe], folds, say)
    assert left_running() == []
    assert 1 <= len(list(tmp_path.glob("*/*.safetensors"))) < 40


def test_a_process_that_is_killed_is_said(prepared: tuple[Recipe, ImageSet], tmp_path: Path) -> None:
    """As by the kernel when memory runs out: the sentence says what to do."""
    recipe, data = prepared
    folds = dataclasses.replace(trial(data, tmp_path), jobs=2, seeds=10)

    def say(text: str) -> None:
        if ": 1 of " in text:
            for process in multiprocessing.active_children():
                process.kill()

    with pytest.raises(SettingsError, match="Give fewer jobs"):
        train_all([recipe], folds, say)
