"""What a task serves as a graph says what its trained head says in torch."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from appliance.domain.errors import EngineFileError
from export.task_head.features import EMBEDDING, Half
from export.task_head.graphs import HEAD, VOLUME, write_graphs
from export.task_head.heads import MaskHead, embedding_head
from export.task_head.recipe import LINEAR, MIL, MLP, SEGMENTATION
from export.task_head.train import Head
from export.to_onnx import strip_traces

PICTURES = 9


def made(kind: str) -> tuple[Head, dict[str, Half]]:
    """A head with random weights, and what its base says of some pictures."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    if kind != SEGMENTATION:
        return embedding_head(kind, 6, 5).eval(), {EMBEDDING: rng.normal(size=(PICTURES, 6)).astype(np.float16)}
    sides = (16, 8, 4, 2)
    maps = {f"stride{64 // side}": rng.random((PICTURES, 8, side, side)).astype(np.float16) for side in sides}
    return MaskHead([8] * len(sides), 32).eval(), maps


@pytest.mark.parametrize("kind", [LINEAR, MLP, MIL, SEGMENTATION])
def test_the_graph_of_every_kind_of_head_passes(kind: str, tmp_path: Path) -> None:
    """Linear probe, MLP, attention over a volume and mask decoder are exported and agree with torch."""
    head, said = made(kind)
    assert write_graphs(head, said, tmp_path) == ("mask" if kind == SEGMENTATION else "score")
    assert {path.name for path in tmp_path.iterdir()} == ({HEAD, VOLUME} if kind == MIL else {HEAD})


@pytest.mark.parametrize(
    ("kind", "file"), [(LINEAR, HEAD), (MLP, HEAD), (MIL, HEAD), (MIL, VOLUME), (SEGMENTATION, HEAD)]
)
def test_a_graph_that_was_altered_is_refused(
    kind: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever graph of a task says something else than its head, there is no task; the file is named."""
    head, said = made(kind)

    def altered(model: onnx.ModelProto) -> None:
        strip_traces(model)
        whole = any(node.op_type == "Tanh" for node in model.graph.node)
        if whole == (file == VOLUME):
            shift(model)

    monkeypatch.setattr("export.to_onnx.strip_traces", altered)
    with pytest.raises(EngineFileError, match=rf"/{file} differs from torch by"):
        write_graphs(head, said, tmp_path)


def shift(model: onnx.ModelProto) -> None:
    """Add a tenth to every weight of a graph."""
    for each in model.graph.initializer:
        if each.data_type == onnx.TensorProto.FLOAT and len(each.dims) in {2, 4}:
            each.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(each) + np.float32(0.1), each.name))
