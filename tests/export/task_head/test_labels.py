"""The labels of a task are checked before an image is read."""

from pathlib import Path

import pytest

from appliance.domain.errors import InputError, SettingsError
from appliance.domain.manifest import UnknownAge
from export.task_head.labels import Case, cases_from_csv
from export.task_head.recipe import task_recipe_from_toml
from tests.export.task_head.conftest import Rows, Site


def cases(site: Site, rows: Rows | None = None, **changes: str) -> tuple[Case, ...]:
    """Read labels."""
    return cases_from_csv(site.labels(rows), task_recipe_from_toml(site.recipe(**changes)))


def test_rows_become_cases(site: Site) -> None:
    """Each image is a case; a volume's images are one; a row without a label is left out."""
    assert len(cases(site)) == 48
    volumes = cases(site, head='"mil"')
    assert len(volumes) == 16
    assert all(len(case.files) == 3 for case in volumes)
    unknown = [row | {"label": "" if row["file"] == "47.png" else row["label"]} for row in site.rows]
    assert len(cases(site, unknown)) == 47
    assert {case.split for case in cases(site)} == {"train", "tune", "val"}


@pytest.mark.parametrize(("head", "column"), [("linear", "label"), ("mil", "volume"), ("segmentation", "mask")])
def test_a_missing_column_is_named(site: Site, head: str, column: str) -> None:
    """Each head needs its columns; the missing one is named, with all that are needed."""
    rows = [{key: value for key, value in row.items() if key != column} for row in site.rows]
    with pytest.raises(InputError, match=f"no column '{column}'"):
        cases(site, rows, head=f'"{head}"')


def test_one_class_is_refused(site: Site) -> None:
    """A split with one class can neither be trained on nor measured."""
    with pytest.raises(InputError, match="'val' has the classes"):
        cases(site, [row | {"label": "1" if row["split"] == "val" else row["label"]} for row in site.rows])


def test_a_leaking_patient_is_refused_without_being_named(site: Site) -> None:
    """A patient in two splits ends the run; the message counts and names nobody."""
    rows = [row | {"patient": "p0" if row["file"] == "47.png" else row["patient"]} for row in site.rows]
    with pytest.raises(InputError, match="1 patients are in more than one split") as caught:
        cases(site, rows)
    assert "p0" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"split": "test"}, "the split is 'test'"),
        ({"label": "yes"}, "the label is 'yes'"),
        ({"patient": ""}, "patient is empty"),
        ({"file": ""}, "file is empty"),
        ({"file": "../../etc/passwd"}, "leaves the data folder"),
        ({"file": "/etc/passwd"}, "leaves the data folder"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(site: Site, change: dict[str, str], said: str) -> None:
    """The file and the line say where to look."""
    with pytest.raises(InputError, match=said) as caught:
        cases(site, [site.rows[0] | change, *site.rows[1:]])
    assert "line 2" in str(caught.value)


def test_the_line_is_the_one_that_an_editor_shows(site: Site) -> None:
    """Also behind a quoted value of two lines."""
    rows = [row | {"note": "of two\nlines"} for row in site.rows]
    rows[1]["split"] = "test"
    with pytest.raises(InputError, match="line 5: the split is 'test'"):
        cases(site, rows)


def test_a_volume_must_agree_with_itself(site: Site) -> None:
    """All images of a volume have one patient, one split and one label."""
    with pytest.raises(InputError, match="two values of label"):
        cases(site, [site.rows[0] | {"label": "1"}, *site.rows[1:]], head='"mil"')


def test_a_volume_is_labelled_whole(site: Site) -> None:
    """A volume of which some images have a label and some none is refused, not cut down to those that have one."""
    with pytest.raises(InputError, match="two values of label: '0' and ''"):
        cases(site, [site.rows[0], site.rows[1] | {"label": ""}, *site.rows[2:]], head='"mil"')
    unknown = [row | {"label": "" if row["volume"] == "v0" else row["label"]} for row in site.rows]
    assert len(cases(site, unknown, head='"mil"')) == 15


def test_an_image_is_listed_once(site: Site) -> None:
    """The same file in two rows, also by another spelling, has two labels or two patients: both lines are named."""
    with pytest.raises(InputError, match=r"line 50: './0.png' is in line 2 already"):
        cases(site, [*site.rows, site.rows[-1] | {"file": "./0.png"}])


def test_a_file_that_is_no_csv_is_refused(site: Site, tmp_path: Path) -> None:
    """Neither a missing file nor one of another encoding is a traceback."""
    recipe = task_recipe_from_toml(site.recipe())
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00file")
    for path in (tmp_path / "labels.csv", tmp_path / "absent.csv"):
        with pytest.raises(InputError, match="can't be read"):
            cases_from_csv(path, recipe)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head": '"giant"'}, "task.head"),
        ({"name": '"../up"'}, "task.name"),
        ({"claim": '"certified"'}, "task.claim"),
        ({"unknown_age": '"guess"'}, "eligibility.unknown_age"),
        ({"modalities": "[1]"}, "must hold texts"),
        ({"licence": '" "'}, "source.licence"),
        ({"research_only": "true", "claim": '"validated"'}, "Striped pictures is for research only"),
        ({"head": '"mil"', "claim": '"validated"'}, "no shortcut audit of volumes"),
        ({"claim": '"validated"'}, "can't claim to be validated with gate.patients_min = 2"),
        ({"steps": '"many"'}, "training.steps"),
        ({"steps": "0"}, r"training\.steps .* is 0.*At least 1"),
        ({"rate": "nan"}, "training.rate"),
        ({"tune_percent": "0"}, "training.tune_percent"),
        ({"batch": "1"}, "both classes are drawn equally often"),
        ({"sensitivity": "1.1"}, r"gate\.sensitivity .* is 1.1.*From 0.01 to 1"),
        ({"auc_low_min": "nan"}, "gate.auc_low_min"),
        ({"auc_low_min": "0.5", "claim": '"validated"'}, "gate.auc_low_min .* which chance reaches"),
        ({"head": '"segmentation"', "dice_min": "0.0", "claim": '"validated"'}, "gate.dice_min .* chance reaches"),
        ({"release": "1\nsurprise = 2"}, "surprise"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(site: Site, change: dict[str, str], said: str) -> None:
    """Unknown keys and impossible values are named."""
    with pytest.raises(SettingsError, match=said):
        task_recipe_from_toml(site.recipe(**change))


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    """The path is named."""
    with pytest.raises(SettingsError, match=r"absent\.toml"):
        task_recipe_from_toml(tmp_path / "absent.toml")


def test_an_age_of_minus_one_is_no_bound(site: Site) -> None:
    """Eligibility in the manifest has ages or nothing."""
    rules = task_recipe_from_toml(site.recipe()).rules
    assert (rules.min_age_years, rules.max_age_years, rules.unknown_age) == (18.0, None, UnknownAge.RUN_AND_SAY)


def test_the_example_in_the_tree_fits(repository: Path) -> None:
    """`export/recipes/task.toml` is a task's recipe."""
    assert task_recipe_from_toml(repository / "export" / "recipes" / "task.toml").task.head == "linear"
