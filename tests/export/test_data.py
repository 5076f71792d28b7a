"""Labels are checked before an image is read, and unreadable images are listed and bounded."""

import codecs
import csv
import dataclasses
import io
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from appliance.domain.errors import InputError, SettingsError
from export.artefacts import DONE, read_json, write_json
from export.data import samples_from_csv
from export.images import image_set, input_from_file, prepare, source_digests
from export.line import Line
from export.progress import Silent
from export.recipe import DataSource, Recipe, recipe_from_toml
from export.tables import source_table
from tests.export.conftest import KERMANY, NIH, write_labels

Rows = list[dict[str, str]]
OURS = DataSource("ours", "Our hospital, 2015 to 2020", "Own data", "Our hospital", research_only=False)


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
    with pytest.raises(InputError, match="1 patients are in more than one split") as caught:
        samples_from_csv(written(tmp_path, tiny_rows), recipe.data, recipe.pack.seed)
    assert val["patient_id"] not in str(caught.value)


def test_a_patient_is_one_person_however_the_number_is_spaced(tmp_path: Path, tiny_rows: Rows, recipe: Recipe) -> None:
    """A space behind a number in one of two rows does not let a patient be learned from and asked about."""
    val = next(row for row in tiny_rows if row["split"] == "val")
    val["patient_id"] = next(r for r in tiny_rows if r["dataset"] == val["dataset"])["patient_id"] + " "
    with pytest.raises(InputError, match="1 patients are in more than one split"):
        samples_from_csv(written(tmp_path, tiny_rows), recipe.data, recipe.pack.seed)


def test_a_file_of_two_patients_is_refused(tmp_path: Path, tiny_rows: Rows, recipe: Recipe) -> None:
    """One picture under two numbers would be learned from and asked about; it is named, however its path is written."""
    val = next(row for row in tiny_rows if row["split"] == "val")
    val["file"] = f"./{tiny_rows[0]['file']}"
    with pytest.raises(InputError, match=r"The file \./images/000\.jpg belongs to two patients"):
        samples_from_csv(written(tmp_path, tiny_rows), recipe.data, recipe.pack.seed)


def test_adults_are_counted_by_their_age(tmp_path: Path, tiny_rows: Rows, recipe: Recipe) -> None:
    """A split whose ages, or the ages of one class, are unknown or under age is refused: nothing could be fitted."""
    nih = [row for row in tiny_rows if row["dataset"] == NIH]
    for change, chosen in (("", nih), ("17", [row for row in nih if row["abnormal"] == "1"])):
        before = [row["age"] for row in nih]
        for row in chosen:
            row["age"] = change
        with pytest.raises(InputError, match="for the task 'adult'") as caught:
            samples_from_csv(written(tmp_path, tiny_rows), recipe.data, recipe.pack.seed)
        assert "at least 18 years" in caught.value.way_forward
        for row, age in zip(nih, before, strict=True):
            row["age"] = age


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": "elsewhere"}, "the dataset is 'elsewhere'"),
        ({"split": "test"}, "the split is 'test'"),
        ({"abnormal": "yes"}, "abnormal is 'yes'"),
        ({"abnormal": "2"}, "abnormal is '2'"),
        ({"age": "50Y"}, "the age is no number of years"),
        ({"age": "nan"}, "the age is no number of years"),
        ({"age": "-1"}, "the age is no number of years"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(
    tmp_path: Path, tiny_rows: Rows, recipe: Recipe, change: dict[str, str], said: str
) -> None:
    """The file and the line say where to look, and nobody's number is repeated."""
    tiny_rows[1] |= change
    with pytest.raises(InputError, match=said) as caught:
        samples_from_csv(written(tmp_path, tiny_rows), recipe.data, recipe.pack.seed)
    assert "labels.csv, line 3" in str(caught.value)
    assert tiny_rows[1]["patient_id"] not in str(caught.value)


def test_the_line_is_the_one_that_an_editor_shows(tmp_path: Path, tiny_rows: Rows, recipe: Recipe) -> None:
    """Also behind a quoted value of two lines and an empty line."""
    tiny_rows[0]["view"], tiny_rows[1]["split"] = "P\nA", "test"
    path = written(tmp_path, tiny_rows)
    path.write_text(path.read_text().replace("\n", "\n\n", 1))
    with pytest.raises(InputError, match=r"labels\.csv, line 5: the split is 'test'"):
        samples_from_csv(path, recipe.data, recipe.pack.seed)


def test_a_file_that_is_no_csv_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    """Neither a missing file nor one of another encoding is a traceback."""
    (tmp_path / "labels.csv").write_text("file,mask", encoding="utf-16")
    for path in (tmp_path / "labels.csv", tmp_path / "absent.csv"):
        with pytest.raises(InputError, match="can't be read"):
            samples_from_csv(path, recipe.data, recipe.pack.seed)


def test_labels_that_excel_saved_are_read(tmp_path: Path, tiny_rows: Rows, recipe: Recipe) -> None:
    """The byte order mark that it puts in front of UTF-8 is no part of the first column's name."""
    path = written(tmp_path, tiny_rows)
    plain = samples_from_csv(path, recipe.data, recipe.pack.seed)
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert samples_from_csv(path, recipe.data, recipe.pack.seed) == plain


def test_a_row_that_is_cut_short_is_not_read(tmp_path: Path, tiny_rows: Rows, recipe: Recipe) -> None:
    """A last line without a licence is left out, as one that does not say that commercial use is allowed."""
    path = written(tmp_path, tiny_rows)
    with path.open("a") as stream:
        stream.write("images/cut.jpg,\n")
    assert len(samples_from_csv(path, recipe.data, recipe.pack.seed)) == len(tiny_rows)


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


def of_ours(row: dict[str, str], **changes: str) -> dict[str, str]:
    """A row of a data set of one's own, whose picture has no label."""
    return row | {"dataset": OURS.title, "abnormal": "", "patient_id": "1", "file": "images/ours.jpg", **changes}


def test_a_data_set_that_the_recipe_names_is_read(tmp_path: Path, tiny_rows: Rows, recipe: Recipe) -> None:
    """Its pictures are unlabelled samples under the recipe's name for it; nothing else changes."""
    path = written(tmp_path, [*tiny_rows, of_ours(tiny_rows[0])])
    *others, own = samples_from_csv(path, recipe.data, recipe.pack.seed, [OURS])
    assert (own.dataset, own.adult, own.paediatric, own.person) == ("ours", None, None, "ours/1")
    assert tuple(others) == samples_from_csv(written(tmp_path, tiny_rows), recipe.data, recipe.pack.seed)


def test_a_data_set_that_nobody_names_is_refused(tmp_path: Path, tiny_rows: Rows, recipe: Recipe) -> None:
    """Whom to credit, under which licence, must be known: the recipe's table is the way forward."""
    path = written(tmp_path, [*tiny_rows, of_ours(tiny_rows[0])])
    with pytest.raises(InputError, match="the dataset is 'Our hospital, 2015 to 2020'") as refused:
        samples_from_csv(path, recipe.data, recipe.pack.seed)
    assert "[[source]] in the recipe" in refused.value.way_forward


def test_labels_that_nothing_learns_are_refused(tmp_path: Path, tiny_rows: Rows, recipe: Recipe) -> None:
    """A label in a data set of one's own is not passed over in silence."""
    path = written(tmp_path, [*tiny_rows, of_ours(tiny_rows[0], abnormal="1")])
    with pytest.raises(InputError, match="abnormal is 1, but `run` learns no labels") as refused:
        samples_from_csv(path, recipe.data, recipe.pack.seed, [OURS])
    assert "insite-export task" in refused.value.way_forward


@pytest.mark.parametrize("name", ["nih", "ours"])
def test_two_data_sets_have_two_names(name: str, tmp_path: Path, tiny_rows: Rows, recipe: Recipe) -> None:
    """A name that is taken, by a built-in data set or by another one of the recipe's, is refused."""
    again = DataSource(name, "Elsewhere", "Own data", "Elsewhere", research_only=False)
    with pytest.raises(SettingsError, match=rf"{name} \(Elsewhere\) has a name that another"):
        samples_from_csv(written(tmp_path, tiny_rows), recipe.data, recipe.pack.seed, [OURS, again])


def test_a_licence_in_other_words_prepares_nothing_again(tmp_path: Path, tiny_data: Path, tiny_recipe: Path) -> None:
    """The names of the recipe's data sets belong to what the step hangs on, their licences do not."""
    data, recipe = tmp_path / "data", tmp_path / "recipe.toml"
    shutil.copytree(tiny_data, data)
    with (data / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    written(data, [*rows, of_ours(rows[0])])
    found = []
    for name, licence in (("ours", "Own data"), ("ours", "Own data, all rights reserved"), ("theirs", "Own data")):
        table = f'name = "{name}"\ntitle = "{OURS.title}"\nlicence = "{licence}"\norigin = "Our hospital"\n'
        recipe.write_text(f"{tiny_recipe.read_text()}\n[[source]]\n{table}research_only = false\n")
        line = Line(recipe, data, tmp_path, Silent())
        found.append(line.prepared())
        assert line.sources[name]["images"] == 1
    assert found[0] == found[1] != found[2]


def png(mode: str) -> bytes:
    """A PNG of a mode of Pillow's, from black to white."""
    stream = io.BytesIO()
    Image.linear_gradient("L").convert(mode).save(stream, "PNG")
    return stream.getvalue()


def with_a_bad_chunk() -> bytes:
    """A PNG whose pixels break off, with no chunk behind them."""
    data = png("L")
    start = data.index(b"IDAT")
    pixels = data[start : start + 34]
    return data[: start - 4] + struct.pack(">I", 30) + pixels + struct.pack(">I", zlib.crc32(pixels)) + bytes(12)


def bomb() -> bytes:
    """A PNG that says it is a thousand times as large as anything that a scanner makes."""
    data = bytearray(png("L"))
    start = data.index(b"IHDR")
    data[start + 4 : start + 12] = struct.pack(">II", 65_000, 65_000)
    data[start + 17 : start + 21] = struct.pack(">I", zlib.crc32(data[start : start + 17]))
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"no picture", "cannot identify", id="no picture"),
        pytest.param(with_a_bad_chunk(), "broken PNG", id="bad chunk"),
        pytest.param(bomb(), "decompression bomb", id="bomb"),
        pytest.param(png("I;16"), "no 8-bit grey or colour picture", id="16 bits"),
        pytest.param(png("1"), "no 8-bit grey or colour picture", id="1 bit"),
    ],
)
def test_an_unreadable_image_is_listed(
    tmp_path: Path, tiny_data: Path, recipe: Recipe, content: bytes, reason: str
) -> None:
    """One image of forty that is damaged, far too large or not of 8 bits is left out and named; the others are not."""
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "data" / "images" / "000.jpg").write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    prepare(recipe, tmp_path / "data", out)
    (listed,) = read_json(out / "unreadable.json")
    assert listed["file"] == "images/000.jpg"
    assert reason in listed["reason"]
    prepared = image_set(out)
    assert len(prepared.samples) == len(prepared.images)
    assert "images/000.jpg" not in {sample.file for sample in prepared.samples}


def test_an_unreadable_mask_is_listed_by_its_own_name(tmp_path: Path, tiny_data: Path, recipe: Recipe) -> None:
    """Its image is left out with it, and is not the file to repair."""
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "data" / "masks" / "014.png").write_bytes(b"no picture")
    (tmp_path / "out").mkdir()
    prepare(recipe, tmp_path / "data", tmp_path / "out")
    assert [each["file"] for each in read_json(tmp_path / "out" / "unreadable.json")] == ["masks/014.png"]
    assert "images/014.jpg" not in {sample.file for sample in image_set(tmp_path / "out").samples}


def test_a_mask_that_is_too_dark_to_count_is_listed(tmp_path: Path, tiny_data: Path, recipe: Recipe) -> None:
    """A mask of 0 and 1 is not read as one with nothing drawn; one that is black all over is."""
    shutil.copytree(tiny_data, tmp_path / "data")
    for number, brightest in ((14, 1), (16, 127), (17, 0)):
        mask = np.zeros((96, 80), np.uint8)
        mask[20:70, 10:60] = brightest
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{number:03d}.png")
    (tmp_path / "out").mkdir()
    lenient = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, unreadable_percent_max=50.0))
    prepare(lenient, tmp_path / "data", tmp_path / "out")
    listed = read_json(tmp_path / "out" / "unreadable.json")
    assert [each["file"] for each in listed] == ["masks/014.png", "masks/016.png"]
    assert "the brightest grey level of the mask is 1;" in listed[0]["reason"]


def test_a_class_that_is_lost_with_unreadable_images_is_missed(tmp_path: Path, tiny_data: Path, recipe: Recipe) -> None:
    """The only healthy child of `tune` can't be read: that is said now, and not after hours of training."""
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "data" / "images" / "026.jpg").write_bytes(b"no picture")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"can be read: the split 'tune' has classes \[1\] for the task 'paediatric'"):
        prepare(recipe, tmp_path / "data", tmp_path / "out")


@pytest.mark.parametrize(("split", "numbers"), [("tune", (15, 25, 26, 27)), ("val", (32, 33, 34, 35))])
def test_a_split_without_a_drawn_mask_is_refused(
    tmp_path: Path, tiny_data: Path, tiny_rows: Rows, recipe: Recipe, *, split: str, numbers: tuple[int, ...]
) -> None:
    """Neither what the quantised student loses nor how good the lungs are could be said; an empty mask is none."""
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "out").mkdir()
    first, *others = numbers
    for number in others:
        assert tiny_rows[number]["dataset"] == KERMANY
        tiny_rows[number]["mask"] = ""
    write_labels(tmp_path / "data", tiny_rows)
    prepare(recipe, tmp_path / "data", tmp_path / "out")
    Image.new("L", (80, 96)).save(tmp_path / "data" / "masks" / f"{first:03d}.png")
    with pytest.raises(InputError, match=f"the split '{split}' has no drawn mask"):
        prepare(recipe, tmp_path / "data", tmp_path / "out")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_a_picture_of_eight_bits_is_read(tmp_path: Path, recipe: Recipe, mode: str) -> None:
    """Grey, coloured or with a palette, with or without transparency."""
    (tmp_path / "picture.png").write_bytes(png(mode))
    assert input_from_file(tmp_path / "picture.png", recipe.input).shape == (512, 512)


def test_too_many_unreadable_images_stop_the_export(tmp_path: Path, tiny_data: Path, tiny_recipe: Path) -> None:
    """Beyond the recipe's bound the data is refused with a count and some names; all are listed where it says."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    files = sorted(str(path.relative_to(data)) for path in (data / "images").iterdir())[:5]
    for file in files:
        (data / file).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"5 of 38 images can't be read: images/000\.jpg, .* and 2 more") as caught:
        Line(tiny_recipe, data, tmp_path, Silent()).prepared()
    listed = tmp_path / "tiny.steps" / "data.partial" / "unreadable.json"
    assert str(listed) in caught.value.way_forward
    assert [each["file"] for each in read_json(listed)] == files


class Heard(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """One line."""
        self.said.append(text)


def test_how_many_images_were_left_out_is_said(tmp_path: Path, tiny_data: Path, tiny_recipe: Path) -> None:
    """Each time, also when the step is not done again, and where the report says what was read."""
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "data" / "images" / "000.jpg").write_bytes(b"no picture")
    for _ in range(2):
        heard = Heard()
        line = Line(tiny_recipe, tmp_path / "data", tmp_path, heard)
        line.prepared()
        assert [text for text in heard.said if "1 images can't be read and are left out" in text]
    assert "1 of these images could not be read" in source_table(line.sources, 1)["note"]
    assert "could not be read" not in source_table(line.sources, 0)["note"]


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
