"""The standard's own checker and other readers look at our objects."""

import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.domain.findings import StudyAnalysis
from appliance.reporting.reporter import DicomReporter
from tests.fakes.analyses import DEVICE, answered_analysis, refused_analysis

pytestmark = pytest.mark.peer
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def results(analysis: StudyAnalysis, source: Path, folder: Path) -> list[Path]:
    """The files of a study's results."""
    sources = {analysis.sources[0].sop_instance_uid: source}
    return [Path(result.path) for result in DicomReporter(DEVICE).write(analysis, sources, NOON, folder)]


def errors_of(file: Path) -> list[str]:
    """What dciodvfy calls an Error."""
    result = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
    lines = (result.stdout + result.stderr).splitlines()
    assert any(word in line for line in lines for word in ("Comprehensive3DSR", "Segmentation")), lines
    return [line for line in lines if line.startswith("Error")]


def test_results_of_a_radiograph_are_valid(tmp_path: Path, pydicom_data: Path) -> None:
    """The checker finds no Error in SR and SEG of a CR without spacing and without Frame of Reference."""
    source = pydicom_data / "RG1_UNCR.dcm"
    files = results(answered_analysis(source), source, tmp_path)
    assert {file.name: errors_of(file) for file in files} == {"SR.dcm": [], "SEG.dcm": []}


@pytest.mark.data
def test_results_of_a_dx_are_valid(tmp_path: Path, shared_data: Path) -> None:
    """The same for a MONOCHROME1 DX image with spacing."""
    source = shared_data / "dicom/highdicom/dx_image.dcm"
    files = results(answered_analysis(source, area_mm2=99.0), source, tmp_path)
    assert {file.name: errors_of(file) for file in files} == {"SR.dcm": [], "SEG.dcm": []}


@pytest.mark.parametrize("name", ["RG3_UNCR.dcm", "explicit_VR-UN.dcm", "MR2_UNCR.dcm", "US1_UNCR.dcm", "liver.dcm"])
def test_refusals_are_valid_reports(tmp_path: Path, pydicom_data: Path, name: str) -> None:
    """The SR of a refused radiograph, CT, MR, ultrasound or segmentation has no Error."""
    (file,) = results(refused_analysis(pydicom_data / name), pydicom_data / name, tmp_path)
    assert errors_of(file) == []


@pytest.mark.data
@pytest.mark.parametrize("name", ["rtplan.dcm", "rtdose.dcm", "test-SR.dcm", "waveform_ecg.dcm"])
def test_a_report_on_what_is_no_image_is_valid(tmp_path: Path, shared_data: Path, name: str) -> None:
    """Plans, doses, reports and waveforms get a report too, in which neither the checker nor DCMTK finds an error."""
    source = shared_data / "dicom/pydicom_core" / name
    refused = refused_analysis(source)
    looked_at = tuple(replace(each, image=refused.sources[0]) for each in refused.outcomes)
    (file,) = results(replace(refused, outcomes=looked_at), source, tmp_path)
    assert errors_of(file) == []
    subprocess.run(["dsrdump", str(file)], capture_output=True, check=True)


def test_dcmtk_reads_the_report(tmp_path: Path, pydicom_data: Path) -> None:
    """DCMTK prints the report with its score and its caution."""
    source = pydicom_data / "RG1_UNCR.dcm"
    report = results(answered_analysis(source), source, tmp_path)[0]
    printed = subprocess.run(["dsrdump", "+Pl", str(report)], capture_output=True, text=True, check=True).stdout
    assert "0.731" in printed
    assert "Not for diagnosis" in printed
