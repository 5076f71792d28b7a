"""The training loop that teacher and student share: balanced batches, AdamW, cosine, EMA, checkpoints."""

import io
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from appliance.domain.errors import SettingsError
from appliance.domain.manifest import InputSpec
from export.augment import augmented
from export.device import training_device
from export.disk import save_whole
from export.images import ImageSet
from export.recipe import StudentSection, TeacherSection
from export.student import MultiTaskNet, Outputs, use_channels_last

OTHERS_SHARE = 0.125
"""Share of a batch from data sets without triage labels, which carry masks or the teacher's opinion only."""
WARM_UP_SHARE = 0.05
CHECKPOINT = "checkpoint.pt"
CHECKPOINT_EVERY = 100
PREFETCHED_BATCHES = 4
LONGEST_GRADIENT = 5.0
ADULT_LABEL_NOISE = 0.05
"""Share of NIH labels that is taken to be wrong: their authors estimate an accuracy above 90 %."""
FINISHING_NIH_SHARE = 0.125
"""The lung decoder learns from drawn masks, which the NIH images do not have."""
_NO_LABEL = -1.0


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """One batch.

    Attributes:
        image: uint8 [N, 1, 512, 512].
        adult, paediatric: float [N, 1] of 0 and 1, -1 where the sample has no such label.
        lungs: float [N, 1, side, side] of 0 and 1.
        has_mask: bool [N].
    """

    image: Tensor
    adult: Tensor
    paediatric: Tensor
    lungs: Tensor
    has_mask: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch where a net is."""
        return Batch(*(getattr(self, each.name).to(device) for each in fields(self)))


def batches(run: "Training", phase: "Phase", seed: int, first: int) -> Iterator[Batch]:
    """Augmented batches of a phase from number `first` on; each depends on seed and number alone, so runs resume."""
    ready: queue.Queue[Batch | Exception | None] = queue.Queue(PREFETCHED_BATCHES)

    def fill() -> None:
        try:
            for number in range(first, phase.steps):
                ready.put(_batch(run, phase, np.random.default_rng((seed, number))))
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for, which else never ends
            ready.put(error)
        else:
            ready.put(None)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := ready.get()) is not None:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def supervised_loss(outputs: Outputs, batch: Batch) -> Tensor:
    """Binary cross-entropy of both triage heads and of drawn masks with Dice, each over the samples that have it."""
    losses = [
        labelled_cross_entropy(outputs.adult, batch.adult, ADULT_LABEL_NOISE),
        labelled_cross_entropy(outputs.paediatric, batch.paediatric),
    ]
    if bool(batch.has_mask.any()):
        logits = upsampled(outputs.lungs, batch.lungs.shape[-1])[batch.has_mask]
        losses.append(mask_loss(logits, batch.lungs[batch.has_mask]))
    total = torch.stack(losses).sum()
    # Where the decoder alone learns, a batch without a mask teaches nothing: a loss of no gradient would be an error.
    return total if total.requires_grad else total + outputs.lungs.sum() * 0.0


def labelled_cross_entropy(logits: Tensor, labels: Tensor, noise: float = 0.0) -> Tensor:
    """Cross-entropy over the samples that have a label, of which a share `noise` is wrong; zero where none has."""
    known = labels >= 0
    if not bool(known.any()):
        return logits.sum() * 0.0
    believed = labels[known] * (1.0 - 2.0 * noise) + noise
    return functional.binary_cross_entropy_with_logits(logits.float()[known], believed)


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice of masks [N, 1, h, w]."""
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum(dim=(1, 2, 3))
    dice = 1.0 - (2.0 * overlap + 1.0) / (probability.sum(dim=(1, 2, 3)) + target.sum(dim=(1, 2, 3)) + 1.0)
    return functional.binary_cross_entropy_with_logits(logits, target) + dice.mean()


def upsampled(logits: Tensor, side: int) -> Tensor:
    """Lung logits at the masks' resolution, bilinear, as the exported head does it."""
    return functional.interpolate(logits.float(), size=(side, side), mode="bilinear", align_corners=False)


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training: steps, strength of augmentation, factor on the rates, share of NIH images in a batch.

    With `decoder_only` nothing but the lung decoder learns, on an encoder that stands still.
    """

    name: str
    steps: int
    strength: float
    rate: float
    nih_share: float
    decoder_only: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Training:
    """What a run needs beside the net: data, numbers, where to keep checkpoints, how to tell of progress.

    `name` is the section's in the recipe, for who has to change it.
    """

    data: ImageSet
    spec: InputSpec
    section: TeacherSection | StudentSection
    seed: int
    folder: Path
    say: Callable[[str], None]
    name: str


def phases_of(section: TeacherSection | StudentSection) -> tuple[Phase, ...]:
    """The phases that a recipe's section names."""
    return (
        Phase("learn", section.steps, 1.0, 1.0, section.nih_share),
        Phase(
            "settle",
            section.settling_steps,
            section.settling_strength,
            section.settling_rate,
            section.settling_nih_share,
        ),
        Phase(
            "finish", section.finishing_steps, section.settling_strength, 1.0, FINISHING_NIH_SHARE, decoder_only=True
        ),
    )


def train(net: nn.Module, core: MultiTaskNet, run: Training, loss_of: Callable[[Batch], Tensor], weights: Path) -> None:
    """Train `net` (which holds `core`) in its phases and write the averaged (EMA) state of `core` to `weights`.

    Each phase starts from the averaged weights of the one before. A killed run goes on from what its folder holds, and
    ends in the same weights as one that was not (on a GPU near them: see `training_device`). What was finished is
    thrown away only when `weights` is written. A trained net stays where `training_device` says; what is written can
    be read anywhere.

    Raises:
        SettingsError: The batch is too large for the GPU's memory.
        StorageFullError: The disk is full; the last checkpoint stays.
    """
    if not weights.is_file():
        with memory_for(run.name, run.section):
            state = _trained(net, core, run, loss_of)
        save_whole(weights, save(state))
    (run.folder / CHECKPOINT).unlink(missing_ok=True)
    for phase in phases_of(run.section):
        (run.folder / f"{phase.name}.pt").unlink(missing_ok=True)


@contextmanager
def memory_for(name: str, section: TeacherSection | StudentSection) -> Iterator[None]:
    """What is done within needs the GPU's memory for the training of a section of the recipe.

    Raises:
        SettingsError: There is too little; the section's batch is named.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise SettingsError(
            f"The GPU's memory is too small for {name}.batch = {section.batch} of the recipe.",
            "Give a smaller one, which trains anew; or run the same command where more memory is free, on a larger "
            "GPU or with fewer --jobs: it goes on from the last checkpoint.",
        ) from error


def _trained(
    net: nn.Module, core: MultiTaskNet, run: Training, loss_of: Callable[[Batch], Tensor]
) -> dict[str, Tensor]:
    net.to(training_device())
    use_channels_last(net)
    phases = phases_of(run.section)
    files = [run.folder / f"{phase.name}.pt" for phase in phases]
    done = max((number for number, file in enumerate(files, start=1) if file.is_file()), default=0)
    if done:
        net.load_state_dict(torch.load(files[done - 1], map_location="cpu", weights_only=True))
    for number, phase in enumerate(phases[done:], start=done):
        core.load_state_dict(_train_phase(net, core, run, phase, loss_of, seed=run.seed + 1000 * number))
        save_state(files[number], net.state_dict())
    return {name: value.cpu().contiguous() for name, value in core.state_dict().items()}


def _train_phase(
    net: nn.Module, core: MultiTaskNet, run: Training, phase: Phase, loss_of: Callable[[Batch], Tensor], *, seed: int
) -> dict[str, Tensor]:
    section, device = run.section, training_device()
    optimiser = _optimiser(net, core, section, phase)
    rates = [group["lr"] * phase.rate for group in optimiser.param_groups]
    average = {name: value.detach().clone().float() for name, value in core.state_dict().items()}
    checkpoint = run.folder / CHECKPOINT
    start = _resume(checkpoint, phase, net, optimiser, average)
    recent: list[float] = []
    for step, batch in enumerate(batches(run, phase, seed, start), start=start):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step, phase.steps)
        _training_mode(net, core, section.frozen_blocks, phase)
        torch.manual_seed(_seed_of(seed, step))  # dropout hangs on the step too, not on where the process began
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(batch.to(device))
        net.zero_grad(set_to_none=True)  # also what stands still: clipping would count a past phase's gradients
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(net.parameters(), LONGEST_GRADIENT)
        optimiser.step()
        _follow(average, core, min(section.ema_decay, (1 + step) / (10 + step)))
        recent.append(float(loss.detach()))
        if (step + 1) % CHECKPOINT_EVERY == 0:
            run.say(f"{phase.name}: step {step + 1}/{phase.steps}, loss {np.mean(recent):.4f}")
            recent.clear()
            _save(checkpoint, (phase.name, step + 1), net, optimiser, average)
    kinds = {name: value.dtype for name, value in core.state_dict().items()}
    return {name: value.to(kinds[name]) for name, value in average.items()}


def _optimiser(
    net: nn.Module, core: MultiTaskNet, section: TeacherSection | StudentSection, phase: Phase
) -> torch.optim.AdamW:
    net.requires_grad_(requires_grad=not phase.decoder_only)
    core.lungs.requires_grad_(requires_grad=True)
    for module in _frozen(core, section.frozen_blocks):
        module.requires_grad_(requires_grad=False)
    backbone = {id(p) for p in core.encoder.parameters()}
    trained = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in backbone], "lr": section.backbone_rate},
        {"params": [p for p in trained if id(p) not in backbone], "lr": section.head_rate},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=section.weight_decay)


def _frozen(core: MultiTaskNet, blocks: int) -> list[nn.Module]:
    return core.encoder.front(blocks) if blocks else []


def _training_mode(net: nn.Module, core: MultiTaskNet, blocks: int, phase: Phase) -> None:
    net.train(mode=not phase.decoder_only)
    core.lungs.train()
    for module in _frozen(core, blocks):
        module.eval()


def schedule(step: int, steps: int) -> float:
    """The factor on the learning rates: a short warm-up, then a cosine down to zero."""
    warm = max(1, round(steps * WARM_UP_SHARE))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _follow(average: dict[str, Tensor], core: MultiTaskNet, decay: float) -> None:
    with torch.no_grad():
        for name, value in core.state_dict().items():
            average[name].lerp_(value.float(), 1.0 - decay)


def _seed_of(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0])


def _save(
    path: Path, place: tuple[str, int], net: nn.Module, optimiser: torch.optim.Optimizer, average: dict[str, Tensor]
) -> None:
    """Write a checkpoint; `place` is the phase's name and the steps that it has done."""
    phase, step = place
    state = {
        "phase": phase,
        "step": step,
        "net": net.state_dict(),
        "optimiser": optimiser.state_dict(),
        "average": average,
    }
    save_state(path, state)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write what `torch.load` reads; torch's own writer names no reason when the disk is full.

    Raises:
        StorageFullError: As `save_whole`.
    """
    stream = io.BytesIO()
    torch.save(state, stream)
    save_whole(path, stream.getvalue())


def _resume(
    path: Path, phase: Phase, net: nn.Module, optimiser: torch.optim.Optimizer, average: dict[str, Tensor]
) -> int:
    """Load the phase's checkpoint and return the step to go on with; one of another phase is as good as none."""
    state = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {}
    if state.get("phase") != phase.name:
        return 0
    net.load_state_dict(state["net"])
    optimiser.load_state_dict(state["optimiser"])
    average.update({name: value.to(average[name].device) for name, value in state["average"].items()})
    return int(state["step"])


def _batch(run: Training, phase: Phase, rng: np.random.Generator) -> Batch:
    data, size = run.data, run.section.batch
    chosen = _balanced(data, size, phase.nih_share, rng)
    images: list[NDArray[np.uint8]] = []
    side = data.masks.shape[-1]
    lungs = np.zeros((size, 1, side, side), np.float32)
    for position, index in enumerate(chosen):
        row = data.mask_of[index]
        drawn = data.masks[row] if row >= 0 else None
        image, mask = augmented(data.images[index], drawn, run.spec, rng, phase.strength)
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
    )


def _labels(values: list[int | None]) -> Tensor:
    return torch.tensor([[_NO_LABEL if value is None else float(value)] for value in values])


def _balanced(data: ImageSet, size: int, nih_share: float, rng: np.random.Generator) -> list[int]:
    pools: dict[tuple[str, int | None], list[int]] = {}
    for index in data.select(split="train"):
        sample = data.samples[index]
        name = sample.dataset if sample.dataset in ("nih", "kermany") else "others"
        label = sample.adult if name == "nih" else sample.paediatric
        pools.setdefault((name, label), []).append(index)
    nih = round(nih_share * size)
    others = round(OTHERS_SHARE * size) if ("others", None) in pools else 0
    wanted: list[tuple[str, int | None]] = [("nih", number % 2) for number in range(nih)]
    wanted += [("kermany", number % 2) for number in range(size - nih - others)]
    wanted += [("others", None)] * others
    return [int(rng.choice(pools[key])) for key in wanted]
