"""`insite analyse`: files in, result objects out, every file accounted for."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TASKS = {"adult-triage", "guard", "lungs", "paediatric-pneumonia"}


def analyse(*paths: Path, out: Path) -> tuple[dict[str, Any], str]:
    """Run the command and return its JSON and what it wrote to standard error."""
    result = subprocess.run(
        [sys.executable, "-m", "appliance.cli", "analyse", *map(str, paths), "--out", str(out), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def by_task(study: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A study's tasks by name."""
    return {task["task"]: task for task in study["tasks"]}


def test_a_chest_radiograph_is_analysed_and_a_leg_is_refused(tmp_path: Path, pydicom_data: Path) -> None:
    """The adult's chest radiograph gets SR and SEG; the leg gets an SR that says why nothing ran."""
    found, _ = analyse(pydicom_data / "RG1_UNCR.dcm", pydicom_data / "RG3_UNCR.dcm", out=tmp_path)
    chest, leg = found["studies"]
    assert found["unreadable"] == []
    assert {name: task["state"] for name, task in by_task(chest).items()} == {
        "adult-triage": "ran",
        "guard": "ran",
        "lungs": "ran",
        "paediatric-pneumonia": "refused",
    }
    assert by_task(chest)["paediatric-pneumonia"]["refusal"] == "age-out-of-range"
    assert 0 <= by_task(chest)["adult-triage"]["score"] <= 1
    assert len(chest["objects"]) == 2
    assert {task["state"] for task in leg["tasks"]} == {"refused"}
    assert {task["refusal"] for task in leg["tasks"]} == {"body-part"}
    assert len(leg["objects"]) == 1
    assert all(Path(path).is_file() for path in [*chest["objects"], *leg["objects"]])


def test_one_sop_instance_with_other_bytes_is_left_out_by_name(tmp_path: Path, pydicom_data: Path) -> None:
    """Of two files with one SOP Instance UID and other bytes the first counts and the second is named."""
    files = tmp_path / "in"
    files.mkdir()
    for name in ("RG1_J2KI.dcm", "RG1_UNCI.dcm"):
        shutil.copy(pydicom_data / name, files)
    shutil.copy(files / "RG1_J2KI.dcm", files / "again.dcm")
    found, _ = analyse(files, out=tmp_path / "out")
    (study,) = found["studies"]
    assert study["files"] == 1
    (left,) = found["unreadable"]
    assert left["path"].endswith("RG1_UNCI.dcm")
    assert "other content" in left["reason"]


def test_what_is_not_dicom_is_listed_with_its_reason(tmp_path: Path, pydicom_data: Path) -> None:
    """Text, an empty file, a truncated file and a missing path are named with a reason; the rest is analysed."""
    files = tmp_path / "in"
    files.mkdir()
    (files / "notes.txt").write_text("not DICOM")
    (files / "empty.dcm").touch()
    (files / "cut.dcm").write_bytes((pydicom_data / "RG1_UNCR.dcm").read_bytes()[:300])
    found, errors = analyse(files, tmp_path / "nowhere", pydicom_data / "US1_UNCR.dcm", out=tmp_path / "out")
    assert {Path(left["path"]).name for left in found["unreadable"]} == {"notes.txt", "empty.dcm", "cut.dcm", "nowhere"}
    assert all(left["reason"] for left in found["unreadable"])
    assert len(found["studies"]) == 1
    assert "Traceback" not in errors


def test_own_results_are_never_analysed(tmp_path: Path, pydicom_data: Path) -> None:
    """A folder with results of an earlier run gives no study of its own."""
    found, _ = analyse(pydicom_data / "RG3_UNCR.dcm", out=tmp_path / "first")
    again, _ = analyse(tmp_path / "first", out=tmp_path / "second")
    assert again["studies"] == []
    assert len(again["unreadable"]) == len(found["studies"][0]["objects"])


@pytest.mark.data
@pytest.mark.slow
def test_every_real_file_ends_in_a_study_or_with_a_reason(tmp_path: Path, shared_data: Path) -> None:
    """Over some 670 real files of many vendors every known task appears for every study, and no traceback."""
    found, errors = analyse(shared_data / "dicom", out=tmp_path)
    assert "Traceback" not in errors
    assert len(found["studies"]) > 100
    for study in found["studies"]:
        assert set(by_task(study)) == TASKS
        assert all(task["state"] == "ran" or task["reason"] for task in study["tasks"])
        assert study["objects"]
        assert not study["error"]
    ran = {study["study_uid"] for study in found["studies"] for task in study["tasks"] if task["state"] == "ran"}
    chest = "1.3.6.1.4.1.5962.1.2.9.20040826185059.5457"
    assert chest in ran
    guarded = {study["study_uid"] for study in found["studies"] if by_task(study)["lungs"]["state"] == "ran"}
    assert guarded == {chest}, "only frontal chest radiographs may be answered"
