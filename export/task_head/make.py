"""From labels to a joined pack: the whole of `insite-export task`, each finished part done once."""

from dataclasses import dataclass
from pathlib import Path

from appliance.domain.errors import InputError
from appliance.domain.manifest import OperatingPoint, PackManifest, TaskManifest, VerifiedPack
from export.artefacts import digest_of_values, file_sha256, read_json, run_step
from export.images import UNREADABLE, left_out
from export.pack import graph_outputs
from export.progress import Progress
from export.runner import Runner
from export.task_head.audit import audited
from export.task_head.features import Pictures, View, features, outputs_read_by, read_pictures, refuse_twins
from export.task_head.graphs import HEAD, write_graphs
from export.task_head.join import joined, refuse_changed, trained_task, write_task
from export.task_head.labels import cases_from_csv, refuse_one_class
from export.task_head.recipe import AUDITED, SEGMENTATION, TaskRecipe, task_recipe_from_toml
from export.task_head.report import task_report
from export.task_head.train import Measured, measured, trained_head, validation_scores

STEP, VERSION = "task", 4
CPU_RUNTIME = "onnxruntime-cpu"
"""Features are taken from, and figures measured on, the precisions that this machine can serve."""


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """What goes in: the task's recipe, its labels, and the folder of the images."""

    recipe: Path
    labels: Path
    data: Path


def make_task(files: TaskFiles, base: VerifiedPack, private_key: Path, out: Path, progress: Progress) -> PackManifest:
    """Train a head on a frozen base and write `<out>/<base>-<release>`, the joined and signed pack.

    `<out>/<task>.steps/task` keeps the task by itself, and the list of unreadable images.

    Raises:
        InsiteError: A recipe, labels or images that can't be used; a gate that refuses.
    """
    recipe = task_recipe_from_toml(files.recipe)
    cases = cases_from_csv(files.labels, recipe)
    root = out / f"{recipe.task.name}.steps"
    root.mkdir(parents=True, exist_ok=True)
    read = [files.data / name for case in cases for name in (*case.files, case.mask) if name]
    inputs = digest_of_values(
        STEP,
        VERSION,
        base.manifest.digest,
        *(file_sha256(path) if path.is_file() else "" for path in (files.recipe, files.labels, *read)),
    )

    def work(folder: Path) -> None:
        pictures = read_pictures(cases, files.data, base.manifest, recipe, folder)
        refuse_one_class(files.labels, pictures.cases, recipe)
        refuse_twins(files.labels, pictures)
        _train(recipe, base, pictures, folder, progress, data=files.data)
        refuse_changed(base)
        (folder / "images.npy").unlink()

    run_step(root, STEP, inputs, work)
    task = trained_task(root / STEP / "made")
    if task.report["unreadable_images"]:
        progress.say(left_out(task.report["unreadable_images"], root / STEP / UNREADABLE))
    progress.say(str(task.report["summary"]))
    return joined(base, task, private_key, out / f"{base.manifest.name}-{base.manifest.release + 1}")


def _train(
    recipe: TaskRecipe, base: VerifiedPack, pictures: Pictures, folder: Path, progress: Progress, *, data: Path
) -> None:
    manifest = base.manifest
    names = outputs_read_by(recipe, manifest)
    served = [variant for variant in manifest.variants if CPU_RUNTIME in variant.runtimes]
    if not served:
        raise InputError(f"The base {manifest.name} has no encoder for {CPU_RUNTIME}.", "Use a base that has one.")
    runners = {variant.precision: Runner(base.folder, variant.file, []) for variant in served}
    plain = {precision: features(runner, pictures, names, progress) for precision, runner in runners.items()}
    best = served[-1].precision
    views = [plain[best]]
    for number in range(1, 1 if recipe.task.head == SEGMENTATION else recipe.training.variants):
        view = View(manifest, recipe.training.seed, number)
        views.append(features(runners[best], pictures, names, progress, view))
    head = trained_head(recipe, pictures, views, progress)
    figures = {each: measured(recipe, head, pictures, said, each) for each, said in plain.items()}
    heard = plain if recipe.task.head in AUDITED else {}
    scores = {each: validation_scores(head, pictures, said) for each, said in heard.items()}
    audits = audited(recipe, pictures, scores, data)
    made = folder / "made"
    made.mkdir(exist_ok=True)
    write_graphs(head, plain[best], made)
    task = TaskManifest(
        name=recipe.task.name,
        title=recipe.task.title,
        kind=recipe.kind,
        release=recipe.task.release,
        base_digest=manifest.base_digest,
        head=f"tasks/{recipe.task.name}/{HEAD}",
        inputs=names,
        outputs=graph_outputs(made / HEAD),
        finding=recipe.finding,
        operating_points=_points(manifest, figures),
        eligibility=recipe.rules,
        intended_use=recipe.task.intended_use,
        not_for=recipe.task.not_for,
    )
    unreadable = len(read_json(folder / UNREADABLE))
    write_task(made, task, task_report(recipe, pictures, figures, audits) | {"unreadable_images": unreadable})


def _points(base: PackManifest, figures: dict[str, Measured]) -> tuple[OperatingPoint, ...]:
    """One operating point for each precision of the base; one that this machine can't run borrows the last one's."""
    last = list(figures.values())[-1].point
    borrowed = f"{last.meaning} Measured at {last.precision}."
    return tuple(
        figures[variant.precision].point
        if variant.precision in figures
        else OperatingPoint(variant.precision, last.threshold, last.max_distance, borrowed)
        for variant in base.variants
    )
