"""Headers: identity, patient, image attributes, and what happens to broken ones."""

import hashlib
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from appliance.domain.errors import UnreadableFileError
from appliance.domain.instance import AgeSource
from appliance.imaging.display import load_display
from appliance.imaging.header import content_digest, instance_from_dataset, read_instance, spacing_of
from tests.fakes.radiographs import radiograph_dataset, write_radiograph


def code(value: str, scheme: str = "SCT", meaning: str = "meaning") -> Sequence:
    """A code sequence of one item."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return Sequence([item])


def test_a_real_radiograph_is_read(pydicom_data: Path) -> None:
    """Identity, patient and image of a real CR come out; a pixel spacing of zero counts as absent."""
    instance = read_instance(pydicom_data / "RG1_UNCR.dcm")
    assert instance.identity.study_uid == "1.3.6.1.4.1.5962.1.2.9.20040826185059.5457"
    assert (instance.patient.patient_id, instance.patient.sex) == ("9RG1", "F")
    assert instance.patient.age_years == pytest.approx(64.5, abs=0.1)
    assert instance.patient.age_source is AgeSource.BIRTH_DATE
    assert (instance.image.body_part, instance.image.view_position) == ("CHEST", "PA")
    assert instance.image.pixel_spacing_mm is None
    assert instance.image.patient_orientation == ("L", "F")


@pytest.mark.parametrize(
    ("attributes", "source"),
    [
        ({"PatientAge": "007Y", "PatientBirthDate": ""}, AgeSource.PATIENT_AGE),
        ({"PatientAge": "007Y"}, AgeSource.UNKNOWN),
        ({"PatientAge": None, "PatientBirthDate": "20000101"}, AgeSource.BIRTH_DATE),
        ({"PatientAge": "", "PatientBirthDate": "20000101", "StudyDate": ""}, AgeSource.UNKNOWN),
        ({"PatientAge": None, "PatientBirthDate": "11111111"}, AgeSource.UNKNOWN),
        ({"PatientAge": None, "PatientBirthDate": "20990101"}, AgeSource.UNKNOWN),
    ],
)
def test_the_age_comes_from_the_age_or_the_birth_date(attributes: dict[str, Any], source: AgeSource) -> None:
    """Patient Age counts first, then birth date and study date; impossible ones leave the age unknown."""
    patient = instance_from_dataset(radiograph_dataset(**attributes), "0" * 64, "1.2").patient
    assert patient.age_source is source
    assert (patient.age_years is None) == (source is AgeSource.UNKNOWN)


@pytest.mark.parametrize(
    ("spacing", "imager", "expected"),
    [([0.2, 0.3], None, (0.2, 0.3)), ([0, 0], None, None), ([0, 0], [0.1, 0.1], (0.1, 0.1)), (None, None, None),
     ([-1, 1], None, None)],
)  # fmt: skip
def test_a_spacing_that_is_not_positive_counts_as_absent(
    spacing: list[float] | None, imager: list[float] | None, expected: tuple[float, float] | None
) -> None:
    """Pixel Spacing, else Imager Pixel Spacing, and never zero."""
    dataset = radiograph_dataset(PixelSpacing=spacing)
    if imager is not None:
        dataset.ImagerPixelSpacing = imager
    assert spacing_of(dataset) == expected


def test_view_and_body_part_may_be_coded() -> None:
    """A DX image that codes its view and region is understood like one that spells them."""
    dataset = radiograph_dataset(ViewPosition=None, BodyPartExamined=None)
    dataset.ViewCodeSequence, dataset.AnatomicRegionSequence = code("272479007"), code("T-D3000", "SRT")
    image = instance_from_dataset(dataset, "0" * 64, "1.2").image
    assert (image.view_position, image.body_part) == ("PA", "CHEST")
    dataset.ViewCodeSequence, dataset.AnatomicRegionSequence = code("0", meaning="odd"), code("0", meaning="foot")
    image = instance_from_dataset(dataset, "0" * 64, "1.2").image
    assert (image.view_position, image.body_part) == ("ODD", "FOOT")


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"])
def test_a_missing_identifier_is_named(keyword: str) -> None:
    """Without the UIDs that tell images apart an instance can't be kept; the sentence gives name and tag."""
    dataset = radiograph_dataset()
    delattr(dataset, keyword)
    words = {"SOPInstanceUID": "0008,0018", "StudyInstanceUID": "0020,000D"}.get(keyword, "UID")
    with pytest.raises(UnreadableFileError, match=words):
        instance_from_dataset(dataset, "0" * 64, "1.2")


def test_a_broken_value_is_an_absent_one(tmp_path: Path) -> None:
    """Values that break their VR leave the attribute absent and the rest intact, without a warning."""
    dataset = radiograph_dataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
    file = tmp_path / "odd.dcm"
    dataset.save_as(file, enforce_file_format=True)
    raw = file.read_bytes().replace(
        b"\x28\x00\x30\x00\x08\x00\x00\x002.0\\2.0 ", b"\x28\x00\x30\x00\x08\x00\x00\x00x.0\\y.0 "
    )
    file.write_bytes(raw)
    instance = read_instance(file)
    assert instance.image.pixel_spacing_mm is None
    assert instance.image.rows == dataset.Rows


def test_the_digest_is_of_the_data_set_alone(tmp_path: Path) -> None:
    """The same data set under another file meta information has the same digest; another data set has another."""
    first = write_radiograph(tmp_path / "a.dcm")
    again = pydicom.dcmread(first)
    again.file_meta.SourceApplicationEntityTitle = "ELSEWHERE"
    again.save_as(tmp_path / "b.dcm")
    other = write_radiograph(tmp_path / "c.dcm", PatientName="Other")
    digests = [content_digest(file) for file in (first, tmp_path / "b.dcm", other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"plain text, long enough to be looked at " * 10,
        lambda _: b"",
        lambda data: data[:140],
        lambda data: data[:400],
        lambda data: data[:-100],
        lambda data: data[:-1],
    ],
)
def test_what_is_no_whole_dicom_file_is_refused(tmp_path: Path, damage: Any) -> None:
    """Text, nothing, and files cut in the meta information, the header or the pixels give one clear error."""
    file = write_radiograph(tmp_path / "a.dcm")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UnreadableFileError) as caught:
        read_instance(file)
    assert caught.value.way_forward


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A file that vanished is an unreadable file, not a crash."""
    with pytest.raises(UnreadableFileError, match="opened"):
        read_instance(tmp_path / "gone.dcm")


@pytest.mark.parametrize("bytes_kept", [600, 1000, 1700, 1_000_000, -100])
def test_a_compressed_file_that_was_cut_is_called_truncated(
    tmp_path: Path, pydicom_data: Path, bytes_kept: int
) -> None:
    """Wherever a compressed radiograph is cut, in an element, a sequence or the pixels, the sentence says so."""
    file = tmp_path / "cut.dcm"
    file.write_bytes((pydicom_data / "RG1_J2KR.dcm").read_bytes()[:bytes_kept])
    with pytest.raises(UnreadableFileError, match="truncated"):
        read_instance(file)


def test_a_deflated_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    """A deflated data set that does not inflate is an unreadable file."""
    dataset = radiograph_dataset()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file = tmp_path / "deflated.dcm"
    dataset.save_as(file, enforce_file_format=True)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UnreadableFileError, match="parsed"):
        read_instance(file)


@pytest.mark.parametrize(
    ("name", "syntax"),
    [
        ("ExplVR_BigEndNoMeta.dcm", "1.2.840.10008.1.2.2"),
        ("ExplVR_LitEndNoMeta.dcm", "1.2.840.10008.1.2.1"),
        ("rtstruct.dcm", "1.2.840.10008.1.2"),
    ],
)
@pytest.mark.data
def test_a_file_without_meta_information_has_the_syntax_found_in_it(shared_data: Path, name: str, syntax: str) -> None:
    """Files of a bare data set are read, in either byte order, and named by the syntax that they turn out to have."""
    assert read_instance(shared_data / "dicom/pydicom_core" / name).identity.transfer_syntax_uid == syntax


def test_a_patient_id_with_a_backslash_stays_whole() -> None:
    """Two patients whose identifiers differ only after a backslash stay two patients."""
    dataset = radiograph_dataset(PatientID=["A", "B"])
    assert instance_from_dataset(dataset, "0" * 64, "1.2").patient.patient_id == "A\\B"


@pytest.mark.data
def test_a_dicomdir_is_an_index_not_an_instance(shared_data: Path, tmp_path: Path) -> None:
    """A DICOMDIR is refused by name."""
    shutil.copy(shared_data / "dicom/pydicom_core/dicomdirtests/DICOMDIR", tmp_path)
    with pytest.raises(UnreadableFileError, match="DICOMDIR"):
        read_instance(tmp_path / "DICOMDIR")


def test_reading_at_once_leaves_other_warnings_on(pydicom_data: Path) -> None:
    """Many threads may read odd files at once; no warning gets out, and warnings of other code are still heard."""
    with ThreadPoolExecutor(8) as threads:
        read = list(
            threads.map(read_instance, [pydicom_data / "OT-PAL-8-face.dcm", pydicom_data / "RG1_UNCR.dcm"] * 20)
        )
    assert len(read) == 40
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", UserWarning, stacklevel=1)
    assert not any(action == "ignore" and category is Warning and module is None
                   for action, _, category, module, _ in warnings.filters)  # fmt: skip


@pytest.mark.data
def test_every_real_file_is_an_instance_or_a_clear_error(shared_data: Path) -> None:
    """Some 670 real files of many vendors: each gives an instance or a sentence, none a warning or another error."""
    read = refused = 0
    for file in sorted(file for file in (shared_data / "dicom").rglob("*") if file.is_file()):
        try:
            instance = read_instance(file)
        except UnreadableFileError:
            refused += 1
        else:
            assert instance.identity.study_uid
            read += 1
    assert read > 600
    assert refused > 20


def test_a_data_set_that_begins_with_meta_elements_is_hashed_whole(tmp_path: Path) -> None:
    """Elements of group 0002 in the data set itself count as content: the group length says where the head ends."""
    file = write_radiograph(tmp_path / "a.dcm")
    whole = file.read_bytes()
    end = 144 + int.from_bytes(whole[140:144], "little")
    stray = b"\x02\0\x16\0AE\x04\0HERE"
    file.write_bytes(whole[:end] + stray + whole[end:])
    assert content_digest(file) == hashlib.sha256(stray + whole[end:]).hexdigest()


def test_a_large_deflated_file_is_read(tmp_path: Path) -> None:
    """A deflated data set whose pixels inflate to more than the file holds is whole, and its pixels can be shown."""
    dataset = radiograph_dataset(pixels=np.zeros((400, 300), np.uint16))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert read_instance(tmp_path / "a.dcm").image.rows == 400
    assert load_display(tmp_path / "a.dcm").pixels.shape == (400, 300)
