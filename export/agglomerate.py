"""Step `agglomerate`: one student encoder learns the features of all foundation teachers at once.

In the line of AM-RADIO (Ranzinger et al., CVPR 2024): an adaptor head for each teacher turns the student's features
into the teacher's, dense and pooled, which are compared by cosine and smooth L1 after each teacher's features were
brought to one scale. The student sees every picture at the one resolution that it will be served at; each teacher was
asked at its own, and its map was brought to the student's grid. So no teacher makes the student change its resolution.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from appliance.domain.errors import InputError
from export.disk import save_whole
from export.encoder import StudentEncoder
from export.feature_cache import MAKERS, FeatureStore, Views, smaller_batch
from export.feature_scaling import Scaling, scaling_of
from export.learning import LONGEST_GRADIENT, save_state, schedule
from export.progress import Progress
from export.ranks import Ranks, share_batch_statistics
from export.recipe_foundation import AgglomerationSection
from export.teachers.ensemble import resized

WEIGHTS = "encoder.safetensors"
CHECKPOINT = "checkpoint.pt"
BATCH = "batch.txt"
"""How many pictures at a time fitted into memory, for the next start."""
ADAPTOR_WIDTH = 512
STRIDE16, STRIDE32 = 2, 3
"""The student's maps that dense features are predicted from."""
STATISTICS_ROWS = 64
KINDS = ("dense", "pooled")


class Adaptor(nn.Module):
    """Student features to one teacher's: two layers for the places of a map, two for the whole picture.

    Layer normalisation only: nothing in it depends on what else is in the batch.
    """

    def __init__(self, student: tuple[int, int], teacher: tuple[int, int]) -> None:
        super().__init__()
        self.dense = _perceptron(student[0], teacher[0])
        self.pooled = _perceptron(student[1], teacher[1])


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, ADAPTOR_WIDTH), nn.LayerNorm(ADAPTOR_WIDTH), nn.GELU(), nn.Linear(ADAPTOR_WIDTH, outputs)
    )


@dataclass(frozen=True, eq=False, slots=True)
class Target:
    """One teacher to learn from: its cached features and their scale, by kind (`dense`, `pooled`)."""

    name: str
    weight: float
    store: FeatureStore
    scaling: Mapping[str, Scaling]

    def features(self, kind: str, rows: Sequence[int], device: torch.device) -> Tensor:
        """Scaled features of some pictures, channels last: [n, grid, grid, C] or [n, D]."""
        features = self.store.rows(kind, rows).to(device)
        return self.scaling[kind].scaled(features.movedim(1, -1))


class Agglomerate(nn.Module):
    """The student's encoder with an adaptor for each teacher; only the encoder is kept."""

    def __init__(self, encoder: nn.Module, widths: tuple[int, int], targets: Sequence[Target], grid: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.grid = grid
        self.adaptors = nn.ModuleList(
            Adaptor(widths, (len(target.scaling["dense"].mean), len(target.scaling["pooled"].mean)))
            for target in targets
        )

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Pictures, uint8 [N, 1, rows, columns], to what each teacher is expected to say, channels last."""
        embedding, *maps = self.encoder(images)
        size = (self.grid, self.grid)
        places = torch.cat([resized(maps[STRIDE16], size), resized(maps[STRIDE32], size)], dim=1).movedim(1, -1)
        return [
            {"dense": adaptor.dense(places), "pooled": adaptor.pooled(embedding)}
            for adaptor in self.adaptors
            if isinstance(adaptor, Adaptor)
        ]


def feature_loss(said: Tensor, taught: Tensor, smooth_weight: float) -> Tensor:
    """Cosine distance plus smooth L1 of features with their channels last, averaged over all places."""
    cosine = 1.0 - functional.cosine_similarity(said.float(), taught, dim=-1).mean()
    return cosine + smooth_weight * functional.smooth_l1_loss(said.float(), taught)


def fitted_scaling(kind: str, store: FeatureStore, rows: int) -> dict[str, Scaling]:
    """Fit both scalings of one teacher on everything that was cached of it."""
    blocks = [range(start, min(rows, start + STATISTICS_ROWS)) for start in range(0, rows, STATISTICS_ROWS)]
    return {
        name: scaling_of(kind, (store.rows(name, block).movedim(1, -1).flatten(0, -2) for block in blocks))
        for name in KINDS
    }


@dataclass(frozen=True, eq=False, slots=True)
class Lesson:
    """What a run needs beside encoder and teachers."""

    views: Views
    section: AgglomerationSection
    seed: int
    folder: Path
    ranks: Ranks
    progress: Progress


def agglomerate(encoder: StudentEncoder, targets: Sequence[Target], lesson: Lesson) -> None:
    """Train the encoder and write `<folder>/encoder.safetensors`; a killed run goes on from its last checkpoint.

    The pictures of a step hang on seed and step alone, and are divided among the processes: how many there are does
    not change what is learned, but for rounding.

    Raises:
        InputError: The GPU's memory is too small, or a loss is not finite.
        SettingsError: The batch can't be divided among the processes.
    """
    design, section, ranks = encoder.architecture, lesson.section, lesson.ranks
    torch.manual_seed(lesson.seed)
    widths = (design.feature_widths[STRIDE16] + design.feature_widths[STRIDE32], design.embedding)
    net = share_batch_statistics(Agglomerate(encoder, widths, targets, section.grid), ranks).to(ranks.device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=section.rate, weight_decay=section.weight_decay)
    start, micro = _resume(lesson, net, optimiser)
    micro = min(micro, ranks.share(section.batch))
    module, prepared = ranks.fabric.setup(net, optimiser)
    module.train()
    with (
        ThreadPoolExecutor(MAKERS) as pool,
        lesson.progress.bar("agglomerate", section.steps, start) as advance,
    ):
        step_of = _Step(module, targets, lesson, micro, _Ahead(lesson, pool))
        for step in range(start, section.steps):
            for group in prepared.param_groups:
                group["lr"] = section.rate * schedule(step, section.steps)
            prepared.zero_grad(set_to_none=True)
            loss = step_of(step)
            ranks.fabric.clip_gradients(module, prepared, max_norm=LONGEST_GRADIENT, error_if_nonfinite=False)
            prepared.step()
            if not np.isfinite(loss):
                raise InputError(f"The loss of step {step} is not finite.", "Lower agglomeration.rate in the recipe.")
            advance(1)
            if (step + 1) % section.checkpoint_steps == 0:
                lesson.progress.say(f"agglomerate: step {step + 1}/{section.steps}, loss {loss:.4f}")
                _save(lesson, step + 1, step_of.micro, net, optimiser)
    if ranks.first:
        state = {name.removeprefix("encoder."): value for name, value in net.state_dict().items()}
        kept = {name: state[name].contiguous().cpu() for name in encoder.state_dict()}
        save_whole(lesson.folder / WEIGHTS, save(kept))
        for spent in (CHECKPOINT, BATCH):
            (lesson.folder / spent).unlink(missing_ok=True)
    ranks.wait()


class _Ahead:
    """Makes the pictures of the next step while this one is computed; which they are hangs on seed and step alone."""

    def __init__(self, lesson: Lesson, pool: ThreadPoolExecutor) -> None:
        self._lesson = lesson
        self._pool = pool
        self._made: dict[int, list[Future[NDArray[np.uint8]]]] = {}

    def rows(self, step: int) -> list[int]:
        """The rows of a step that fall to this process."""
        lesson, ranks = self._lesson, self._lesson.ranks
        share = ranks.share(lesson.section.batch)
        rows = np.random.default_rng((lesson.seed, step)).integers(0, len(lesson.views), lesson.section.batch)
        return [int(row) for row in rows[ranks.number * share : (ranks.number + 1) * share]]

    def pictures(self, step: int) -> Tensor:
        """The pictures of a step, uint8 [share, 1, rows, columns]."""
        for each in (step, step + 1):
            if each not in self._made:
                self._made[each] = [self._pool.submit(self._lesson.views.picture, row) for row in self.rows(each)]
        return torch.from_numpy(np.stack([future.result() for future in self._made.pop(step)])[:, None])


class _Step:
    """Computes the gradients of one step, in as many parts as fit into memory."""

    def __init__(self, module: Any, targets: Sequence[Target], lesson: Lesson, micro: int, ahead: _Ahead) -> None:
        self.micro = micro
        self._ahead = ahead
        self._module = module
        self._targets = targets
        self._lesson = lesson

    def __call__(self, step: int) -> float:
        lesson, ranks = self._lesson, self._lesson.ranks
        rows, pictures = self._ahead.rows(step), self._ahead.pictures(step)
        while True:
            try:
                return self._gradients(rows, pictures)
            except torch.OutOfMemoryError as error:
                self.micro = smaller_batch("the student", self.micro, error, lesson.progress)
                if ranks.count > 1:
                    # The others wait for this process in the middle of the step: only a new start brings all together.
                    _remember_batch(lesson, self.micro)
                    raise InputError(
                        f"Process {ranks.number} ran out of GPU memory.",
                        f"Run the same command again: it goes on with {self.micro} pictures at a time.",
                    ) from error
                self._module.zero_grad(set_to_none=True)

    def _gradients(self, rows: Sequence[int], pictures: Tensor) -> float:
        fabric = self._lesson.ranks.fabric
        total = 0.0
        for start in range(0, len(rows), self.micro):
            part = rows[start : start + self.micro]
            more = start + self.micro < len(rows)
            with fabric.no_backward_sync(self._module, enabled=more):
                loss = self._loss(part, pictures[start : start + self.micro]) * (len(part) / len(rows))
                fabric.backward(loss)
            total += float(loss.detach())
        return total

    def _loss(self, rows: Sequence[int], pictures: Tensor) -> Tensor:
        section, device = self._lesson.section, self._lesson.ranks.device
        said = self._module(pictures.to(device))
        weights = {"dense": section.dense_weight, "pooled": section.pooled_weight}
        losses = [
            target.weight * weights[kind] * feature_loss(each[kind], target.features(kind, rows, device),
                                                         section.smooth_weight)
            for target, each in zip(self._targets, said, strict=True)
            for kind in KINDS
        ]  # fmt: skip
        return torch.stack(losses).sum() / sum(target.weight for target in self._targets)


def _remember_batch(lesson: Lesson, micro: int) -> None:
    save_whole(lesson.folder / BATCH, str(micro).encode())


def _save(lesson: Lesson, step: int, micro: int, net: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    if lesson.ranks.first:
        state = {"step": step, "net": net.state_dict(), "optimiser": optimiser.state_dict()}
        save_state(lesson.folder / CHECKPOINT, state)
        _remember_batch(lesson, micro)
    lesson.ranks.wait()


def _resume(lesson: Lesson, net: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, int]:
    """The step to go on from, and the pictures at a time that fitted into memory."""
    remembered = lesson.folder / BATCH
    micro = int(remembered.read_text()) if remembered.is_file() else lesson.section.batch
    path = lesson.folder / CHECKPOINT
    if not path.is_file():
        return 0, micro
    state = torch.load(path, map_location="cpu", weights_only=True)
    net.load_state_dict(state["net"])
    optimiser.load_state_dict(state["optimiser"])
    lesson.progress.say(f"agglomerate: resumed at step {state['step']}")
    return int(state["step"]), micro


def save_scaling(path: Path, scaling: Mapping[str, Scaling]) -> None:
    """Keep fitted scalings, in a file that is there whole or not at all."""
    tensors = {f"{kind}.{name}": getattr(each, name) for kind, each in scaling.items() for name in ("mean", "matrix")}
    save_whole(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def load_scaling(path: Path) -> dict[str, Scaling]:
    """Read what `save_scaling` wrote."""
    tensors = load_file(path)
    return {kind: Scaling(tensors[f"{kind}.mean"], tensors[f"{kind}.matrix"]) for kind in KINDS}
