"""The servers that `insite bench inference` starts: our daemon, and MLServer on the same encoder."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.domain.errors import InsiteError
from appliance.inference.bench_load import regions_of
from appliance.inference.client import OipClient
from appliance.settings import Settings

START_SECONDS = 120.0
MLSERVER_PORT = 21080
PORTS_OF_ONE = 10
PEERS: Mapping[str, Mapping[str, Any]] = {"mlserver": {}, "mlserver_tuned": {"parallel_workers": 0}}
"""MLServer as it comes, and without the worker process that it hands each request to: that saves a copy."""
LARGEST_BATCH = 8
BATCH_SECONDS = 0.002

MLSERVER_MODEL = """
import asyncio
import os
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Encoder(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["BENCH_THREADS"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(os.environ["BENCH_GRAPH"], options)
        return True

    async def predict(self, payload):
        images = NumpyCodec.decode_input(payload.inputs[0])
        (embedding,) = await asyncio.to_thread(self._session.run, ["embedding"], {payload.inputs[0].name: images})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("embedding", embedding)])
"""
"""The ten lines that a site would write to serve the encoder with MLServer."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers, and its process."""

    target: str
    process: "subprocess.Popen[bytes]"


def trusted(settings: Settings) -> Mapping[str, str]:
    """The environment in which a daemon trusts whom these settings trust, and serves what they measure."""
    keys = [str(key) for key in settings.packs.trusted_keys]
    return {
        "INSITE_PACKS__TRUSTED_KEYS": json.dumps(keys),
        "INSITE_PACKS__ALLOW_UNVALIDATED": "true",
        "INSITE_INFERENCE__THREADS": str(settings.inference.threads),
    }


@contextmanager
def our_daemon(packs: Path, folder: Path, environment: Mapping[str, str]) -> Iterator[Running]:
    """The daemon as `insite inference` starts it, on a Unix socket in a folder that is its state."""
    target = f"unix://{folder}/inference.sock"
    command = [
        sys.executable, "-m", "appliance.cli", "inference",
        "--state", str(folder), "--packs", str(packs), "--listen", target,
    ]  # fmt: skip
    with _process(command, folder, {**environment, "INSITE_LOG__LEVEL": "error"}) as process:
        with OipClient(target, 10) as client:
            _wait(lambda: bool(client.served()), process, folder)
        yield Running(target, process)


@contextmanager
def peers(python: Path | None, graph: Path, threads: int, folder: Path) -> Iterator[Mapping[str, Running]]:
    """The servers of `PEERS`, all on one graph; none where there is no Python of an environment that has them."""
    model = {"BENCH_GRAPH": str(graph), "BENCH_THREADS": str(threads)}
    with ExitStack() as stack:
        found: dict[str, Running] = {}
        if python is not None and python.exists():
            for number, (name, settings) in enumerate(PEERS.items()):
                port = MLSERVER_PORT + PORTS_OF_ONE * number
                found[name] = stack.enter_context(mlserver(python, model, folder / name, port, settings))
        yield found


@contextmanager
def mlserver(
    python: Path, model: Mapping[str, str], folder: Path, port: int, settings: Mapping[str, Any]
) -> Iterator[Running]:
    """MLServer with adaptive batching, in an environment of its own.

    Args:
        model: What `MLSERVER_MODEL` reads from its environment.
        settings: Of MLServer, beside addresses and the size of a message; none is how it comes.
    """
    folder.mkdir()
    (folder / "encoder.py").write_text(MLSERVER_MODEL)
    (folder / "settings.json").write_text(
        json.dumps(
            {
                "debug": False,
                "host": "127.0.0.1",
                "http_port": port,
                "grpc_port": port + 1,
                "metrics_port": port + 2,
                "grpc_max_message_length": -1,
                **settings,
            }
        )
    )
    (folder / "model-settings.json").write_text(
        json.dumps(
            {
                "name": "encoder",
                "implementation": "encoder.Encoder",
                "max_batch_size": LARGEST_BATCH,
                "max_batch_time": BATCH_SECONDS,
            }
        )
    )
    environment = {**model, "PYTHONPATH": str(folder)}
    command = [str(python), "-m", "mlserver.cli.main", "start", str(folder)]
    with _process(command, folder, environment) as process:
        target = f"127.0.0.1:{port + 1}"
        with OipClient(target, 10) as client:
            _wait(lambda: client.is_ready("encoder"), process, folder)
        yield Running(target, process)


def child_json(module: str, order: Mapping[str, Any]) -> Any:
    """Run one of our own modules as a child: JSON in, JSON out.

    Raises:
        InsiteError: It failed.
    """
    done = subprocess.run(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-m", module], input=json.dumps(order), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise InsiteError(f"{module} failed: {done.stderr.strip()[-500:]}", "Run it by hand.")
    return json.loads(done.stdout)


@contextmanager
def child_running(module: str, order: Mapping[str, Any]) -> "Iterator[subprocess.Popen[str]]":
    """One of our own modules at work while something else is measured; it is ended with the `with`."""
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None  # noqa: S101 - it was asked for
    process.stdin.write(json.dumps(order))
    process.stdin.close()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for left in regions_of(process.pid):
            left.unlink(missing_ok=True)


@contextmanager
def _process(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> "Iterator[subprocess.Popen[bytes]]":
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - commands made above
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(answers: Callable[[], bool], process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if answers():
                return
        except InsiteError:
            pass
        time.sleep(0.2)
    last = (folder / "log").read_text(encoding="utf-8", errors="replace")[-1000:]
    raise InsiteError(f"{process.args!r} did not come up: {last}", "Start it by hand.")
