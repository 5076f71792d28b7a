"""NVIDIA's `tritonclient` calls the inference daemon: the protocol is the public one, not our idea of it.

It runs in a process of its own, because it brings its own copy of the protocol's messages.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.inference.runner import PackRunner
from appliance.inference.server import InferenceServer
from appliance.inference.servicer import EXTENSIONS
from appliance.telemetry import logger_for
from tests.fakes.tiny_pack import tiny_verified

SCRIPT = """
import json, sys
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

client = InferenceServerClient(sys.argv[1])
picture = np.zeros((2, 1, 512, 512), np.uint8)
picture[0, :, 64:-64, 64:-64] = 230
tensor = InferInput("image", picture.shape, "UINT8")
tensor.set_data_from_numpy(picture)
answer = client.infer("chest-xray.guard", [tensor], model_version="1", request_id="7")
chosen = client.infer("chest-xray.lungs", [tensor], outputs=[InferRequestedOutput("mask")])
refusals = {}
for name, image in (("unknown", tensor), ("chest-xray.guard", InferInput("image", [1, 1, 8, 8], "UINT8"))):
    if image is not tensor:
        image.set_data_from_numpy(picture[:1, :, :8, :8])
    try:
        client.infer(name, [image])
    except InferenceServerException as error:
        refusals[name] = [error.status(), error.message()]
metadata = client.get_model_metadata("chest-xray.guard", as_json=True)
print(json.dumps({
    "live": client.is_server_live(), "ready": client.is_server_ready(),
    "model_ready": client.is_model_ready("chest-xray.lungs"), "other_ready": client.is_model_ready("other"),
    "server": client.get_server_metadata(as_json=True), "model": metadata,
    "index": client.get_model_repository_index(as_json=True),
    "scores": answer.as_numpy("score").tolist(), "id": answer.get_response().id,
    "digest": answer.get_response().parameters["pack_digest"].string_param,
    "mask_shape": chosen.as_numpy("mask").shape, "refusals": refusals,
}))
"""


@pytest.mark.peer
def test_tritonclient_finds_its_way(tmp_path: Path) -> None:
    """Liveness, readiness, metadata, listing, inference and refusals, by somebody else's client."""
    pack = tiny_verified(tmp_path)
    path = tmp_path / "s.sock"
    with PackRunner([pack], 1) as runner, InferenceServer(runner, path, version="1.2.3", log=logger_for("test")):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, f"unix://{path}"], capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert [said[key] for key in ("live", "ready", "model_ready", "other_ready")] == [True, True, True, False]
    assert said["server"] == {"name": "insite", "version": "1.2.3", "extensions": list(EXTENSIONS)}
    assert said["model"]["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": ["-1", "1", "512", "512"]}]
    assert {"name": "chest-xray.lungs", "version": "1", "state": "READY"} in said["index"]["models"]
    assert said["scores"][1][0] < 0.5 < said["scores"][0][0]
    assert (said["id"], said["digest"]) == ("7", pack.manifest.digest)
    assert said["mask_shape"] == [2, 1, 16, 16]
    assert said["refusals"]["unknown"][0] == "StatusCode.NOT_FOUND"
    assert said["refusals"]["chest-xray.guard"][0] == "StatusCode.INVALID_ARGUMENT"
    assert "[-1, 1, 512, 512]" in said["refusals"]["chest-xray.guard"][1]
