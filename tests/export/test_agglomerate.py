"""What a student learns from its teachers hangs neither on the number of processes, nor on kills, nor on memory."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from appliance.domain.errors import InputError, SettingsError
from export.agglomerate import BATCH, WEIGHTS, Lesson, Target, agglomerate, feature_loss, fitted_scaling
from export.artefacts import DONE, WORKED, read_json
from export.feature_cache import Caching, FeatureStore, cache_features
from export.progress import Shown
from export.ranks import Ranks, share_of
from export.recipe_foundation import AgglomerationSection
from export.student import ARCHITECTURES, Architecture, Encoder
from export.teachers.contract import Seen, Teacher
from tests.export.cache_child import PICTURES, numbered_views
from tests.export.foundations import three_teachers, write_checkpoints

STEPS = "tiny.steps"
SHORT, LONG = 6, 30
RATE = 1e-3
"""Of the recipe of the tests."""
UNFELT = "project_norm.bias"
"""A bias in front of another batch normalisation: its gradient is rounding, of which AdamW makes a step of its rate."""
FARTHEST = 2 * SHORT * RATE
"""What two trainings that step apart each time come to; the schedule keeps them nearer."""


class Bench:
    """A data folder, three teachers and a recipe of so many steps; runs the command in a process of its own."""

    def __init__(self, folder: Path, data: Path, recipe: str) -> None:
        self.folder = folder
        self.data = data
        self.checkpoints = write_checkpoints(folder / "checkpoints")
        for steps in (SHORT, LONG):
            (folder / f"{steps}.toml").write_text(three_teachers(recipe, self.checkpoints, steps=steps))

    def command(self, steps: int, out: str) -> list[str]:
        """`insite-export agglomerate`."""
        program = str(Path(sys.executable).with_name("insite-export"))
        recipe, folder = str(self.folder / f"{steps}.toml"), str(self.folder / out)
        places = ["--data", str(self.data), "--out", folder, "--checkpoints", str(self.checkpoints)]
        return [program, "agglomerate", recipe, *places, "--threads", "1"]

    def run(self, steps: int, out: str, *before: str) -> subprocess.CompletedProcess[str]:
        """Run to the end; `before` is torchrun and its arguments."""
        command = [*before, *self.command(steps, out)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )

    def prepared(self, out: str) -> Path:
        """An output folder that has the prepared data and the cached features already."""
        steps = self.folder / out / STEPS
        for finished in (self.folder / "one" / STEPS).iterdir():
            if finished.name == "data" or finished.name.startswith("foundation."):
                shutil.copytree(finished, steps / finished.name)
        return steps

    def weights(self, out: str) -> dict[str, Tensor]:
        """The encoder that was learned."""
        return load_file(self.folder / out / STEPS / "agglomerate" / WEIGHTS)

    def features(self, out: str) -> dict[str, dict[str, str]]:
        """The digests of all that was cached, by teacher and file."""
        steps = (self.folder / out / STEPS).glob("foundation.*")
        return {step.name: read_json(step / DONE)["files"] for step in steps}


@pytest.fixture(scope="module")
def bench(tiny_data: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """With one run of six steps done in `one`."""
    bench = Bench(tmp_path_factory.mktemp("bench"), tiny_data, tiny_recipe.read_text())
    result = bench.run(SHORT, "one")
    assert result.returncode == 0, result.stderr
    return bench


def says(weights: dict[str, Tensor]) -> list[Tensor]:
    """What an encoder says of two pictures, normalised as in training."""
    encoder = Encoder(_narrow())
    encoder.load_state_dict(weights)
    images = torch.randint(0, 256, (2, 1, 512, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return list(encoder(images))


def _narrow() -> Architecture:
    design = ARCHITECTURES["narrow"]
    assert isinstance(design, Architecture)
    return design


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(bench: Bench) -> None:
    """`torchrun --nproc_per_node=2` caches the features of one process and gives its student, within rounding."""
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    result = bench.run(SHORT, "two", torchrun, "--nproc_per_node=2", "--no-python")
    assert result.returncode == 0, result.stderr
    assert bench.features("two") == bench.features("one")
    assert all(len(files) > 1 for files in bench.features("two").values()), "a shard for each process"
    one, two = bench.weights("one"), bench.weights("two")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        farthest = FARTHEST if name.endswith(UNFELT) else 1e-3
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=farthest, msg=name)
    for first, second in zip(says(one), says(two), strict=True):
        assert torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0) > 0.999


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_student(bench: Bench) -> None:
    """After kill -9 the same command goes on from the last checkpoint, and ends at the same weights."""
    bench.prepared("whole")
    steps = bench.prepared("killed")
    assert bench.run(LONG, "whole").returncode == 0
    child = subprocess.Popen(
        bench.command(LONG, "killed"), stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    while not (steps / "agglomerate.partial" / "checkpoint.pt").is_file() and child.poll() is None:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (steps / "agglomerate").exists()
    result = bench.run(LONG, "killed")
    assert result.returncode == 0, result.stderr
    assert "resumed at step" in result.stderr
    whole, killed = bench.weights("whole"), bench.weights("killed")
    for name, tensor in whole.items():
        torch.testing.assert_close(killed[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_finished_student_is_not_trained_again(bench: Bench) -> None:
    """A second run finds the encoder; so does one after a kill between the last step and the artefact's name."""
    finished = bench.folder / "one" / STEPS / "agglomerate"
    before = (finished / WEIGHTS).stat().st_mtime_ns
    assert bench.run(SHORT, "one").returncode == 0
    assert (finished / WEIGHTS).stat().st_mtime_ns == before
    partial = finished.with_name("agglomerate.partial")
    finished.rename(partial)
    (partial / WORKED).write_text(read_json(partial / DONE)["inputs"])
    assert bench.run(SHORT, "one").returncode == 0
    assert (finished / WEIGHTS).stat().st_mtime_ns == before
    assert not partial.exists()


class _Numbers(Teacher):
    """Says the picture's number in a few ways."""

    def see(self, images: Tensor) -> Seen:
        numbers = images[:, 0, 0, 0].float() / PICTURES
        waves = torch.stack([torch.sin(numbers * k) for k in (1.0, 3.0, 7.0, 15.0)], dim=1)
        return Seen(waves[:, :, None, None].expand(-1, -1, 2, 2), waves)


class _Cramped(Encoder):
    """An encoder on a GPU with room for two pictures."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if len(image) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(image.repeat_interleave(64, 2).repeat_interleave(64, 3))


SECTION = AgglomerationSection(
    views=1, grid=2, cached_batch=32, batch=8, steps=2, rate=1e-3, weight_decay=0.0, scaling="phi-s",
    dense_weight=1.0, pooled_weight=1.0, smooth_weight=0.5, checkpoint_steps=1,
)  # fmt: skip


def lesson(folder: Path, console: Console) -> tuple[list[Target], Lesson]:
    """A teacher of numbers, cached, and a run of two steps."""
    views, progress = numbered_views(), Shown(console)
    cache_features("numbers", _Numbers, views, Caching(folder / "features", 2, 32), progress)
    store = FeatureStore(folder / "features")
    out = folder / "out"
    out.mkdir()
    targets = [Target("numbers", 1.0, store, fitted_scaling("phi-s", store, len(views)))]
    return targets, Lesson(views, SECTION, 0, out, Ranks(), progress)


def test_too_little_gpu_memory_makes_the_batch_smaller(tmp_path: Path) -> None:
    """Out of memory: the step is taken in smaller parts, and this is said."""
    console = Console(record=True, width=200, quiet=False, stderr=True)
    targets, run = lesson(tmp_path, console)
    agglomerate(_Cramped(_narrow()), targets, run)
    said = console.export_text()
    assert "4 pictures at a time instead of 8" in said
    assert "2 pictures at a time instead of 4" in said
    assert {path.name for path in run.folder.iterdir()} == {WEIGHTS}


def test_a_new_start_remembers_what_fitted_into_memory(tmp_path: Path) -> None:
    """A run that ended for lack of memory goes on with the smaller batch at once."""
    console = Console(record=True, width=200, stderr=True)
    targets, run = lesson(tmp_path, console)
    (run.folder / BATCH).write_text("2")
    agglomerate(_Cramped(_narrow()), targets, run)
    assert "pictures at a time" not in console.export_text()


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    """NaN is never written as a student."""

    class _Broken(Encoder):
        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            grown = image.repeat_interleave(64, 2).repeat_interleave(64, 3)
            return tuple(each * torch.nan for each in super().forward(grown))

    targets, run = lesson(tmp_path, Console(quiet=True))
    with pytest.raises(InputError, match="not finite"):
        agglomerate(_Broken(_narrow()), targets, run)
    assert not (run.folder / WEIGHTS).exists()


def test_a_batch_that_can_not_be_shared_is_refused() -> None:
    """Eight pictures can be divided among two processes, and not among three."""
    assert share_of(8, 2) == 4
    with pytest.raises(SettingsError, match="can't be divided among 3"):
        share_of(8, 3)


def test_the_loss_is_zero_only_for_the_teachers_own_features() -> None:
    """Cosine and smooth L1 both vanish where the student says exactly what the teacher says."""
    features = torch.randn(2, 3, 3, 8, generator=torch.Generator().manual_seed(0))
    assert float(feature_loss(features, features, 0.5)) == pytest.approx(0.0, abs=1e-6)
    assert float(feature_loss(2 * features, features, 0.5)) > 0.1
    assert float(feature_loss(-features, features, 0.0)) == pytest.approx(2.0, abs=1e-5)
