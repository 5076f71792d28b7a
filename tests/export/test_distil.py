"""The student sees some children's pictures with pieces outside the lungs blanked; lungs and adults are left alone."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from appliance.domain.errors import SettingsError
from export.distil import OCCLUDED_MOST, blanked_outside, distil, occluded
from export.ensemble import Ensemble
from export.images import ImageSet
from export.learning import Batch, Training
from export.recipe import PIECES, StudentSection, as_json, recipe_from_toml
from export.student import ARCHITECTURES, MultiTaskNet

SIDE, CHILDREN = 512, 64


def pictures_and_lungs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pictures, and teachers who are sure that the lungs are the middle of each."""
    images = torch.randint(
        0, 256, (count, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    lungs = torch.full((count, 1, 128, 128), -9.0)
    lungs[:, :, 32:96, 32:96] = 9.0
    return images, lungs


def test_only_what_lies_outside_a_childs_lungs_is_blanked() -> None:
    """Whole pieces take the picture's median, about half of those outside; the lungs and the adults stay."""
    images, lungs = pictures_and_lungs(CHILDREN + 2)
    child = torch.arange(CHILDREN + 2) < CHILDREN
    torch.manual_seed(2)
    seen = blanked_outside(images, lungs, child, 1.0)
    assert seen.dtype == torch.uint8
    assert (seen[CHILDREN:] == images[CHILDREN:]).all()
    assert (seen[:, :, 128:384, 128:384] == images[:, :, 128:384, 128:384]).all()
    medians = images.flatten(1).median(dim=1).values
    corner = seen[:CHILDREN, 0, :64, :64].flatten(1)
    blank = (corner == medians[:CHILDREN, None]).all(dim=1)
    assert ((corner == images[:CHILDREN, 0, :64, :64].flatten(1)).all(dim=1) | blank).all()
    assert 0.3 < blank.float().mean() < 0.7


def test_a_share_of_the_pictures_is_blanked_and_none_without() -> None:
    """The share counts pictures; at 0 the batch is the same object, so that recipes without it learn as they did."""
    images, lungs = pictures_and_lungs(CHILDREN)
    children = torch.ones(CHILDREN, dtype=torch.bool)
    torch.manual_seed(3)
    changed = (blanked_outside(images, lungs, children, 0.5) != images).flatten(1).any(dim=1)
    assert 0.3 < changed.float().mean() < 0.7
    assert blanked_outside(images, lungs, children, 0.0) is images


def test_some_pictures_lack_few_pieces_and_many() -> None:
    """The share of pieces is drawn for each picture: attribution takes one away, and the more are gone, the harder."""
    images, lungs = pictures_and_lungs(CHILDREN)
    torch.manual_seed(5)
    seen = blanked_outside(images, lungs, torch.ones(CHILDREN, dtype=torch.bool), 1.0)
    gone = share_gone(images, seen) / 0.75  # a quarter of the pieces is lung
    assert gone.min() < 0.1
    assert gone.max() > 0.9
    assert 0.35 < gone.mean() < 0.65


def test_few_pieces_are_taken_away_anywhere() -> None:
    """Lungs too, of children alone, in a share of the pictures; at 0 the batch is the same object."""
    images, _ = pictures_and_lungs(CHILDREN + 2)
    child = torch.arange(CHILDREN + 2) < CHILDREN
    torch.manual_seed(4)
    seen = occluded(images, child, 0.5)
    gone = share_gone(images, seen)
    assert (seen[CHILDREN:] == images[CHILDREN:]).all()
    assert 0.3 < (gone[:CHILDREN] > 0).float().mean() < 0.7
    assert gone.max() < OCCLUDED_MOST + 0.15
    middle = slice(SIDE // 4, 3 * SIDE // 4)
    assert (seen[..., middle, middle] != images[..., middle, middle]).any()
    assert occluded(images, child, 0.0) is images


def share_gone(images: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """The share of each picture's pieces that differ, [N]."""
    side = SIDE // PIECES
    pieces = (images != seen).reshape(len(images), PIECES, side, PIECES, side)
    return pieces.any(dim=4).any(dim=2).float().mean(dim=(1, 2))


@pytest.mark.parametrize("key", ["blanked", "occluded"])
def test_the_key_may_be_left_out(key: str, tiny_recipe: Path, tmp_path: Path) -> None:
    """Without it no digest changes; what is no share is refused."""
    assert key not in as_json(recipe_from_toml(tiny_recipe))["student"]
    before = "soft_mask_weight = 0.5\n"
    path = tmp_path / "recipe.toml"
    path.write_text(tiny_recipe.read_text().replace(before, f"{before}{key} = 0.25\n"))
    assert as_json(recipe_from_toml(path))["student"][key] == 0.25
    path.write_text(tiny_recipe.read_text().replace(before, f"{before}{key} = 1.5\n"))
    with pytest.raises(SettingsError, match=rf"student\.{key} of the recipe is 1\.5"):
        recipe_from_toml(path)


def test_teachers_that_do_not_fit_into_the_gpu_are_said(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sentence as in the training that follows."""

    def full(_: Ensemble, *device: torch.device, **__: torch.memory_format) -> None:
        if device:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Ensemble, "to", full)
    none = np.zeros((0, SIDE, SIDE), np.uint8)
    with pytest.raises(SettingsError, match=r"student\.batch = 8 .*smaller one.*larger GPU"):
        distil(recipe_from_toml(tiny_recipe), ImageSet((), none, none, ()), (), tmp_path, print)


@pytest.mark.parametrize("key", ["blanked", "occluded"])
def test_without_the_teachers_word_the_same_pictures_are_seen(
    key: str, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What learns from labels alone is shown, to the pixel, what the distilled student is shown."""
    images, _ = pictures_and_lungs(4)
    unknown = torch.full((4, 1), -1.0)
    batch = Batch(images, unknown, torch.ones(4, 1), torch.zeros(4, 1, 64, 64), torch.zeros(4, dtype=torch.bool))
    seen: list[torch.Tensor] = []
    losses: list[float] = []

    def one_step(
        _: object, core: MultiTaskNet, __: Training, loss_of: Callable[[Batch], torch.Tensor], ___: Path
    ) -> None:
        core.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        torch.manual_seed(6)
        losses.append(float(loss_of(batch).detach()))

    monkeypatch.setattr("export.distil.train", one_step)
    recipe = recipe_from_toml(tiny_recipe)
    taught = dataclasses.replace(recipe.student, starts_from_second_teacher=False, **{key: 1.0})
    alone = dataclasses.replace(taught, soft_label_weight=0.0, feature_weight=0.0, soft_mask_weight=0.0)
    teacher = ("narrow", without_lungs(tmp_path / "teacher.safetensors"))

    def learn(section: StudentSection) -> None:
        none = np.zeros((0, SIDE, SIDE), np.uint8)
        distil(dataclasses.replace(recipe, student=section), ImageSet((), none, none, ()), [teacher], tmp_path, print)

    learn(taught)
    learn(alone)
    assert torch.equal(*seen)
    assert (seen[1] != images).any()
    assert losses[0] > losses[1]


def without_lungs(path: Path) -> Path:
    """Weights of a teacher who is sure that there is no lung in any picture."""
    net = MultiTaskNet(ARCHITECTURES["narrow"])
    torch.nn.init.zeros_(net.lungs.subpixels.weight)
    torch.nn.init.constant_(net.lungs.subpixels.bias, -9.0)
    save_file(net.state_dict(), path)
    return path
