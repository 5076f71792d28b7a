"""`insite-export bench --features`: teachers are asked by a process that is killed in the middle and started again.

The pictures are phantoms, so that no data is needed. The teachers are the recipe's foundation teachers; without any,
nets of the recipe's own three architectures stand in for them, with random weights, which does not change the count.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from appliance.domain.errors import InputError, InsiteError
from export.feature_cache import SHARD, Caching, Views, cache_features
from export.images import ImageSet
from export.phantoms import phantom
from export.progress import Silent
from export.recipe import Recipe, recipe_from_toml
from export.student import architecture_named
from export.teachers.contract import Seen, Teacher
from export.teachers.shelf import teacher_from_recipe

GRID, BATCH = 8, 8
"""For a recipe without foundation teachers."""
ASKED = "asked.log"
SHARDS = "*/*.safetensors"
POLL_SECONDS = 0.01
FAILED = 2
Load = Callable[[], Teacher]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: the teachers of a recipe, their files (None: the recipe needs none), and how many pictures."""

    recipe: Path
    checkpoints: Path | None
    pictures: int


@dataclass(frozen=True, slots=True)
class Count:
    """Pictures by teacher: each counts once for every teacher.

    Attributes:
        wanted: Pictures times teachers.
        kept: In finished shards when the process was killed.
        lost: Shown to a teacher before, but in the shard that was under way.
        resumed: Shown to a teacher by the second process.
        rewritten: Finished shards that the second process did not leave as they were.
        there: In finished shards at the end.
    """

    wanted: int
    kept: int
    lost: int
    resumed: int
    rewritten: int
    there: int

    @property
    def computed(self) -> int:
        """What was kept and what came to it; more than wanted where something was done twice."""
        return self.kept + self.resumed

    @property
    def met(self) -> bool:
        """Whether all is there, no finished shard was made again, and no more was lost than one shard."""
        return self.computed == self.wanted == self.there and not self.rewritten and self.lost <= SHARD


class Phantoms(Views):
    """Synthetic pictures, drawn when a teacher asks for them."""

    def picture(self, row: int) -> NDArray[np.uint8]:
        """One phantom, uint8 [rows, columns]."""
        return phantom(self.spec, row)


def bench_features(question: Question, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Cache features, kill -9 the process when half of the shards are there, resume, and count.

    Args:
        question: What is asked.
        out: Folder in which the features lie until they were counted.
        say: Told about progress.

    Raises:
        InsiteError: The recipe or a checkpoint does not fit, or the process ended by itself.
    """
    names = [name for name, _ in teachers_of(recipe_from_toml(question.recipe), question.checkpoints)]
    half = len(names) * -(-question.pictures // SHARD) // 2
    say(f"features of {', '.join(names)}, killed once")
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with TemporaryDirectory(dir=out) as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-m", __name__, str(question.recipe), str(question.checkpoints or "")]
        command += [str(folder), str(question.pictures)]
        killed_when(half, command, folder)
        kept, shown = _finished(folder), _shown(folder)
        _completed(_started(command))
        seconds = time.perf_counter() - start
        after = _finished(folder)
        count = Count(
            wanted=len(names) * question.pictures,
            kept=_pictures(kept, question.pictures),
            lost=shown - _pictures(kept, question.pictures),
            resumed=_shown(folder) - shown,
            rewritten=sum(after.get(path) != state for path, state in kept.items()),
            there=_pictures(after, question.pictures),
        )
        size = sum(path.stat().st_size for path in after)
    measured = {"computed": count.computed, "met": count.met, "bytes": size, "seconds": round(seconds, 1)}
    return {"images": question.pictures, "teachers": names} | asdict(count) | measured


def teachers_of(recipe: Recipe, checkpoints: Path | None) -> list[tuple[str, Load]]:
    """The teachers by name, not loaded yet.

    Raises:
        InputError: The recipe names foundation teachers and no folder of their files was given.
    """
    foundations = [teacher for teacher in recipe.foundation if teacher.weight > 0]
    if not foundations:
        sections = ("teacher", "second_teacher", "student")
        return [(name, partial(_Untrained, getattr(recipe, name).architecture)) for name in sections]
    if checkpoints is None:
        raise InputError("The recipe names foundation teachers.", "Give the folder of their files: --checkpoints.")
    return [(each.name, partial(teacher_from_recipe, each, recipe.foundation, checkpoints)) for each in foundations]


def killed_when(shards: int, command: Sequence[str], folder: Path) -> None:
    """Run a command and kill it, with SIGKILL, as soon as so many shards are in the folder.

    Raises:
        InputError: It ended before.
    """
    child = _started(command)
    while child.poll() is None and len(_finished(folder)) < shards:
        time.sleep(POLL_SECONDS)
    child.kill()
    _, said = child.communicate()
    if child.returncode != -signal.SIGKILL:
        way_forward = "" if child.returncode else "Take more pictures."
        raise InputError(f"The process that asks the teachers ended before it was killed. {said}", way_forward)


def _started(command: Sequence[str]) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(  # noqa: S603 - this very module, under this very interpreter
        command, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True
    )


def _completed(child: subprocess.Popen[str]) -> None:
    _, said = child.communicate()
    if child.returncode:
        raise InputError(f"The process that goes on asking the teachers failed. {said}", "Read what it says.")


def _finished(folder: Path) -> dict[Path, tuple[int, int]]:
    """Shards with what changes when one is written again."""
    states = ((path, path.stat()) for path in folder.glob(SHARDS))
    return {path: (state.st_ino, state.st_mtime_ns) for path, state in states}


def _pictures(shards: Sequence[Path] | dict[Path, Any], pictures: int) -> int:
    return sum(min(SHARD, pictures - SHARD * int(path.stem)) for path in shards)


def _shown(folder: Path) -> int:
    log = folder / ASKED
    return sum(int(line) for line in log.read_text().split()) if log.is_file() else 0


class _Untrained(Teacher):
    """A net with random weights."""

    def __init__(self, architecture: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = architecture_named(architecture).encoder().eval()

    def see(self, images: Tensor) -> Seen:
        """The coarsest map and the embedding."""
        embedding, *maps = self.encoder(images)
        return Seen(maps[-1], embedding)


class _Counted(Teacher):
    """Notes how many pictures a teacher is shown."""

    def __init__(self, teacher: Teacher, log: Path) -> None:
        super().__init__()
        self.teacher = teacher
        self.log = log

    def see(self, images: Tensor) -> Seen:
        """What the teacher says; noted before it does, so that what a kill takes away is counted too."""
        with self.log.open("a") as stream:
            stream.write(f"{len(images)}\n")
        return self.teacher.see(images)


def main() -> None:
    """The process that is killed: RECIPE CHECKPOINTS FOLDER PICTURES."""
    recipe_file, checkpoints, folder, pictures = sys.argv[1:]
    try:
        recipe, out = recipe_from_toml(Path(recipe_file)), Path(folder)
        section = recipe.agglomeration
        grid, batch = (section.grid, section.cached_batch) if section else (GRID, BATCH)
        nothing = ImageSet((), np.zeros((0, 0, 0), np.uint8), np.zeros((0, 0, 0), np.uint8), ())
        views = Phantoms(nothing, range(int(pictures)), 1, recipe.input, recipe.pack.seed)
        for name, load in teachers_of(recipe, Path(checkpoints) if checkpoints else None):
            counted = partial(_counted, load, out / ASKED)
            cache_features(name, counted, views, Caching(out / name, grid, batch), Silent())
    except InsiteError as error:
        sys.stderr.write(str(error))
        sys.exit(FAILED)


def _counted(load: Load, log: Path) -> Teacher:
    return _Counted(load(), log)


if __name__ == "__main__":
    main()
