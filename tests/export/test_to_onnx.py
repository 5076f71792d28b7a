"""The exported graphs say what the networks say."""

from pathlib import Path

import numpy as np
import torch

from appliance.domain.manifest import InputSpec
from export.calibrate import guard_head
from export.runner import Runner
from export.student import ARCHITECTURES, MultiTaskNet
from export.to_onnx import TASK_OUTPUTS, export_graphs, heads

SPEC = InputSpec("image", 512, 512, 0.5, 99.5)
TEMPERATURES = {"adult-triage": 1.5, "paediatric-pneumonia": 0.7}


def test_onnx_equals_torch(tmp_path: Path) -> None:
    """Encoder and heads agree with torch within 1e-4 on batches of other sizes than they were exported with."""
    torch.manual_seed(0)
    net = MultiTaskNet(ARCHITECTURES["narrow"]).eval()
    guard = guard_head(net).eval()
    tasks = heads(net, guard, TEMPERATURES, 64)
    export_graphs(net, tasks, SPEC, tmp_path)
    runner = Runner(tmp_path, "encoder.onnx", TASK_OUTPUTS)
    images = np.random.default_rng(0).integers(0, 256, size=(3, 1, 512, 512), dtype=np.uint8)
    with torch.no_grad():
        embedding, *features = net.encoder(torch.from_numpy(images))
        expected = {
            ("adult-triage", "score"): torch.sigmoid(net.adult(embedding) / 1.5),
            ("paediatric-pneumonia", "score"): torch.sigmoid(net.paediatric(embedding) / 0.7),
            ("guard", "score"): guard(embedding, features[1], features[2])[0],
            ("lungs", "mask"): tasks["lungs"](*features),
        }
    outputs = runner.run(images)
    for (task, name), values in expected.items():
        assert np.abs(outputs[task][name] - values.numpy()).max() < 1e-4, task
    assert outputs["lungs"]["mask"].shape == (3, 1, 64, 64)
