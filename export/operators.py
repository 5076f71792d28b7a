"""Operators that a target does not know, named with their layer before the target meets them."""

from collections.abc import Callable

import onnx

from appliance.domain.errors import EngineFileError


def refuse_unknown_operators(model: onnx.ModelProto, target: str, knows: Callable[[str], bool]) -> None:
    """Refuse a graph with an operator that its target does not know; operator and layer are named.

    Raises:
        EngineFileError: The first such operator.
    """
    for node in model.graph.node:
        if not knows(node.op_type):
            raise EngineFileError(
                f"{target} does not know the operator {node.op_type} of the layer {node.name or node.output[0]}.",
                "Write the layer with operators that it knows, or leave this target out.",
            )
