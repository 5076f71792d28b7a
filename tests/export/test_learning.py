"""A training that is killed goes on, and ends in the weights of one that was not."""

import dataclasses
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from appliance.domain.errors import SettingsError, StorageFullError
from export import learning
from export.images import image_set, prepare
from export.learning import Batch, Training, supervised_loss, train
from export.recipe import Recipe, TeacherSection, recipe_from_toml
from export.recipe_tables import section_from_table
from export.student import ARCHITECTURES, MultiTaskNet

SECTION = {
    "architecture": "narrow", "steps": 3, "batch": 2, "backbone_rate": 1e-3, "head_rate": 1e-3, "weight_decay": 0.02,
    "frozen_blocks": 1, "ema_decay": 0.9, "nih_share": 0.5, "settling_steps": 2, "settling_strength": 0.4,
    "settling_rate": 0.5, "settling_nih_share": 0.5, "finishing_steps": 1,
}  # fmt: skip
CHECKPOINT_EVERY = 2
"""A checkpoint within `learn`, one at the very end of `settle`, none in `finish`."""
EVENTS = 16
"""Steps, renamings and removals of one training: each is a place to be killed at."""


class Killed(BaseException):
    """The process ends here."""


class Reaper:
    """Counts what a training does, and ends it before number `at`."""

    def __init__(self, at: int = 0) -> None:
        self.at = at
        self.seen = 0

    def __call__(self) -> None:
        """One more event is about to happen."""
        self.seen += 1
        if self.seen == self.at:
            raise Killed


@pytest.fixture(scope="module")
def data(tiny_data: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """The tiny recipe and its prepared pictures."""
    recipe, folder = recipe_from_toml(tiny_recipe), tmp_path_factory.mktemp("prepared")
    prepare(recipe, tiny_data, folder)
    return recipe, folder


@pytest.fixture
def reaped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Reaper], None]:
    """Lets renamings and removals tell a reaper before they happen."""
    monkeypatch.setattr("export.learning.CHECKPOINT_EVERY", CHECKPOINT_EVERY)
    rename, remove = Path.replace, Path.unlink

    def install(reaper: Reaper) -> None:
        def replace(path: Path, target: Path) -> Path:
            reaper()
            return rename(path, target)

        def unlink(path: Path, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - pathlib's signature
            reaper()
            remove(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(Path, "unlink", unlink)

    return install


def trained(data: tuple[Recipe, Path], folder: Path, reaper: Reaper) -> dict[str, Any]:
    """What one process leaves in a folder: the weights, unless it is killed."""
    recipe, prepared = data
    torch.manual_seed(recipe.pack.seed)
    net = MultiTaskNet(ARCHITECTURES["narrow"])

    def loss_of(batch: Batch) -> torch.Tensor:
        reaper()
        return supervised_loss(net(batch.image), batch)

    section = section_from_table("teacher", TeacherSection, SECTION)
    run = Training(image_set(prepared), recipe.input, section, recipe.pack.seed, folder, lambda _: None, "teacher")
    train(net, net, run, loss_of, folder / "teacher.safetensors")
    return load_file(folder / "teacher.safetensors")


@pytest.mark.slow
def test_a_killed_training_ends_in_the_same_weights(
    data: tuple[Recipe, Path], tmp_path: Path, reaped: Callable[[Reaper], None]
) -> None:
    """Killed before any step, renaming or removal, it goes on and gives, to the bit, the weights of a quiet run."""
    whole = tmp_path / "whole"
    whole.mkdir()
    quiet = Reaper()
    reaped(quiet)
    expected = trained(data, whole, quiet)
    assert quiet.seen == EVENTS
    assert [path.name for path in whole.iterdir()] == ["teacher.safetensors"]
    for at in range(1, EVENTS + 1):
        folder = tmp_path / f"killed-{at}"
        folder.mkdir()
        reaper = Reaper(at)
        reaped(reaper)
        with pytest.raises(Killed):
            trained(data, folder, reaper)
        found = trained(data, folder, reaper)
        different = [name for name, value in expected.items() if not torch.equal(value, found[name])]
        assert not different, f"killed before event {at}: {different[:3]}"
        assert [path.name for path in folder.iterdir()] == ["teacher.safetensors"]


def test_a_batch_that_can_not_be_made_ends_the_training(
    data: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are made in a thread; what goes wrong there is raised where they are waited for."""

    def broken(*_: object) -> Batch:
        raise OSError("the pictures are gone")

    monkeypatch.setattr("export.learning._batch", broken)
    with pytest.raises(OSError, match="the pictures are gone"):
        trained(data, tmp_path, Reaper())


def test_a_batch_without_a_mask_does_not_end_a_training_of_the_decoder_alone(
    data: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chance may draw pictures without a mask while the decoder alone learns: the training goes on."""
    make = learning._batch

    def undrawn(*given: Any) -> Batch:
        batch = make(*given)
        return dataclasses.replace(batch, has_mask=torch.zeros_like(batch.has_mask))

    monkeypatch.setattr(learning, "_batch", undrawn)
    assert trained(data, tmp_path, Reaper())


def test_a_loss_with_a_gradient_is_left_as_it_is() -> None:
    """Where the whole net learns, a batch without a mask touches no weight of the decoder, not even by its decay."""
    net = MultiTaskNet(ARCHITECTURES["narrow"])
    image, known = torch.zeros(2, 1, 512, 512, dtype=torch.uint8), torch.tensor([[0.0], [1.0]])
    batch = Batch(image, known, torch.full((2, 1), -1.0), torch.zeros(2, 1, 64, 64), torch.zeros(2, dtype=torch.bool))
    torch.autograd.backward(supervised_loss(net(image), batch))
    assert all(parameter.grad is None for parameter in net.lungs.parameters())
    assert all(parameter.grad is not None for parameter in net.adult.parameters())


def test_too_little_gpu_memory_names_the_batch(data: tuple[Recipe, Path], tmp_path: Path) -> None:
    """The section of the recipe and its batch are named, and what can be done."""

    class Cramped(Reaper):
        def __call__(self) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(SettingsError, match=r"teacher\.batch = 2 .*smaller one.*larger GPU"):
        trained(data, tmp_path, Cramped())


def test_a_full_disk_keeps_the_last_checkpoint(
    data: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint, a phase or the weights that can't be written end in a sentence; what was written before stays."""
    monkeypatch.setattr("export.learning.CHECKPOINT_EVERY", CHECKPOINT_EVERY)
    kept = {0: [], 1: ["checkpoint.pt"], 5: ["checkpoint.pt", "finish.pt", "learn.pt", "settle.pt"]}
    for written, names in kept.items():
        left = iter(range(written))

        def full_after_some(_: int, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")

        folder = tmp_path / str(written)
        folder.mkdir()
        monkeypatch.setattr("export.disk.os.fsync", full_after_some)
        with pytest.raises(StorageFullError, match="No space is left to write"):
            trained(data, folder, Reaper())
        assert sorted(path.name for path in folder.iterdir()) == names
