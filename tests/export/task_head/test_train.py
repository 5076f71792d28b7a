"""A head is measured as it will be served."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from appliance.domain.errors import InputError
from appliance.domain.manifest import OperatingPoint
from export.progress import Silent
from export.task_head.features import EMBEDDING, Pictures
from export.task_head.heads import MaskHead, VolumeHead
from export.task_head.labels import Case
from export.task_head.recipe import task_recipe_from_toml
from export.task_head.report import task_report
from export.task_head.train import Measured, measured, trained_head
from tests.export.task_head.conftest import Site


def finder() -> VolumeHead:
    """A volume head that looks at the largest value of a volume only."""
    head = VolumeHead(1, 1)
    values = {"value.weight": 1.0, "value.bias": 0.0, "gate.weight": 0.0, "gate.bias": 9.0, "attention.weight": 50.0}
    values |= {"attention.bias": 0.0, "classifier.weight": 1.0, "classifier.bias": 0.0}
    for name, parameter in head.named_parameters():
        torch.nn.init.constant_(parameter, values[name])
    return head.eval()


def test_a_loss_that_is_not_finite_ends_the_training(site: Site) -> None:
    """A base whose features overflow half precision, or a rate that is too high, is said at the first such step."""
    recipe = task_recipe_from_toml(site.recipe())
    cases = tuple(Case(("a",), f"p{number}", "train", number % 2, "") for number in range(4))
    pictures = Pictures(cases, ((0,), (1,), (2,), (3,)), np.zeros((4, 1, 1), np.uint8), np.zeros((0, 1, 1), np.uint8))
    embedding = np.array([[0.0], [np.inf], [1.0], [2.0]], np.float16)
    with pytest.raises(InputError, match="loss of step 0 is not finite"):
        trained_head(recipe, pictures, [{EMBEDDING: embedding}], Silent())


def test_a_volume_head_is_judged_by_the_images_that_it_will_be_asked_about(site: Site) -> None:
    """Perfect on whole volumes and worse than chance on single images, as served: the gate sees the second figure."""
    recipe = task_recipe_from_toml(site.recipe(head='"mil"'))
    volumes = [(number, split, number % 2) for split in ("tune", "val") for number in range(8)]
    cases = tuple(Case(("a", "b", "c"), f"{split} {number}", split, label, "") for number, split, label in volumes)
    rows = tuple((3 * place, 3 * place + 1, 3 * place + 2) for place in range(len(cases)))
    embedding = np.array([[value] for case in cases for value in ((2, -1, -1) if case.label else (0, 0, 0))])
    pictures = Pictures(cases, rows, np.zeros((len(embedding), 1, 1), np.uint8), np.zeros((0, 1, 1), np.uint8))
    found = measured(recipe, finder(), pictures, {EMBEDDING: embedding.astype(np.float16)}, "fp32")
    assert found.value == pytest.approx(1 / 3)
    assert (found.cases, found.patients, found.fewest) == (24, 8, 4)
    assert found.volumes is not None
    assert (found.volumes[0].value, found.volumes[1]) == (1.0, 8)
    assert "24 validation images, each judged alone, of 8 patients" in found.point.meaning


class Copied(MaskHead):
    """A mask head that says what its first map says."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps [N, 1, h, w] as logits."""
        return maps[0]


def lesions(drawn: int, empty: int) -> Pictures:
    """Validation pictures of a patient each, of which some have a lesion in one half, the others nothing."""
    count = drawn + empty
    masks = np.zeros((count, 4, 4), np.uint8)
    masks[:drawn, :2] = 1
    cases = tuple(Case((f"{number}.png",), f"p{number}", "val", -1, "mask.png") for number in range(count))
    return Pictures(cases, tuple((number,) for number in range(count)), np.zeros((count, 1, 1), np.uint8), masks)


def test_a_head_that_outlines_nothing_does_not_pass(site: Site) -> None:
    """Most pictures have no lesion: a head that says so of all has no Dice where there is one, and is refused."""
    recipe = task_recipe_from_toml(site.recipe(head='"segmentation"'))
    pictures = lesions(drawn=3, empty=17)
    found = measured(recipe, Copied(), pictures, {"map": np.full((20, 1, 4, 4), -9, np.float16)}, "fp32")
    assert (found.value, found.cases, found.patients, found.fewest) == (0.0, 20, 20, 3)
    assert found.empty == (1.0, 17)
    assert "On 3 validation images with something drawn, of 3 patients: mean Dice 0.000" in found.point.meaning
    report = task_report(recipe, pictures, {"fp32": found}, [])
    assert report["verdict"] == "fail"
    assert report["refused_by"] == ["mean Dice where something is drawn, at fp32"]
    assert "fp32 Dice 0.000 [0.000, 0.000]; of 17 with nothing drawn 100.0 % left empty" in report["summary"]
    assert (report["figures"]["fp32"]["left_empty"], report["figures"]["fp32"]["empty_cases"]) == (1.0, 17)


def test_a_head_is_judged_where_something_is_drawn(site: Site) -> None:
    """Right about every lesion, with one seen in every second empty picture: its Dice is 1, and both are said."""
    recipe = task_recipe_from_toml(site.recipe(head='"segmentation"'))
    pictures = lesions(drawn=4, empty=2)
    logits = np.where(pictures.masks > 0, 9, -9)[:, None].astype(np.float16)
    logits[5] = 9
    found = measured(recipe, Copied(), pictures, {"map": logits}, "fp32")
    assert (found.value, found.empty) == (1.0, (0.5, 2))
    assert task_report(recipe, pictures, {"fp32": found}, [])["verdict"] == "pass"


def test_without_anything_drawn_there_is_no_dice(site: Site) -> None:
    """It is not a number, which passes no gate, and null in the report."""
    recipe = task_recipe_from_toml(site.recipe(head='"segmentation"'))
    pictures = lesions(drawn=0, empty=12)
    found = measured(recipe, Copied(), pictures, {"map": np.full((12, 1, 4, 4), -9, np.float16)}, "fp32")
    assert np.isnan(found.value)
    report = task_report(recipe, pictures, {"fp32": found}, [])
    assert report["verdict"] == "fail"
    assert report["figures"]["fp32"]["value"] is None
    assert "NaN" not in json.dumps(report)


def test_a_perfect_task_of_a_few_patients_does_not_pass(site: Site) -> None:
    """Two patients, one of each class, give an AUC of 1 with the interval [1, 1]: it says nothing about a third."""
    recipe = task_recipe_from_toml(site.recipe(patients_min="10"))
    point = OperatingPoint("fp32", 0.5, None, "")
    pictures = lesions(drawn=1, empty=0)
    figures = {"fp32": Measured("auc", 1.0, 1.0, 1.0, cases=2, patients=2, fewest=1, point=point)}
    report = task_report(recipe, pictures, figures, [])
    assert (report["verdict"], report["refused_by"]) == ("fail", ["validation patients of the rarer class"])
    enough = {"fp32": Measured("auc", 1.0, 1.0, 1.0, cases=20, patients=20, fewest=10, point=point)}
    assert task_report(recipe, pictures, enough, [])["verdict"] == "pass"
