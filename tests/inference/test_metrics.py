"""Metrics: Triton's names over what was really served, answered on this machine only."""

import http.client
import socket
import urllib.request
from pathlib import Path

import pytest

from appliance.domain.errors import SettingsError, UnknownModelError
from appliance.domain.manifest import VerifiedPack
from appliance.inference.metrics import metrics_text
from appliance.inference.metrics_server import MetricsServer
from appliance.inference.nvml import GpuMonitor
from appliance.inference.runner import PackRunner
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


@pytest.mark.parametrize("address", ["0.0.0.0:8002", "192.0.2.1:8002", "localhost.example:1", "8002"])
def test_another_address_is_refused(address: str) -> None:
    """Nobody outside this machine learns how busy it is."""
    with pytest.raises(SettingsError, match="a port of 127"), MetricsServer(address, str):
        pass
