"""Step `quantise`: search the fastest INT8 graph that loses no more than the recipe allows, layer by layer.

Everything is chosen on the `tune` patients. First the way of calibrating that moves the scores least is found; then
each layer is quantised alone, to see how far it moves them; then the first layers go back to FP32, and after them the
layers that move the scores most, until the graph is inside the bounds. Of the graphs inside, the fastest is kept: the
search ends when one more layer in FP32 makes no faster graph. Where no graph is inside, and the recipe allows it, the
encoder is fine-tuned for INT8 and searched once more.

Which is the fastest hangs on the clock. A recipe that must give the same pack again names the setting
(`quantise.keep`): then the clock decides nothing, neither what is tried nor what is kept.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from appliance.domain.errors import SettingsError
from export.artefacts import write_json
from export.disk import save_whole
from export.exact_input import with_exact_input
from export.fp8 import fp8_from_int8
from export.graph_in_torch import refuse_operators
from export.images import ImageSet
from export.latency import Ratio, compare
from export.layout import AWARE, FOR_TENSORRT, FP8_FOR_TENSORRT, SEARCH_RECORD
from export.metrics import auc
from export.operating import labelled
from export.predictions import Predictions, predict
from export.qat import Lesson, fine_tuned
from export.quantise import METHODS, Ranges, Target, layers, measured_ranges, nodes_of, quantised
from export.recipe import Recipe
from export.runner import Runner
from export.tasks import ADULT, LUNGS, PAEDIATRIC

ENCODER, QUANTISED = "encoder.onnx", "encoder.int8.onnx"
CANDIDATE = "candidate.onnx"
HEADS = (ADULT, PAEDIATRIC, LUNGS)
FIRST_LAYERS = (1, 2, 3, 4, 5)
"""How many of the first layers are tried in FP32: they hold the largest maps, and need no rounding between them."""
FULL_LAYERS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24)
"""How many of the most sensitive layers are tried in FP32."""
SENSITIVITY_EVERY = 5
BATCHES = (1, 8)
ROUNDS = 9
NOISE = 1.05
"""Ratios of times nearer than this are taken as equal."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What a graph loses against FP32 on the tuning patients; a negative loss is a gain.

    `shift` is the mean absolute change of a triage score, over the labelled images of each task, the larger of both.
    """

    adult_auc: float
    paediatric_auc: float
    dice: float
    shift: float

    def broken(self, recipe: Recipe) -> str:
        """The first bound that is broken, or nothing."""
        bounds = recipe.quantise
        judged = (
            ("AUC, adult", self.adult_auc, bounds.auc_loss_max),
            ("AUC, paediatric", self.paediatric_auc, bounds.auc_loss_max),
            ("Dice", self.dice, bounds.dice_loss_max),
            ("score shift", self.shift, bounds.score_shift_max),
        )
        return next((name for name, value, bound in judged if not value <= bound), "")


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting and what came out; `speed` holds FP32's time over its own for each of `BATCHES`.

    `aware` says that the encoder had been fine-tuned for INT8.
    """

    method: str
    full_layers: tuple[str, ...]
    size_bytes: int
    loss: Loss
    speed: tuple[Ratio, ...]
    broken: str
    aware: bool = False

    @property
    def setting(self) -> str:
        """The setting in words, as `quantise.keep` of a recipe names it."""
        layers = f"but for {', '.join(self.full_layers)}" if self.full_layers else "every layer"
        return f"{self.method}, {layers}{', fine-tuned' if self.aware else ''}"

    @property
    def slowest(self) -> float:
        """The lower of the ratios."""
        return min((ratio.median for ratio in self.speed), default=float("nan"))


class Bench:
    """Runs candidate graphs against the FP32 encoder, on the tuning patients and on the clock.

    Args:
        recipe: Bounds and what an adult is.
        data: The prepared images.
        graphs: Folder laid out as a pack, with the FP32 encoder and the heads; candidates are written into it.
        every: Measure on each `every`-th of the tuning images.
        aware: The encoder that is quantised, where it is not the FP32 one that it is measured against.
    """

    def __init__(
        self, recipe: Recipe, data: ImageSet, graphs: Path, every: int = 1, *, aware: onnx.ModelProto | None = None
    ) -> None:
        self.recipe = recipe
        self.graph = aware or onnx.load(graphs / ENCODER)
        self._aware = aware is not None
        self.title = "fine-tuned INT8" if self._aware else "INT8"
        self.for_cpu = with_exact_input(self.graph)
        self._data, self._folder = data, graphs
        self._rows = data.select(split="tune")[::every]
        self._reference = self._said(ENCODER)
        self._clock = Runner(graphs, ENCODER, (), threads=1)
        some = [data.images[row] for row in self._rows[: BATCHES[-1]]]
        self._pictures = np.stack([some[i % len(some)] for i in range(BATCHES[-1])])[:, None]

    def trial(self, ranges: Ranges, full: Sequence[str], *, timed: bool) -> Trial:
        """Quantise all layers but those in `full`, and measure."""
        graph = self.quantised(ranges, full, Target.ONNXRUNTIME_CPU)
        content = graph.SerializeToString(deterministic=True)
        (self._folder / CANDIDATE).write_bytes(content)
        loss = self._loss(self._said(CANDIDATE))
        speed = self._speed(CANDIDATE) if timed else ()
        return Trial(ranges.method, tuple(full), len(content), loss, speed, loss.broken(self.recipe), self._aware)

    def quantised(self, ranges: Ranges, full: Sequence[str], target: Target) -> onnx.ModelProto:
        """The encoder with all layers quantised but those in `full`; TensorRT averages and normalises by itself."""
        graph = self.graph if target is Target.TENSORRT else self.for_cpu
        return quantised(graph, ranges, nodes_of(graph, full), target)

    def _said(self, encoder: str) -> Predictions:
        return predict(Runner(self._folder, encoder, HEADS).each, self._data, self._rows)

    def _loss(self, said: Predictions) -> Loss:
        lost: dict[str, float] = {}
        shifts = []
        for task in (ADULT, PAEDIATRIC):
            before, after = (
                labelled(task, "tune", each, self._data, self.recipe.data.adult_min_age_years)
                for each in (self._reference, said)
            )
            lost[task] = auc(before.scores, before.labels) - auc(after.scores, after.labels)
            shifts.append(float(np.abs(before.scores - after.scores).mean()))
        dice = float(np.nanmean(self._reference.dice) - np.nanmean(said.dice))
        return Loss(lost[ADULT], lost[PAEDIATRIC], dice, max(shifts))

    def _speed(self, name: str) -> tuple[Ratio, ...]:
        candidate = Runner(self._folder, name, (), threads=1)
        return tuple(compare(self._clock, candidate, self._pictures[:batch], ROUNDS) for batch in BATCHES)


def search_precision(recipe: Recipe, data: ImageSet, graphs: Path, *, out: Path, say: Callable[[str], None]) -> None:
    """Copy the exported graphs to `out`, add the INT8 and FP8 encoders, and record the search.

    `encoder.int8.onnx` is for ONNX Runtime on a CPU, its stem reads the picture itself; `encoder.int8.tensorrt.onnx`
    keeps the same layers in FP32 and has signed activations and FP32 biases; `encoder.fp8.tensorrt.onnx` is, of the
    student's own weights, that one in FP8. `precision-search.json` holds every trial, the sensitivities and the choice.
    When no setting is inside the bounds, the encoder is fine-tuned for INT8 (`encoder.aware.onnx`) for as many steps as
    the recipe says, and searched again; the FP32 and FP16 encoders and the heads stay what they are. When there is
    still none, the one that moves the scores least is written, and the gate will refuse it.

    Args:
        recipe: Its `quantise` section bounds the loss.
        data: The prepared images: `train` calibrates, `tune` chooses.
        graphs: The artefact of the step `to_onnx`.
        out: Folder to write to.
        say: Told about progress.

    Raises:
        EngineFileError: The recipe allows the fine-tuning, and the encoder has an operator that it does not know.
        SettingsError: The recipe names a setting to keep that is outside its bounds, or that was not tried.
    """
    shutil.copytree(graphs, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("done.json"))
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(graphs, scratch, dirs_exist_ok=True)
        _search_in(Path(scratch), recipe, data, out=out, say=say)


@dataclass(frozen=True, eq=False, slots=True)
class _Found:
    """What the search over one encoder came to."""

    bench: Bench
    ranges: Ranges
    trials: Sequence[Trial]
    best: Trial
    sensitivities: dict[str, float]

    def chosen(self, target: Target) -> onnx.ModelProto:
        """The best setting's graph."""
        return self.bench.quantised(self.ranges, self.best.full_layers, target)


def _search_in(scratch: Path, recipe: Recipe, data: ImageSet, *, out: Path, say: Callable[[str], None]) -> None:
    if recipe.quantise.aware_steps:
        refuse_operators(onnx.load(scratch / ENCODER))
    kept = found = _found(scratch, recipe, data, say)
    trials = list(found.trials)
    steps = recipe.quantise.aware_steps if all(trial.broken for trial in trials) else 0
    if steps:
        say(f"INT8: no setting is inside the bounds ({found.best.broken}); fine-tuning the encoder for {steps} steps")
        again = _found(scratch, recipe, data, say, aware=_aware_graph(found, scratch, data, out=out, say=say))
        trials += again.trials
        if not again.best.broken or again.best.loss.shift < found.best.loss.shift:
            kept = again
    refuse_other_than(recipe.quantise.keep, kept.best, trials)
    if not recipe.quantise.keep and not kept.best.broken:
        say(f'{found.bench.title}: kept by the clock; to get it again, set keep = "{kept.best.setting}" in [quantise]')
    graphs = {QUANTISED: kept.chosen(Target.ONNXRUNTIME_CPU), FOR_TENSORRT: kept.chosen(Target.TENSORRT)}
    graphs[FP8_FOR_TENSORRT] = fp8_from_int8(found.chosen(Target.TENSORRT), found.bench.graph)
    for name, graph in graphs.items():
        (out / name).write_bytes(graph.SerializeToString(deterministic=True))
    write_json(
        out / SEARCH_RECORD,
        {
            "images": len(data.select(split="tune")),
            "trials": [asdict(trial) | {"setting": trial.setting} for trial in trials],
            "chosen": trials.index(kept.best),
            "sensitivities": kept.sensitivities,
            "aware_steps": steps,
        },
    )


def _found(
    scratch: Path,
    recipe: Recipe,
    data: ImageSet,
    say: Callable[[str], None],
    *,
    aware: onnx.ModelProto | None = None,
) -> _Found:
    bench = Bench(recipe, data, scratch, aware=aware)
    pictures = _calibration_images(data, recipe.quantise.calibration_images)
    measured = {method: measured_ranges(bench.for_cpu, pictures, method) for method in METHODS}
    trials = [bench.trial(ranges, (), timed=True) for ranges in measured.values()]
    method = min(trials, key=lambda trial: trial.loss.shift).method
    say(f"{bench.title}: {method} calibration moves the scores least")
    sensitivities = _sensitivities(Bench(recipe, data, scratch, SENSITIVITY_EVERY, aware=aware), measured[method])
    best = _search(bench, measured[method], list(sensitivities), trials, say)
    return _Found(bench, measured[best.method], trials, best, sensitivities)


def _aware_graph(
    found: _Found, scratch: Path, data: ImageSet, *, out: Path, say: Callable[[str], None]
) -> onnx.ModelProto:
    """The encoder fine-tuned with every layer rounded; what an interrupted run had finished is taken up."""
    path = out / AWARE
    if not path.is_file():
        recipe, bench = found.bench.recipe, found.bench
        rounded = bench.quantised(found.ranges, (), Target.ONNXRUNTIME_CPU)
        heads = [onnx.load(scratch / "tasks" / task / "head.onnx") for task in (ADULT, PAEDIATRIC)]
        steps, seed = recipe.quantise.aware_steps, recipe.pack.seed
        lesson = Lesson(data.images, data.select(split="train"), heads, steps, seed)
        graph = fine_tuned(bench.graph, rounded, lesson, say)
        save_whole(path, graph.SerializeToString(deterministic=True))
    return onnx.load(path)


def _search(
    bench: Bench, ranges: Ranges, ranked: Sequence[str], trials: list[Trial], say: Callable[[str], None]
) -> Trial:
    first, keep = list(layers(bench.graph)), bench.recipe.quantise.keep
    for count in FIRST_LAYERS:
        trial = bench.trial(ranges, first[:count], timed=True)
        trials.append(trial)
        verdict = trial.broken or "inside the bounds"
        say(f"{bench.title} behind the first {count} layers: {trial.slowest:.2f} times as fast, {verdict}")
    inside: list[Trial] = [trial for trial in trials if not trial.broken]
    for count in FULL_LAYERS[1:]:
        if count > len(ranked):
            break
        trial = bench.trial(ranges, ranked[:count], timed=True)
        trials.append(trial)
        verdict = trial.broken or "inside the bounds"
        say(f"{bench.title} but for {count} layers: {trial.slowest:.2f} times as fast, {verdict}")
        if not trial.broken:
            inside.append(trial)
            if _is_named(keep, trials) if keep else fastest(inside) is not trial:
                break
    return best_of(trials, keep)


def _is_named(keep: str, trials: Sequence[Trial]) -> bool:
    return any(trial.setting == keep for trial in trials)


def best_of(trials: Sequence[Trial], keep: str = "") -> Trial:
    """The setting that the recipe names, else the fastest inside the bounds, else the one that shifts least."""
    named = [trial for trial in trials if trial.setting == keep]
    inside = [trial for trial in trials if not trial.broken]
    if named:
        return named[0]
    return fastest(inside) if inside else min(trials, key=lambda trial: trial.loss.shift)


def refuse_other_than(keep: str, best: Trial, trials: Sequence[Trial]) -> None:
    """Refuse what the search came to where the recipe names something else, or something outside the bounds.

    Raises:
        SettingsError: As above; names the settings inside.
    """
    if not keep or (best.setting == keep and not best.broken):
        return
    broken = next((trial.broken for trial in trials if trial.setting == keep), "")
    why = f"is outside the bounds ({broken})" if broken else "the search did not try"
    inside = dict.fromkeys(trial.setting for trial in trials if not trial.broken)
    raise SettingsError(
        f"quantise.keep of the recipe names {keep!r}, which {why}.",
        f"Leave the key out, or name a setting inside the bounds: {'; '.join(inside) or 'there is none'}.",
    )


def fastest(inside: Sequence[Trial]) -> Trial:
    """The fastest trial by the slower of its batches; among those as fast within noise, the one that shifts least."""
    limit = max(trial.slowest for trial in inside) / NOISE
    return min((trial for trial in inside if trial.slowest >= limit), key=lambda trial: trial.loss.shift)


def _sensitivities(bench: Bench, ranges: Ranges) -> dict[str, float]:
    every = list(layers(bench.graph))
    shifts = {
        layer: bench.trial(ranges, [other for other in every if other != layer], timed=False).loss.shift
        for layer in every
    }
    return dict(sorted(shifts.items(), key=lambda item: -item[1]))


def _calibration_images(data: ImageSet, count: int) -> list[NDArray[np.uint8]]:
    train = data.select(split="train")
    return [data.images[i] for i in train[:: max(1, len(train) // count)][:count]]
