"""A head is measured as it will be served."""

import numpy as np
import pytest
import torch

from appliance.domain.errors import InputError
from export.progress import Silent
from export.task_head.features import EMBEDDING, Pictures
from export.task_head.heads import VolumeHead
from export.task_head.labels import Case
from export.task_head.recipe import task_recipe_from_toml
from export.task_head.train import measured, trained_head
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
    assert (found.cases, found.patients) == (24, 8)
    assert found.volumes is not None
    assert (found.volumes[0].value, found.volumes[1]) == (1.0, 8)
    assert "24 validation images, each judged alone, of 8 patients" in found.point.meaning
