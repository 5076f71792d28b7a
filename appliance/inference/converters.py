"""Turns messages of the protocol into arrays and back; knows nothing of packs and nothing of connections."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from appliance.domain.errors import InvalidTensorError, ProvenanceError, RegionRangeError, UnknownRegionError
from appliance.domain.findings import ModelProvenance
from appliance.domain.manifest import TensorSpec
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.runner import ModelDescription
from appliance.inference.shared_memory import SharedRegions
from appliance.inference.tensors import DTYPES, Array, datatype_of

CONTENTS_FIELD: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Which typed field carries a datatype; FP16 has none and must come as raw bytes."""


REGION, REGION_SIZE, REGION_OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"
"""Parameters of a tensor that lies in shared memory."""

_IN_MEMORY = frozenset({REGION, REGION_SIZE, REGION_OFFSET})


def arrays_from_request(request: oip.ModelInferRequest, regions: SharedRegions | None = None) -> Mapping[str, Array]:
    """The inputs of a request by name, this process's own copies.

    Args:
        regions: Where inputs in shared memory are read; None where there are none.

    Raises:
        InvalidTensorError: A datatype, shape, count or length that does not fit, or the same name twice.
        SharedMemoryError: A region that is not there or too small.
    """
    names = [tensor.name for tensor in request.inputs]
    if len(set(names)) != len(names):
        raise InvalidTensorError("The request brings two inputs of the same name.", "Name each input once.")
    inline = [tensor for tensor in request.inputs if not tensor.parameters]
    raw: Sequence[bytes] = request.raw_input_contents
    if raw and len(raw) != len(inline):
        raise InvalidTensorError(
            f"The request has {len(inline)} inputs but {len(raw)} raw contents.", "Send one raw content per input."
        )
    arrays: dict[str, Array] = {}
    remaining = iter(raw)
    for tensor in request.inputs:
        if tensor.parameters:
            array = _array_from_memory(tensor, regions)
        else:
            array = _array_from_raw(tensor, next(remaining)) if raw else _array_from_contents(tensor)
        arrays[tensor.name] = array
    return arrays


def check_outputs(request: oip.ModelInferRequest, model: Collection[str]) -> None:
    """Refuse a request for outputs that the model has not, before anything is computed.

    An output is asked for once: a few bytes of a request must not make an answer of any size.

    Raises:
        InvalidTensorError: The model has no such output, or one is asked for twice or in a form that is not offered.
    """
    asked: set[str] = set()
    for output in request.outputs:
        if output.name not in model:
            raise InvalidTensorError(
                f"The model {request.model_name} has no output {output.name}.", f"It has {', '.join(model)}."
            )
        if output.name in asked:
            raise InvalidTensorError(f"The output {output.name} is asked for twice.", "Ask for each output once.")
        asked.add(output.name)
        other = sorted(set(output.parameters) - _IN_MEMORY)
        if other:
            raise InvalidTensorError(
                f"The output {output.name} is asked for with {other[0]}, which is not offered.", "Leave it out."
            )


def response_from_outputs(
    request: oip.ModelInferRequest,
    outputs: Mapping[str, Array],
    provenance: ModelProvenance,
    regions: SharedRegions | None = None,
) -> oip.ModelInferResponse:
    """An answer with raw contents, holding the outputs that the request asks for (all, when it names none).

    Args:
        regions: Where outputs go that the request wants in shared memory.

    Raises:
        InvalidTensorError: The request asks for an output that the model has not, or for one twice.
        SharedMemoryError: A region that is not there, too small or not writable.
    """
    check_outputs(request, outputs)
    response = oip.ModelInferResponse(
        model_name=request.model_name,
        model_version=str(provenance.release),
        id=request.id,
        parameters=parameters_from_provenance(provenance),
    )
    for wanted in request.outputs or [oip.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs]:
        array = outputs[wanted.name]
        data = np.ascontiguousarray(array).tobytes()
        answer = response.outputs.add(name=wanted.name, datatype=datatype_of(array), shape=array.shape)
        if wanted.parameters:
            _into_memory(wanted, data, regions)
            for name in wanted.parameters:
                answer.parameters[name].CopyFrom(wanted.parameters[name])
            data = b""
        response.raw_output_contents.append(data)
    return response


def metadata_from_description(model: ModelDescription) -> oip.ModelMetadataResponse:
    """A model's metadata, with its provenance as parameters."""
    return oip.ModelMetadataResponse(
        name=model.name,
        versions=[str(model.provenance.release)],
        platform=model.runtime,
        inputs=[_tensor_metadata(spec) for spec in model.inputs],
        outputs=[_tensor_metadata(spec) for spec in model.outputs],
        parameters=parameters_from_provenance(model.provenance),
    )


def request_from_image(model: str, name: str, image: Array) -> oip.ModelInferRequest:
    """A request for one image as raw contents, under the input name that the model's metadata gives."""
    request = oip.ModelInferRequest(model_name=model)
    request.inputs.add(name=name, datatype=datatype_of(image), shape=image.shape)
    request.raw_input_contents.append(np.ascontiguousarray(image).tobytes())
    return request


def outputs_from_response(response: oip.ModelInferResponse) -> Mapping[str, Array]:
    """The outputs of an answer by name, writable copies.

    Raises:
        InvalidTensorError: The server's answer does not fit together.
    """
    raw: Sequence[bytes] = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise InvalidTensorError(
            f"The answer has {len(response.outputs)} outputs but {len(raw)} raw contents.", "The server is at fault."
        )
    return {
        tensor.name: (_array_from_raw(tensor, raw[position]) if raw else _array_from_contents(tensor)).copy()
        for position, tensor in enumerate(response.outputs)
    }


def parameters_from_provenance(provenance: ModelProvenance) -> dict[str, oip.InferParameter]:
    """Which pack computed an answer, as parameters of the protocol."""
    return {
        "pack": oip.InferParameter(string_param=provenance.pack),
        "pack_release": oip.InferParameter(int64_param=provenance.release),
        "pack_digest": oip.InferParameter(string_param=provenance.pack_digest),
        "base_digest": oip.InferParameter(string_param=provenance.base_digest),
        "precision": oip.InferParameter(string_param=provenance.precision),
    }


def provenance_from_parameters(model: str, parameters: Mapping[str, oip.InferParameter]) -> ModelProvenance:
    """Which pack computed an answer.

    Raises:
        ProvenanceError: The server does not say it.
    """
    texts = {key: parameters[key].string_param for key in ("pack", "pack_digest", "base_digest", "precision")}
    if not all(texts.values()) or parameters["pack_release"].int64_param < 1:
        raise ProvenanceError(
            f"The server does not say which pack computed {model}.",
            "Point inference.server or inference.socket at an Insite daemon.",
        )
    return ModelProvenance(release=parameters["pack_release"].int64_param, **texts)


def _tensor_metadata(spec: TensorSpec) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)


_Tensor = oip.ModelInferRequest.InferInputTensor | oip.ModelInferResponse.InferOutputTensor


def _array_from_memory(tensor: oip.ModelInferRequest.InferInputTensor, regions: SharedRegions | None) -> Array:
    dtype = DTYPES[_known_datatype(tensor)]
    name, size, offset = _place(tensor)
    expected = _count(tensor) * dtype.itemsize
    if size != expected:
        raise InvalidTensorError(
            f"The tensor {tensor.name} has {size} bytes in shared memory.",
            f"{tensor.datatype} {list(tensor.shape)} takes {expected}.",
        )
    if tensor.HasField("contents"):
        raise InvalidTensorError(f"The tensor {tensor.name} lies in shared memory and in the request.", "Send one.")
    if regions is None:
        raise UnknownRegionError(f"No region {name} is registered.", "Shared memory is not offered here.")
    try:
        found = regions.read(name, offset, size)
    except MemoryError as error:
        raise InvalidTensorError(
            f"The tensor {tensor.name} has {size} bytes: more than this machine has room for.", "Send fewer images."
        ) from error
    return _shaped(found.view(dtype), tensor)


def _into_memory(
    wanted: oip.ModelInferRequest.InferRequestedOutputTensor, data: bytes, regions: SharedRegions | None
) -> None:
    name, size, offset = _place(wanted)
    if regions is None:
        raise UnknownRegionError(f"No region {name} is registered.", "Shared memory is not offered here.")
    if size < len(data):
        raise RegionRangeError(
            f"The output {wanted.name} has {len(data)} bytes.", f"{size} in the region {name} are too few."
        )
    regions.write(name, offset, data)


def _place(
    tensor: oip.ModelInferRequest.InferInputTensor | oip.ModelInferRequest.InferRequestedOutputTensor,
) -> tuple[str, int, int]:
    unknown = sorted(set(tensor.parameters) - _IN_MEMORY)
    name = tensor.parameters[REGION].string_param if REGION in tensor.parameters else ""
    if unknown or not name:
        raise InvalidTensorError(
            f"The tensor {tensor.name} has the parameter {unknown[0] if unknown else REGION_SIZE} alone.",
            f"A tensor takes {REGION}, {REGION_SIZE} and {REGION_OFFSET}.",
        )
    offset = tensor.parameters[REGION_OFFSET].int64_param if REGION_OFFSET in tensor.parameters else 0
    return name, tensor.parameters[REGION_SIZE].int64_param if REGION_SIZE in tensor.parameters else 0, offset


def _array_from_raw(tensor: _Tensor, raw: bytes) -> Array:
    dtype = DTYPES[_known_datatype(tensor)]
    if tensor.HasField("contents"):
        raise InvalidTensorError(
            f"The tensor {tensor.name} has raw and typed contents.", "Send one of the two for all tensors."
        )
    expected = _count(tensor) * dtype.itemsize
    if len(raw) != expected:
        raise InvalidTensorError(
            f"The tensor {tensor.name} has {len(raw)} bytes.",
            f"{tensor.datatype} {list(tensor.shape)} takes {expected}.",
        )
    return _shaped(np.frombuffer(raw, dtype), tensor)


def _array_from_contents(tensor: _Tensor) -> Array:
    datatype = _known_datatype(tensor)
    field = CONTENTS_FIELD.get(datatype)
    if field is None:
        raise InvalidTensorError(f"The tensor {tensor.name} is {datatype}.", "Send this datatype as raw contents.")
    others = [descriptor.name for descriptor, _ in tensor.contents.ListFields() if descriptor.name != field]
    values = getattr(tensor.contents, field)
    if others or len(values) != _count(tensor):
        raise InvalidTensorError(
            f"The tensor {tensor.name} has {len(values)} values in {field}.",
            f"{datatype} {list(tensor.shape)} takes {_count(tensor)} there, and none elsewhere.",
        )
    try:
        flat = np.array(values, DTYPES[datatype])
    except OverflowError as error:
        raise InvalidTensorError(
            f"A value of the tensor {tensor.name} does not fit into {datatype}.", "Send values of that datatype."
        ) from error
    return _shaped(flat, tensor)


def _shaped(flat: Array, tensor: _Tensor) -> Array:
    """An array in the shape that a message gives it, which numpy may not be able to hold even when nothing is in it."""
    try:
        return flat.reshape(tuple(tensor.shape))
    except ValueError as error:
        raise InvalidTensorError(
            f"The tensor {tensor.name} has a shape of {len(tensor.shape)} dimensions that no array has.",
            "Ask for the model's metadata.",
        ) from error


def _known_datatype(tensor: _Tensor) -> str:
    if tensor.datatype not in DTYPES:
        raise InvalidTensorError(
            f"The tensor {tensor.name} has the datatype {tensor.datatype or 'none'}.", f"Known: {', '.join(DTYPES)}."
        )
    return str(tensor.datatype)


def _count(tensor: _Tensor) -> int:
    if any(length < 0 for length in tensor.shape):
        raise InvalidTensorError(
            f"The tensor {tensor.name} has the shape {list(tensor.shape)}.", "Lengths of a request are not negative."
        )
    return math.prod(tensor.shape)
