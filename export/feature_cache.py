"""The features of teachers on disk: shards of safetensors, whole or absent, so that a killed run goes on behind them.

A teacher is the slow part of a distillation and always says the same of the same picture: it is asked once.
"""

import shutil
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from appliance.domain.errors import InputError, StorageFullError
from appliance.domain.manifest import InputSpec
from export.augment import augmented
from export.disk import FULL, write_whole
from export.images import ImageSet
from export.progress import Progress
from export.teachers.contract import Teacher
from export.teachers.ensemble import resized

SHARD = 32
"""Pictures in a shard: at most so many are looked at twice when a run is killed."""
MAKERS = 8
"""Threads that make pictures, in each process."""
OPEN_SHARDS = 64
"""Files that a reader keeps open for each teacher; a process may have about a thousand."""
Write = Callable[[Path, bytes], None]


@dataclass(frozen=True, eq=False, slots=True)
class Views:
    """Every picture that teachers and student look at: `per_image` views of each image, the first as it is.

    The others are augmented, by a random number that hangs on seed, image and view alone: they are made again when
    they are needed, and never stored.
    """

    data: ImageSet
    indices: Sequence[int]
    per_image: int
    spec: InputSpec
    seed: int

    def __len__(self) -> int:
        return len(self.indices) * self.per_image

    def picture(self, row: int) -> NDArray[np.uint8]:
        """One picture, uint8 [rows, columns]."""
        index, view = self.indices[row // self.per_image], row % self.per_image
        image = self.data.images[index]
        if view == 0:
            return np.array(image)
        return augmented(image, None, self.spec, np.random.default_rng((self.seed, index, view)))[0]

    def pictures(self, rows: Sequence[int], pool: Executor) -> Tensor:
        """Pictures as uint8 [len(rows), 1, rows, columns], made by the threads of a pool."""
        return torch.from_numpy(np.stack(list(pool.map(self.picture, rows)))[:, None])


@dataclass(frozen=True, eq=False, slots=True)
class Caching:
    """How one teacher's features are cached.

    Attributes:
        folder: Receives the shards.
        grid: Side of the grid on which dense features are kept.
        batch: Pictures at a time.
        part, parts: This process and how many share the work.
        device: Where the teacher computes.
        write, free: The disk: puts a whole file under a name; says how many bytes are left.
    """

    folder: Path
    grid: int
    batch: int
    part: int = 0
    parts: int = 1
    device: str = "cpu"
    write: Write = write_whole
    free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free


def cache_features(name: str, load: Callable[[], Teacher], views: Views, plan: Caching, progress: Progress) -> None:
    """Cache what a teacher says of every picture; shards that are there are left as they are.

    Args:
        name: The teacher's.
        load: Loads it; not called when nothing is left to ask.
        views: The pictures.
        plan: Where, how and by whom.
        progress: Told.

    Raises:
        StorageFullError: The disk is full, or will be; finished shards stay.
        InputError: The teacher says something that is not finite, or even one picture is too much for its memory.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    shards = range(plan.part, -(-len(views) // SHARD), plan.parts)
    missing = [shard for shard in shards if not shard_path(plan.folder, shard).is_file()]
    if not missing:
        return
    teacher = load().to(plan.device)
    batch = plan.batch
    with (
        ThreadPoolExecutor(MAKERS) as pool,
        progress.bar(f"features of {name}", len(shards), len(shards) - len(missing)) as advance,
    ):
        for left, shard in zip(range(len(missing), 0, -1), missing, strict=True):
            rows = range(shard * SHARD, min(len(views), (shard + 1) * SHARD))
            features, batch = _seen(name, teacher, views.pictures(rows, pool), plan, batch=batch, progress=progress)
            data = save(features)
            _write(name, plan, shard, data, left)
            advance(1)


def shard_path(folder: Path, shard: int) -> Path:
    """The file of a shard."""
    return folder / f"{shard:06d}.safetensors"


class FeatureStore:
    """Reads what was cached of one teacher, row by row, without loading shards whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: OrderedDict[int, Any] = OrderedDict()

    def rows(self, kind: str, rows: Sequence[int]) -> Tensor:
        """Features of some pictures, float32: `dense` [n, C, grid, grid] or `pooled` [n, D]."""
        return torch.stack([self._shard(row // SHARD).get_slice(kind)[row % SHARD] for row in rows]).float()

    def _shard(self, number: int) -> Any:
        if number not in self._open:
            if len(self._open) == OPEN_SHARDS:
                self._open.popitem(last=False)
            self._open[number] = safe_open(shard_path(self._folder, number), "pt")
        self._open.move_to_end(number)
        return self._open[number]


def _seen(
    name: str, teacher: Teacher, images: Tensor, plan: Caching, *, batch: int, progress: Progress
) -> tuple[dict[str, Tensor], int]:
    """The features of one shard, and the batch that fitted into memory."""
    dense: list[Tensor] = []
    pooled: list[Tensor] = []
    kind = torch.device(plan.device).type
    start = 0
    while start < len(images):
        try:
            with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
                seen = teacher.see(images[start : start + batch].to(plan.device))
        except torch.OutOfMemoryError as error:
            batch = smaller_batch(f"the teacher {name}", batch, error, progress)
            continue
        dense.append(resized(seen.dense.float(), (plan.grid, plan.grid)).half().cpu())
        pooled.append(seen.pooled.half().cpu())
        start += batch
    features = {"dense": torch.cat(dense).contiguous(), "pooled": torch.cat(pooled).contiguous()}
    for kind, tensor in features.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"The teacher {name} gives {kind} features that are not finite.", "Check its checkpoint and its pixels."
            )
    return features, batch


def smaller_batch(what: str, batch: int, error: Exception, progress: Progress) -> int:
    """Half of a batch that did not fit into memory; said aloud.

    Raises:
        InputError: There is no smaller one.
    """
    if batch == 1:
        raise InputError(
            f"Not even one picture at a time fits into the GPU's memory for {what}.", "Use a larger GPU, or the CPU."
        ) from error
    progress.say(f"out of GPU memory for {what}: {batch // 2} pictures at a time instead of {batch}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return batch // 2


def _write(name: str, plan: Caching, shard: int, data: bytes, left: int) -> None:
    """Write a shard, if there is room for the `left` ones of this process, and for as many of each other one."""
    needed, free = left * plan.parts * len(data), plan.free(plan.folder)
    if needed > free:
        raise StorageFullError(
            f"The features of {name} need {needed / 1e9:.2f} GB more in {plan.folder}, but {free / 1e9:.2f} GB are "
            "left.",
            "Make room and run the same command again: finished shards are kept.",
        )
    try:
        plan.write(shard_path(plan.folder, shard), data)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StorageFullError(
            f"The disk is full: {plan.folder} lacks {left} shards of {len(data) / 1e6:.1f} MB of {name}.",
            "Make room and run the same command again: finished shards are kept.",
        ) from error
