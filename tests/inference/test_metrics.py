"""Metrics: Triton's names over what was really served, answered on this machine only."""

import http.client
import socket
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.domain.errors import OverloadedError, SettingsError, UnknownModelError
from appliance.domain.manifest import VerifiedPack
from appliance.inference.metrics import metrics_text
from appliance.inference.metrics_server import LONGEST_SECONDS, MOST_CONNECTIONS, MetricsServer
from appliance.inference.nvml import GpuMonitor
from appliance.inference.runner import PackRunner
from appliance.inference.scheduler import QueueLimits
from tests.fakes.fake_gpu import FakeNvml
from tests.fakes.tiny_pack import bright_picture


def test_what_was_served_is_counted(pack: VerifiedPack) -> None:
    """Two questions on one image are two successes, one encoder pass, one cache hit; a refusal counts nowhere here."""
    with PackRunner([pack], 1) as runner:
        runner.infer("chest-xray.guard", bright_picture())
        runner.infer("chest-xray.guard", bright_picture())
        with pytest.raises(UnknownModelError):
            runner.infer("chest-xray.spleen", bright_picture())
        lines = metrics_text(runner, None).splitlines()
    guard = '{model="chest-xray.guard",version="1"}'
    assert f"nv_inference_request_success{guard} 2" in lines
    assert f"nv_inference_count{guard} 2" in lines
    assert f"nv_cache_num_hits_per_model{guard} 1" in lines
    assert f"nv_cache_num_misses_per_model{guard} 1" in lines
    assert "# TYPE nv_inference_queue_duration_us counter" in lines
    assert any(line.startswith(f"nv_inference_queue_duration_us{guard} ") for line in lines)
    assert any(line.startswith("insite_pack_info{") and 'precision="fp32"' in line for line in lines)
    assert "nv_inference_pending_request_count 0" in lines


def test_what_the_queue_has_no_room_for_is_a_failure_of_its_model(pack: VerifiedPack) -> None:
    """Overload is seen where Triton's is, also when nothing else was asked."""
    with PackRunner([pack], 1, limits=QueueLimits(images=0)) as runner:
        with pytest.raises(OverloadedError):
            runner.infer("chest-xray.guard", bright_picture())
        lines = metrics_text(runner, None).splitlines()
    guard = '{model="chest-xray.guard",version="1"}'
    assert f"nv_inference_request_failure{guard} 1" in lines
    assert f"nv_inference_request_success{guard} 0" in lines


def test_the_gpu_has_its_place() -> None:
    """Memory in bytes, load from 0 to 1, and our own of temperature and errors; what it can't say is left out."""
    fake = FakeNvml(ecc=1, silent=frozenset({"nvmlDeviceGetPowerUsage"}))
    with PackRunner(()) as runner, GpuMonitor(library=fake) as monitor:
        lines = metrics_text(runner, monitor.state()).splitlines()
    assert 'nv_gpu_memory_total_bytes{gpu_uuid="GPU-1234"} 25769803776' in lines
    assert 'nv_gpu_utilization{gpu_uuid="GPU-1234"} 0.4' in lines
    assert 'insite_gpu_ecc_errors{gpu_uuid="GPU-1234"} 1' in lines
    assert not any(line.startswith("nv_gpu_power_usage") for line in lines)


def test_they_are_answered_on_a_unix_socket(tmp_path: Path) -> None:
    """The default, for a unit without network; only owner and group may connect, and nothing is left behind."""
    path = tmp_path / "m.sock"
    with MetricsServer(f"unix://{path}", lambda: "x 1\n"):
        assert path.stat().st_mode & 0o777 == 0o660
        client = http.client.HTTPConnection("local")
        client.sock = socket.socket(socket.AF_UNIX)
        client.sock.connect(str(path))
        client.request("GET", "/metrics")
        assert client.getresponse().read() == b"x 1\n"
        client.close()
    assert not path.exists()


def test_they_are_answered_on_the_loopback_address() -> None:
    """Where the unit has a network, on this machine only; other paths are not found."""
    with MetricsServer("127.0.0.1:0", lambda: "x 1\n") as server:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
            assert answer.read() == b"x 1\n"
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        client.request("GET", "/")
        assert client.getresponse().status == 404
        client.close()
        with pytest.raises(SettingsError, match="can't be served"), MetricsServer(f"127.0.0.1:{server.port}", str):
            pass


def test_those_who_drip_take_few_threads_and_their_places_come_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connect and send a byte now and then, few are held, and not for long: then a scrape is answered.

    A byte in time is what keeps a connection beyond the limit on each read of it.
    """

    def handlers() -> int:
        return sum("process_request_thread" in thread.name for thread in threading.enumerate())

    def closes(drip: socket.socket) -> bool:
        """Whether it is closed within five seconds, half of what the handler waits for a byte."""
        drip.settimeout(0.05)
        end = time.monotonic() + LONGEST_SECONDS / 2
        while time.monotonic() < end:
            try:
                drip.sendall(b"G")
                return drip.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:  # a byte that comes after the end is answered with a reset
                return True
        return False

    with MetricsServer("127.0.0.1:0", lambda: "x 1\n") as server, ExitStack() as stack:
        where = ("127.0.0.1", server.port)
        drips = [stack.enter_context(socket.create_connection(where, 20)) for _ in range(MOST_CONNECTIONS + 20)]
        for drip in drips[MOST_CONNECTIONS:]:
            assert drip.recv(1) == b""
        assert handlers() == MOST_CONNECTIONS
        monkeypatch.setattr("appliance.inference.metrics_server.LONGEST_SECONDS", 0.1)
        for drip in drips[:MOST_CONNECTIONS]:
            assert closes(drip)
        end = time.monotonic() + 20
        while handlers():
            assert time.monotonic() < end
            time.sleep(0.01)
        monkeypatch.undo()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
            assert answer.read() == b"x 1\n"


@pytest.mark.parametrize("address", ["0.0.0.0:8002", "192.0.2.1:8002", "localhost.example:1", "8002"])
def test_another_address_is_refused(address: str) -> None:
    """Nobody outside this machine learns how busy it is."""
    with pytest.raises(SettingsError, match="a port of 127"), MetricsServer(address, str):
        pass
