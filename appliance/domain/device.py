"""What the appliance says of itself, and how it knows its own results when they come back."""

from dataclasses import dataclass

from appliance.domain.instance import Instance

MANUFACTURER = "Insite"
MODEL_NAME = "Insite appliance"
IMPLEMENTATION_CLASS_UID = "2.25.290038806631770846089306097973258962467"
"""Names this software in associations and in the heads of files (PS3.7 D.3.3.2); a random UUID, fixed for good."""
IMPLEMENTATION_VERSION_NAME = "INSITE"


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """What stands in every object the appliance makes (PS3.3 C.7.5.1 General Equipment).

    Attributes:
        device_uid: A UID of this installation, made at first start.
        version: The software's version.
    """

    serial: str
    device_uid: str
    version: str
    ae_title: str


def made_here(instance: Instance) -> bool:
    """Whether an instance is a result of an Insite appliance: kept and answered, but never analysed."""
    return instance.image.manufacturer == MANUFACTURER and instance.image.model_name == MODEL_NAME
