"""The model's input, masks on the source's grid, and the picture with its contour."""

from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from appliance.domain.manifest import InputSpec
from appliance.imaging.display import DisplayImage, Turn
from appliance.imaging.mask import mask_from_probability
from appliance.imaging.model_input import NoContrastError, model_input_from_display
from appliance.imaging.overlay import BANNER_HEIGHT, CONTOUR, overlay_png

SPEC = InputSpec("image", 64, 64, 0.5, 99.5)


AS_STORED = Turn()


def display_of(
    pixels: NDArray[np.float32], turn: Turn = AS_STORED, spacing: tuple[float, float] | None = None
) -> DisplayImage:
    """A displayed picture."""
    return DisplayImage(pixels.astype(np.float32), turn, spacing)


def test_the_input_is_stretched_and_uses_the_whole_range() -> None:
    """Any size and aspect becomes the pack's square, and its percentiles become black and white."""
    picture = np.linspace(0.4, 0.6, 300 * 200, dtype=np.float32).reshape(300, 200)
    made = model_input_from_display(picture, SPEC)
    assert made.shape == (64, 64)
    assert made.dtype == np.uint8
    assert (made.min(), made.max()) == (0, 255)


def test_brightness_and_contrast_of_the_display_do_not_matter() -> None:
    """Two windows on one image, neither of which clips, give the same input to within rounding."""
    picture = np.random.default_rng(1).random((100, 90), dtype=np.float32)
    one = model_input_from_display(picture, SPEC).astype(int)
    other = model_input_from_display(0.2 + 0.5 * picture, SPEC).astype(int)
    assert np.abs(one - other).max() <= 1


def test_a_blank_picture_is_refused() -> None:
    """A picture without contrast is no input."""
    with pytest.raises(NoContrastError, match="no contrast"):
        model_input_from_display(np.full((50, 50), 0.5, np.float32), SPEC)


def probability() -> NDArray[np.float32]:
    """Two large islands and a speck on 32 x 32."""
    made = np.zeros((32, 32), np.float32)
    made[8:24, 4:12] = made[8:24, 20:28] = 0.9
    made[1, 1] = 0.9
    return made


def test_a_mask_lies_on_the_sources_own_grid() -> None:
    """The probability is stretched back to the picture and turned back to the stored grid; specks are gone."""
    display = display_of(np.zeros((64, 128)), Turn(transposed=True), (0.5, 0.2))
    mask = mask_from_probability(probability(), display, 0.5)
    assert mask.pixels.shape == (128, 64)
    assert mask.pixels[30, 30]
    assert not mask.pixels[:10, :10].any()
    assert mask.pixels.mean() == pytest.approx(2 * 16 * 8 / 32**2, rel=0.1)
    assert mask.area_mm2 == pytest.approx(mask.pixels.sum() * 0.1)


def test_without_spacing_there_is_no_area() -> None:
    """No figure in mm² without a pixel spacing."""
    assert mask_from_probability(probability(), display_of(np.zeros((64, 64))), 0.5).area_mm2 is None


def test_nothing_above_the_threshold_is_an_empty_mask() -> None:
    """An empty segmentation is empty, not an error."""
    assert not mask_from_probability(probability(), display_of(np.zeros((64, 64))), 0.95).pixels.any()


def test_islands_that_meet_further_down_are_one() -> None:
    """A U-shaped island is kept whole, both arms of it."""
    made = np.zeros((32, 32), np.float32)
    made[2:30, 4:8] = made[2:30, 24:28] = made[26:30, 4:28] = 1
    made[2:4, 14:16] = 1
    mask = mask_from_probability(made, display_of(np.zeros((32, 32))), 0.5).pixels
    assert mask[5, 5]
    assert mask[5, 25]
    assert not mask[3, 15]


def test_the_contour_follows_the_mask() -> None:
    """The outline is drawn at the mask's edge and nowhere else, below a banner."""
    mask = np.zeros((100, 80), bool)
    mask[30:70, 20:60] = True
    png = overlay_png(display_of(np.zeros((100, 80))), mask, longest_side=200, banner="AI result, unverified")
    picture = np.asarray(Image.open(BytesIO(png)))
    assert picture.shape == (200 + BANNER_HEIGHT, 160, 3)
    drawn = np.argwhere((picture[BANNER_HEIGHT:] == CONTOUR).all(axis=-1))
    assert drawn.min(axis=0) == pytest.approx([60, 40], abs=1)
    assert drawn.max(axis=0) == pytest.approx([139, 119], abs=1)
    assert not (picture[BANNER_HEIGHT + 100, 80] == CONTOUR).all()


def test_a_mask_of_a_turned_image_is_drawn_upright() -> None:
    """The mask on the stored grid is turned with its picture."""
    mask = np.zeros((80, 100), bool)
    mask[:20, :40] = True
    png = overlay_png(display_of(np.zeros((100, 80)), Turn(transposed=True)), mask, longest_side=100)
    drawn = np.argwhere((np.asarray(Image.open(BytesIO(png))) == CONTOUR).all(axis=-1))
    assert drawn.max(axis=0) == pytest.approx([39, 19], abs=1)
