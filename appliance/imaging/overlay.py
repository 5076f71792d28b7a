"""The picture with a mask's contour over it and a banner, as PNG; nothing of the patient is burnt in."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from appliance.imaging.display import DisplayImage

CONTOUR = (255, 196, 0)
BANNER_BACKGROUND = (24, 24, 24)
BANNER_TEXT = (255, 255, 255)
BANNER_HEIGHT = 28
FONT_SIZE = 16
MARGIN = 8


def overlay_png(
    display: DisplayImage,
    mask_on_source: NDArray[np.bool_] | None,
    *,
    longest_side: int = 900,
    banner: str = "",
) -> bytes:
    """Draw a picture.

    Args:
        display: The picture.
        mask_on_source: bool [Rows, Columns] of the file's own grid, whose outline is drawn; None for none.
        longest_side: Longer side of the picture in pixels; a smaller image is enlarged to it.
        banner: A line above the picture.

    Returns:
        PNG bytes, RGB.
    """
    rows, columns = display.pixels.shape
    scale = longest_side / max(rows, columns)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    grey = Image.fromarray(display.pixels).resize(size, Image.Resampling.BILINEAR)
    picture = Image.fromarray(np.uint8(np.clip(np.asarray(grey), 0, 1) * 255)).convert("RGB")
    if mask_on_source is not None:
        picture.paste(CONTOUR, mask=_contour(display.from_source(mask_on_source), size))
    if banner:
        picture = _with_banner(picture, banner)
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _contour(mask: NDArray[np.bool_], size: tuple[int, int]) -> Image.Image:
    """The mask's inner edge, three pixels wide, at the picture's size."""
    filled = Image.fromarray(np.uint8(mask) * 255).resize(size, Image.Resampling.BILINEAR).point(_is_inside)
    eroded = filled.filter(ImageFilter.MinFilter(5))
    edge = np.asarray(filled) > np.asarray(eroded)
    return Image.fromarray(np.uint8(edge) * 255)


def _is_inside(value: int) -> int:
    return 255 if value > 127 else 0  # noqa: PLR2004 - half of an 8-bit mask


def _with_banner(picture: Image.Image, banner: str) -> Image.Image:
    framed = Image.new("RGB", (picture.width, picture.height + BANNER_HEIGHT), BANNER_BACKGROUND)
    framed.paste(picture, (0, BANNER_HEIGHT))
    draw = ImageDraw.Draw(framed)
    font = ImageFont.load_default(FONT_SIZE)
    draw.text((MARGIN, BANNER_HEIGHT // 2), banner, fill=BANNER_TEXT, font=font, anchor="lm")
    return framed
