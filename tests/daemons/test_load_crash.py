"""A release whose graph brings the daemon down is left out by the next start, which serves the one before."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.daemons.pack_keeper import LOADING_FOLDER, load_marks
from appliance.daemons.packs import activate
from appliance.domain.errors import CrashedLoadError, PackError
from appliance.governance.load_marks import KILLS, LoadMarks
from appliance.inference.runner import Choice
from appliance.settings import Settings
from tests.fakes.inference_daemon import running, settings_for
from tests.fakes.tiny_pack import TinyPack, bright_picture, encoder_graph, rewritten, tiny_pack

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


def test_a_mark_goes_whichever_way_the_load_ends(tmp_path: Path) -> None:
    """A refusal is no crash; while a load lasts its mark is there."""
    manifest = tiny_pack(tmp_path / "packs").manifest
    marks = LoadMarks(tmp_path / "marks", "1")
    with pytest.raises(PackError, match="1 refused"), marks.during(manifest, CPU):
        raise PackError(f"{len(list(marks.folder.iterdir()))} refused")
    assert list(marks.folder.iterdir()) == []


def crashed(marks: LoadMarks, pack: TinyPack) -> None:
    """Leave what a process leaves that died of a pack."""
    with marks.during(pack.manifest, CPU):
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
