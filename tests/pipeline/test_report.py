"""Result objects appear in their folder all together, and never in two versions."""

import errno
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.domain.errors import ReportError, StorageFullError
from appliance.domain.findings import StudyAnalysis
from appliance.domain.instance import key_of
from appliance.domain.ports import StoredInstance
from appliance.pipeline.kept import Kept
from appliance.pipeline.report import StudyReporting
from tests.fakes.chain import PlainReporter
from tests.fakes.instances import radiograph

NOON = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)


def kept(revision: int = 1, created: datetime = NOON) -> Kept:
    """An analysis without outcomes."""
    made = radiograph()
    return Kept(StudyAnalysis(key_of(made), revision, made.patient, (made.identity,), ()), created)


IMAGES = [StoredInstance(radiograph(), Path("image.dcm"), NOON, "", own_result=False)]


def test_results_lie_under_study_and_revision(tmp_path: Path) -> None:
    """Objects are written to `<study>/<revision>/`, and no draft is left."""
    (made,) = StudyReporting(PlainReporter(), tmp_path).write("token", kept(), IMAGES, [])
    assert Path(made.path) == tmp_path / "token" / "1" / "SR.dcm"
    assert [path.name for path in (tmp_path / "token").iterdir()] == ["1"]


def test_a_report_made_again_has_the_same_bytes(tmp_path: Path) -> None:
    """After a crash the same kept analysis gives the same files over those written before, and over a torn draft."""
    (tmp_path / "token" / ".1.draft").mkdir(parents=True)
    (tmp_path / "token" / ".1.draft" / "torn").touch()
    reporting = StudyReporting(PlainReporter(), tmp_path)
    first = Path(reporting.write("token", kept(), IMAGES, [])[0].path).read_bytes()
    assert Path(reporting.write("token", kept(), IMAGES, [])[0].path).read_bytes() == first
    assert [path.name for path in (tmp_path / "token" / "1").iterdir()] == ["SR.dcm"]


def test_a_retried_study_sends_the_object_that_was_made_before(tmp_path: Path) -> None:
    """An object with the identifier of an earlier one is that one, byte for byte, though made an hour later."""
    reporting = StudyReporting(PlainReporter(), tmp_path)
    first = reporting.write("token", kept(), IMAGES, [])
    second = reporting.write("token", kept(2, NOON + timedelta(hours=1)), IMAGES, first)
    assert Path(second[0].path).parent.name == "2"
    assert Path(second[0].path).read_bytes() == Path(first[0].path).read_bytes()


def test_a_reporter_that_can_not_leaves_no_results(tmp_path: Path) -> None:
    """Where an object can't be made, there is no folder of results."""
    reporting = StudyReporting(PlainReporter(ReportError("No study UID.")), tmp_path)
    with pytest.raises(ReportError):
        reporting.write("token", kept(), IMAGES, [])
    assert not (tmp_path / "token" / "1").exists()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """No space left is an error of its own, so that the study waits instead of failing."""
    full = PlainReporter(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(StorageFullError):
        StudyReporting(full, tmp_path).write("token", kept(), IMAGES, [])
    denied = PlainReporter(PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionError):
        StudyReporting(denied, tmp_path).write("token", kept(), IMAGES, [])
