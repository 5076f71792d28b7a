"""A release whose graph brings the daemon down is left out by the next start, which serves the one before."""

import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from appliance.daemons.pack_keeper import LOADING_FOLDER, MEASURED_FILE, PackKeeper, load_marks
from appliance.daemons.packs import activate
from appliance.domain.errors import CrashedLoadError, PackError
from appliance.governance.load_marks import KILLS, LoadMarks
from appliance.governance.measured import Measured, machine_name
from appliance.inference.runner import Choice, PackRunner
from appliance.inference.scheduler import Batching
from appliance.settings import Settings
from appliance.telemetry import logger_for
from tests.fakes.inference_daemon import running, settings_for
from tests.fakes.tiny_pack import TinyPack, bright_picture, encoder_graph, rewritten, tiny_pack
from tests.fakes.two_precisions import two_precisions

DAEMON = """
import json, os, sys, threading
from appliance.daemons import inference
from appliance.inference.onnxruntime_cpu import OnnxRuntimeCpu
from appliance.settings import load

class Falls(OnnxRuntimeCpu):
    def load(self, graph, *, title, precision):
        if b"falls over" in graph:
            os.abort()
        return super().load(graph, title=title, precision=precision)

inference.runtimes_of = lambda *_, **__: (Falls(1),)
inference.run(load(None, json.loads(sys.argv[1])).settings, threading.Event(), lambda: None)
"""
CPU = Choice("fp32", "onnxruntime-cpu", "1")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Two installed releases; the encoder of the second one is what the daemon dies of."""
    old = tiny_pack(tmp_path / "one")
    new = tiny_pack(tmp_path / "two", release=2, keys=old.keys)
    graph = encoder_graph()
    graph.producer_name = "falls over"
    (new.folder / "encoder.onnx").write_bytes(graph.SerializeToString())
    rewritten(new)
    (tmp_path / "packs").mkdir()
    for pack in (old, new):
        (tmp_path / "packs" / f"chest-xray-{pack.manifest.release}").symlink_to(pack.folder)
    return settings_for(tmp_path, old)


def listed(settings: Settings) -> dict[int, dict[str, Any]]:
    """What the page reads, by release."""
    return {each["release"]: each for each in json.loads((settings.state / "run" / "packs.json").read_text())}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_brought_the_daemon_down_is_left_out_until_it_is_activated(settings: Settings) -> None:
    """After the crash of a library the release before serves; whoever activates the other one has it tried again."""
    chosen = {
        "state": str(settings.state),
        "log": {"level": "error"},
        "packs": {
            "folder": str(settings.packs_folder),
            "trusted_keys": [str(key) for key in settings.packs.trusted_keys],
            "allow_unvalidated": True,
        },
    }
    child = subprocess.run(
        [sys.executable, "-c", DAEMON, json.dumps(chosen)], timeout=600, check=False, stderr=subprocess.PIPE, text=True
    )
    assert child.returncode == -signal.SIGABRT, child.stderr
    with running(settings) as client:
        assert client.infer("chest-xray.guard", bright_picture()).provenance.release == 1
        found = listed(settings)
        assert {release: line["state"] for release, line in found.items()} == {1: "active", 2: "refused"}
        assert found[2]["reason"] == (
            "The daemon died while it loaded release 2 of chest-xray in fp32 on onnxruntime-cpu: Fatal Python error: "
            "Aborted. It is left out with this version of the software; `insite packs activate chest-xray 2` tries it "
            "again."
        )
        activate(settings, "chest-xray", 2)
        assert client.infer("chest-xray.guard", bright_picture()).provenance.release == 2
    assert list((settings.state / LOADING_FOLDER).iterdir()) == []


def test_a_way_that_crashed_is_tried_again_in_a_release_that_serves(tmp_path: Path) -> None:
    """One precision is left out and the other serves: whoever activates the release has both tried, and no one else."""
    pack = two_precisions(tiny_pack(tmp_path / "packs"))
    settings = settings_for(tmp_path, pack)
    int8 = Choice("int8", "onnxruntime-cpu", onnxruntime.__version__)
    crashed(load_marks(settings), pack, int8)
    measured = Measured(settings.state / MEASURED_FILE, machine_name(1))
    for precision, seconds in (("int8", 0.001), ("fp32", 0.01)):
        measured.keep(pack.manifest.digest, replace(int8, precision=precision), Batching(1, 0.0, seconds))
    with PackRunner((), 1) as runner:
        keeper = PackKeeper(settings, runner, lambda: PackRunner((), 1), logger_for("test"))
        keeper.start(threading.Event())

        def precision() -> str:
            return runner.infer("chest-xray.guard", bright_picture()).provenance.precision

        keeper.load("chest-xray")
        assert precision() == "fp32"
        load_marks(settings).lift(pack.manifest.digest)
        keeper.load("chest-xray")
        assert precision() == "int8"
        (status,) = keeper.statuses()
        assert (status.state, status.precision, status.reason) == ("active", "int8", "")
        serving = runner._packs["chest-xray"]
        keeper.load("chest-xray")
        assert runner._packs["chest-xray"] is serving


def test_a_mark_goes_whichever_way_the_load_ends(tmp_path: Path) -> None:
    """A refusal is no crash; while a load lasts its mark is there."""
    manifest = tiny_pack(tmp_path / "packs").manifest
    marks = LoadMarks(tmp_path / "marks", "1")
    with pytest.raises(PackError, match="1 refused"), marks.during(manifest, CPU):
        raise PackError(f"{len(list(marks.folder.iterdir()))} refused")
    assert list(marks.folder.iterdir()) == []


def crashed(marks: LoadMarks, pack: TinyPack, choice: Choice = CPU) -> None:
    """Leave what a process leaves that died of a pack."""
    with marks.during(pack.manifest, choice):
        (file,) = marks.folder.iterdir()
        left = file.read_text() + "Fatal Python error: Segmentation fault\n\nCurrent thread"
    file.write_text(left)


def test_exactly_one_way_is_left_out_by_this_software_alone(tmp_path: Path) -> None:
    """Another precision, runtime, library or version of the software is tried; a damaged mark refuses nothing."""
    pack = tiny_pack(tmp_path / "packs")
    marks = LoadMarks(tmp_path / "marks", "1")
    crashed(marks, pack)
    with pytest.raises(CrashedLoadError, match="Segmentation fault"), marks.during(pack.manifest, CPU):
        pass
    for other in (Choice("int8", CPU.runtime, "1"), Choice("fp32", "onnxruntime-cuda", "1")):
        with marks.during(pack.manifest, other):
            pass
    marks.lift(pack.manifest.digest)
    for newer, choice in ((LoadMarks(marks.folder, "2"), CPU), (marks, Choice("fp32", CPU.runtime, "2"))):
        crashed(marks, pack)
        with newer.during(pack.manifest, choice):
            pass
        assert list(marks.folder.iterdir()) == []
    crashed(marks, pack)
    (file,) = marks.folder.iterdir()
    file.write_text("half")
    with marks.during(pack.manifest, CPU):
        pass


def test_deaths_without_a_word_count_when_they_repeat(tmp_path: Path) -> None:
    """A power cut refuses nothing, the end of the memory again and again does; a load that ends well forgives."""
    pack = tiny_pack(tmp_path / "packs")
    marks = LoadMarks(tmp_path / "marks", "1")

    def killed() -> None:
        with marks.during(pack.manifest, CPU):
            (file,) = marks.folder.iterdir()
            left = file.read_text()
        file.write_text(left)

    for _ in range(KILLS - 1):
        killed()
    with marks.during(pack.manifest, CPU):
        pass
    for _ in range(KILLS):
        killed()
    with pytest.raises(CrashedLoadError, match="killed 3 times in a row"), marks.during(pack.manifest, CPU):
        pass


def test_a_mark_that_cannot_be_written_refuses_nothing(tmp_path: Path) -> None:
    """On a full disk packs are loaded all the same; one that can't be lifted is said."""
    manifest = tiny_pack(tmp_path / "packs").manifest
    (tmp_path / "marks").write_text("in the way")
    with LoadMarks(tmp_path / "marks", "1").during(manifest, CPU):
        pass
    assert load_marks(settings_for(tmp_path)).folder == tmp_path / LOADING_FOLDER
    left = tmp_path / "folder" / f"{manifest.digest}.0"
    left.mkdir(parents=True)
    with pytest.raises(PackError, match="can't be removed"):
        LoadMarks(left.parent, "1").lift(manifest.digest)
