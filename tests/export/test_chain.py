"""The whole line of steps on a tiny data folder, to a signed pack that says it is untrained."""

import dataclasses
import errno
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from appliance.domain.errors import GateError, SettingsError, UnvalidatedPackError
from appliance.domain.manifest import Validation
from appliance.packs.open import open_pack
from appliance.packs.signing import PRIVATE_KEY, PUBLIC_KEY
from export.artefacts import file_sha256, read_json, write_json
from export.bench_training import Comparison, compare_training, last_result
from export.cli import app
from export.distil import distil
from export.gate import SEE_SPEEDS
from export.images import image_set
from export.layout import SEARCH_RECORD, SPEEDS
from export.line import Line, teachers_of
from export.pack import Parts, pack
from export.progress import Silent
from export.recipe import recipe_from_toml
from export.sources import Source


def test_images_become_a_signed_pack_that_says_it_is_untrained(built: Path) -> None:
    """A pack that claims nothing opens only where unvalidated packs are allowed, and with the key that signed it."""
    key = built / "keys" / PUBLIC_KEY
    opened = open_pack(built / "tiny", [key], allow_unvalidated=True)
    assert opened.manifest.validation is Validation.UNTRAINED
    assert next(task.name for task in opened.manifest.tasks) == opened.manifest.guard == "guard"
    with pytest.raises(UnvalidatedPackError):
        open_pack(built / "tiny", [key], allow_unvalidated=False)


def test_the_report_says_what_it_leaves_open(built: Path) -> None:
    """Groups that are too small, what is not known of images, untrained heads and the data's digests are in it."""
    report = read_json(built / "tiny" / "gate-report.json")
    tables = {table["title"]: table for table in report["tables"]}
    assert "of patients, and by Wilson over" in tables["adult-triage: within NIH, adults"]["note"]
    groups = tables["adult-triage: student against its teachers by subgroup"]["rows"]
    assert [row[0] for row in groups if row[-1] == "yes"] == ["all"]
    assert report["limits"][0].count("not judged, too few") == len(groups) - 1
    assert tables["Validation images of unknown sex, age or view"]["rows"][0] == ["all", 8, 0, 4, 0]
    assert [row[:3] for row in tables["Data that was read"]["rows"]] == [
        ["hannover", 2, 0], ["kermany", 18, 18], ["nih", 18, 0],
    ]  # fmt: skip
    judged = {row[0]: row[3] for row in report["rules"]}
    assert (
        judged["mean lung Dice"] == judged["influence of lung over the average, adult-triage"] == "not met, not claimed"
    )
    assert report["judged"] == "integrity only"
    assert report["summary"].startswith("Integrity only: this pack is untrained.")
    assert all(each["control_mean"] <= each["control_max"] for each in report["figures"]["shortcuts"])
    card = (built / "tiny" / "MODEL_CARD.md").read_text()
    assert "Verdict: **pass, integrity only**" in card
    assert f"SHA-256 begins with {file_sha256(built / 'tiny' / 'recipe.toml')[:12]}" in card
    assert "narrow, trained 2 times: steps of 8 images" in card
    assert all(f"- {sentence}" in card for sentence in report["limits"])
    assert "not judged, too few" in (built / "tiny" / "gate-report.html").read_text()


def test_pictures_of_the_worst_cases_stay_with_the_artefacts(built: Path) -> None:
    """`worst-cases.html` lies in the step `verify` with a picture of each case; no picture is in the pack."""
    page = (built / "tiny.steps" / "verify" / "worst-cases.html").read_text()
    worst = read_json(built / "tiny" / "gate-report.json")["worst_cases"]
    assert page.count('src="data:image/png;base64,') == sum(len(cases) for cases in worst.values()) > 0
    packed = [path for path in (built / "tiny").rglob("*") if path.is_file()]
    assert not [path for path in packed if path.name == "worst-cases.html"]
    assert not [path for path in packed if b"data:image" in path.read_bytes()]


@pytest.mark.parametrize(
    ("bound", "precisions"), [("int8_speed_min = 1e9", ["fp32", "fp16"]), ("int8_auc_loss_max = -2.0", ["fp32"])]
)
def test_a_precision_outside_its_bounds_does_not_serve(
    built: Path, tiny: tuple[Path, Path], tmp_path: Path, bound: str, precisions: list[str]
) -> None:
    """The pack is made without it: operating points, variants and files are of the others, and the report says why."""
    data, recipe = tiny
    shutil.copytree(built / "tiny.steps", tmp_path / "tiny.steps")
    strict = tmp_path / "recipe.toml"
    strict.write_text(re.sub(rf"^{bound.split(maxsplit=1)[0]} = .*$", bound, recipe.read_text(), flags=re.MULTILINE))
    Line(strict, data, tmp_path, Silent()).run(built / "keys" / PRIVATE_KEY)
    verified, made = tmp_path / "tiny.steps" / "verify", tmp_path / "tiny"
    assert read_json(verified / "precisions.json") == precisions
    opened = open_pack(made, [built / "keys" / PUBLIC_KEY], allow_unvalidated=True)
    assert [variant.precision for variant in opened.manifest.variants] == precisions
    assert not (made / "encoder.int8.onnx").exists()
    report = read_json(made / "gate-report.json")
    refused = {"int8", "fp16"} - set(precisions)
    assert report["verdict"] == "pass"
    assert set(report["refused_precisions"]) == refused
    assert all(row[3] == "no" for rows in report["refused_precisions"].values() for row in rows)
    page = (made / "gate-report.html").read_text()
    assert {name for name in ("int8", "fp16") if f'<p class="warning">{name} does not serve: ' in page} == refused


@pytest.mark.parametrize(
    ("bound", "broken"),
    [
        ("int8_speed_min = 1e9", "INT8 is faster than FP32, by the slowest batch"),
        ("int8_auc_loss_max = -2.0", "INT8 loses AUC, adult-triage"),
        ("int8_dice_loss_max = -2.0", "FP16 loses Dice"),
    ],
)
def test_a_required_precision_outside_its_bounds_makes_no_pack(
    built: Path, tiny: tuple[Path, Path], tmp_path: Path, bound: str, broken: str
) -> None:
    """Where the recipe requires INT8 and FP16, a worse one and a slower one refuse the pack, whatever it claims."""
    data, recipe = tiny
    shutil.copytree(built / "tiny.steps", tmp_path / "tiny.steps")
    strict = tmp_path / "recipe.toml"
    text = re.sub(rf"^{bound.split(maxsplit=1)[0]} = .*$", bound, recipe.read_text(), flags=re.MULTILINE)
    strict.write_text(text.replace("[gate]\n", '[gate]\nrequired_precisions = ["int8", "fp16"]\n'))
    with pytest.raises(GateError, match=f"refuses the pack tiny: .*{broken}"):
        Line(strict, data, tmp_path, Silent()).run(built / "keys" / PRIVATE_KEY)
    report = read_json(tmp_path / "tiny.steps" / "verify" / "gate-report.json")
    assert report["verdict"] == "fail"
    assert broken in report["summary"]
    assert not (tmp_path / "tiny").exists()


@pytest.mark.slow
def test_two_runs_make_one_digest_whatever_the_clock_says(
    built: Path, tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run anew from the beginning, one from the search on, other times in each: only what holds times differs."""
    data, recipe = tiny
    named = read_json(built / "tiny.steps" / "quantise" / SEARCH_RECORD)["trials"][5]["setting"]
    pinned = tmp_path / "recipe.toml"
    pinned.write_text(recipe.read_text().replace("[quantise]\n", f'[quantise]\nkeep = "{named}"\n'))
    shutil.copytree(built / "tiny.steps", tmp_path / "0" / "tiny.steps")
    digests = []
    for run in range(2):
        times = np.random.default_rng(run)
        monkeypatch.setattr("export.latency._seconds", lambda *_, times=times: times.uniform(0.001, 0.01))
        digests.append(Line(pinned, data, tmp_path / str(run), Silent()).run(built / "keys" / PRIVATE_KEY))
    assert digests[0] == digests[1]
    packs = [tmp_path / str(run) / "tiny" for run in range(2)]
    listed = [
        {path.relative_to(pack): path.read_bytes() for path in pack.rglob("*") if path.is_file()} for pack in packs
    ]
    assert listed[0].keys() == listed[1].keys()
    differing = {str(path) for path, content in listed[0].items() if listed[1][path] != content}
    engines = {name for name in differing if ".engine" in name}
    assert differing - engines == {SPEEDS, "gate-report.html", "model.sig"}
    report, search = (read_json(packs[0] / name) for name in ("gate-report.json", SPEEDS))
    assert SEE_SPEEDS in {row[2] for row in report["rules"]}
    columns = {table["title"]: table["columns"] for table in search["tables"]}
    assert "speed, batch 1" in columns["INT8 search on the tuning patients"]


def test_a_setting_that_the_search_did_not_try_is_refused(built: Path, tiny: tuple[Path, Path], tmp_path: Path) -> None:
    """`quantise.keep` is no wish: what it names is used, or the run ends and says what could be named."""
    data, recipe = tiny
    shutil.copytree(built / "tiny.steps", tmp_path / "tiny.steps")
    wrong = tmp_path / "recipe.toml"
    wrong.write_text(recipe.read_text().replace("[quantise]\n", '[quantise]\nkeep = "by hand, every layer"\n'))
    with pytest.raises(SettingsError, match="'by hand, every layer', which the search did not try") as refused:
        Line(wrong, data, tmp_path, Silent()).run(built / "keys" / PRIVATE_KEY)
    assert "minmax, every layer" in refused.value.way_forward


def test_finished_steps_are_not_done_again(built: Path, tiny_data: Path, tiny_recipe: Path) -> None:
    """A second run of the same recipe trains nothing and gives the same digest."""
    weights = built / "tiny.steps" / "distil" / "student.safetensors"
    before = weights.stat().st_mtime_ns
    digest = json.dumps(read_json(built / "tiny" / "manifest.json"))
    result = CliRunner().invoke(app, ["run", str(tiny_recipe), "--data", str(tiny_data), "--out", str(built)])
    assert result.exit_code == 0, result.output
    assert weights.stat().st_mtime_ns == before
    assert json.dumps(read_json(built / "tiny" / "manifest.json")) == digest


def test_a_trained_student_tells_where_its_decisions_come_from(
    built: Path, tiny_data: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """The command asks about tuning patients alone; before the student is trained it says what to do first."""
    command = ["attribution", str(tiny_recipe), "--data", str(tiny_data), "--out"]
    printed = CliRunner().invoke(app, [*command, str(built), "--teachers", "--json"])
    assert printed.exit_code == 0, printed.output
    samples = image_set(built / "tiny.steps" / "data").samples
    children = sum(each.split == "tune" and each.paediatric is not None for each in samples)
    rows = json.loads(printed.stdout)["rows"]
    assert [row[0] for row in rows] == [
        f"{net}, {task}"
        for net in ("student", "teacher 1", "teacher 2", "teacher 3")
        for task in ("adult-triage", "paediatric-pneumonia")
    ]
    assert rows[1][1] == children > 0
    task = ["--task", "paediatric-pneumonia"]
    table = CliRunner().invoke(app, [*command, str(built), *task])
    assert table.exit_code == 0, table.output
    lines = table.stdout.splitlines()
    assert lines[0] == "Where decisions come from"
    assert lines[2].split()[:3] == ["student,", "paediatric-pneumonia", str(children)]
    early = CliRunner().invoke(app, [*command, str(tmp_path), *task])
    assert early.exit_code == 2
    assert "Train it first" in " ".join(early.stderr.split())
    wrong = CliRunner().invoke(app, [*command, str(built), "--task", "lungs"])
    assert wrong.exit_code == 2
    assert "no triage task lungs" in wrong.stderr.replace("\n", " ")


def test_the_same_parts_make_the_same_pack(built: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """Packing twice gives one digest: no time, path or random number is in the manifest."""
    steps, key = built / "tiny.steps", built / "keys" / PRIVATE_KEY
    digests = {
        pack(
            recipe_from_toml(tiny_recipe),
            tiny_recipe.read_bytes(),
            Parts(*(steps / step for step in ("quantise", "golden", "to_engine", "verify"))),
            private_key=key,
            out=out,
        ).digest
        for out in (tmp_path / "a", tmp_path / "b")
    }
    assert len(digests) == 1


def test_the_pack_holds_the_recipe_that_it_was_made_from(
    built: Path, tiny_data: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """A recipe that is edited while the steps run does not get into the pack: it has what was read at the start."""
    shutil.copytree(built / "tiny.steps", tmp_path / "tiny.steps")
    recipe = tmp_path / "recipe.toml"
    recipe.write_bytes(tiny_recipe.read_bytes())
    line = Line(recipe, tiny_data, tmp_path, Silent())
    recipe.write_text("# edited")
    line.run(built / "keys" / PRIVATE_KEY)
    assert (tmp_path / "tiny" / "recipe.toml").read_bytes() == tiny_recipe.read_bytes()


def test_engines_lie_beside_the_pack_and_do_not_change_it(built: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """Two builds of an engine are never alike: they are described beside it and are no part of the pack's digest."""
    steps = built / "tiny.steps"
    engines = tmp_path / "engines"
    shutil.copytree(steps / "to_engine", engines)
    (engines / "encoder.fp16.trtrtx.engine").write_bytes(b"another build")
    made = pack(
        recipe_from_toml(tiny_recipe),
        tiny_recipe.read_bytes(),
        Parts(steps / "quantise", steps / "golden", engines, steps / "verify"),
        private_key=built / "keys" / PRIVATE_KEY,
        out=tmp_path / "pack",
    )
    assert (tmp_path / "pack" / "encoder.fp16.trtrtx.engine").read_bytes() == b"another build"
    assert (
        made.digest == open_pack(built / "tiny", [built / "keys" / PUBLIC_KEY], allow_unvalidated=True).manifest.digest
    )
    assert not any("engine" in name for name in made.files)


def test_a_pack_that_claims_more_than_its_sources_allow_is_not_made(
    built: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher for research only and a validated pack do not go together; nothing is left under the pack's name."""
    steps = built / "tiny.steps"
    verified = tmp_path / "verify"
    shutil.copytree(steps / "verify", verified)
    report = read_json(verified / "gate-report.json")
    write_json(verified / "gate-report.json", report | {"validation": "validated"})
    monkeypatch.setattr("export.pack.SOURCES", (Source("A teacher", "CC BY-NC", "Me", "", research_only=True),))
    with pytest.raises(SettingsError, match="A teacher is for research only"):
        pack(
            recipe_from_toml(tiny_recipe),
            tiny_recipe.read_bytes(),
            Parts(steps / "quantise", steps / "golden", steps / "to_engine", verified),
            private_key=built / "keys" / PRIVATE_KEY,
            out=tmp_path / "pack",
        )
    assert not (tmp_path / "pack").exists()


def test_distillation_is_compared_over_seeds_and_goes_on_where_it_was(
    built: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """Both arms are trained for each seed; the gain comes with its interval, and a second run trains nothing."""
    recipe = recipe_from_toml(tiny_recipe)
    steps = built / "tiny.steps"
    told: list[str] = []
    plan = Comparison(1, (1, 2))
    result = compare_training(recipe, steps, plan=plan, out=tmp_path, say=told.append)
    assert {len(areas) for areas in result["auc"].values()} == {2}
    assert result["gain_95"][0] <= result["gain"] <= result["gain_95"][1]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert compare_training(recipe, steps, plan=plan, out=tmp_path, say=told.append) == result
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert last_result(tmp_path, recipe, steps) == result
    other = dataclasses.replace(recipe, student=dataclasses.replace(recipe.student, feature_weight=0.25))
    assert last_result(tmp_path, other, steps) is None


def test_a_student_starts_from_a_teacher_of_its_own_kind_only(built: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """Weights of another architecture are no place to start from, and the recipe's key is named."""
    recipe = recipe_from_toml(tiny_recipe)
    teachers = teachers_of(recipe, built / "tiny.steps")
    other = dataclasses.replace(recipe, student=dataclasses.replace(recipe.student, architecture="efficientnet_lite0"))
    with pytest.raises(SettingsError, match="can't start from a narrow"):
        distil(other, image_set(built / "tiny.steps" / "data"), teachers, tmp_path, lambda _: None)


def test_a_full_disk_is_said(
    tiny_data: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up in the middle of a step gives a sentence, and no artefact under its final name."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("export.disk.os.fsync", full)
    result = CliRunner().invoke(app, ["run", str(tiny_recipe), "--data", str(tiny_data), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "No space is left to write" in result.output
    assert "run the same command again" in " ".join(result.output.split())
    assert not (tmp_path / "tiny.steps" / "data").exists()


def test_a_failing_gate_makes_no_pack(built: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """A gate report that does not pass leaves nothing under the pack's name, and the broken rule is named."""
    verified = tmp_path / "verify"
    shutil.copytree(built / "tiny.steps" / "verify", verified)
    report = read_json(verified / "gate-report.json")
    report["verdict"] = "fail"
    report["rules"] = [["mean lung Dice", ">= 0.93", "0.4", "no"]]
    write_json(verified / "gate-report.json", report)
    steps = built / "tiny.steps"
    with pytest.raises(GateError, match="mean lung Dice"):
        pack(
            recipe_from_toml(tiny_recipe),
            tiny_recipe.read_bytes(),
            Parts(steps / "quantise", steps / "golden", steps / "to_engine", verified),
            private_key=built / "keys" / PRIVATE_KEY,
            out=tmp_path / "pack",
        )
    assert not (tmp_path / "pack").exists()


def test_a_claim_that_the_figures_do_not_carry_is_refused(
    built: Path, tiny_data: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """Three steps on noise do not make a validated pack: the run ends with all rules that were broken."""
    steps = tmp_path / "tiny.steps"
    shutil.copytree(built / "tiny.steps", steps)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tiny_recipe.read_text().replace('claim = "untrained"', 'claim = "validated"'))
    result = CliRunner().invoke(app, ["run", str(recipe), "--data", str(tiny_data), "--out", str(tmp_path)])
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    for rule in (
        "mean lung Dice",
        "within-NIH AUC of adults",
        "share of the teachers' Dice",
        "influence of lung over the average, adult-triage",
        "influence of lung over the average, paediatric-pneumonia",
    ):
        assert rule in said
    rows = read_json(steps / "verify" / "gate-report.json")["rules"]
    trivial = "share of resamples in which it is above, adult-triage"
    assert next(row[1] for row in rows if row[0] == trivial) == "≥ 0.99"
    assert not (tmp_path / "tiny").exists()


def test_nothing_of_the_building_machine_is_in_the_graphs(built: Path) -> None:
    """Exported graphs hold no stack trace and no path."""
    for graph in (built / "tiny").rglob("*.onnx"):
        data = graph.read_bytes()
        assert b".py" not in data
        assert b"site-packages" not in data


def test_data_without_labels_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    """A folder without labels.csv gives a sentence and exit status 2, not a traceback."""
    result = CliRunner().invoke(app, ["run", str(tiny_recipe), "--data", str(tmp_path), "--out", str(tmp_path / "o")])
    assert result.exit_code == 2
    assert "labels.csv" in result.output


def test_keys_are_made_once(tmp_path: Path) -> None:
    """`keygen` makes a pair and never replaces a private key."""
    runner = CliRunner()
    assert runner.invoke(app, ["keygen", "--out", str(tmp_path)]).exit_code == 0
    assert runner.invoke(app, ["keygen", "--out", str(tmp_path)]).exit_code == 2
