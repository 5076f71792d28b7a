"""Looks into an ONNX file before any runtime does: whole, self-contained, and made of standard operators only."""

from collections.abc import Iterable, Iterator

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from appliance.domain.errors import PackContentError

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
"""Operators of any other domain are code that a runtime would have to load from elsewhere."""


def check_graph(data: bytes, path: str) -> None:
    """Refuse a graph that is damaged, keeps weights in other files, or calls operators beyond the ONNX standard.

    Args:
        data: The file's content.
        path: How to name it.

    Raises:
        PackContentError: As above.
    """
    try:
        model = onnx.load_model_from_string(data)
        outside = [tensor.name for tensor in _tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
        if outside:
            raise PackContentError(
                f"{path} keeps the weights {outside[0]} in another file.", "Export it with all weights inside."
            )
        known = STANDARD_DOMAINS | {function.domain for function in model.functions}
        for node in _nodes(model):
            if node.domain not in known:
                raise PackContentError(
                    f"{path} uses the operator {node.domain}.{node.op_type}, which is not of the ONNX standard.",
                    "Export it with standard operators only.",
                )
        # The checker words its complaints in C++; a damaged name in one of them is a UnicodeDecodeError.
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, UnicodeDecodeError) as error:
        raise PackContentError(f"{path} is no valid ONNX graph: {error}.", "Build the pack again.") from error


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    pending = [model.graph, *_subgraphs(node for function in model.functions for node in function.node)]
    while pending:
        graph = pending.pop()
        yield graph
        pending.extend(_subgraphs(graph.node))


def _subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
