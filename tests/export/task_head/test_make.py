"""One more task on a frozen base, from a CSV file to a signed pack, without touching the base."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from typer.testing import CliRunner

from appliance.domain.errors import BaseMismatchError, InputError, SettingsError, UnvalidatedPackError
from appliance.domain.manifest import Validation, VerifiedPack
from appliance.governance.serving import serve_best
from appliance.inference.runner import PackRunner
from appliance.packs.open import open_pack
from appliance.packs.signing import PUBLIC_KEY, generate_keys
from export.artefacts import read_json
from export.cli import app
from export.runner import Runner
from export.task_head.features import read_pictures
from export.task_head.join import joined, trained_task, weaker_claim
from export.task_head.labels import cases_from_csv
from export.task_head.recipe import task_recipe_from_toml
from tests.export.task_head.conftest import Site, key_of
from tests.fakes.tiny_pack import tiny_verified


def run(site: Site, repository: Path, out: Path, recipe: Path, labels: Path | None = None) -> Result:
    """`insite-export task` on the shipped base."""
    arguments = ["task", str(recipe), "--labels", str(labels or site.labels()), "--data", str(site.folder)]
    base = ["--base", str(repository / "engines" / "chest-xray"), "--trust", str(key_of(repository))]
    return CliRunner().invoke(app, [*arguments, *base, "--out", str(out)])


def joined_folder(out: Path) -> Path:
    """The one joined pack in an output folder."""
    (folder,) = out.glob("chest-xray-*")
    return folder


@pytest.mark.slow
def test_labels_become_a_task_beside_the_old_ones(
    site: Site, repository: Path, tmp_path: Path, base: VerifiedPack
) -> None:
    """The joined pack is the base's next release: same base digest, same older tasks, one more, signed by the site."""
    result = run(site, repository, tmp_path / "out", site.recipe())
    assert result.exit_code == 0, result.output
    folder, key = joined_folder(tmp_path / "out"), tmp_path / "out" / "keys" / PUBLIC_KEY
    assert result.stdout.split()[0] == str(folder)
    pack = open_pack(folder, [key], allow_unvalidated=True)
    old, new = base.manifest, pack.manifest
    assert new.base_digest == old.base_digest
    assert new.release == old.release + 1
    assert new.tasks[:-1] == old.tasks
    task = new.tasks[-1]
    assert (task.name, task.base_digest) == ("stripes", old.base_digest)
    assert all(new.files[each.head] == old.files[each.head] for each in old.tasks)
    assert all(task.operating_point(variant.precision) for variant in new.variants)
    report = read_json(folder / "gate-report.json")["added_tasks"]["stripes"]
    assert report["verdict"] == "pass"
    assert min(each["low"] for each in report["figures"].values()) > 0.6
    assert {each["precision"] for each in report["shortcuts"]} == set(report["figures"])
    assert all(each["trivial_auc"]["value"] > 0.9 for each in report["shortcuts"])
    card = (folder / "MODEL_CARD.md").read_text()
    assert "stripes" in card
    assert "Shortcut audit: a classifier on size, brightness and the like" in card
    assert "Striped pictures" in (folder / "NOTICE").read_text()
    bill = (folder / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    assert "Striped pictures" in {each["name"] for each in json.loads(bill)["components"]}
    assert json.loads(bill)["metadata"]["component"]["version"] == new.version
    with pytest.raises(UnvalidatedPackError, match="research-only"):
        open_pack(folder, [key], allow_unvalidated=False)
    with PackRunner([], 1) as runner:
        assert serve_best(pack, runner).report.cases == 4
        answer = runner.infer("chest-xray.stripes", np.zeros((1, 1, 512, 512), np.uint8))
    assert answer.outputs["score"].shape == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mlp", "mil", "segmentation"])
def test_every_head_learns(site: Site, repository: Path, tmp_path: Path, head: str) -> None:
    """An MLP, attention over the images of a volume, and a mask decoder are trained, gated and served the same way."""
    result = run(site, repository, tmp_path / "out", site.recipe(head=f'"{head}"', variants="1", rate="5e-3"))
    assert result.exit_code == 0, result.output
    key = tmp_path / "out" / "keys" / PUBLIC_KEY
    folder = joined_folder(tmp_path / "out")
    task = open_pack(folder, [key], allow_unvalidated=True).manifest.tasks[-1]
    assert task.outputs[0].name == ("mask" if head == "segmentation" else "score")
    assert (folder / "tasks" / "stripes" / "volume.onnx").is_file() == (head == "mil")
    assert ("No shortcut audit" in (folder / "MODEL_CARD.md").read_text()) == (head != "mlp")
    if head == "mil":
        figures = read_json(folder / "gate-report.json")["added_tasks"]["stripes"]
        assert "12 validation images, each judged alone" in figures["summary"]
        assert "4 whole volumes" in figures["summary"]
        assert all("volumes" in each for each in figures["figures"].values())
        runner = Runner(folder, "encoder.onnx", ["stripes"])
        images = np.random.default_rng(0).integers(0, 256, (3, 1, 512, 512), np.uint8)
        together = runner.run(images)["stripes"]["score"]
        alone = np.concatenate([runner.run(images[i : i + 1])["stripes"]["score"] for i in range(3)])
        np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.slow
def test_a_gate_that_is_not_met_makes_no_pack(site: Site, repository: Path, tmp_path: Path, base: VerifiedPack) -> None:
    """Labels that mean nothing do not reach the gate: the broken rule is said, and there is no pack."""
    rows = [row | {"label": str(int(row["patient"][1:]) // 2 % 2)} for row in site.rows]
    recipe = site.recipe(auc_low_min="0.95", variants="1", claim='"validated"', patients_min="10")
    result = run(site, repository, tmp_path / "out", recipe, site.labels(rows))
    assert result.exit_code == 2
    assert "lower 95 % bound of the AUC" in " ".join(result.output.split())
    assert "validation patients of the rarer class" in " ".join(result.output.split())
    assert not list((tmp_path / "out").glob("chest-xray*"))
    task = trained_task(tmp_path / "out" / "stripes.steps" / "task" / "made")
    other = tiny_verified(tmp_path / "tiny")
    key = generate_keys(tmp_path / "keys").private
    bound = {"verdict": "pass", "source": task.report["source"] | {"research_only": True}}
    limited = dataclasses.replace(task, report=dict(task.report) | bound)
    with pytest.raises(SettingsError, match="Striped pictures is for research only"):
        joined(base, limited, key, tmp_path / "joined")
    with pytest.raises(BaseMismatchError, match="was made for the base"):
        joined(other, task, key, tmp_path / "joined")
    fitting = dataclasses.replace(task.manifest, base_digest=other.manifest.base_digest, name="lungs")
    passed = dataclasses.replace(task, manifest=fitting, report=dict(task.report) | {"verdict": "pass"})
    with pytest.raises(InputError, match="has a task lungs already"):
        joined(other, passed, key, tmp_path / "joined")
    with pytest.raises(InputError, match="is the base itself"):
        joined(other, dataclasses.replace(passed, manifest=dataclasses.replace(fitting, name="new")), key, other.folder)
    (tmp_path / "joined").mkdir()
    named = dataclasses.replace(passed, manifest=dataclasses.replace(fitting, name="new"))
    with pytest.raises(InputError, match="is no pack"):
        joined(other, named, key, tmp_path / "joined")


def test_a_base_that_nobody_trusted_signed_is_refused(site: Site, repository: Path, tmp_path: Path) -> None:
    """A head is never trained on a base whose signature does not hold."""
    stranger = generate_keys(tmp_path / "stranger").public
    base = ["--base", str(repository / "engines" / "chest-xray"), "--trust", str(stranger)]
    arguments = ["task", str(site.recipe()), "--labels", str(site.labels()), "--data", str(site.folder), *base]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "trusted" in result.output


def test_a_base_without_a_pyramid_takes_no_decoder(site: Site, tmp_path: Path) -> None:
    """A segmentation needs feature maps that halve; the base's are named."""
    tiny = tiny_verified(tmp_path / "tiny")
    key = tmp_path / "tiny" / ".keys" / PUBLIC_KEY
    base = ["--base", str(tiny.folder), "--trust", str(key)]
    recipe = site.recipe(head='"segmentation"')
    arguments = ["task", str(recipe), "--labels", str(site.labels()), "--data", str(site.folder), *base]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "needs 4 that halve" in " ".join(result.output.split())


def test_a_class_that_is_lost_with_unreadable_images_is_missed(site: Site, repository: Path, tmp_path: Path) -> None:
    """When all images of a class in a split can't be read, the split is refused, whatever the bound allows."""
    lost = [row["file"] for row in site.rows if row["split"] == "val" and row["label"] == "1"]
    for file in lost:
        (site.folder / file).write_bytes(b"no picture")
    result = run(site, repository, tmp_path / "out", site.recipe(unreadable_percent_max="50.0"))
    assert result.exit_code == 2
    assert "'val' has the classes" in " ".join(result.output.split())


def test_unreadable_images_are_listed_and_bounded(site: Site, repository: Path, tmp_path: Path) -> None:
    """Beyond the recipe's bound the images are counted, listed in a file, and the training does not start."""
    for number in range(4):
        (site.folder / f"{number}.png").write_bytes(b"no picture")
    result = run(site, repository, tmp_path / "out", site.recipe())
    assert result.exit_code == 2
    assert "4 of 48 images can't be read" in " ".join(result.output.split())
    listed = read_json(tmp_path / "out" / "stripes.steps" / "task.partial" / "unreadable.json")
    assert [each["file"] for each in listed] == [f"{number}.png" for number in range(4)]


def test_a_picture_in_two_splits_starts_no_training(site: Site, repository: Path, tmp_path: Path) -> None:
    """A copy of a training picture among the validation patients ends the run, whoever it is said to be of."""
    (site.folder / "47.png").write_bytes((site.folder / "0.png").read_bytes())
    result = run(site, repository, tmp_path / "out", site.recipe())
    assert result.exit_code == 2
    assert "1 pictures are in more than one split" in " ".join(result.output.split())


def test_an_unreadable_mask_is_listed_by_its_own_name(site: Site, base: VerifiedPack, tmp_path: Path) -> None:
    """Its image is left out with it, and is not the file to repair."""
    (site.folder / "3.mask.png").write_bytes(b"no picture")
    recipe = task_recipe_from_toml(site.recipe(head='"segmentation"'))
    cases = cases_from_csv(site.labels(), recipe)
    pictures = read_pictures(cases, site.folder, base.manifest, recipe, tmp_path)
    assert [each["file"] for each in read_json(tmp_path / "unreadable.json")] == ["3.mask.png"]
    assert len(pictures.cases) == len(pictures.masks) == len(cases) - 1


@pytest.mark.parametrize(
    ("base", "task", "together"),
    [
        (Validation.VALIDATED, Validation.VALIDATED, Validation.VALIDATED),
        (Validation.VALIDATED, Validation.RESEARCH_ONLY, Validation.RESEARCH_ONLY),
        (Validation.UNTRAINED, Validation.VALIDATED, Validation.UNTRAINED),
    ],
)
def test_a_joined_pack_claims_no_more_than_its_weaker_part(
    base: Validation, task: Validation, together: Validation
) -> None:
    """A research-only task on a validated base is research-only; nothing makes an untrained base validated."""
    assert weaker_claim(base, task) is together
