"""Step `calibrate`: what is fitted on the frozen student: a temperature for each triage head, and the guard."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional

from export.artefacts import read_json, write_json
from export.augment import augmented
from export.disk import save_whole
from export.guard import GUARD_STRIDES, GuardHead, GuardSamples, fit
from export.images import ImageSet, image_set
from export.recipe import Recipe
from export.runner import Grey, Runner, batched
from export.student import ARCHITECTURES, FEATURE_STRIDES, MultiTaskNet

WEIGHTS = "guard.safetensors"
TEMPERATURES = "temperatures.json"
BATCH = 4
"""Small enough for the processor's cache."""
EMBEDDING = "embedding"
TRIAGE_LABELS = {"adult-triage": "adult", "paediatric-pneumonia": "paediatric"}


def guard_head(student: MultiTaskNet) -> GuardHead:
    """An unfitted guard of the size that fits a student's features."""
    widths = dict(zip(FEATURE_STRIDES, student.encoder.architecture.feature_widths, strict=True))
    first, second = (widths[stride] for stride in GUARD_STRIDES)
    return GuardHead(student.encoder.architecture.embedding, (first, second))


def calibrate(
    recipe: Recipe,
    data: Path,
    negatives: Path,
    student: Path,
    *,
    encoder: Runner,
    out: Path,
    say: Callable[[str], None],
) -> None:
    """Fit temperatures on the `tune` patients and the guard on the `train` patients.

    Args:
        recipe: Architecture, seed, input.
        data, negatives: Artefacts of those steps.
        student: The student's weights.
        encoder: The student's encoder as it is served, which costs a fifth of the same in torch.
        out: Receives `temperatures.json` and `guard.safetensors`.
        say: Told about progress.
    """
    net = MultiTaskNet(ARCHITECTURES[recipe.student.architecture])
    net.load_state_dict(load_file(student))
    net.eval()
    radiographs = image_set(data)
    write_json(out / TEMPERATURES, _temperatures(net, encoder, radiographs, recipe))
    say("temperatures fitted")
    guard = guard_head(net)
    rng = np.random.default_rng((recipe.pack.seed, 2))
    train = radiographs.select(split="train")
    plain = _pooled(encoder, guard, (radiographs.images[i] for i in train))
    varied = _pooled(encoder, guard, (augmented(radiographs.images[i], None, recipe.input, rng)[0] for i in train))
    say(f"features of {2 * len(train)} radiographs")
    listed = read_json(negatives / "negatives.json")
    pictures = np.load(negatives / "negatives.npy", mmap_mode="r")
    chosen = [i for i, entry in enumerate(listed) if entry["split"] == "train"]
    wrong = _pooled(encoder, guard, (pictures[i] for i in chosen))
    kinds = tuple(listed[i]["kind"] for i in chosen)
    say(f"features of {len(chosen)} negatives")
    fit(guard, GuardSamples(torch.cat([plain, varied]), wrong, kinds), recipe.pack.seed)
    save_whole(out / WEIGHTS, save(guard.state_dict()))


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature in [0.25, 8] that minimises the cross-entropy of logits [n] with labels [n] of 0 and 1."""
    candidates = torch.exp(torch.linspace(np.log(0.25), np.log(8.0), 241))
    losses = [float(functional.binary_cross_entropy_with_logits(logits / t, labels)) for t in candidates]
    return round(float(candidates[int(np.argmin(losses))]), 4)


def _temperatures(net: MultiTaskNet, encoder: Runner, data: ImageSet, recipe: Recipe) -> dict[str, float]:
    result: dict[str, float] = {}
    for task, field in TRIAGE_LABELS.items():
        chosen = [i for i in data.select(split="tune") if getattr(data.samples[i], field) is not None]
        if task == "adult-triage":
            chosen = [i for i in chosen if (data.samples[i].age or 0.0) >= recipe.data.adult_min_age_years]
        head = getattr(net, field)
        with torch.no_grad():
            parts = [
                head(features[EMBEDDING])[:, 0] for features in _features(encoder, (data.images[i] for i in chosen))
            ]
        labels = torch.tensor([float(getattr(data.samples[i], field)) for i in chosen])
        result[task] = fitted_temperature(torch.cat(parts), labels)
    return result


def _pooled(encoder: Runner, guard: GuardHead, images: Iterable[Grey]) -> Tensor:
    names = [f"stride{stride}" for stride in GUARD_STRIDES]
    with torch.no_grad():
        rows = [
            guard.pooled(features[EMBEDDING], *(features[name] for name in names))
            for features in _features(encoder, images)
        ]
    return torch.cat(rows)


def _features(encoder: Runner, images: Iterable[Grey]) -> Iterator[dict[str, Tensor]]:
    for batch in batched(images, BATCH):
        outputs = encoder.features(np.stack(batch)[:, None])
        yield {name: torch.from_numpy(np.asarray(values)) for name, values in outputs.items()}
