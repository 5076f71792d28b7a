"""Every method of the protocol through NVIDIA's `tritonclient`, blocking and asynchronous, shared memory included.

The scripts run in processes of their own, because `tritonclient` brings its own copy of the protocol's messages.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from appliance.inference.server import METHODS
from tests.fakes.inference_daemon import running, settings_for
from tests.fakes.tiny_pack import tiny_pack

BLOCKING = """
import json, os, queue, sys
import numpy as np
import tritonclient.utils.shared_memory as shm
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

client = InferenceServerClient(sys.argv[1])
picture = np.zeros((1, 1, 512, 512), np.uint8)
picture[0, :, 64:-64, 64:-64] = 230
said = {}

def refused(call):
    try:
        call()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    raise AssertionError("it was not refused")

# System shared memory, for an input and for an output.
region = shm.create_shared_memory_region("pixels", f"/insite-test-{os.getpid()}", picture.nbytes + 4096)
try:
    shm.set_shared_memory_region(region, [picture])
    client.register_system_shared_memory("pixels", f"/insite-test-{os.getpid()}", picture.nbytes + 4096)
    said["regions"] = client.get_system_shared_memory_status(as_json=True)
    tensor = InferInput("image", picture.shape, "UINT8")
    tensor.set_shared_memory("pixels", picture.nbytes)
    score = InferRequestedOutput("score")
    score.set_shared_memory("pixels", 4, picture.nbytes)
    answer = client.infer("chest-xray.guard", [tensor], outputs=[score, InferRequestedOutput("distance")])
    found = shm.get_contents_as_numpy(region, np.float32, (1, 1), picture.nbytes)
    said["shared_score"] = found.tolist()
    said["inline_distance"] = answer.as_numpy("distance").tolist()
    del found
    mask = InferRequestedOutput("lungs.mask")
    mask.set_shared_memory("pixels", 1024, picture.nbytes)
    tasks = client.infer("chest-xray.all", [tensor], outputs=[InferRequestedOutput("guard.score"), mask])
    found = shm.get_contents_as_numpy(region, np.float32, (1, 1, 16, 16), picture.nbytes)
    alone = client.infer("chest-xray.lungs", [tensor]).as_numpy("mask")
    said["all_shared"] = [found.tobytes() == alone.tobytes(), tasks.as_numpy("guard.score").tolist()]
    del found
    said["all_unknown"] = refused(
        lambda: client.infer("chest-xray.all", [tensor], outputs=[InferRequestedOutput("guard.mask")])
    )
    tensor.set_shared_memory("pixels", picture.nbytes, 8192)
    said["too_small"] = refused(lambda: client.infer("chest-xray.guard", [tensor]))
    said["taken"] = refused(lambda: client.register_system_shared_memory("pixels", f"/insite-test-{os.getpid()}", 16))
    said["nowhere"] = refused(lambda: client.register_system_shared_memory("other", "/insite-nowhere", 16))
    client.unregister_system_shared_memory("pixels")
    tensor.set_shared_memory("pixels", picture.nbytes)
    said["unknown_region"] = refused(lambda: client.infer("chest-xray.guard", [tensor]))
    said["no_regions"] = client.get_system_shared_memory_status(as_json=True)
finally:
    shm.destroy_shared_memory_region(region)

# A stream: answers in the order of the requests, an error in between ends nothing.
tensor = InferInput("image", picture.shape, "UINT8")
tensor.set_data_from_numpy(picture)
answers = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
for number, model in enumerate(("chest-xray.guard", "nobody", "chest-xray.all")):
    client.async_stream_infer(model, [tensor], request_id=str(number), enable_empty_final_response=True)
stream = []
for _ in range(3):
    result, error = answers.get(timeout=30)
    response = None if result is None else result.get_response()
    stream.append([response.id, response.parameters["triton_final_response"].bool_param] if response else str(error))
client.stop_stream()
said["stream"] = stream

# Parameters.
urgent = client.infer("chest-xray.guard", [tensor], priority=1, timeout=10_000_000, parameters={"insite_trace": True})
said["trace"] = sorted(name for name in urgent.get_response().parameters if name.startswith("trace_"))
said["sequence"] = refused(lambda: client.infer("chest-xray.guard", [tensor], sequence_id=7))
said["priority"] = refused(lambda: client.infer("chest-xray.guard", [tensor], priority=9))
said["unknown"] = refused(lambda: client.infer("chest-xray.guard", [tensor], parameters={"colour": "red"}))

# The repository.
client.unload_model("chest-xray.guard")
said["unloaded"] = [client.is_server_ready(), client.is_model_ready("chest-xray.lungs")]
said["index_unloaded"] = client.get_model_repository_index(as_json=True)
said["gone"] = refused(lambda: client.infer("chest-xray.guard", [tensor]))
client.load_model("chest-xray")
said["loaded"] = [client.is_server_ready(), client.is_model_ready("chest-xray.lungs")]
said["foreign"] = refused(lambda: client.load_model("chest-xray", config="{}"))
said["missing"] = refused(lambda: client.load_model("spleen"))
statistics = client.get_inference_statistics("chest-xray.guard", as_json=True)
said["statistics"] = statistics["model_stats"][0]
said["all_statistics"] = [each["name"] for each in client.get_inference_statistics(as_json=True)["model_stats"]]
said["live"] = [client.is_server_live(), client.is_server_ready(), client.is_model_ready("chest-xray.guard", "1")]
said["metadata"] = client.get_model_metadata("chest-xray.guard", as_json=True)["platform"]
said["server"] = client.get_server_metadata(as_json=True)["name"]
print(json.dumps(said))
"""

ASYNCHRONOUS = """
import asyncio, json, os, sys
import numpy as np
import tritonclient.utils.shared_memory as shm
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

picture = np.zeros((1, 1, 512, 512), np.uint8)
picture[0, :, 64:-64, 64:-64] = 230

async def main():
    client = InferenceServerClient(sys.argv[1])
    said = {"live": [await client.is_server_live(), await client.is_server_ready(),
                     await client.is_model_ready("chest-xray.lungs")]}
    said["server"] = (await client.get_server_metadata(as_json=True))["name"]
    said["metadata"] = (await client.get_model_metadata("chest-xray.lungs", as_json=True))["platform"]
    said["index"] = len((await client.get_model_repository_index(as_json=True))["models"])
    tensor = InferInput("image", picture.shape, "UINT8")
    tensor.set_data_from_numpy(picture)
    answers = await asyncio.gather(*(client.infer(f"chest-xray.{task}", [tensor]) for task in
                                     ("guard", "lungs", "adult-triage", "paediatric-pneumonia") * 4))
    said["answers"] = len(answers)
    whole = await client.infer("chest-xray.all", [tensor])
    alone = {f"{answer.get_response().model_name.partition('.')[2]}.{output.name}": answer.as_numpy(output.name)
             for answer in answers for output in answer.get_response().outputs}
    said["all"] = sorted(output.name for output in whole.get_response().outputs)
    said["all_same"] = all(whole.as_numpy(name).tobytes() == alone[name].tobytes() for name in said["all"])
    few = await client.infer("chest-xray.all", [tensor], outputs=[InferRequestedOutput("guard.score")])
    said["few"] = [output.name for output in few.get_response().outputs]
    region = shm.create_shared_memory_region("pixels", f"/insite-aio-{os.getpid()}", picture.nbytes)
    try:
        shm.set_shared_memory_region(region, [picture])
        await client.register_system_shared_memory("pixels", f"/insite-aio-{os.getpid()}", picture.nbytes)
        said["regions"] = list((await client.get_system_shared_memory_status(as_json=True))["regions"])
        shared = InferInput("image", picture.shape, "UINT8")
        shared.set_shared_memory("pixels", picture.nbytes)
        by_memory = await client.infer("chest-xray.guard", [shared])
        inline = await client.infer("chest-xray.guard", [tensor])
        said["same"] = bool((by_memory.as_numpy("score") == inline.as_numpy("score")).all())
        await client.unregister_system_shared_memory("pixels")
    finally:
        shm.destroy_shared_memory_region(region)

    async def requests():
        for number in range(3):
            yield {"model_name": "chest-xray.guard", "inputs": [tensor], "request_id": str(number)}

    said["stream"] = [result.get_response().id async for result, error in client.stream_infer(requests())]
    await client.unload_model("chest-xray")
    said["unloaded"] = await client.is_server_ready()
    await client.load_model("chest-xray")
    said["loaded"] = await client.is_server_ready()
    statistics = await client.get_inference_statistics("chest-xray.guard", as_json=True)
    said["count"] = int(statistics["model_stats"][0]["inference_count"])
    await client.close()
    print(json.dumps(said))

asyncio.run(main())
"""


def said_by(script: str, target: str) -> dict[str, Any]:
    """What a client in a process of its own found."""
    done = subprocess.run(
        [sys.executable, "-c", script, target], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.peer
def test_the_blocking_client_reaches_every_method(tmp_path: Path) -> None:
    """Shared memory both ways, tasks in one call, streams, priorities, traces, loading, statistics, refusals."""
    settings = settings_for(tmp_path, tiny_pack(tmp_path / "packs"))
    with running(settings):
        said = said_by(BLOCKING, f"unix://{settings.inference_socket}")
    region = said["regions"]["regions"]["pixels"]
    assert (region["name"], int(region["byte_size"])) == ("pixels", 512 * 512 + 4096)
    assert said["shared_score"][0][0] > 0.5
    assert said["inline_distance"][0][0] >= 0
    assert said["all_shared"] == [True, said["shared_score"]]
    assert said["no_regions"] == {}
    assert said["stream"][0] == ["0", True]
    assert "nobody is not served" in said["stream"][1]
    assert said["stream"][2] == ["2", True]
    assert said["trace"] == [
        "trace_batch",
        "trace_cache_hits",
        "trace_encoder_us",
        "trace_head_us",
        "trace_queue_us",
    ]
    assert said["unloaded"] == [False, False]
    assert said["index_unloaded"]["models"][0]["state"] == "UNAVAILABLE"
    assert said["loaded"] == [True, True]
    assert int(said["statistics"]["inference_count"]) == 3
    assert int(said["statistics"]["inference_stats"]["success"]["count"]) == 3
    assert int(said["statistics"]["inference_stats"]["queue"]["count"]) == 3
    assert len(said["all_statistics"]) == 6
    assert (said["live"], said["metadata"], said["server"]) == ([True, True, True], "onnxruntime-cpu", "insite")
    codes = {
        "too_small": ("OUT_OF_RANGE", "do not fit"),
        "all_unknown": ("INVALID_ARGUMENT", "has no output guard.mask"),
        "taken": ("ALREADY_EXISTS", "registered already"),
        "nowhere": ("NOT_FOUND", "no shared memory /insite-nowhere"),
        "unknown_region": ("NOT_FOUND", "No region pixels"),
        "sequence": ("UNIMPLEMENTED", "sequence_id is not offered"),
        "priority": ("INVALID_ARGUMENT", "1 is STAT, 2 routine, 3 background"),
        "unknown": ("INVALID_ARGUMENT", "colour is not known"),
        "gone": ("NOT_FOUND", "is not served"),
        "foreign": ("UNIMPLEMENTED", "only signed packs"),
        "missing": ("NOT_FOUND", "No pack spleen is installed"),
    }
    for name, (code, sentence) in codes.items():
        assert said[name][0] == f"StatusCode.{code}", name
        assert sentence in said[name][1], name


@pytest.mark.peer
def test_the_asynchronous_client_reaches_every_method(tmp_path: Path) -> None:
    """The same protocol from an event loop: sixteen questions at once, several in one, shared memory, streams."""
    settings = settings_for(tmp_path, tiny_pack(tmp_path / "packs"))
    with running(settings):
        said = said_by(ASYNCHRONOUS, f"unix://{settings.inference_socket}")
    assert said == {
        "live": [True, True, True],
        "server": "insite",
        "metadata": "onnxruntime-cpu",
        "index": 6,
        "answers": 16,
        "all": [
            "adult-triage.score",
            "guard.distance",
            "guard.score",
            "lungs.mask",
            "paediatric-pneumonia.score",
        ],
        "all_same": True,
        "few": ["guard.score"],
        "regions": ["pixels"],
        "same": True,
        "stream": ["0", "1", "2"],
        "unloaded": False,
        "loaded": True,
        "count": 9,
    }


def test_a_client_without_the_proto_file_finds_services_and_messages(tmp_path: Path) -> None:
    """What `grpcurl` does: reflection lists the services, their methods and the fields of their messages."""
    settings = settings_for(tmp_path, tiny_pack(tmp_path / "packs"))
    with running(settings), grpc.insecure_channel(f"unix:{settings.inference_socket}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        pool = DescriptorPool(database)
        service = pool.FindServiceByName("inference.GRPCInferenceService")
        request = pool.FindMessageTypeByName("inference.ModelInferRequest")
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= services
    assert {method.name for method in service.methods} == set(METHODS)
    assert service.methods_by_name["ModelStreamInfer"].server_streaming
    assert "raw_input_contents" in request.fields_by_name
