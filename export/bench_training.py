"""What distillation is worth: the same student and pictures with and without its teachers' word, over several seeds.

Both arms take the same steps on the same batches, blanked alike: also the student that learns from labels alone sees
children's pictures blanked outside the lungs that the teachers outline, where the recipe blanks them.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from export.artefacts import DONE, digest_of_values, read_json, run_step, write_json
from export.distil import WEIGHTS, distil
from export.images import ImageSet, image_set
from export.line import STEP_VERSIONS, teachers_of
from export.metrics import auc, resampled
from export.operating import Labelled, labelled
from export.predictions import predict, teacher_says
from export.recipe import Recipe, as_json
from export.student import ARCHITECTURES, MultiTaskNet, use_channels_last
from export.tasks import ADULT

RESULT = "distillation.json"
ARMS = ("distilled", "direct")
VERSION = 2
"""Raised when the code trains an arm in another way; what was trained before is then trained anew."""


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """How it is compared: steps of each training, and the seeds."""

    steps: int
    seeds: tuple[int, ...] = (1, 2, 3)


def compare_training(
    recipe: Recipe, steps: Path, *, plan: Comparison, out: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Train both arms for each seed and compare their AUC on the validation adults; write `distillation.json`.

    Each training is a step of its own in `out`: a killed comparison goes on where it was.

    Args:
        recipe: Its student, but for the steps and the seed; it starts from published weights in both arms.
        steps: The artefacts of `run`; `Line.taught` says whether pictures and teachers in it are this recipe's.
        plan: Steps and seeds.
        out: Folder for the trainings and the result.
        say: Told about progress.
    """
    images, teachers, made = image_set(steps / "data"), teachers_of(recipe, steps), made_of(recipe, steps)
    cases: dict[str, list[Labelled]] = {arm: [] for arm in ARMS}
    for seed in plan.seeds:
        for arm in ARMS:
            variant = _variant(recipe, arm, seed, plan.steps)
            name = f"{arm}-{seed}"
            say(name)
            run_step(
                out,
                name,
                digest_of_values(VERSION, as_json(variant), made),
                lambda folder, variant=variant: distil(variant, images, teachers, folder, say),  # type: ignore[misc]
            )
            cases[arm].append(_asked(recipe, images, out / name / WEIGHTS))
    plain = {"steps": plan.steps, "seeds": list(plan.seeds), "made_of": made}
    result = compared(cases, recipe.pack.seed) | plain
    write_json(out / RESULT, result)
    return result


def made_of(recipe: Recipe, steps: Path) -> str:
    """Digest of what a comparison hangs on: recipe, way of distilling, pictures and teachers; empty without those."""
    records = [steps / step / DONE for step in ("data", "teachers", "second_teacher")]
    if not all(path.is_file() for path in records):
        return ""
    files = [read_json(path)["files"] for path in records]
    return digest_of_values(VERSION, as_json(recipe), STEP_VERSIONS["distil"], files)


def last_result(out: Path, recipe: Recipe, steps: Path) -> dict[str, Any] | None:
    """What an earlier comparison of this very recipe found with the pictures and teachers in `steps`, or None."""
    path, made = out / RESULT, made_of(recipe, steps)
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found if made and found.get("made_of") == made else None


def _variant(recipe: Recipe, arm: str, seed: int, steps: int) -> Recipe:
    student = dataclasses.replace(
        recipe.student, steps=steps, settling_steps=0, finishing_steps=0, starts_from_second_teacher=False
    )
    if arm == "direct":
        student = dataclasses.replace(student, soft_label_weight=0.0, feature_weight=0.0, soft_mask_weight=0.0)
    return dataclasses.replace(recipe, student=student, pack=dataclasses.replace(recipe.pack, seed=seed))


def _asked(recipe: Recipe, images: ImageSet, weights: Path) -> Labelled:
    net = MultiTaskNet(ARCHITECTURES[recipe.student.architecture])
    net.load_state_dict(load_file(weights))
    use_channels_last(net)
    rows = images.select(split="val", dataset="nih")
    said = predict(teacher_says(net.eval(), recipe.data.mask_side), images, rows)
    return labelled(ADULT, "val", said, images, recipe.data.adult_min_age_years)


def compared(cases: dict[str, list[Labelled]], seed: int) -> dict[str, Any]:
    """The gain of the first arm over the second, with an interval over patients and trainings.

    Args:
        cases: For each arm the same patients, asked of one training a seed; equal places are equal seeds.
        seed: Of the bootstrap, which draws patients and seeds anew: few seeds make the interval coarse, none too small.
    """
    first, trainings = cases[ARMS[0]][0], len(cases[ARMS[0]])
    rng = np.random.default_rng((seed, trainings))
    areas = {arm: [auc(each.scores, each.labels) for each in cases[arm]] for arm in ARMS}
    gains = []
    for rows in resampled(first.patients, seed):
        drawn = rng.integers(0, trainings, size=trainings)
        each = {
            arm: np.array([auc(one.scores[rows], one.labels[rows]) for one in cases[arm]])[drawn].mean() for arm in ARMS
        }
        gains.append(each["distilled"] - each["direct"])
    low, high = np.nanpercentile(gains, (2.5, 97.5))
    return {
        "dataset": "NIH adults, validation",
        "images": len(first.labels),
        "patients": len(set(first.patients)),
        "auc": {arm: [round(area, 4) for area in each] for arm, each in areas.items()},
        "gain": round(float(np.mean(areas["distilled"]) - np.mean(areas["direct"])), 4),
        "gain_95": [round(float(low), 4), round(float(high), 4)],
    }
