"""The head of a DICOM file: preamble and file meta information before a data set that is kept as it came."""

from dataclasses import dataclass

from appliance.domain.device import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

PREAMBLE = b"\0" * 128 + b"DICM"
_VERSION = b"\0\1"
_GROUP = 0x0002
_LONG = {b"OB"}
"""Value representations with a length of four bytes, among those written here (PS3.5 7.1.2)."""


@dataclass(frozen=True, slots=True)
class DataSetOrigin:
    """What a C-STORE request says of its data set: identifiers, encoding, and the AE title that sent it."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str


def file_head(origin: DataSetOrigin) -> bytes:
    """Preamble and file meta information (PS3.10 7.1), Explicit VR Little Endian.

    Written by hand because a library would judge the values, and a received identifier is kept as it came.
    """
    elements = b"".join(
        (
            _element(0x0001, b"OB", _VERSION),
            _element(0x0002, b"UI", origin.sop_class_uid.encode("ascii", "replace")),
            _element(0x0003, b"UI", origin.sop_instance_uid.encode("ascii", "replace")),
            _element(0x0010, b"UI", origin.transfer_syntax_uid.encode("ascii", "replace")),
            _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode("ascii")),
            _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode("ascii")),
            _element(0x0016, b"AE", origin.calling_ae.encode("ascii", "replace")),
        )
    )
    return PREAMBLE + _element(0x0000, b"UL", len(elements).to_bytes(4, "little")) + elements


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    tag = _GROUP.to_bytes(2, "little") + number.to_bytes(2, "little")
    if vr in _LONG:
        return tag + vr + b"\0\0" + len(value).to_bytes(4, "little") + value
    return tag + vr + len(value).to_bytes(2, "little") + value
