"""The segmentation object: BINARY, on the source image's own grid, one segment per segmentation task."""

from collections.abc import Mapping, Sequence

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom.dataset import Dataset

from appliance.domain.device import MANUFACTURER, MODEL_NAME, DeviceIdentity
from appliance.domain.findings import StudyAnalysis, TaskOutcome
from appliance.reporting import codes
from appliance.reporting.naming import Naming

SERIES_NUMBER = 9902


def segmented(analysis: StudyAnalysis) -> list[TaskOutcome]:
    """The outcomes that have something to show: a mask that is not empty."""
    return [
        outcome
        for outcome in analysis.outcomes
        if outcome.mask is not None and outcome.image is not None and outcome.mask.pixels.any()
    ]


def segmentation_of(
    analysis: StudyAnalysis, headers: Mapping[str, Dataset], device: DeviceIdentity, naming: Naming
) -> Segmentation | None:
    """The segmentation of one study, or None when nothing was segmented.

    Segments of one image share one object; the image is the one that the first segmentation speaks of, and the
    analysis gives all segmentations of a study the same one.

    Args:
        headers: Clean headers of the source images by SOP Instance UID.
    """
    shown = segmented(analysis)
    if not shown or shown[0].image is None:
        return None
    source_uid = shown[0].image.sop_instance_uid
    same = [each for each in shown if each.image is not None and each.image.sop_instance_uid == source_uid]
    source = headers[source_uid]
    planes = [each.mask.pixels for each in same if each.mask is not None]
    segmentation = Segmentation(
        source_images=[source],
        pixel_array=np.stack(planes, axis=-1)[np.newaxis].astype(np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=_descriptions(same, analysis, naming),
        series_instance_uid=naming.uid("series-SEG"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=naming.uid("SEG"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=device.version,
        device_serial_number=device.serial,
        content_label="AI_UNVERIFIED",
        content_description="AI result, unverified",
    )
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = naming.uid("dimensions")
    segmentation.SeriesDescription = "AI segmentation, unverified"
    if "PatientOrientation" in source and "ImageOrientationPatient" not in source:
        segmentation.PatientOrientation = source.PatientOrientation
    return segmentation


def _descriptions(outcomes: Sequence[TaskOutcome], analysis: StudyAnalysis, naming: Naming) -> list[SegmentDescription]:
    return [
        SegmentDescription(
            segment_number=number,
            segment_label=outcome.finding.meaning,
            segmented_property_category=codes.ANATOMICAL_STRUCTURE,
            segmented_property_type=codes.coded(outcome.finding),
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=AlgorithmIdentificationSequence(
                name=f"{outcome.pack}.{outcome.task}",
                family=codes.ARTIFICIAL_INTELLIGENCE,
                version=analysis.pack_digests.get(outcome.pack, "")[:12] or "unknown",
                source=MANUFACTURER,
            ),
            tracking_uid=naming.uid(f"tracking-{outcome.pack}.{outcome.task}"),
            tracking_id=outcome.title,
            display_color=CIELabColor.from_rgb(*codes.LUNG_COLOUR_RGB),
        )
        for number, outcome in enumerate(outcomes, start=1)
    ]
