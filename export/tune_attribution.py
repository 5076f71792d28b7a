"""Where the decisions of trained nets come from, on the patients of `tune`: what a recipe may be chosen by."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import load_file

from appliance.domain.errors import SettingsError
from export.attribution import Attribution, attribution, of_net
from export.audit import TASKS
from export.device import training_device
from export.ensemble import Member
from export.images import ImageSet
from export.recipe import Recipe
from export.student import MultiTaskNet, architecture_named, use_channels_last
from export.tasks import ADULT

SPLIT = "tune"


def attribution_on_tune(
    recipe: Recipe, data: ImageSet, nets: Mapping[str, Member], tasks: Iterable[str]
) -> dict[str, Attribution]:
    """Measure what `verify` measures on `val`, in FP32 and on `tune`: by "net, task".

    Args:
        recipe: Its seed draws the untrained heads.
        data: The prepared radiographs.
        nets: Architecture and weights by name.
        tasks: Of `audit.TASKS`.

    Raises:
        SettingsError: An unknown task, or a net that was not trained yet.
    """
    chosen = tuple(tasks)
    unknown = [task for task in chosen if task not in TASKS]
    if unknown:
        raise SettingsError(f"There is no triage task {unknown[0]}.", f"There are {', '.join(TASKS)}.")
    found: dict[str, Attribution] = {}
    for name, (architecture, weights) in nets.items():
        net = _net(architecture, weights)
        for task in chosen:
            rows = _labelled_rows(recipe, data, task)
            images = [data.images[row] for row in rows]
            patients = [data.samples[row].patient for row in rows]
            ask = of_net(net, task, recipe.data.mask_side)
            found[f"{name}, {task}"] = attribution(ask, images, patients, recipe.pack.seed)
    return found


def _labelled_rows(recipe: Recipe, data: ImageSet, task: str) -> list[int]:
    if task != ADULT:
        return [row for row in data.select(split=SPLIT) if data.samples[row].paediatric is not None]
    adults = [
        row for row in data.select(split=SPLIT) if (data.samples[row].age or 0.0) >= recipe.data.adult_min_age_years
    ]
    return [row for row in adults if data.samples[row].adult is not None]


def _net(architecture: str, weights: Path) -> MultiTaskNet:
    if not weights.is_file():
        raise SettingsError(f"There is no {weights}.", "Train it first: `insite-export run`, with the same OUT.")
    net = MultiTaskNet(architecture_named(architecture))
    net.load_state_dict(load_file(weights))
    use_channels_last(net)
    return net.eval().to(training_device())
