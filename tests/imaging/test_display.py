"""Pictures: windowed, in the right polarity, upright, with an exact way back."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from appliance.domain.errors import PixelDecodeError
from appliance.imaging.display import OrientationError, Turn, load_display, turn_from_orientation
from tests.fakes.radiographs import write_radiograph

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def shown(tmp_path: Path, **attributes: Any) -> np.ndarray[Any, Any]:
    """The displayed ramp of 0 to 4095 under these attributes, as stored."""
    file = write_radiograph(tmp_path / "a.dcm", pixels=RAMP, **{"PatientOrientation": None, **attributes})
    return load_display(file).pixels


def test_without_window_the_full_range_is_shown(tmp_path: Path) -> None:
    """The lowest value is black and the highest white; MONOCHROME1 is the other way round."""
    assert (shown(tmp_path)[0, 0], shown(tmp_path)[-1, -1]) == (0, 1)
    inverted = shown(tmp_path, PhotometricInterpretation="MONOCHROME1")
    assert (inverted[0, 0], inverted[-1, -1]) == (1, 0)


@pytest.mark.parametrize(
    ("function", "black", "middle", "white"),
    [(None, 500, 1000, 1499), ("LINEAR_EXACT", 500, 1000, 1500), ("SIGMOID", 0, 1000, 4095)],
)
def test_the_window_is_applied_as_the_standard_says(
    tmp_path: Path, function: str | None, black: int, middle: int, white: int
) -> None:
    """LINEAR, LINEAR_EXACT and SIGMOID windows (PS3.3 C.11.2.1.2 and .3) give black, middle grey and white."""
    extra = {} if function is None else {"VOILUTFunction": function}
    picture = shown(tmp_path, WindowCenter=1000, WindowWidth=1000, **extra).ravel()
    assert picture[black] == pytest.approx(0, abs=0.02)
    assert picture[middle] == pytest.approx(0.5, abs=0.01)
    assert picture[white] == pytest.approx(1, abs=0.02)


def test_rescale_comes_before_the_window(tmp_path: Path) -> None:
    """Slope and intercept give the values that the window speaks of."""
    picture = shown(tmp_path, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=1000, WindowWidth=2000).ravel()
    assert picture[1000] == pytest.approx(0.5, abs=0.01)


def test_a_voi_lookup_table_is_used_before_a_window(tmp_path: Path) -> None:
    """A VOI LUT Sequence decides when there is one."""
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 16], np.arange(65535, -1, -16, dtype=np.uint16).tobytes()
    picture = shown(tmp_path, VOILUTSequence=Sequence([table]), WindowCenter=1, WindowWidth=2).ravel()
    assert picture[0] == pytest.approx(1)
    assert picture[-1] == pytest.approx(0, abs=0.001)


def test_padding_does_not_stretch_the_range(tmp_path: Path) -> None:
    """Values marked as padding are left out of the range and clipped."""
    pixels = RAMP.copy()
    pixels[:32] = 4095
    file = write_radiograph(tmp_path / "a.dcm", pixels=pixels, PatientOrientation=None, PixelPaddingValue=4095)
    assert load_display(file).pixels[40, 0] < 0.6


def test_a_blank_image_is_black(tmp_path: Path) -> None:
    """An image of one value is shown, as black."""
    file = write_radiograph(tmp_path / "a.dcm", pixels=np.full((8, 8), 7, np.uint16))
    assert load_display(file).pixels.max() == 0


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (("L", "F"), Turn()),
        (("R", "F"), Turn(left_right=True)),
        (("L", "H"), Turn(upside_down=True)),
        (("R", "H"), Turn(left_right=True, upside_down=True)),
        (("F", "L"), Turn(transposed=True)),
        (("F", "R"), Turn(transposed=True, left_right=True)),
        (("H", "L"), Turn(transposed=True, upside_down=True)),
        (("H", "R"), Turn(transposed=True, left_right=True, upside_down=True)),
        (("LH", "FR"), Turn()),
        ((), Turn()),
        (("", ""), Turn()),
        (("LE", "X"), Turn()),
    ],
)
def test_every_frontal_orientation_is_turned_upright(orientation: tuple[str, ...], turn: Turn) -> None:
    """Rows run to the patient's left and columns to the feet, whatever the file stores; absent means as stored."""
    assert turn_from_orientation(orientation) == turn


@pytest.mark.parametrize("orientation", [("P", "F"), ("A", "F"), ("L", "P"), ("L", "R"), ("F", "H")])
def test_a_lateral_or_impossible_orientation_is_refused(orientation: tuple[str, str]) -> None:
    """A picture that runs from front to back is no frontal view."""
    with pytest.raises(OrientationError, match="no frontal view"):
        turn_from_orientation(orientation)


@pytest.mark.parametrize("first", list(itertools.product([False, True], repeat=3)))
@given(rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_the_way_back_is_exact(first: tuple[bool, bool, bool], rows: int, columns: int) -> None:
    """For all eight turns, what was turned upright and back is what was stored."""
    turn = Turn(*first)
    stored = np.arange(rows * columns).reshape(rows, columns)
    assert np.array_equal(turn.stored(turn.upright(stored)), stored)


def test_a_marker_stays_on_the_patients_side(tmp_path: Path) -> None:
    """A mark on the patient's left is on the picture's right for every stored orientation, and finds its way back."""
    upright = np.zeros((6, 4), np.uint16)
    upright[0, 3] = 4095
    for letters in (("L", "F"), ("R", "F"), ("L", "H"), ("F", "L"), ("H", "R")):
        stored = np.ascontiguousarray(turn_from_orientation(letters).stored(upright))
        file = write_radiograph(tmp_path / "a.dcm", pixels=stored, PatientOrientation=list(letters))
        display = load_display(file)
        assert display.pixels[0, 3] == 1
        assert np.array_equal(display.to_source(display.pixels > 0), stored > 0)
        assert np.array_equal(display.from_source(stored > 0), upright > 0)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"PixelData": None}, "decoded"),
        ({"Rows": 0}, "no image"),
        ({"Rows": 60000, "Columns": 60000}, "too large"),
        ({"BitsAllocated": 12}, "decoded"),
        ({"Rows": 65, "Columns": 640}, "decoded"),
    ],
)
def test_pixels_that_cannot_be_decoded_give_one_clear_error(
    tmp_path: Path, attributes: dict[str, Any], words: str
) -> None:
    """No pixels, a header that lies, or absurd sizes: an error that says so, before memory is taken."""
    file = write_radiograph(tmp_path / "a.dcm", pixels=RAMP, PatientOrientation=None, **attributes)
    with pytest.raises(PixelDecodeError, match=words):
        load_display(file)


def test_a_damaged_code_stream_is_named_by_its_transfer_syntax(tmp_path: Path, pydicom_data: Path) -> None:
    """The sentence names the transfer syntax; what the codec said of it is for the log."""
    data = bytearray((pydicom_data / "RG1_J2KR.dcm").read_bytes())
    start = data.index(b"\xff\x4f\xff\x51")
    data[start : start + 4000] = bytes(4000)
    (tmp_path / "a.dcm").write_bytes(data)
    with pytest.raises(PixelDecodeError, match="JPEG 2000") as caught:
        load_display(tmp_path / "a.dcm")
    assert str(caught.value.__cause__) not in str(caught.value)


def test_colour_is_shown_by_its_luminance(pydicom_data: Path) -> None:
    """A colour ultrasound becomes a grey picture."""
    pixels = load_display(pydicom_data / "US1_UNCR.dcm").pixels
    assert pixels.ndim == 2
    assert 0 <= pixels.min() < pixels.max() <= 1


def test_a_compressed_radiograph_shows_what_the_uncompressed_one_shows(pydicom_data: Path) -> None:
    """JPEG 2000 lossless and raw give the same picture."""
    raw, compressed = (load_display(pydicom_data / f"RG1_{kind}.dcm").pixels for kind in ("UNCR", "J2KR"))
    assert np.array_equal(raw, compressed)


@pytest.mark.data
@pytest.mark.slow
def test_every_real_file_gives_a_picture_or_a_clear_error(shared_data: Path) -> None:
    """Many vendors, transfer syntaxes and defects: float32 in 0 to 1, or one of two errors, and no warning."""
    pictures = 0
    for file in sorted(file for file in (shared_data / "dicom").rglob("*") if file.is_file()):
        try:
            pixels = load_display(file).pixels
        except (PixelDecodeError, OrientationError):
            continue
        assert pixels.dtype == np.float32
        assert 0 <= pixels.min() <= pixels.max() <= 1
        pictures += 1
    assert pictures > 400
