"""Where the decisions of trained nets come from, on the patients of `tune`: what a recipe may be chosen by."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import load_file

from appliance.domain.errors import InputError, SettingsError
from export.attribution import Attribution, attribution, of_net
from export.audit import TASKS
from export.device import training_device
from export.ensemble import Member
from export.images import UNREADABLE, ImageSet
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
        InputError: A task without a labelled image on `tune`.
    """
    chosen = tuple(tasks)
    unknown = [task for task in chosen if task not in TASKS]
    if unknown:
        raise SettingsError(f"There is no triage task {unknown[0]}.", f"There are {', '.join(TASKS)}.")
    rows_of = {task: _labelled_rows(recipe, data, task) for task in chosen}
    found: dict[str, Attribution] = {}
    for name, (architecture, weights) in nets.items():
        net = _net(architecture, weights)
        for task, rows in rows_of.items():
            images = [data.images[row] for row in rows]
            patients = [data.samples[row].patient for row in rows]
            ask = of_net(net, task, recipe.data.mask_side)
            found[f"{name}, {task}"] = attribution(ask, images, patients, recipe.pack.seed)
    return found


def _labelled_rows(recipe: Recipe, data: ImageSet, task: str) -> list[int]:
    rows = data.select(split=SPLIT)
    if task == ADULT:
        adults = [row for row in rows if (data.samples[row].age or 0.0) >= recipe.data.adult_min_age_years]
        labelled = [row for row in adults if data.samples[row].adult is not None]
        counted = f"; images of adults count from data.adult_min_age_years = {recipe.data.adult_min_age_years:g} on"
    else:
        labelled = [row for row in rows if data.samples[row].paediatric is not None]
        counted = ""
    if not labelled:
        raise InputError(
            f"The task {task} has no labelled image among the patients of `{SPLIT}`.",
            f"Add patients, raise data.tune_percent in the recipe, or repair what {UNREADABLE} names{counted}.",
        )
    return labelled


def _net(architecture: str, weights: Path) -> MultiTaskNet:
    if not weights.is_file():
        raise SettingsError(f"There is no {weights}.", "Train it first: `insite-export run`, with the same OUT.")
    net = MultiTaskNet(architecture_named(architecture))
    net.load_state_dict(load_file(weights))
    use_channels_last(net)
    return net.eval().to(training_device())
