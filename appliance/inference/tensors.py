"""Open Inference Protocol datatypes as numpy dtypes, and the check of an array against a tensor's specification."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.domain.errors import InvalidTensorError
from appliance.domain.manifest import TensorSpec

Array = NDArray[Any]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Little endian, as raw tensor contents travel. BYTES is left out: no model here takes text."""

MAX_BATCH = 8
"""Images in one request; a larger batch gains nothing on a CPU and holds memory that other studies need."""


def datatype_of(array: Array) -> str:
    """The protocol's word for an array's dtype.

    Raises:
        InvalidTensorError: The protocol has none.
    """
    for word, dtype in DTYPES.items():
        if array.dtype == dtype:
            return word
    raise InvalidTensorError(f"An array of {array.dtype} has no datatype in the protocol.", "Convert it first.")


def described(spec: TensorSpec) -> str:
    """A tensor's specification as a person reads it: `image UINT8 [-1, 1, 512, 512]`."""
    return f"{spec.name} {spec.datatype} {list(spec.shape)}"


def fits(spec: TensorSpec, array: Array) -> bool:
    """Whether an array has the datatype and shape of a specification; -1 takes any length."""
    return (
        DTYPES.get(spec.datatype) == array.dtype
        and len(spec.shape) == array.ndim
        and all(wanted in {-1, length} for wanted, length in zip(spec.shape, array.shape, strict=True))
    )


def check_input(spec: TensorSpec, array: Array) -> None:
    """Refuse an input that is not what the model takes.

    Raises:
        InvalidTensorError: Another datatype, rank or length, or a batch that is empty or too large.
    """
    if not fits(spec, array):
        raise InvalidTensorError(
            f"The input {spec.name} is {array.dtype} {list(array.shape)}.", f"Expected is {described(spec)}."
        )
    if not 1 <= array.shape[0] <= MAX_BATCH:
        raise InvalidTensorError(
            f"The input {spec.name} holds {array.shape[0]} images.", f"One request takes 1 to {MAX_BATCH}."
        )
