"""Messages to arrays: every datatype, both ways of sending, and what does not fit."""

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from appliance.domain.errors import InvalidTensorError
from appliance.inference.converters import (
    CONTENTS_FIELD,
    REGION,
    REGION_SIZE,
    arrays_from_request,
    outputs_from_response,
)
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.shared_memory import Region, SharedRegions
from appliance.inference.tensors import DTYPES, datatype_of

ANY_ARRAY = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda word: arrays.arrays(DTYPES[word], arrays.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=4))
)


def request(array: np.ndarray, **changes: Any) -> oip.ModelInferRequest:
    """A request with one input `x` in raw contents."""
    message = oip.ModelInferRequest(raw_input_contents=[array.tobytes()])
    message.inputs.add(**({"name": "x", "datatype": datatype_of(array), "shape": array.shape} | changes))
    return message


@given(ANY_ARRAY)
def test_raw_contents_keep_every_bit(array: np.ndarray) -> None:
    """What is sent raw arrives with the same bytes, datatype and shape."""
    arrived = arrays_from_request(request(array))["x"]
    assert (arrived.dtype, arrived.shape, arrived.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(ANY_ARRAY.filter(lambda array: datatype_of(array) in CONTENTS_FIELD))
def test_typed_contents_keep_every_value(array: np.ndarray) -> None:
    """What is sent as numbers arrives with the same values, datatype and shape."""
    message = oip.ModelInferRequest()
    tensor = message.inputs.add(name="x", datatype=datatype_of(array), shape=array.shape)
    getattr(tensor.contents, CONTENTS_FIELD[tensor.datatype]).extend(array.ravel().tolist())
    arrived = arrays_from_request(message)["x"]
    assert arrived.dtype == array.dtype
    np.testing.assert_array_equal(arrived, array)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"datatype": "BYTES"}, "the datatype BYTES"),
        ({"datatype": ""}, "the datatype none"),
        ({"shape": [3]}, r"has 4 bytes. UINT8 \[3\] takes 3"),
        ({"shape": [-1, 4]}, "not negative"),
        ({"shape": [2**62, 2**62]}, "has 4 bytes"),
        ({"shape": [4, *[1] * 64]}, "a shape of 65 dimensions that no array has"),
        ({"contents": oip.InferTensorContents(uint_contents=[1])}, "raw and typed"),
    ],
)
def test_a_raw_tensor_that_does_not_fit_is_refused(changes: dict[str, Any], sentence: str) -> None:
    """Datatype, shape and length must agree."""
    with pytest.raises(InvalidTensorError, match=sentence):
        arrays_from_request(request(np.zeros(4, np.uint8), **changes))


@pytest.mark.parametrize(
    ("datatype", "contents", "sentence"),
    [
        ("UINT8", {"uint_contents": [1, 2, 3]}, "has 3 values in uint_contents"),
        ("UINT8", {"int_contents": [1, 2]}, "has 0 values in uint_contents"),
        ("UINT8", {"uint_contents": [1, 2], "fp32_contents": [1]}, "none elsewhere"),
        ("UINT8", {"uint_contents": [1, 256]}, "does not fit into UINT8"),
        ("FP16", {"fp32_contents": [1, 2]}, "as raw contents"),
    ],
)
def test_typed_contents_that_do_not_fit_are_refused(datatype: str, contents: dict[str, Any], sentence: str) -> None:
    """Values must lie in the field of their datatype, as many as the shape says, and within its range."""
    message = oip.ModelInferRequest()
    message.inputs.add(name="x", datatype=datatype, shape=[2], contents=oip.InferTensorContents(**contents))
    with pytest.raises(InvalidTensorError, match=sentence):
        arrays_from_request(message)


def test_an_empty_array_too_large_to_be_is_refused() -> None:
    """Nothing in it, and still no array: raw and typed alike."""
    message = oip.ModelInferRequest(raw_input_contents=[b""])
    message.inputs.add(name="x", datatype="UINT8", shape=[0, 2**62, 2**62])
    with pytest.raises(InvalidTensorError, match="no array has"):
        arrays_from_request(message)
    del message.raw_input_contents[:]
    with pytest.raises(InvalidTensorError, match="no array has"):
        arrays_from_request(message)


def test_memory_that_this_machine_cannot_copy_is_refused(tmp_path: Path) -> None:
    """A region may be longer than memory, for a sparse file costs nothing; the request ends, not the daemon."""
    with (tmp_path / "vast").open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    with SharedRegions(tmp_path) as regions:
        regions.register(Region("vast", "/vast", 0, 1 << 40))
        message = oip.ModelInferRequest()
        tensor = message.inputs.add(name="x", datatype="UINT8", shape=[1 << 40])
        tensor.parameters[REGION].string_param = "vast"
        tensor.parameters[REGION_SIZE].int64_param = 1 << 40
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (1 << 39, limits[1]))
        try:
            with pytest.raises(InvalidTensorError, match="more than this machine has room for"):
                arrays_from_request(message, regions)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)


def test_inputs_and_contents_are_counted() -> None:
    """Each input has a name of its own and one raw content."""
    twice = request(np.zeros(1, np.uint8))
    twice.inputs.add(name="x")
    with pytest.raises(InvalidTensorError, match="same name"):
        arrays_from_request(twice)
    twice.inputs[1].name = "y"
    with pytest.raises(InvalidTensorError, match="2 inputs but 1 raw contents"):
        arrays_from_request(twice)


def test_answers_may_come_as_numbers_too() -> None:
    """A foreign server may answer with typed contents."""
    response = oip.ModelInferResponse()
    response.outputs.add(name="y", datatype="FP32", shape=[2], contents={"fp32_contents": [0.5, 1]})
    outputs = outputs_from_response(response)
    outputs["y"][0] = 2
    np.testing.assert_array_equal(outputs["y"], [2, 1])


def test_an_array_without_a_datatype_cannot_be_sent() -> None:
    """The protocol has no complex numbers."""
    with pytest.raises(InvalidTensorError, match="complex128"):
        datatype_of(np.zeros(1, np.complex128))
