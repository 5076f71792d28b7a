"""What `verify` refuses: outputs that are no numbers, bad subgroups, precisions that are required and do not serve."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from appliance.domain.errors import SettingsError
from export.artefacts import read_json
from export.gate import FAIL, PASS, Rule, verdict
from export.gate_rules import Accuracy, Quantised, Shortcut, Subgroup, quantised_rules
from export.images import prepare
from export.line import teachers_of
from export.measurement import Inputs, Measured
from export.metrics import Interval
from export.predictions import Predictions, predict
from export.recipe import Recipe, recipe_from_toml
from export.runner import Outputs
from export.tasks import ADULT, GUARD, LUNGS, PAEDIATRIC
from export.verify import integrity_rules, pack_rules, verify
from tests.export.conftest import NIH, rows_of_tiny_data, write_data
from tests.export.test_tables import measured

IMAGES = 4
OUTPUTS = ("adult", "paediatric", "guard_score", "guard_distance", "mask_sum")
POOR = Accuracy(Interval(0.5, 0.4, 0.6), 0.5, 0.5, 0.1, 0.1, 0.0, 0.0, 0.5, 0.5, (Subgroup("sex F", 60, 0.5, 0.5),))
SEEN = Shortcut(ADULT, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)


def finite() -> Predictions:
    """Predictions of a few images without a drawn mask."""
    unknown = {name: np.full(IMAGES, np.nan) for name in ("dice", "surface_mean", "surface_95")}
    return Predictions(np.arange(IMAGES), **{name: np.full(IMAGES, 0.5) for name in OUTPUTS}, **unknown)


def by_precision(fp16: Predictions) -> dict[str, Measured]:
    """Three precisions, of which one said this."""
    wrong = (np.zeros(0), np.zeros(0))
    said = {"int8": finite(), "fp32": finite(), "fp16": fp16}
    return {name: Measured(each, {}, wrong) for name, each in said.items()}


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    """The tiny recipe, which claims nothing."""
    return recipe_from_toml(tiny_recipe)


def with_gate(recipe: Recipe, claim: str = "untrained", **changes: object) -> Recipe:
    """The recipe with another claim and gate."""
    gate = dataclasses.replace(recipe.gate, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(recipe, pack=dataclasses.replace(recipe.pack, claim=claim), gate=gate)


def rules_of(recipe: Recipe, lower: dict[str, list[Rule]] | None = None) -> list[Rule]:
    """The rules of a pack of finite outputs and poor figures."""
    return pack_rules(recipe, by_precision(finite()), lower or {}, {"int8": POOR}, [SEEN])


def test_images_without_a_mask_are_no_fault() -> None:
    """Dice and distances are not known where nothing was drawn: that is no output that is not finite."""
    assert all(rule.passed for rule in integrity_rules(by_precision(finite())))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite_refuses_the_pack(recipe: Recipe, output: str, value: float) -> None:
    """One output of one image at one precision is enough, whatever the pack claims, and the precision is named."""
    values = getattr(finite(), output).copy()
    values[1] = value
    spoilt = by_precision(dataclasses.replace(finite(), **{output: values}))
    rules = pack_rules(recipe, spoilt, {}, {"int8": POOR}, [SEEN])
    assert verdict(rules) == FAIL
    assert [rule.row() for rule in rules if rule.stops] == [["share of finite outputs, fp16", "≥ 1", "0.95", "no"]]
    assert verdict(rules_of(recipe)) == PASS


def test_every_precision_that_serves_is_held_to_the_bounds(recipe: Recipe) -> None:
    """INT8 may be good where FP32, which a machine with a GPU serves, is not."""
    good = dataclasses.replace(POOR, adult=Interval(0.9, 0.8, 1.0))
    gated = with_gate(recipe, "validated", adult_auc_min=0.86)
    rules = pack_rules(gated, by_precision(finite()), {}, {"int8": good, "fp32": POOR, "fp16": good}, [SEEN])
    named = [rule.row() for rule in rules if rule.name.startswith("within-NIH AUC of adults")]
    assert [(name, answer) for name, _, _, answer in named] == [
        ("within-NIH AUC of adults", "yes"),
        ("within-NIH AUC of adults, at FP32", "no"),
        ("within-NIH AUC of adults, at FP16", "yes"),
    ]


def test_a_mask_with_a_pixel_that_is_no_number_is_seen() -> None:
    """A mask becomes an area by a threshold, which what is no number fails: its sum keeps it, drawn or not."""
    images = measured(1)[1]
    images = dataclasses.replace(images, images=np.zeros((60, 4, 4), np.uint8), mask_of=(-1,) * 60)
    mask = np.full((2, 1, 4, 4), 0.5, np.float32)
    mask[1, 0, 2, 2] = np.nan
    score = np.full((2, 1), 0.5, np.float32)
    said: Outputs = {ADULT: {"score": score}, PAEDIATRIC: {"score": score}, LUNGS: {"mask": mask}}
    said[GUARD] = {"score": score, "distance": score}
    found = predict(lambda _: [said], images, [0, 1])
    assert found.mask_sum[0] == 8.0
    rules = integrity_rules({"fp16": Measured(found, {}, (np.zeros(0), np.zeros(0)))})
    assert rules[0].row() == ["share of finite outputs, fp16", "≥ 1", "0.9", "no"]


def test_what_is_not_finite_is_nobodys_to_waive(recipe: Recipe) -> None:
    """A waiver names a rule of accuracy, or the recipe is refused; a required precision can't be waived away either."""
    slow = quantised_rules(Quantised("int8", {ADULT: 0.0}, 0.0, {1: 0.5}), recipe.gate)
    for name in ("share of finite outputs, int8", slow[-1].name):
        waiving = with_gate(recipe, "validated", waived=(name,), required_precisions=("int8",))
        with pytest.raises(SettingsError, match=f"nobody may waive: {name}"):
            rules_of(waiving, {"int8": slow})
    waived = rules_of(with_gate(recipe, "validated", waived=("mean lung Dice",)))
    assert next(rule for rule in waived if rule.name == "mean lung Dice").row()[3] == "no: waived"


def test_what_a_pack_does_not_claim_is_shown_and_not_judged(recipe: Recipe) -> None:
    """The same poor figures refuse a validated pack and are shown of an untrained one, subgroups and shortcuts too."""
    shown = {rule.name: rule.row()[3] for rule in rules_of(recipe)}
    assert verdict(rules_of(recipe)) == PASS
    assert verdict(rules_of(with_gate(recipe, "validated"))) == FAIL
    for name in ("mean lung Dice", "AUC of adults, sex F", f"influence of lung over the average, {ADULT}"):
        assert shown[name] == "not met, not claimed"
    assert shown["share of the teachers' adult AUC"] == "not met, not claimed"


@pytest.mark.parametrize("claim", ["validated", "untrained"])
def test_a_required_precisions_rules_are_the_packs(recipe: Recipe, claim: str) -> None:
    """Without the key a slow INT8 is left out; with it the pack is refused, whatever it claims."""
    slow = {"int8": quantised_rules(Quantised("int8", {ADULT: 0.0}, 0.0, {1: 0.5}), with_gate(recipe).gate)}
    broken = [dataclasses.replace(rule, bound=1.4) if rule.timed else rule for rule in slow["int8"]]
    named = {rule.name for rule in rules_of(with_gate(recipe, claim), {"int8": broken}) if rule.stops}
    required = with_gate(recipe, claim, required_precisions=("int8",))
    added = {rule.name for rule in rules_of(required, {"int8": broken}) if rule.stops} - named
    assert added == {"INT8 is faster than FP32, by the slowest batch"}


@pytest.mark.slow
def test_bad_subgroups_refuse_a_pack_that_claims_to_be_validated(built: Path, recipe: Recipe, tmp_path: Path) -> None:
    """Forty adults of both sexes, scored at random: `verify` judges each sex and the gap, and says what it found."""
    adults = [
        row | {"file": f"images/val{number}.jpg", "patient_id": f"val {number}", "sex": "FM"[number % 4 < 2]}
        for number, row in enumerate([row for row in rows_of_tiny_data() if row["dataset"] == NIH][-4:] * 10)
    ]
    (tmp_path / "data").mkdir()
    radiographs = write_data(tmp_path / "data", [*rows_of_tiny_data(), *adults])
    steps, claiming = built / "tiny.steps", with_gate(recipe, "validated")
    prepared, out = tmp_path / "prepared", tmp_path / "verify"
    for folder in (prepared, out):
        folder.mkdir()
    prepare(claiming, radiographs, prepared)
    folders = (steps / "negatives", teachers_of(claiming, steps), steps / "quantise", steps / "to_engine")
    verify(claiming, Inputs(radiographs, prepared, *folders, {}), out, lambda _: None)
    report = read_json(out / "gate-report.json")
    assert report["verdict"] == FAIL
    areas = {group["name"]: group["auc"] for group in report["figures"]["subgroups"]}
    rows = {row[0]: row for row in report["rules"]}
    for sex in ("F", "M"):
        assert rows[f"AUC of adults, sex {sex}"][1:] == ["≥ 0.99", f"{areas[f'sex {sex}']:.4g}", "no"]
        assert f"share of the teachers', sex {sex}" in rows
    gap = abs(areas["sex F"] - areas["sex M"])
    assert rows["gap between the sexes, adults"][2] == f"{gap:.4g}"
    assert f"AUC of adults, sex M ({areas['sex M']:.4g}, bound 0.99)" in report["summary"]
    table = next(each for each in report["tables"] if "by subgroup" in each["title"])
    assert [row[0] for row in table["rows"] if "[" in row[4]] == ["all", "sex F", "sex M", "age 40 to 59"]
