"""The command `insite-export`: run a recipe into a signed pack, measure one, try a recipe on folds, make keys."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from appliance.domain.errors import InputError, InsiteError
from appliance.packs.open import open_pack
from appliance.packs.signing import PRIVATE_KEY, check_private_key, generate_keys
from export.artefacts import file_sha256
from export.audit import TASKS, attribution_table
from export.bench import as_text, bench, not_measured
from export.bench_features import Question, bench_features
from export.bench_training import Comparison, compare_training, last_result
from export.folds_report import as_text as folds_as_text
from export.folds_training import STAGES
from export.line import Line
from export.progress import Shown, Silent
from export.ranks import Ranks
from export.recipe import recipe_from_toml
from export.tables import as_text as table_as_text
from export.task_head.make import TaskFiles, make_task

INPUT_ERROR = 2

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Larger models in, one small signed pack out.")


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="The pack's recipe.toml.")],
    data: Annotated[Path, typer.Option(help="Folder with the data sets.")],
    out: Annotated[Path, typer.Option(help="Folder for artefacts and the pack.")],
    key: Annotated[Path | None, typer.Option(help="Private key that signs; made in OUT/keys when absent.")] = None,
    *,
    threads: Annotated[int, typer.Option(help="CPU threads of the training.")] = 2,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder of the foundation teachers' files.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--afresh", help="Go on behind what is finished.")] = True,
) -> None:
    """Train, distil, quantise, verify, pack and sign; finished steps are not done again."""
    torch.set_num_threads(threads)
    console = Console(stderr=True)
    with _said():
        signing_key = _checked_key(key, out)
        line = Line(recipe, data, out, Shown(console), checkpoints=checkpoints)
        if not resume:
            line.forget()
        digest = line.run(signing_key)
    typer.echo(f"{line.pack} {digest}")


@app.command("bench")
def bench_command(
    pack_folder: Annotated[Path, typer.Option("--pack", help="The pack to measure.")] = Path("engines/chest-xray"),
    out: Annotated[Path, typer.Option(help="Folder of artefacts, for what was trained.")] = Path("build"),
    *,
    distillation_steps: Annotated[
        int, typer.Option(help="Also train with and without teachers, so many steps each: six trainings.")
    ] = 0,
    features: Annotated[
        int, typer.Option(help="Also cache teachers' features of so many phantoms, killed once and resumed.")
    ] = 0,
    recipe_file: Annotated[
        Path | None, typer.Option("--recipe", help="Recipe that names those teachers; the pack's when absent.")
    ] = None,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder of their files.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the data sets, as for `run`; --distillation-steps needs it.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the pack's figures in one run: speeds as ratios, accuracies out of its gate report."""
    console = Console(stderr=True)
    say = lambda text: console.print(text, highlight=False)  # noqa: E731 - one word for two uses
    with _said():
        recipe = recipe_from_toml(pack_folder / "recipe.toml")
        steps, trainings = out / f"{recipe.pack.name}.steps", out / f"{recipe.pack.name}.bench"
        if distillation_steps:
            if data is None:
                raise InputError("--distillation-steps trains on the data of `run`.", "Give its folder: --data.")
            Line(pack_folder / "recipe.toml", data, out, Shown(console)).taught()
        result = bench(recipe, pack_folder, say)
        if distillation_steps:
            compare_training(recipe, steps, plan=Comparison(distillation_steps), out=trainings, say=say)
        result["distillation"] = last_result(trainings, recipe, steps)
        question = Question(recipe_file or pack_folder / "recipe.toml", checkpoints, features)
        result["features"] = bench_features(question, out, say) if features else None
        result["not_measured"] = not_measured(result)
    typer.echo(json.dumps(result, indent=2) if json_output else as_text(result))


@app.command("folds")
def folds_command(
    recipe: Annotated[Path, typer.Argument(help="The pack's recipe.toml.")],
    data: Annotated[Path, typer.Option(help="Folder with the data sets.")],
    out: Annotated[Path, typer.Option(help="Folder for artefacts, as for `run`.")],
    *,
    folds: Annotated[int, typer.Option(help="How many folds the NIH patients are dealt into.")] = 4,
    stage: Annotated[str, typer.Option(help=f"What is trained in each: {', '.join(STAGES)}.")] = "student",
    seeds: Annotated[int, typer.Option(help="Trainings in each; from one, nobody can tell a gain from chance.")] = 2,
    change: Annotated[
        list[str] | None, typer.Option(help="Compare with `student.steps = 500, …`; may be given several times.")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of all trainings together, at least one each.")] = 2,
    jobs: Annotated[int, typer.Option(help="Nets that are trained at a time, on a GPU where there is one.")] = 1,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Cross-validate the adult task over training patients, as it is and with changes; `val` is not looked at."""
    torch.set_num_threads(threads)
    console = Console(stderr=True)
    with _said():
        line = Line(recipe, data, out, Shown(console))
        result = line.folds(stage, (folds, seeds), change or (), jobs)
    typer.echo(json.dumps(result, indent=2) if json_output else folds_as_text(result))


@app.command("attribution")
def attribution_command(
    recipe: Annotated[Path, typer.Argument(help="The pack's recipe.toml.")],
    data: Annotated[Path, typer.Option(help="Folder with the data sets.")],
    out: Annotated[Path, typer.Option(help="Folder for artefacts, as for `run`.")],
    *,
    task: Annotated[list[str] | None, typer.Option(help="Triage task; may be given several times.")] = None,
    teachers: Annotated[bool, typer.Option(help="Ask the teachers, too: they take longer.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say where the decisions of a trained student come from, on tuning patients; `val` is not looked at."""
    torch.set_num_threads(threads)
    console = Console(stderr=True)
    with _said():
        line = Line(recipe, data, out, Shown(console))
        found = line.attribution(task or TASKS, teachers=teachers)
    table = attribution_table(found)
    typer.echo(json.dumps(table, indent=2) if json_output else table_as_text(table))


@app.command()
def agglomerate(
    recipe: Annotated[Path, typer.Argument(help="A recipe with foundation teachers.")],
    data: Annotated[Path, typer.Option(help="Folder with the data sets.")],
    out: Annotated[Path, typer.Option(help="Folder for artefacts, as for `run`.")],
    checkpoints: Annotated[Path, typer.Option(help="Folder of the foundation teachers' files.")],
    threads: Annotated[int, typer.Option(help="CPU threads of each process.")] = 2,
) -> None:
    """Only let the encoder learn from the foundation teachers, on many GPUs if torchrun starts this; `run` goes on."""
    torch.set_num_threads(threads)
    with _said():
        ranks = Ranks()
        shown = Shown(Console(stderr=True)) if ranks.first else Silent()
        line = Line(recipe, data, out, shown, checkpoints=checkpoints)
        digest = ranks.told(line.prepared() if ranks.first else "")
        digest, weights = line.agglomerated(digest, ranks)
    if ranks.first:
        typer.echo(f"{weights} {digest}")


@app.command()
def pin(folder: Annotated[Path, typer.Argument(help="Folder of one teacher's files.")]) -> None:
    """Print the digests of a teacher's files as the recipe pins them; check the files against their publisher first."""
    with _said():
        files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
        if not files:
            raise InputError(f"There are no files in {folder}.", "Give the folder of one teacher.")
        digests = {path.name: file_sha256(path) for path in files}
    typer.echo("[foundation.digests]")
    for name, digest in digests.items():
        typer.echo(f'"{name}" = "{digest}"')


@app.command()
def task(
    recipe: Annotated[Path, typer.Argument(help="The task's recipe.")],
    labels: Annotated[Path, typer.Option(help="CSV file of labels.")],
    data: Annotated[Path, typer.Option(help="Folder of the images.")],
    base: Annotated[Path, typer.Option(help="The pack whose encoder stays as it is.")],
    *,
    trust: Annotated[list[Path], typer.Option(help="Public key that signed the base; several may be given.")],
    out: Annotated[Path, typer.Option(help="Folder for artefacts and the joined pack.")],
    key: Annotated[Path | None, typer.Option(help="Private key that signs; made in OUT/keys when absent.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of the training.")] = 2,
) -> None:
    """Train one more task on a frozen base from a CSV file of labels; the joined pack is the base's next release."""
    torch.set_num_threads(threads)
    console = Console(stderr=True)
    with _said():
        signing_key = _checked_key(key, out)
        opened = open_pack(base, trust, allow_unvalidated=True)
        manifest = make_task(TaskFiles(recipe, labels, data), opened, signing_key, out, Shown(console))
    typer.echo(f"{out / manifest.name}-{manifest.release} {manifest.digest}")


@app.command()
def keygen(out: Annotated[Path, typer.Option(help="Folder for the new key pair.")]) -> None:
    """Make a key pair that signs packs; keep the private half offline."""
    with _said():
        pair = generate_keys(out)
    typer.echo(f"Keep secret: {pair.private}\nTrust in settings: {pair.public}")


@contextmanager
def _said() -> Iterator[None]:
    """Ends the command with a sentence where something can't be used, or the disk is full: what is finished stays."""
    try:
        yield
    except (InsiteError, OSError) as error:
        Console(stderr=True).print(f"insite-export: {error}", highlight=False, markup=False)
        raise typer.Exit(INPUT_ERROR) from error


def _checked_key(key: Path | None, out: Path) -> Path:
    """The key that will sign, hours before it does: the given one, or one that is made in `out/keys`."""
    present = key or out / "keys" / PRIVATE_KEY
    if key is None and not present.is_file():
        return generate_keys(present.parent).private
    check_private_key(present)
    return present


def main() -> None:
    """Entry point of `insite-export`."""
    app()
