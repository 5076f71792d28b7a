"""Negatives of other modalities are all that can be read, and what can't be read is said."""

import shutil
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from export.artefacts import write_json
from export.negatives import UNREAD, dicom_digest, dicom_negatives, unread_in_words
from export.recipe import recipe_from_toml
from tests.export.conftest import write_dicom_index

NAMES = ("there.dcm", "damaged.dcm", "absent.dcm")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An index of three CT slices: one is there, one is damaged, one was not downloaded yet."""
    write_dicom_index(tmp_path, NAMES)
    shutil.copy(str(get_testdata_file("CT_small.dcm")), tmp_path / NAMES[0])
    (tmp_path / NAMES[1]).write_bytes(b"no picture")
    return tmp_path


def test_files_that_can_not_be_read_are_counted_and_named(folder: Path, tiny_recipe: Path) -> None:
    """One slice of three is a negative; the others are named with the kind of error, and their number is said."""
    spec = recipe_from_toml(tiny_recipe).input
    found, unread = dicom_negatives(folder, spec)
    assert [negative.kind for negative in found] == ["DICOM CT"]
    assert unread["tried"] == 3
    assert {each["file"]: each["reason"] for each in unread["files"]}.keys() == set(NAMES[1:])
    write_json(folder / UNREAD, unread)
    assert unread_in_words(folder).startswith("2 of 3 DICOM files can't be read and are no negatives; ")
    write_json(folder / UNREAD, unread | {"files": []})
    assert not unread_in_words(folder)


def test_a_folder_without_dicom_files_is_said(tmp_path: Path, tiny_recipe: Path) -> None:
    """A guard that learned from made negatives alone is not one that saw other modalities."""
    found, unread = dicom_negatives(tmp_path, recipe_from_toml(tiny_recipe).input)
    assert not found
    write_json(tmp_path / UNREAD, unread)
    assert "There is no usable DICOM file" in unread_in_words(tmp_path)


def test_a_file_that_arrives_or_changes_and_another_codec_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Completing a download, repairing a file or installing a codec makes the step run anew, and nothing else does."""
    digests = [dicom_digest(folder)]
    assert dicom_digest(folder) == digests[0]
    for name in NAMES[1:]:
        shutil.copy(folder / NAMES[0], folder / name)
        digests.append(dicom_digest(folder))
    monkeypatch.setattr("export.negatives.CODECS", ("pydicom", "no-such-codec"))
    digests.append(dicom_digest(folder))
    assert len(set(digests)) == len(digests)
