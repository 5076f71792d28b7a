"""A site's own classifier, or any foundation teacher that classifies, gives soft labels to the student's heads."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from appliance.domain.errors import InputError
from export.artefacts import file_sha256
from export.distil import distil
from export.images import ImageSet
from export.learning import Batch
from export.recipe import Recipe, recipe_from_toml
from export.recipe_foundation import FoundationTeacher
from export.soft_labels import Adviser, advised_by, advisers_from_recipe, with_soft_labels
from export.student import ARCHITECTURES, MultiTaskNet, Outputs
from export.tasks import ADULT, PAEDIATRIC
from export.teachers.contract import Seen, Teacher

IMAGES = torch.zeros(2, 1, 512, 512, dtype=torch.uint8)
SECTION = FoundationTeacher("own", "timm", "ours", research_only=False, weight=0.0, answers={ADULT: 1})


class Answering(Teacher):
    """A teacher that gives every picture the same logits."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor([logits]) if logits else None

    def see(self, images: Tensor) -> Seen:
        """Nothing but logits."""
        logits = None if self.logits is None else self.logits.expand(len(images), -1)
        return Seen(torch.zeros(len(images), 1, 1, 1), torch.zeros(len(images), 1), logits)


def advice(adult: float, paediatric: float) -> Outputs:
    """What the recipe's own teachers say."""
    lungs, embedding = torch.zeros(2, 1, 4, 4), torch.zeros(2, 3)
    return Outputs(torch.full((2, 1), adult), torch.full((2, 1), paediatric), lungs, embedding)


def test_every_teacher_is_one_voice() -> None:
    """The class that the recipe names is averaged into its task; tasks that nobody answers stay as they are."""
    own = advice(1.0, 5.0)
    heard = with_soft_labels(own, 2, IMAGES, [Adviser(SECTION, Answering(9.0, 4.0))])
    assert heard.adult.tolist() == [[2.0], [2.0]]
    assert heard.paediatric is own.paediatric
    both = dataclasses.replace(SECTION, answers={ADULT: 0, PAEDIATRIC: 1})
    advisers = [Adviser(SECTION, Answering(9.0, 4.0)), Adviser(both, Answering(-6.0, 2.0))]
    heard = with_soft_labels(own, 2, IMAGES, advisers)
    assert heard.adult.tolist() == [[0.0], [0.0]]
    assert heard.paediatric.tolist() == [[4.0], [4.0]]
    assert with_soft_labels(own, 2, IMAGES, []) is own


def test_the_logit_of_a_class_among_others_becomes_its_log_odds() -> None:
    """Of classes that exclude each other the soft label is the share that softmax gives the named one."""
    section = dataclasses.replace(SECTION, exclusive=True)
    logits = (0.3, 1.2, -0.4)
    said = Adviser(section, Answering(*logits)).log_odds(IMAGES)[ADULT]
    expected = torch.softmax(torch.tensor(logits), dim=0)[1]
    torch.testing.assert_close(torch.sigmoid(said), expected.expand(2, 1))


@pytest.mark.parametrize(("logits", "exclusive"), [((), False), ((1.0,), False), ((1.0,), True)])
def test_a_class_that_a_teacher_does_not_have_is_refused(logits: tuple[float, ...], *, exclusive: bool) -> None:
    """No classifier, too few classes, or one that excludes nothing: the teacher is named, with what it has."""
    section = dataclasses.replace(SECTION, answers={ADULT: 0 if exclusive else 1}, exclusive=exclusive)
    with pytest.raises(InputError, match=f"teacher own has {len(logits)} classes"):
        Adviser(section, Answering(*logits)).log_odds(IMAGES)


@pytest.fixture
def advised(tiny_recipe: Path, tmp_path: Path) -> Recipe:
    """The tiny recipe with a classifier of the site's own, whose file is in the folder `own`."""
    (tmp_path / "own").mkdir()
    torch.manual_seed(0)
    weights = tmp_path / "own" / "teacher.safetensors"
    save_file(MultiTaskNet(ARCHITECTURES["narrow"]).state_dict(), weights)
    teacher = dataclasses.replace(
        SECTION, kind="classifier", model="narrow", checkpoint="own", digests={weights.name: file_sha256(weights)}
    )
    recipe = recipe_from_toml(tiny_recipe)
    student = dataclasses.replace(recipe.student, starts_from_second_teacher=False)
    return dataclasses.replace(recipe, student=student, foundation=(teacher,))


def test_a_sites_own_classifier_is_an_adviser(advised: Recipe, tmp_path: Path) -> None:
    """It is loaded frozen, and its second logit is what it says of the adult task, as the recipe has it here."""
    (adviser,) = advisers_from_recipe(advised, tmp_path)
    assert not any(parameter.requires_grad for parameter in adviser.teacher.parameters())
    images = torch.randint(0, 256, IMAGES.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = adviser.teacher.see(images).logits
        assert logits is not None
        torch.testing.assert_close(adviser.log_odds(images)[ADULT], logits[:, 1:])
    assert advisers_from_recipe(advised, None) == ()
    silent = dataclasses.replace(advised, foundation=(dataclasses.replace(advised.foundation[0], answers={}),))
    assert advisers_from_recipe(silent, tmp_path) == ()


def test_the_step_hangs_on_what_decides_the_answers(advised: Recipe) -> None:
    """Another class, another file, another member of an ensemble: another student. Another licence text: the same."""
    (teacher,) = advised.foundation
    said = advised_by(advised)
    assert said

    def other(**change: object) -> Recipe:
        return dataclasses.replace(advised, foundation=(dataclasses.replace(teacher, **change),))  # type: ignore[arg-type]

    assert advised_by(other(answers={})) == []
    assert advised_by(other(licence="CC0")) == said
    assert advised_by(other(answers={ADULT: 0})) != said
    assert advised_by(other(digests={})) != said
    asked = dataclasses.replace(teacher, name="both", kind="ensemble", members=("own",))
    mute = dataclasses.replace(teacher, answers={})
    joined = advised_by(dataclasses.replace(advised, foundation=(mute, asked)))
    assert [each["name"] for each in joined] == ["both", "own"]


def test_the_student_hears_its_advisers(advised: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more voice changes the loss of a batch that has no label at all."""
    nets = {"teacher": MultiTaskNet(ARCHITECTURES["narrow"]), "encoder": MultiTaskNet(ARCHITECTURES["narrow"]).encoder}
    for name, net in nets.items():
        save_file(net.state_dict(), tmp_path / f"{name}.safetensors")
    losses: list[Callable[[Batch], Tensor]] = []
    monkeypatch.setattr("export.distil.train", lambda _net, _core, _run, loss_of, _weights: losses.append(loss_of))
    none = np.zeros((0, 512, 512), np.uint8)
    unknown = torch.full((2, 1), -1.0)
    images = torch.randint(0, 256, IMAGES.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    batch = Batch(images, unknown, unknown, torch.zeros(2, 1, 64, 64), torch.zeros(2, dtype=torch.bool))
    said = []
    for advisers in ((), (), (Adviser(SECTION, Answering(0.0, 40.0)),)):
        distil(
            advised,
            ImageSet((), none, none, ()),
            [("narrow", tmp_path / "teacher.safetensors")],
            tmp_path,
            lambda _: None,
            encoder=tmp_path / "encoder.safetensors",
            advisers=advisers,
        )
        said.append(float(losses[-1](batch).detach()))
    assert said[0] == said[1] != said[2]
