"""Every code that the appliance writes, in one table; private ones under 99INSITE where no standard code says it."""

from pydicom.sr.coding import Code

from appliance.domain.findings import RefusalCode, TaskState
from appliance.domain.manifest import Code as DomainCode

PRIVATE = "99INSITE"
LONGEST_MEANING = 64
"""Code Meaning is LO (PS3.5 6.2)."""

COMMENT = Code("121106", "DCM", "Comment")
DEVICE = Code("121007", "DCM", "Device")
AREA = Code("42798000", "SCT", "Area")
SQUARE_MILLIMETRE = Code("mm2", "UCUM", "square millimeter")
NO_UNITS = Code("1", "UCUM", "no units")
POSITIVE = Code("10828004", "SCT", "Positive")
NEGATIVE = Code("260385009", "SCT", "Negative")
UNKNOWN = Code("261665006", "SCT", "Unknown")
PATIENT_AGE = Code("397669002", "SCT", "Age")
ANATOMICAL_STRUCTURE = Code("123037004", "SCT", "Anatomical Structure")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")

SCORE = Code("score", PRIVATE, "Score from 0 to 1")
OPERATING_POINT = Code("operating-point", PRIVATE, "Operating point of the score")
RESULT = Code("result", PRIVATE, "Result at the operating point")
STATE = Code("task-state", PRIVATE, "What the task did")
REFUSAL = Code("refusal", PRIVATE, "Reason for refusing")

STATES = {
    TaskState.RAN: Code("ran", PRIVATE, "Ran"),
    TaskState.REFUSED: Code("refused", PRIVATE, "Refused: not analysed"),
    TaskState.FAILED: Code("failed", PRIVATE, "Failed: not analysed"),
}

REFUSALS = {
    RefusalCode.NO_IMAGES: "No images",
    RefusalCode.NO_PIXELS: "No pixel data",
    RefusalCode.PIXELS_UNREADABLE: "Pixel data can't be decoded",
    RefusalCode.MODALITY: "Modality does not fit",
    RefusalCode.BODY_PART: "Body part does not fit",
    RefusalCode.VIEW: "View does not fit",
    RefusalCode.MULTI_FRAME: "Multi-frame image",
    RefusalCode.COLOUR: "Colour image",
    RefusalCode.FOR_PROCESSING: "Raw image, for processing",
    RefusalCode.ORIENTATION: "Orientation is not frontal",
    RefusalCode.AGE_UNKNOWN: "Age unknown",
    RefusalCode.AGE_OUT_OF_RANGE: "Age out of range",
    RefusalCode.NO_CONTRAST: "Image without contrast",
    RefusalCode.NOT_RECOGNISED: "Not recognised as the kind of image it reads",
    RefusalCode.OUT_OF_DISTRIBUTION: "Unlike the images that it was trained on",
    RefusalCode.GUARD_UNAVAILABLE: "The guard could not answer",
}

PROCEDURES = {
    "CR": Code("168537006", "SCT", "Plain radiography"),
    "DX": Code("168537006", "SCT", "Plain radiography"),
    "CT": Code("77477000", "SCT", "Computed tomography"),
    "MR": Code("113091000", "SCT", "Magnetic resonance imaging"),
    "US": Code("16310003", "SCT", "Ultrasonography"),
}
IMAGING_PROCEDURE = Code("363679005", "SCT", "Imaging")

LUNG_COLOUR_RGB = (0, 151, 206)
"""Recommended display colour of the lungs' segment (PS3.3 C.10.7.1.1 stores it as CIELab)."""


def refusal_code(code: RefusalCode) -> Code:
    """The coded reason of a refusal."""
    return Code(code.value, PRIVATE, REFUSALS[code])


def coded(code: DomainCode) -> Code:
    """A manifest's code as the library's type."""
    return Code(code.value, code.scheme, code.meaning[:LONGEST_MEANING])
