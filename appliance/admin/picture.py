"""The picture of one image with the contour of what was segmented, for a page: never kept, made when asked for."""

from collections.abc import Sequence
from pathlib import Path

from appliance.domain.findings import ResultObject
from appliance.domain.ports import StoredInstance
from appliance.imaging.display import load_display
from appliance.imaging.overlay import overlay_png
from appliance.reporting.read_back import masks_of

BANNER = "AI result, unverified"


def picture_png(stored: StoredInstance, objects: Sequence[ResultObject], longest_side: int) -> bytes:
    """A PNG of the image as displayed; with a contour and the banner where a segmentation object speaks of it.

    The mask comes out of the DICOM object that was sent, not out of a copy: what is shown is what the PACS has.

    Raises:
        InputError: The image can't be decoded or turned upright.
        ReportError: The segmentation object can't be read.
    """
    display = load_display(stored.path)
    mask = None
    for each in objects:
        if each.kind == "SEG":
            mask = masks_of(Path(each.path)).get(stored.instance.identity.sop_instance_uid)
    banner = "" if mask is None else BANNER
    return overlay_png(display, mask, longest_side=longest_side, banner=banner)
