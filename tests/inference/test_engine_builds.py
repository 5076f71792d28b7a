"""Engines are built by a child at the lowest priority: told how far it is, and harmless however it ends."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from appliance.inference.engine_build import SUFFIX, BuildPlan
from appliance.inference.engine_builds import BuildOrder, BuildProgress, EngineBuilds
from appliance.inference.engine_file import engine_metadata
from tests.fakes.tiny_pack import encoder_graph

SLOW = "import time, sys; sys.stdin.read(); time.sleep(60)"


def order(folder: Path) -> BuildOrder:
    """The tiny encoder, for one GPU."""
    graph = folder / "encoder.onnx"
    graph.write_bytes(encoder_graph().SerializeToString())
    return BuildOrder("chest-xray", graph, folder / f"encoder{SUFFIX}", BuildPlan("fp32", ("8.9",)))


def wait_for(condition: object) -> None:
    """Until it holds, or half a minute."""
    for _ in range(3000):
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to pass")


def test_a_child_builds_while_others_go_on(tmp_path: Path) -> None:
    """Progress is told step by step, and the pack by name when its engine is there."""
    told: list[Sequence[BuildProgress]] = []
    built = threading.Event()
    with EngineBuilds(told.append, lambda name: built.set() if name == "chest-xray" else None) as builds:
        builds.order(order(tmp_path))
        assert built.wait(60)
        assert builds.child is None
    states = [each[0].state for each in told]
    assert (states[0], states[-1]) == ("waiting", "built")
    assert any(each[0].state == "building" and each[0].steps >= each[0].step >= 1 for each in told)
    assert engine_metadata(tmp_path / f"encoder{SUFFIX}").runtime == "tensorrt-rtx"


def test_a_killed_child_is_tried_again_and_then_left(tmp_path: Path) -> None:
    """Kill -9 of the builder leaves no half-built file and no process; the reason is kept."""
    told: list[Sequence[BuildProgress]] = []
    with EngineBuilds(told.append, lambda _: None, command=(sys.executable, "-c", SLOW)) as builds:
        builds.order(order(tmp_path))
        for _ in range(2):
            wait_for(lambda: builds.child is not None)
            child = builds.child
            assert child is not None
            os.kill(child, signal.SIGKILL)
            wait_for(lambda child=child: builds.child != child)
        wait_for(lambda: told[-1][0].state == "failed")
    assert told[-1][0].reason == "The building process died of signal 9."
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.onnx"]


def test_a_graph_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    """The builder's own sentence arrives."""
    told: list[Sequence[BuildProgress]] = []
    bad = order(tmp_path)
    bad.graph.write_bytes(b"no graph")
    with EngineBuilds(told.append, lambda _: None) as builds:
        builds.order(bad)
        wait_for(lambda: told and told[-1][0].state == "failed")
    assert "can't read the graph" in told[-1][0].reason


def test_the_child_ends_with_the_daemon_and_runs_last(tmp_path: Path) -> None:
    """A stop does not wait for a build, and leaves no process; while it ran, everybody else came first."""
    with EngineBuilds(lambda _: None, lambda _: None) as builds:
        builds.order(order(tmp_path))
        wait_for(lambda: builds.child is not None)
        child = psutil.Process(builds.child)
        wait_for(lambda: not child.is_running() or child.nice() == 19)
    assert not child.is_running()
