"""Open Inference Protocol datatypes as numpy dtypes, and the check of an array against a tensor's specification."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from appliance.domain.errors import InvalidTensorError
from appliance.domain.manifest import TensorSpec

Array: TypeAlias = NDArray[Any]


class DeviceTensor(Protocol):
    """A tensor in a GPU's memory, freed when nobody refers to it any more."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102 - as numpy's
    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102 - as numpy's

    def on_host(self) -> Array:
        """A copy in this process's memory."""
        ...


Tensor: TypeAlias = Array | DeviceTensor
"""What engines hand each other: on a CPU the array itself."""

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

MOST_LENGTHS = 8
"""Lengths of a shape that an error repeats: a hostile request may have millions."""


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


def host_array(tensor: Tensor) -> Array:
    """A tensor in this process's memory; an array is itself."""
    return tensor if isinstance(tensor, np.ndarray) else tensor.on_host()


def not_finite(arrays: Mapping[str, Array]) -> str | None:
    """The name of an array that holds NaN or infinity; None when all are finite.

    An array's product with itself tells nearly always: NaN and infinity survive it, and nothing is faster. Only a
    product that overflowed needs a look at each element.
    """
    reals = {name: array.ravel() for name, array in arrays.items() if array.dtype.kind == "f"}
    if not reals:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        for name, flat in reals.items():
            if not math.isfinite(np.dot(flat, flat)) and not np.isfinite(flat).all():
                return name
    return None


def fits(spec: TensorSpec, array: Tensor) -> bool:
    """Whether an array has the datatype and shape of a specification; -1 takes any length."""
    return _agrees(spec, array.dtype, array.shape)


def _agrees(spec: TensorSpec, dtype: np.dtype[Any], shape: Sequence[int]) -> bool:
    if len(spec.shape) != len(shape) or DTYPES.get(spec.datatype) != dtype:
        return False
    for wanted, length in zip(spec.shape, shape, strict=True):  # noqa: SIM110 - asked a dozen times for each image
        if wanted not in {-1, length}:
            return False
    return True


def check_input(spec: TensorSpec, array: Array) -> None:
    """Refuse an input that is not what the model takes.

    Raises:
        InvalidTensorError: NaN, another datatype, rank or length, or a batch that is empty or too large.
    """
    if not_finite({spec.name: array}):
        raise InvalidTensorError(f"The input {spec.name} holds NaN or infinity.", f"Expected is {described(spec)}.")
    check_form(spec, array.dtype, array.shape)


def check_form(spec: TensorSpec, dtype: np.dtype[Any], shape: Sequence[int]) -> None:
    """Refuse a datatype and shape that the model does not take, whatever lies behind them.

    Raises:
        InvalidTensorError: Another datatype, rank or length, or a batch that is empty or too large.
    """
    if not _agrees(spec, dtype, shape):
        lengths = f"{list(shape)}" if len(shape) <= MOST_LENGTHS else f"of {len(shape)} dimensions"
        raise InvalidTensorError(f"The input {spec.name} is {dtype} {lengths}.", f"Expected is {described(spec)}.")
    if not 1 <= shape[0] <= MAX_BATCH:
        raise InvalidTensorError(
            f"The input {spec.name} holds {shape[0]} images.", f"One request takes 1 to {MAX_BATCH}."
        )


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Tensor], title: str) -> None:
    """Refuse names, datatypes and shapes that a graph does not take.

    Raises:
        InvalidTensorError: With what is expected.
    """
    if set(inputs) != {spec.name for spec in specs}:
        raise InvalidTensorError(
            f"{title} was given {', '.join(sorted(inputs)) or 'no input'}.",
            f"It takes {', '.join(described(spec) for spec in specs)}.",
        )
    for spec in specs:
        tensor = inputs[spec.name]
        if not fits(spec, tensor):
            raise InvalidTensorError(
                f"The input {spec.name} of {title} is {tensor.dtype} {list(tensor.shape)}.",
                f"Expected is {described(spec)}.",
            )
