"""The training loop that teacher and student share: balanced batches, AdamW, cosine, EMA, checkpoints."""

import math
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from appliance.domain.manifest import InputSpec
from export.augment import augmented
from export.images import ImageSet
from export.recipe import StudentSection, TeacherSection
from export.student import MultiTaskNet, Outputs

BATCH_SHARES = {"nih": 0.5, "kermany": 0.375}
"""Shares of a batch by data set; what is left comes from the others, which carry masks or the teacher's labels only."""
WARM_UP_SHARE = 0.05
CHECKPOINT_EVERY = 100
PREFETCHED_BATCHES = 4
_NO_LABEL = -1.0


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """One batch.

    Attributes:
        image: uint8 [N, 1, 512, 512].
        adult, paediatric: float [N, 1] of 0 and 1, -1 where the sample has no such label.
        lungs: float [N, 1, side, side] of 0 and 1.
        has_mask: bool [N].
        soft_adult, soft_paediatric: bool [N], whether the teacher's opinion counts for that task.
    """

    image: Tensor
    adult: Tensor
    paediatric: Tensor
    lungs: Tensor
    has_mask: Tensor
    soft_adult: Tensor
    soft_paediatric: Tensor


def batches(data: ImageSet, spec: InputSpec, size: int, seed: int, first: int, last: int) -> Iterator[Batch]:
    """Augmented training batches `first` to `last`; each depends on seed and number alone, so a run can resume."""
    ready: queue.Queue[Batch | None] = queue.Queue(PREFETCHED_BATCHES)

    def fill() -> None:
        for number in range(first, last):
            ready.put(_batch(data, spec, size, np.random.default_rng((seed, number))))
        ready.put(None)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := ready.get()) is not None:
        yield batch


def supervised_loss(outputs: Outputs, batch: Batch) -> Tensor:
    """Binary cross-entropy of both triage heads and of drawn masks with Dice, each over the samples that have it."""
    losses = [
        labelled_cross_entropy(outputs.adult, batch.adult),
        labelled_cross_entropy(outputs.paediatric, batch.paediatric),
    ]
    if bool(batch.has_mask.any()):
        logits = upsampled(outputs.lungs, batch.lungs.shape[-1])[batch.has_mask]
        losses.append(mask_loss(logits, batch.lungs[batch.has_mask]))
    return torch.stack(losses).sum()


def labelled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the samples that have a label; zero where none has."""
    known = labels >= 0
    if not bool(known.any()):
        return logits.sum() * 0.0
    return functional.binary_cross_entropy_with_logits(logits.float()[known], labels[known])


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice of masks [N, 1, h, w]."""
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum(dim=(1, 2, 3))
    dice = 1.0 - (2.0 * overlap + 1.0) / (probability.sum(dim=(1, 2, 3)) + target.sum(dim=(1, 2, 3)) + 1.0)
    return functional.binary_cross_entropy_with_logits(logits, target) + dice.mean()


def upsampled(logits: Tensor, side: int) -> Tensor:
    """Lung logits at the masks' resolution, bilinear, as the exported head does it."""
    return functional.interpolate(logits.float(), size=(side, side), mode="bilinear", align_corners=False)


@dataclass(frozen=True, eq=False, slots=True)
class Training:
    """What a run needs beside the net: data, numbers, where to keep checkpoints, how to tell of progress."""

    data: ImageSet
    spec: InputSpec
    section: TeacherSection | StudentSection
    seed: int
    folder: Path
    say: Callable[[str], None]


def train(net: nn.Module, core: MultiTaskNet, run: Training, loss_of: Callable[[Batch], Tensor]) -> dict[str, Tensor]:
    """Train `net` (which holds `core`) and return the averaged (EMA) state of `core`; resumes from its checkpoint."""
    section = run.section
    net.to(memory_format=torch.channels_last)
    optimiser = _optimiser(net, core, section)
    rates = [group["lr"] for group in optimiser.param_groups]
    average = {name: value.detach().clone().float() for name, value in core.state_dict().items()}
    checkpoint = run.folder / "checkpoint.pt"
    start = _resume(checkpoint, net, optimiser, average)
    recent: list[float] = []
    for step, batch in enumerate(
        batches(run.data, run.spec, section.batch, run.seed, start, section.steps), start=start
    ):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * _schedule(step, section.steps)
        _training_mode(net, core, section.frozen_blocks)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        _follow(average, core, min(section.ema_decay, (1 + step) / (10 + step)))
        recent.append(float(loss.detach()))
        if (step + 1) % CHECKPOINT_EVERY == 0:
            run.say(f"step {step + 1}/{section.steps} loss {np.mean(recent):.4f}")
            recent.clear()
            _save(checkpoint, step + 1, net, optimiser, average)
    checkpoint.unlink(missing_ok=True)
    kinds = {name: value.dtype for name, value in core.state_dict().items()}
    return {name: value.to(kinds[name]).contiguous() for name, value in average.items()}


def _optimiser(net: nn.Module, core: MultiTaskNet, section: TeacherSection | StudentSection) -> torch.optim.AdamW:
    for module in _frozen(core, section.frozen_blocks):
        module.requires_grad_(requires_grad=False)
    backbone = {id(p) for p in core.encoder.parameters()}
    trained = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in trained if id(p) in backbone], "lr": section.backbone_rate},
            {"params": [p for p in trained if id(p) not in backbone], "lr": section.head_rate},
        ],
        weight_decay=section.weight_decay,
    )


def _frozen(core: MultiTaskNet, blocks: int) -> list[nn.Module]:
    return [core.encoder.stem, core.encoder.stem_norm, *core.encoder.blocks[:blocks]] if blocks else []


def _training_mode(net: nn.Module, core: MultiTaskNet, blocks: int) -> None:
    net.train()
    for module in _frozen(core, blocks):
        module.eval()


def _schedule(step: int, steps: int) -> float:
    warm = max(1, round(steps * WARM_UP_SHARE))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _follow(average: dict[str, Tensor], core: MultiTaskNet, decay: float) -> None:
    with torch.no_grad():
        for name, value in core.state_dict().items():
            average[name].lerp_(value.float(), 1.0 - decay)


def _save(path: Path, step: int, net: nn.Module, optimiser: torch.optim.Optimizer, average: dict[str, Tensor]) -> None:
    state = {"step": step, "net": net.state_dict(), "optimiser": optimiser.state_dict(), "average": average}
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, net: nn.Module, optimiser: torch.optim.Optimizer, average: dict[str, Tensor]) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    net.load_state_dict(state["net"])
    optimiser.load_state_dict(state["optimiser"])
    average.update(state["average"])
    return int(state["step"])


def _batch(data: ImageSet, spec: InputSpec, size: int, rng: np.random.Generator) -> Batch:
    chosen = _balanced(data, size, rng)
    images: list[NDArray[np.uint8]] = []
    side = data.masks.shape[-1]
    lungs = np.zeros((size, 1, side, side), np.float32)
    for position, index in enumerate(chosen):
        row = data.mask_of[index]
        image, mask = augmented(data.images[index], data.masks[row] if row >= 0 else None, spec, rng)
        images.append(image)
        if mask is not None:
            lungs[position, 0] = mask
    samples = [data.samples[index] for index in chosen]
    return Batch(
        image=torch.from_numpy(np.stack(images)[:, None]),
        adult=_labels([sample.adult for sample in samples]),
        paediatric=_labels([sample.paediatric for sample in samples]),
        lungs=torch.from_numpy(lungs),
        has_mask=torch.tensor([data.mask_of[index] >= 0 for index in chosen]),
        soft_adult=torch.tensor([sample.dataset != "kermany" for sample in samples]),
        soft_paediatric=torch.tensor([sample.dataset == "kermany" for sample in samples]),
    )


def _labels(values: list[int | None]) -> Tensor:
    return torch.tensor([[_NO_LABEL if value is None else float(value)] for value in values])


def _balanced(data: ImageSet, size: int, rng: np.random.Generator) -> list[int]:
    pools: dict[tuple[str, int | None], list[int]] = {}
    for index in data.select(split="train"):
        sample = data.samples[index]
        name = sample.dataset if sample.dataset in BATCH_SHARES else "others"
        label = sample.adult if name == "nih" else sample.paediatric
        pools.setdefault((name, label), []).append(index)
    counts = {name: round(share * size) for name, share in BATCH_SHARES.items()}
    wanted = [(name, number % 2) for name, count in counts.items() for number in range(count)]
    if ("others", None) in pools:
        wanted += [("others", None)] * (size - len(wanted))
    chosen = [int(rng.choice(pools[key])) for key in wanted]
    while len(chosen) < size:
        chosen.append(int(rng.choice(pools["nih", len(chosen) % 2])))
    return chosen
