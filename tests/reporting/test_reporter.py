"""Result objects: what they say, that they are valid, and that making them again makes the same bytes."""

import errno
import io
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, RTPlanStorage, SegmentationStorage

from appliance.domain.device import made_here
from appliance.domain.errors import ReportError, StorageError, StorageFullError
from appliance.domain.findings import RefusalCode, ResultObject, SegmentationMask, StudyAnalysis, TaskState
from appliance.imaging.header import read_instance
from appliance.reporting.codes import REFUSALS, refusal_code
from appliance.reporting.read_back import masks_of
from appliance.reporting.reporter import DicomReporter
from tests.fakes.analyses import DEVICE, DIGEST, GATE, answered_analysis, refused_analysis
from tests.fakes.radiographs import write_radiograph

NOON = datetime(2026, 1, 2, 12, 30, 15, 250_000, tzinfo=UTC)


def report(analysis: StudyAnalysis, source: Path, folder: Path, created: datetime = NOON) -> list[ResultObject]:
    """Write the results of a study of one file."""
    return list(DicomReporter(DEVICE).write(analysis, {analysis.sources[0].sop_instance_uid: source}, created, folder))


def items(dataset: Dataset) -> list[Dataset]:
    """Every content item of a report, depth first."""
    found = []
    for item in dataset.get("ContentSequence", []):
        found += [item, *items(item)]
    return found


def named(dataset: Dataset, name: str) -> list[Dataset]:
    """The content items whose concept name is this code value."""
    return [
        item
        for item in items(dataset)
        if item.get("ConceptNameCodeSequence") and item.ConceptNameCodeSequence[0].CodeValue == name
    ]


@pytest.fixture
def radiograph(tmp_path: Path) -> Path:
    """A synthetic radiograph with a pixel spacing of 2 mm."""
    return write_radiograph(tmp_path / "source.dcm")


@pytest.fixture
def written(tmp_path: Path, radiograph: Path) -> dict[str, Dataset]:
    """The results of a study that was segmented, flagged, refused and failed, by kind."""
    objects = report(answered_analysis(radiograph, area_mm2=1234.5), radiograph, tmp_path / "out")
    return {result.kind: pydicom.dcmread(result.path) for result in objects}


def test_a_study_gives_one_sr_and_one_seg(written: dict[str, Dataset]) -> None:
    """The SR is a Comprehensive 3D SR, the SEG a binary segmentation, both in the source's study."""
    assert written["SR"].SOPClassUID == Comprehensive3DSRStorage
    assert written["SEG"].SOPClassUID == SegmentationStorage
    assert written["SEG"].SegmentationType == "BINARY"
    assert len({made.StudyInstanceUID for made in written.values()}) == 1
    assert len({made.SeriesInstanceUID for made in written.values()}) == 2


def test_nothing_is_silent(written: dict[str, Dataset]) -> None:
    """Every task has a measurement group that says whether it ran, was refused or failed, with its sentence."""
    states = [item.ConceptCodeSequence[0].CodeValue for item in named(written["SR"], "task-state")]
    assert states == ["ran", "ran", "refused", "failed"]
    comments = " ".join(item.TextValue for item in named(written["SR"], "121106"))
    for words in ("64 years old", "gave no number", "age is unknown", "Not for diagnosis", "Sensitivity 0.90"):
        assert words in comments
    assert [item.ConceptCodeSequence[0].CodeValue for item in named(written["SR"], "refusal")] == ["age-out-of-range"]


def test_a_score_comes_with_its_operating_point_and_result(written: dict[str, Dataset]) -> None:
    """Score, operating point and positive or negative stand together; area only where the spacing is known."""
    values = {
        name: [float(item.MeasuredValueSequence[0].NumericValue) for item in named(written["SR"], name)]
        for name in ("score", "operating-point", "42798000")
    }
    assert values == {"score": [0.731], "operating-point": [0.42], "42798000": [1234.5]}
    assert [item.ConceptCodeSequence[0].CodeMeaning for item in named(written["SR"], "result")] == ["Positive"]


def test_the_report_names_the_algorithm_and_its_proof(written: dict[str, Dataset]) -> None:
    """Pack digest, release, precision and gate report stand in the algorithm identification."""
    text = " ".join(item.TextValue for item in items(written["SR"]) if "TextValue" in item)
    for words in (DIGEST, GATE, "release 3", "precision=int8", "chest-xray.lungs"):
        assert words in text


def test_the_report_is_unverified_and_refers_to_its_images(written: dict[str, Dataset], radiograph: Path) -> None:
    """Nobody has verified an AI result, and its evidence is the source image."""
    sr = written["SR"]
    source = pydicom.dcmread(radiograph)
    assert (sr.VerificationFlag, sr.CompletionFlag) == ("UNVERIFIED", "COMPLETE")
    (evidence,) = sr.CurrentRequestedProcedureEvidenceSequence
    assert (
        evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    )
    assert sr.PatientID == source.PatientID
    assert sr.PatientName == source.PatientName


def test_the_segment_is_coded_and_lies_where_the_mask_lies(
    written: dict[str, Dataset], radiograph: Path, tmp_path: Path
) -> None:
    """Segment label, codes and colour are set; the pixels read back are the mask, on the source's own grid."""
    seg = written["SEG"]
    (segment,) = seg.SegmentSequence
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("Lung", "AUTOMATIC")
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "39607008"
    assert "RecommendedDisplayCIELabValue" in segment
    assert list(seg.PatientOrientation) == ["L", "F"]
    mask = answered_analysis(radiograph).outcomes[0].mask
    assert mask is not None
    ((uid, read_back),) = masks_of(tmp_path / "out" / "SEG.dcm").items()
    assert uid == pydicom.dcmread(radiograph).SOPInstanceUID
    assert np.array_equal(read_back, mask.pixels)


@pytest.mark.parametrize("spacing", [[0.5, 0.5], [0, 0], None])
def test_a_place_in_space_is_taken_over_as_a_whole_or_not_at_all(tmp_path: Path, spacing: list[float] | None) -> None:
    """With frame of reference, position and spacing the SEG has the source's geometry; with a part of them, none."""
    source = tmp_path / "source.dcm"
    write_radiograph(
        source,
        FrameOfReferenceUID="1.2.3.4",
        ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
        ImagePositionPatient=[-40, 0, 48],
        SliceThickness=1,
        PixelSpacing=spacing,
        PatientOrientation=None,
    )
    seg = pydicom.dcmread(report(answered_analysis(source), source, tmp_path / "out")[1].path)
    assert ("FrameOfReferenceUID" in seg) == (spacing == [0.5, 0.5])
    if spacing == [0.5, 0.5]:
        measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert [float(each) for each in measures.PixelSpacing] == spacing


def test_results_are_known_as_our_own(tmp_path: Path, radiograph: Path) -> None:
    """What we made is recognised when it comes back."""
    for result in report(answered_analysis(radiograph), radiograph, tmp_path / "out"):
        assert made_here(read_instance(Path(result.path)))


def test_a_retry_makes_the_same_bytes(tmp_path: Path, radiograph: Path) -> None:
    """The same analysis at the same recorded time gives identical files, whenever it is written."""
    analysis = answered_analysis(radiograph)
    first = report(analysis, radiograph, tmp_path / "a")
    again = report(analysis, radiograph, tmp_path / "b")
    for one, other in zip(first, again, strict=True):
        assert Path(one.path).read_bytes() == Path(other.path).read_bytes()
        assert one.sop_instance_uid == other.sop_instance_uid
    assert pydicom.dcmread(first[0].path).ContentTime == NOON.astimezone().strftime("%H%M%S.%f")


def test_another_pack_or_image_makes_other_objects(tmp_path: Path, radiograph: Path) -> None:
    """UIDs follow the content: another pack digest or other source bytes are other objects."""
    analysis = answered_analysis(radiograph)
    other_pack = replace(analysis, pack_digests={"chest-xray": "d" * 64})
    other_bytes = replace(analysis, sources=(replace(analysis.sources[0], content_sha256="e" * 64),))
    uids = [
        report(each, radiograph, tmp_path / str(number), NOON + timedelta(hours=number))[0].sop_instance_uid
        for number, each in enumerate((analysis, other_pack, other_bytes, analysis))
    ]
    assert len(set(uids)) == 3
    assert uids[0] == uids[3]


def test_a_retry_that_ends_otherwise_makes_another_report(tmp_path: Path, radiograph: Path) -> None:
    """A task that failed and then ran gives a new report, which an archive that holds the first one keeps as well."""
    analysis = answered_analysis(radiograph)
    *others, failed = analysis.outcomes
    ran = replace(failed, state=TaskState.RAN, error="", score=0.1)
    first = report(analysis, radiograph, tmp_path / "a")[0]
    second = report(replace(analysis, outcomes=(*others, ran)), radiograph, tmp_path / "b")[0]
    assert first.sop_instance_uid != second.sop_instance_uid


def test_times_are_those_of_the_site(tmp_path: Path, radiograph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content Time is the time on the hospital's clock, like the times of the images that it stands beside."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        sr = pydicom.dcmread(report(answered_analysis(radiograph), radiograph, tmp_path / "out")[0].path)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert sr.ContentTime == "213015.250000"


def test_what_is_no_image_is_evidence_only(tmp_path: Path) -> None:
    """A plan or a waveform is in the evidence of its study's report, but no content item calls it an image."""
    source = write_radiograph(tmp_path / "plan.dcm", SOPClassUID=RTPlanStorage)
    refused = refused_analysis(source)
    outcomes = tuple(replace(each, image=refused.sources[0]) for each in refused.outcomes)
    sr = pydicom.dcmread(report(replace(refused, outcomes=outcomes), source, tmp_path / "out")[0].path)
    assert not [item for item in items(sr) if item.ValueType == "IMAGE"]
    evidence = sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert [item.ReferencedSOPClassUID for item in evidence] == [RTPlanStorage]


def test_a_new_report_refers_to_the_one_it_replaces(tmp_path: Path, radiograph: Path) -> None:
    """The report of a later revision names its predecessor; one that says the same is the same and names none."""
    analysis = answered_analysis(radiograph)
    first = report(analysis, radiograph, tmp_path / "a")
    later = replace(analysis, pack_digests={"chest-xray": "d" * 64})
    sources = {analysis.sources[0].sop_instance_uid: radiograph}
    second = DicomReporter(DEVICE).write(later, sources, NOON, tmp_path / "b", first)
    (study,) = pydicom.dcmread(second[0].path).PredecessorDocumentsSequence
    assert (
        study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first[0].sop_instance_uid
    )
    same = DicomReporter(DEVICE).write(analysis, sources, NOON, tmp_path / "c", first)
    assert "PredecessorDocumentsSequence" not in pydicom.dcmread(same[0].path)


def test_an_unvalidated_pack_is_named_in_the_report(tmp_path: Path, radiograph: Path) -> None:
    """A report made with an untrained pack says so."""
    analysis = replace(answered_analysis(radiograph), validations={"chest-xray": "untrained"})
    sr = pydicom.dcmread(report(analysis, radiograph, tmp_path / "out")[0].path)
    assert any("untrained" in item.TextValue for item in named(sr, "121106"))


def test_an_empty_segmentation_makes_no_seg(tmp_path: Path, radiograph: Path) -> None:
    """Nothing segmented is nothing to draw: the SR alone says so."""
    analysis = answered_analysis(radiograph)
    lungs = replace(analysis.outcomes[0], mask=SegmentationMask(np.zeros((96, 80), bool), None))
    objects = report(replace(analysis, outcomes=(lungs, *analysis.outcomes[1:])), radiograph, tmp_path / "out")
    assert [result.kind for result in objects] == ["SR"]
    comments = [item.TextValue for item in named(pydicom.dcmread(objects[0].path), "121106")]
    assert any("Nothing was segmented" in comment for comment in comments)


@pytest.mark.parametrize(
    "file",
    [
        "RG3_UNCR.dcm",
        "explicit_VR-UN.dcm",
        "MR2_UNCR.dcm",
        "US1_UNCR.dcm",
        "color-pl.dcm",
        "liver.dcm",
        "eCT_Supplemental.dcm",
    ],
)
def test_a_refusal_is_a_result_for_every_kind_of_source(tmp_path: Path, pydicom_data: Path, file: str) -> None:
    """Radiograph, CT, MR, ultrasound, a retired SOP class, a SEG, a multi-frame: each gets an SR that says why."""
    source = pydicom_data / file
    (result,) = report(refused_analysis(source), source, tmp_path)
    states = [item.ConceptCodeSequence[0].CodeValue for item in named(pydicom.dcmread(result.path), "task-state")]
    assert states == ["refused", "refused"]


@pytest.mark.parametrize(
    "odd",
    [
        {"PatientName": "Ähm^Ünlü=山田^太郎"},
        {"PatientName": None, "PatientID": None, "StudyDate": None, "AccessionNumber": None},
        {"StudyDescription": "x" * 64},
        {"PatientName": "=".join(("a" * 40, "\u5c71" * 40, "\u3084" * 40))},
    ],
)
def test_odd_patient_values_still_make_valid_objects(tmp_path: Path, odd: dict[str, Any]) -> None:
    """Other scripts, missing values and long ones end in results with the same values, or empty ones."""
    source = tmp_path / "source.dcm"
    write_radiograph(source, SpecificCharacterSet="ISO_IR 192", **odd)
    sr = pydicom.dcmread(report(answered_analysis(source), source, tmp_path / "out")[0].path)
    assert sr.SpecificCharacterSet == "ISO_IR 192"
    assert str(sr.PatientName) == str(odd.get("PatientName", "SYNTHETIC^1") or "")


def test_every_refusal_has_a_code(tmp_path: Path) -> None:
    """No reason is without a coded value whose meaning fits a Code Meaning."""
    assert set(REFUSALS) == set(RefusalCode)
    assert all(len(refusal_code(code).meaning) <= 64 for code in RefusalCode)


def test_without_sources_there_is_no_report(tmp_path: Path, radiograph: Path) -> None:
    """A source that vanished or a study without images gives an error and no half-written file."""
    analysis = answered_analysis(radiograph)
    reporter = DicomReporter(DEVICE)
    with pytest.raises(ReportError, match="without images"):
        reporter.write(analysis, {}, NOON, tmp_path / "out")
    with pytest.raises(ReportError, match="can't be read"):
        reporter.write(analysis, {"1": tmp_path / "gone.dcm"}, NOON, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, radiograph: Path) -> None:
    """Where the results can't be written the error names the path."""
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="can't be written"):
        report(answered_analysis(radiograph), radiograph, tmp_path / "out")


def test_what_is_no_segmentation_is_not_read_as_one(radiograph: Path, tmp_path: Path) -> None:
    """Reading masks out of another object, out of text or out of nothing is an error."""
    text = tmp_path / "text.dcm"
    text.write_text("no DICOM at all")
    for file in (radiograph, text, tmp_path / "gone.dcm"):
        with pytest.raises(ReportError, match="segmentation"):
            masks_of(file)


class FullDisk(io.BytesIO):
    """A stream on a disk without space."""

    def write(self, data: object, /) -> int:
        """Refuse every byte."""
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_no_failure_of_the_study(
    tmp_path: Path, radiograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without space for a result the error is one that waits for space, and no part of a file stays."""
    analysis = answered_analysis(radiograph)
    monkeypatch.setattr(Path, "open", lambda *_, **__: FullDisk())
    with pytest.raises(StorageFullError, match="No space"):
        report(analysis, radiograph, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("odd", "keyword"),
    [({"PatientID": ["123", "456"]}, "PatientID"), ({"AccessionNumber": "ACC-2024-0001-987654"}, "AccessionNumber")],
)
@pytest.mark.filterwarnings("ignore:The value length")
def test_an_identifier_is_never_cut(tmp_path: Path, odd: dict[str, Any], keyword: str) -> None:
    """An identifier that has two values or is too long is left empty: a part of it may be somebody else's."""
    source = tmp_path / "source.dcm"
    write_radiograph(source, **odd)
    sr = pydicom.dcmread(report(answered_analysis(source), source, tmp_path / "out")[0].path)
    assert sr.get(keyword) in {"", None}


def test_another_score_is_another_report(tmp_path: Path, radiograph: Path) -> None:
    """A report that says something else never bears the UID of the one before."""
    analysis = answered_analysis(radiograph)
    changed = tuple(replace(each, score=0.1) if each.score is not None else each for each in analysis.outcomes)
    first = report(analysis, radiograph, tmp_path / "a")
    second = report(replace(analysis, outcomes=changed), radiograph, tmp_path / "b")
    assert not {each.sop_instance_uid for each in first} & {each.sop_instance_uid for each in second}
