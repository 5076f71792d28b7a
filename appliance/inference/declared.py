"""What a request says of its inputs, held against the model before one byte of them is read.

A few bytes of a request can announce an array that no memory holds, or point at gigabytes of shared memory. So the
names, datatypes, shapes and lengths that it announces are judged first; what is read afterwards is at most a batch.
"""

from collections.abc import Sequence

from appliance.domain.errors import InvalidTensorError
from appliance.domain.manifest import TensorSpec
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.tensors import DTYPES, check_form, described

_MOST_NAMES = 8
"""Names that an error repeats."""


def check_declared(request: oip.ModelInferRequest, specs: Sequence[TensorSpec]) -> None:
    """Refuse a request whose inputs are not the model's, by what it says of them alone.

    Raises:
        InvalidTensorError: An input too many, too few or twice, or a datatype or shape that the model does not take.
    """
    names = [tensor.name for tensor in request.inputs]
    if sorted(names) != sorted(spec.name for spec in specs):
        brought = ", ".join(sorted(names)[:_MOST_NAMES]) or "no input"
        expected = ", ".join(described(spec) for spec in specs)
        raise InvalidTensorError(f"The request brings {brought}.", f"Expected is {expected}.")
    by_name = {spec.name: spec for spec in specs}
    for tensor in request.inputs:
        dtype = DTYPES.get(tensor.datatype)
        if dtype is None:
            raise InvalidTensorError(
                f"The input {tensor.name} has the datatype {tensor.datatype or 'none'}.",
                f"Expected is {described(by_name[tensor.name])}.",
            )
        if any(length < 0 for length in tensor.shape):
            raise InvalidTensorError(
                f"The input {tensor.name} has a negative length.", "Lengths of a request are not negative."
            )
        check_form(by_name[tensor.name], dtype, tensor.shape)
