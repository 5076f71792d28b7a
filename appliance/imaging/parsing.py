"""The one edge to the DICOM parser: odd bytes become absent values or one clear error, never a traceback."""

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import pydicom
from PIL import Image
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from appliance.domain.errors import UnreadableFileError

PARSE_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    NotImplementedError,
    RecursionError,
    OverflowError,
    MemoryError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What the parser and its codecs raise on bytes that are not what they claim; no smaller set is documented."""

DEFER_BYTES = 65_536
"""Values longer than this stay on disk until they are asked for."""
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
UNDEFINED_LENGTH = 0xFFFFFFFF
SHORTEST_ELEMENT = 8
"""Bytes of tag, VR and length (PS3.5 7.1.2)."""
FIRST_GROUPS = frozenset({0x0002, 0x0004, 0x0008, 0x0800})
"""Groups with which a file without preamble may plausibly begin; the last is 0008 in big endian."""
PARSER_MODULES = r"(pydicom|pylibjpeg|libjpeg|openjpeg|rle|gdcm|jpeg_ls|PIL)(\.|$)"
PADDING = "\0 \n\r\t"
SEND_AGAIN = "Send it again from its source."


def silence_parser() -> None:
    """Silence the parser's remarks on odd values: they are expected, and answered by treating a value as absent.

    The filter is narrow and stays. `warnings.catch_warnings` swaps the filters of the whole process: of two threads
    that read files at once, one would leave every warning of the process switched off.
    """
    if not any(getattr(module, "pattern", "") == PARSER_MODULES for _, _, _, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=PARSER_MODULES)


def read_dataset(path: Path) -> FileDataset:
    """Parse a file, with or without preamble; long values stay on disk.

    Raises:
        UnreadableFileError: It can't be opened, is not DICOM, or ends too early.
    """
    silence_parser()
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(132)
        if head[128:132] != b"DICM" and not _begins_like_dicom(head):
            raise UnreadableFileError("The file is not DICOM.", "Send DICOM files only.")
        dataset = pydicom.dcmread(path, force=True, defer_size=DEFER_BYTES)
        if _is_deflated(dataset):
            dataset = pydicom.dcmread(path, force=True)
        else:
            _check_whole(dataset, size)
    except OSError as error:
        if error.errno is None:  # pydicom's own, where the next item of a sequence is missing
            raise UnreadableFileError("The file is truncated: it ends within a sequence.", SEND_AGAIN) from error
        raise UnreadableFileError(f"The file can't be opened: {error.strerror}.", SEND_AGAIN) from error
    except PARSE_ERRORS as error:
        raise UnreadableFileError("The file can't be parsed as DICOM.", SEND_AGAIN) from error
    return dataset


def value_of(dataset: Any, keyword: str) -> Any:
    """The first value of an attribute, or None when it is absent, empty or broken."""
    silence_parser()
    try:
        value = dataset.get(keyword)
    except PARSE_ERRORS:
        return None
    if isinstance(value, MultiValue | Sequence | list | tuple):
        return value[0] if value else None
    return value


def values_of(dataset: Any, keyword: str) -> tuple[str, ...]:
    """All values of an attribute as stripped text; empty when it is absent or broken."""
    silence_parser()
    try:
        value = dataset.get(keyword)
    except PARSE_ERRORS:
        return ()
    if value is None or value == "":
        return ()
    many = value if isinstance(value, MultiValue | list | tuple) else [value]
    return tuple(str(each).strip(PADDING) for each in many)


def text_of(dataset: Any, keyword: str) -> str:
    """The first value of an attribute as stripped text, empty when absent or broken."""
    value = value_of(dataset, keyword)
    return "" if value is None else str(value).strip(PADDING)


def whole_of(dataset: Any, keyword: str, default: int) -> int:
    """The first value of an attribute as a whole number, or the default."""
    try:
        return int(value_of(dataset, keyword))
    except PARSE_ERRORS:
        return default


def numbers_of(dataset: Any, keyword: str) -> tuple[float, ...]:
    """All values of an attribute as numbers; empty when one of them is none."""
    try:
        return tuple(float(each) for each in values_of(dataset, keyword))
    except ValueError:
        return ()


def _begins_like_dicom(head: bytes) -> bool:
    if len(head) < SHORTEST_ELEMENT:
        return False
    return int.from_bytes(head[:2], "little") in FIRST_GROUPS


def _is_deflated(dataset: FileDataset) -> bool:
    """Whether positions in the file mean nothing, so that no value can be left on disk (PS3.5 A.5)."""
    return text_of(getattr(dataset, "file_meta", {}), "TransferSyntaxUID") == DeflatedExplicitVRLittleEndian


def _check_whole(dataset: FileDataset, size: int) -> None:
    """Refuse a file that ends before one of its elements does (PS3.5 7.1).

    A value of undefined length that lacks its delimiter makes the parser drop the whole data set.
    """
    if not len(dataset):
        raise UnreadableFileError("The file is truncated: no element of its data set is whole.", SEND_AGAIN)
    end = size
    for element in dataset.values():
        if not isinstance(element, RawDataElement) or element.length == UNDEFINED_LENGTH:
            end = size
            continue
        end = element.value_tell + element.length
        if end > size:
            raise UnreadableFileError(
                f"The file is truncated: of {element.length} bytes of {element.tag} "
                f"{max(size - element.value_tell, 0)} are there.",
                SEND_AGAIN,
            )
    if 0 < size - end < SHORTEST_ELEMENT and not any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        raise UnreadableFileError("The file is truncated: it ends within the tag of an element.", SEND_AGAIN)
