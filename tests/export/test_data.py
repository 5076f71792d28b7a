"""Labels are checked before an image is read, and unreadable images are listed and bounded."""

import csv
import shutil
from pathlib import Path

import pytest

from appliance.domain.errors import InputError
from export.artefacts import DONE, read_json, write_json
from export.data import samples_from_csv
from export.images import image_set, prepare, source_digests
from export.line import Line
from export.progress import Silent
from export.recipe import Recipe, recipe_from_toml

Rows = list[dict[str, str]]


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    """The tiny recipe."""
    return recipe_from_toml(tiny_recipe)


def written(folder: Path, rows: Rows) -> Path:
    """Write rows as `labels.csv`."""
    path = folder / "labels.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_missing_column_is_named(tmp_path: Path, tiny_rows: Rows, recipe: Recipe) -> None:
    """Labels without a column that is needed are refused by the column's name."""
    path = written(tmp_path, [{k: v for k, v in row.items() if k != "age"} for row in tiny_rows])
    with pytest.raises(InputError, match="'age'"):
        samples_from_csv(path, recipe.data, recipe.pack.seed)


def test_one_class_is_refused(tmp_path: Path, tiny_rows: Rows, recipe: Recipe) -> None:
    """A task with one class in a split can't be trained or measured."""
    for row in tiny_rows:
        row["abnormal"] = "1"
    with pytest.raises(InputError, match="classes"):
        samples_from_csv(written(tmp_path, tiny_rows), recipe.data, recipe.pack.seed)


def test_a_leaking_patient_is_refused(tmp_path: Path, tiny_rows: Rows, recipe: Recipe) -> None:
    """No patient is in training and in validation."""
    val = next(row for row in tiny_rows if row["split"] == "val")
    val["patient_id"] = next(r for r in tiny_rows if r["dataset"] == val["dataset"])["patient_id"]
    with pytest.raises(InputError, match="more than one split"):
        samples_from_csv(written(tmp_path, tiny_rows), recipe.data, recipe.pack.seed)


def test_rows_that_bar_commercial_use_or_ask_for_share_alike_are_not_read(
    tmp_path: Path, tiny_rows: Rows, recipe: Recipe
) -> None:
    """Neither nc = 1 nor a share-alike licence reaches training."""
    extra = [dict(tiny_rows[0], nc="1", file="nc.jpg"), dict(tiny_rows[0], licence="CC BY-SA", file="sa.jpg")]
    samples = samples_from_csv(written(tmp_path, tiny_rows + extra), recipe.data, recipe.pack.seed)
    assert len(samples) == len(tiny_rows)
    assert not {"nc.jpg", "sa.jpg"} & {sample.file for sample in samples}


def test_a_covid_case_is_no_label_of_an_image(tmp_path: Path, tiny_rows: Rows, recipe: Recipe) -> None:
    """Images of patients who have COVID-19 carry no triage label."""
    samples = samples_from_csv(written(tmp_path, tiny_rows), recipe.data, recipe.pack.seed)
    others = [sample for sample in samples if sample.dataset == "hannover"]
    assert others
    assert all(sample.adult is None and sample.paediatric is None for sample in others)


def test_an_unreadable_image_is_listed(tmp_path: Path, tiny_data: Path, recipe: Recipe) -> None:
    """One damaged image of forty is left out and named; the others are prepared."""
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "data" / "images" / "000.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    out.mkdir()
    prepare(recipe, tmp_path / "data", out)
    assert [each["file"] for each in read_json(out / "unreadable.json")] == ["images/000.jpg"]
    prepared = image_set(out)
    assert len(prepared.samples) == len(prepared.images)
    assert "images/000.jpg" not in {sample.file for sample in prepared.samples}


def test_too_many_unreadable_images_stop_the_export(tmp_path: Path, tiny_data: Path, recipe: Recipe) -> None:
    """Beyond the recipe's bound the data is refused with a count."""
    shutil.copytree(tiny_data, tmp_path / "data")
    for path in sorted((tmp_path / "data" / "images").iterdir())[:5]:
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="5 of 38 images"):
        prepare(recipe, tmp_path / "data", tmp_path)


def test_a_changed_picture_or_mask_makes_the_step_run_anew(tmp_path: Path, tiny_data: Path, tiny_recipe: Path) -> None:
    """Labels alone do not tell: other bytes under the same name are read, and what hangs on the step hangs on them."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    found = [Line(tiny_recipe, data, tmp_path, Silent()).prepared()]
    first = image_set(tmp_path / "tiny.steps" / "data").images[0].copy()
    for changed, other in (("images/000.jpg", "images/001.jpg"), ("masks/014.png", "images/001.jpg")):
        (data / changed).write_bytes((data / other).read_bytes())
        found.append(Line(tiny_recipe, data, tmp_path, Silent()).prepared())
    assert len(set(found)) == 3
    assert (image_set(tmp_path / "tiny.steps" / "data").images[0] != first).any()


def test_unchanged_pictures_are_not_prepared_again(tmp_path: Path, tiny_data: Path, tiny_recipe: Path) -> None:
    """The same bytes skip the step; other bytes of the same pixels run it, and nothing behind it changes.

    So does an artefact of a release that did not note what it had read.
    """
    data, done = tmp_path / "data", tmp_path / "tiny.steps" / "data" / DONE
    shutil.copytree(tiny_data, data)
    digest = Line(tiny_recipe, data, tmp_path, Silent()).prepared()
    before = done.stat().st_ino, read_json(done)
    assert Line(tiny_recipe, data, tmp_path, Silent()).prepared() == digest
    assert (done.stat().st_ino, read_json(done)) == before
    with (data / "images" / "000.jpg").open("ab") as stream:
        stream.write(b"behind the picture")
    assert Line(tiny_recipe, data, tmp_path, Silent()).prepared() == digest
    record = read_json(done)
    assert record["read"] != before[1]["read"]
    assert record["files"] == before[1]["files"]
    write_json(done, {key: value for key, value in record.items() if key != "read"})
    assert Line(tiny_recipe, data, tmp_path, Silent()).prepared() == digest
    assert read_json(done) == record


def test_each_data_set_has_a_digest_of_its_own(tmp_path: Path, tiny_data: Path, recipe: Recipe) -> None:
    """A changed or missing file changes the digest of its data set and of no other."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    samples = samples_from_csv(data / "labels.csv", recipe.data, recipe.pack.seed)
    before = source_digests(samples, data)
    assert {name: (each["images"], each["masks"]) for name, each in before.items()} == {
        "nih": (18, 0), "kermany": (18, 18), "hannover": (2, 0),
    }  # fmt: skip
    (data / "images" / "000.jpg").unlink()
    after = source_digests(samples, data)
    assert {name for name in before if before[name] != after[name]} == {"nih"}
