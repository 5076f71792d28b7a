"""The inference daemon from outside: what it serves, what it refuses and says, and how it ends."""

import json
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from appliance.daemons.inference import run
from appliance.domain.errors import SettingsError
from appliance.domain.manifest import EncoderVariant, Validation
from appliance.inference.onnxruntime_cpu import Crowd, OnnxRuntimeCpu
from appliance.settings import Settings
from tests.fakes.inference_daemon import running, settings_for
from tests.fakes.tiny_pack import bright_picture, rewritten, tiny_pack


def listed(settings: Settings) -> list[dict[str, Any]]:
    """What the page reads."""
    found: list[dict[str, Any]] = json.loads((settings.state / "run" / "packs.json").read_text())
    return found


def test_a_good_pack_is_served_and_listed(tmp_path: Path) -> None:
    """The socket answers when the daemon says that it is ready, and is gone after it stopped."""
    pack = tiny_pack(tmp_path / "packs")
    settings = settings_for(tmp_path, pack)
    with running(settings) as client:
        assert client.infer("chest-xray.guard", bright_picture()).provenance.pack_digest == pack.manifest.digest
    assert listed(settings) == [
        {
            "name": "chest-xray",
            "title": "Tiny synthetic chest radiograph",
            "release": 1,
            "version": "1.0.0",
            "digest": pack.manifest.digest,
            "validation": "synthetic",
            "precision": "fp32",
            "state": "active",
            "reason": "",
        }
    ]
    assert not settings.inference_socket.exists()


def test_a_bad_pack_never_stops_the_others(tmp_path: Path) -> None:
    """An altered pack, and one that does not reproduce its golden cases, are refused by name; the good one serves."""
    good = tiny_pack(tmp_path / "packs", name="good")
    altered = tiny_pack(tmp_path / "packs", name="altered", keys=good.keys)
    (altered.folder / "MODEL_CARD.md").write_text("something else")
    wrong = tiny_pack(tmp_path / "packs", name="wrong", keys=good.keys)
    cases = json.loads((wrong.folder / "golden" / "cases.json").read_text()) | {"cases": [{"name": "a"}, {"name": "b"}]}
    (wrong.folder / "golden" / "cases.json").write_text(json.dumps(cases))
    rewritten(wrong)
    settings = settings_for(tmp_path, good)
    with capture_logs() as log, running(settings) as client:
        assert {model.name.partition(".")[0] for model in client.served()} == {"good"}
    states = {each["name"]: (each["state"], each["release"]) for each in listed(settings)}
    assert states == {"altered": ("refused", None), "good": ("active", 1), "wrong": ("refused", 1)}
    reasons = {each["name"]: each["reason"] for each in listed(settings)}
    assert "MODEL_CARD.md" in reasons["altered"]
    assert "golden inputs" in reasons["wrong"]
    assert {line["pack"]: line["reason"] for line in log if line["event"] == "pack refused"} == {
        name: reason for name, reason in reasons.items() if name != "good"
    }


def test_a_list_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    """With something in its way, as on a full disk, packs serve all the same; the log says so, no draft stays."""
    pack = tiny_pack(tmp_path / "packs")
    settings = settings_for(tmp_path, pack)
    (settings.state / "run" / "packs.json").mkdir(parents=True)
    with capture_logs() as log, running(settings) as client:
        assert client.infer("chest-xray.guard", bright_picture()).provenance.release == 1
    assert "the list of packs can't be written" in {line["event"] for line in log}
    assert [each.name for each in (settings.state / "run").iterdir() if "packs.json" in each.name] == ["packs.json"]


def test_of_two_releases_the_newest_good_one_serves(tmp_path: Path) -> None:
    """An older release stands by, and serves where the newer one is refused."""
    old = tiny_pack(tmp_path / "one")
    new = tiny_pack(tmp_path / "two", release=2, keys=old.keys)
    packs = tmp_path / "packs"
    packs.mkdir()
    for pack in (old, new):
        (packs / f"chest-xray-{pack.manifest.release}").symlink_to(pack.folder)
    settings = settings_for(tmp_path, old)
    with running(settings) as client:
        assert client.infer("chest-xray.guard", bright_picture()).provenance.release == 2
    assert [(each["release"], each["state"]) for each in listed(settings)] == [(2, "active"), (1, "installed")]
    (new.folder / "MODEL_CARD.md").write_text("something else")
    with running(settings) as client:
        assert client.infer("chest-xray.guard", bright_picture()).provenance.release == 1


@pytest.mark.parametrize("packs", ["an unvalidated one", "none", "no folder"])
def test_without_a_usable_pack_it_still_answers_and_says_why(tmp_path: Path, packs: str) -> None:
    """The daemon is alive, serves nothing, and the log and the list have the reason."""
    pack = tiny_pack(tmp_path / "elsewhere", validation=Validation.UNTRAINED)
    if packs != "no folder":
        (tmp_path / "packs").mkdir()
    if packs == "an unvalidated one":
        (tmp_path / "packs" / "chest-xray").symlink_to(pack.folder)
    settings = settings_for(tmp_path, pack, allow_unvalidated=False)
    with capture_logs() as log, running(settings) as client:
        assert client.served() == ()
    assert [each["state"] for each in listed(settings)] == ["refused"] * (packs == "an unvalidated one")
    assert "no pack serves" in {line["event"] for line in log}


def test_its_metrics_are_answered_on_a_socket_of_their_own(tmp_path: Path) -> None:
    """What was served is counted under Triton's names, for whoever may look into the run folder."""
    settings = settings_for(tmp_path, tiny_pack(tmp_path / "packs"))
    counted = 'nv_inference_request_success{model="chest-xray.guard",version="1"} 1'
    with running(settings) as client:
        client.infer("chest-xray.guard", bright_picture())
        end = time.monotonic() + 30
        while counted not in scraped(settings):  # who asked is told first, then it is counted
            assert time.monotonic() < end
            time.sleep(0.01)


def scraped(settings: Settings) -> str:
    """What the daemon's metrics say now."""
    with socket.socket(socket.AF_UNIX) as scrape:
        scrape.connect(str(settings.state / "run" / "inference-metrics.sock"))
        scrape.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        return scrape.makefile("rb").read().decode()


def test_it_opens_no_network_socket(tmp_path: Path) -> None:
    """The daemon's only way in or out is its Unix socket."""
    settings = settings_for(tmp_path, tiny_pack(tmp_path / "packs"))
    before = {connection.laddr for connection in psutil.Process().net_connections("inet")}
    with running(settings) as client:
        client.infer("chest-xray.guard", bright_picture())
        assert {connection.laddr for connection in psutil.Process().net_connections("inet")} <= before


def test_a_precision_that_gave_way_is_said(tmp_path: Path) -> None:
    """An active pack that is not served in its preferred precision says why."""
    pack = tiny_pack(tmp_path / "packs")
    (pack.folder / "encoder.int8.onnx").write_bytes((pack.folder / "encoder.onnx").read_bytes())
    variants = (EncoderVariant("int8", "encoder.int8.onnx", ("onnxruntime-cpu",)), *pack.manifest.variants)
    tasks = tuple(
        replace(task, operating_points=(*task.operating_points, replace(task.operating_points[0], precision="int8")))
        for task in pack.manifest.tasks
    )
    rewritten(pack, variants=variants, tasks=tasks)
    settings = settings_for(tmp_path, pack)
    with running(settings):
        (status,) = listed(settings)
    assert (status["state"], status["precision"]) == ("active", "fp32")
    assert status["reason"].startswith("int8 was rejected: golden/cases.safetensors has no int8/lungs/mask")


def test_what_is_tried_shares_the_cpus_with_what_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a patient's image is worked on, a trial beside it knows that it is not alone, and takes one thread."""
    crowds = list[Crowd]()

    def runtimes(*_: object, crowd: Crowd) -> tuple[OnnxRuntimeCpu]:
        crowds.append(crowd)
        return (OnnxRuntimeCpu(2, crowd),)

    monkeypatch.setattr("appliance.daemons.inference.runtimes_of", runtimes)
    with running(settings_for(tmp_path, tiny_pack(tmp_path / "packs"))) as client:
        client.load_pack("chest-xray", 60)
    serves, *tried = crowds
    assert tried
    with OnnxRuntimeCpu(2, serves).working(), OnnxRuntimeCpu(2, tried[0]).working():
        assert not serves.alone


def test_a_socket_that_cannot_be_taken_ends_the_daemon_with_the_reason(tmp_path: Path) -> None:
    """A second daemon on the same state folder does not start."""
    settings = settings_for(tmp_path, tiny_pack(tmp_path / "packs"))
    with running(settings) as client:
        with pytest.raises(SettingsError, match="Another inference daemon"), running(settings):
            pass
        assert client.served()


def test_a_stop_before_it_is_ready_ends_it_without_serving(tmp_path: Path) -> None:
    """Stopping while packs are being loaded needs no patience."""
    settings = settings_for(tmp_path, tiny_pack(tmp_path / "packs"))
    stop = threading.Event()
    stop.set()
    run(settings, stop, lambda: pytest.fail("it said that it was ready"))
    assert not settings.inference_socket.exists()
