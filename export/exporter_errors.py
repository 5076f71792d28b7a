"""What torch's exporter could not do, as one of our errors that names operator and layer."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from appliance.domain.errors import EngineFileError

WAY_FORWARD = "Write the layer with operators that torch can export."
_NODE = re.compile(r"translating node %(?P<node>\w+) .*?\[target=(?P<operator>[^\]]+)\]", re.DOTALL)


def refusal_from_exporter(
    error: Exception, module: nn.Module, inputs: tuple[Tensor, ...], dynamic_shapes: Any, file: str
) -> EngineFileError:
    """The exporter's error in one sentence.

    Args:
        error: What the exporter raised.
        module, inputs, dynamic_shapes: What it was asked to export.
        file: The graph that was to be written.
    """
    chain = _chain(error)
    reason = next((line for line in str(chain[-1]).splitlines() if line.strip()), type(chain[-1]).__name__)
    found = next((match for each in chain if (match := _NODE.search(str(each)))), None)
    if found is None:
        return EngineFileError(f"{file} can't be exported: {reason.rstrip('.')}.", WAY_FORWARD)
    layer = _layer(module, inputs, dynamic_shapes, found["node"])
    return EngineFileError(
        f"{file} can't be exported: the operator {found['operator']} of the layer {layer}: {reason.rstrip('.')}.",
        WAY_FORWARD,
    )


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what it was raised from, down to the first."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _layer(module: nn.Module, inputs: tuple[Tensor, ...], dynamic_shapes: Any, node: str) -> str:
    """The path of the module that a node of the traced program comes from; the node's own name where it has none.

    So it is where tracing again fails: the exporter has more ways to trace than this one.
    """
    try:
        program = torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes)
    except Exception:  # noqa: BLE001 - torch raises many kinds; the exporter's own error is the one to tell
        return node
    for each in program.graph.nodes:
        if each.name == node:
            paths = [path for path, _ in each.meta.get("nn_module_stack", {}).values() if path]
            return paths[-1] if paths else node
    return node
