"""Labels are checked before an image is read."""

import codecs
import csv
import shutil
from pathlib import Path

import pytest

from appliance.domain.errors import InputError, SettingsError
from export.data import samples_from_csv
from export.line import Line
from export.progress import Silent
from export.recipe import DataSource, Recipe, recipe_from_toml
from tests.export.conftest import NIH

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
