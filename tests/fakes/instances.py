"""Instances as the appliance knows them, made by hand."""

from dataclasses import replace
from typing import Any

from appliance.domain.instance import AgeSource, ImageAttributes, Instance, InstanceIdentity, Patient


def radiograph(age: float | None = 64.0, **image: Any) -> Instance:
    """An adult's chest radiograph, with attributes changed."""
    attributes = ImageAttributes(
        modality="CR",
        body_part="CHEST",
        view_position="PA",
        laterality="",
        patient_orientation=("L", "F"),
        photometric="MONOCHROME1",
        rows=1955,
        columns=1841,
        frames=1,
        samples_per_pixel=1,
        bits_stored=15,
        pixel_spacing_mm=None,
        presentation_intent="",
        manufacturer="Acme",
        model_name="",
        study_date="20040826",
        description="THORAX",
        has_pixels=True,
    )
    source = AgeSource.UNKNOWN if age is None else AgeSource.PATIENT_AGE
    return Instance(
        InstanceIdentity("1.2.3", "1.2.840.10008.5.1.4.1.1.1", "1.2", "1.1", "1.2.840.10008.1.2.1", "0" * 64),
        Patient("P1", "", "A^B", "", "F", age, source),
        replace(attributes, **image),
    )
