"""Masks and time wait on disk between analysis and report."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from appliance.domain.errors import StorageError
from appliance.domain.findings import SegmentationMask, StudyAnalysis, TaskOutcome, TaskState
from appliance.domain.instance import key_of
from appliance.domain.manifest import Code, TaskKind
from appliance.pipeline.kept import KeptAnalyses
from tests.fakes.instances import radiograph

NOW = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)


def analysis(mask: SegmentationMask | None) -> StudyAnalysis:
    """An analysis of one radiograph by two tasks."""
    made = radiograph()
    code = Code("39607008", "SCT", "Lung")
    outcomes = (
        TaskOutcome("triage", "", TaskKind.CLASSIFICATION, code, TaskState.RAN, pack="chest"),
        TaskOutcome("lungs", "", TaskKind.SEGMENTATION, code, TaskState.RAN, mask=mask, pack="chest"),
    )
    return StudyAnalysis(key_of(made), 2, made.patient, (made.identity,), outcomes)


def unmasked(made: StudyAnalysis) -> StudyAnalysis:
    """As the ledger gives it back."""
    return replace(made, outcomes=tuple(replace(outcome, mask=None) for outcome in made.outcomes))


def test_a_mask_comes_back_as_it_was(tmp_path: Path) -> None:
    """Pixels, area and the time of the analysis survive the death of the process."""
    pixels = np.random.default_rng(1).random((7, 13)) > 0.5
    made = analysis(SegmentationMask(pixels, 12.5))
    KeptAnalyses(tmp_path / "work", lambda: NOW).keep("token", made)
    kept = KeptAnalyses(tmp_path / "work", datetime.now).restore("token", unmasked(made))
    mask = kept.analysis.outcomes[1].mask
    assert mask is not None
    assert np.array_equal(mask.pixels, pixels)
    assert mask.area_mm2 == 12.5
    assert kept.analysis.outcomes[0].mask is None
    assert kept.created == NOW


def test_what_is_missing_or_damaged_is_said(tmp_path: Path) -> None:
    """Masks that can't be read are an error that names the file, never an empty mask."""
    keeper = KeptAnalyses(tmp_path, lambda: NOW)
    with pytest.raises(StorageError, match="token-2"):
        keeper.restore("token", analysis(None))
    keeper.keep("token", analysis(None))
    (tmp_path / "token-2.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(StorageError, match="token-2"):
        keeper.restore("token", analysis(None))


def test_a_folder_that_can_not_be_written_is_said(tmp_path: Path) -> None:
    """Masks that can't be written are an error, so that the study waits."""
    (tmp_path / "work").write_text("a file where the folder should be")
    with pytest.raises(StorageError):
        KeptAnalyses(tmp_path / "work", lambda: NOW).keep("token", analysis(None))


def test_a_reported_revision_leaves_nothing_behind(tmp_path: Path) -> None:
    """Dropping removes the file, and may be repeated."""
    keeper = KeptAnalyses(tmp_path, lambda: NOW)
    keeper.keep("token", analysis(None))
    keeper.drop("token", 2)
    keeper.drop("token", 2)
    assert not list(tmp_path.iterdir())
