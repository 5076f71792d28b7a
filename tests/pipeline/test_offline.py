"""Files and folders are grouped as the node would group them, and what is left out has a reason."""

import shutil
from pathlib import Path

from appliance.domain.device import MANUFACTURER, MODEL_NAME
from appliance.pipeline.offline import gather
from tests.fakes.radiographs import ROOT, chest_like, write_radiograph


def test_files_are_grouped_by_study(tmp_path: Path) -> None:
    """Two images of one study and one of another make two studies, images sorted by SOP Instance UID."""
    write_radiograph(tmp_path / "a.dcm", 1, SOPInstanceUID=f"{ROOT}.1.1.9")
    write_radiograph(tmp_path / "b.dcm", 1)
    write_radiograph(tmp_path / "c.dcm", 2)
    gathered = gather([tmp_path])
    found = {key.study_uid: [stored.path.name for stored in images] for key, images in gathered.studies.items()}
    assert found == {f"{ROOT}.1": ["b.dcm", "a.dcm"], f"{ROOT}.2": ["c.dcm"]}
    assert gathered.unreadable == []


def test_two_patients_under_one_study_uid_are_kept_apart(tmp_path: Path) -> None:
    """The same Study Instance UID with another patient is another study."""
    write_radiograph(tmp_path / "a.dcm", 1)
    write_radiograph(tmp_path / "b.dcm", 1, SOPInstanceUID=f"{ROOT}.1.1.2", PatientID="OTHER")
    assert len(gather([tmp_path]).studies) == 2


def test_an_instance_counts_once(tmp_path: Path) -> None:
    """The same image under two names is one image; the same identifier with other bytes is left out with a reason."""
    write_radiograph(tmp_path / "a.dcm", 1)
    shutil.copy(tmp_path / "a.dcm", tmp_path / "b.dcm")
    write_radiograph(tmp_path / "c.dcm", 1, chest_like(seed=99))
    gathered = gather([tmp_path])
    assert [len(images) for images in gathered.studies.values()] == [1]
    assert [(left.path.name, "other content" in left.reason) for left in gathered.unreadable] == [("c.dcm", True)]


def test_what_can_not_be_used_is_named(tmp_path: Path) -> None:
    """A text file, a path that does not exist and a result of ours are each left out with a reason."""
    (tmp_path / "notes.txt").write_text("not DICOM")
    write_radiograph(tmp_path / "own.dcm", 1, Manufacturer=MANUFACTURER, ManufacturerModelName=MODEL_NAME)
    gathered = gather([tmp_path / "notes.txt", tmp_path / "own.dcm", tmp_path / "missing"])
    assert not gathered.studies
    assert [left.path.name for left in gathered.unreadable] == ["notes.txt", "own.dcm", "missing"]
    assert all(left.reason for left in gathered.unreadable)
