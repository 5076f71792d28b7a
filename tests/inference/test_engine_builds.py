"""Engines are built by a child at the lowest priority: told how far it is, and harmless however it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from appliance.inference.engine_build import SUFFIX, BuildPlan
from appliance.inference.engine_builds import BuildOrder, BuildProgress, EngineBuilds
from appliance.inference.engine_file import engine_metadata
from tests.fakes.tiny_pack import encoder_graph

COUNTED = "import sys; open(sys.argv[1], 'a').write('x'); sys.exit(1)"
"""A builder that fails, and leaves a mark for each time that it was started."""
UNPRIVILEGED = """
import os, sys
def refuse(_): raise PermissionError(1, "Operation not permitted")
os.nice = refuse
from appliance.inference.engine_builds import main
sys.exit(main())
"""
HANGS = """
import sys, time
from appliance.inference import engine_builds
engine_builds.build_engine = lambda *_, **__: time.sleep(600)
sys.exit(engine_builds.main())
"""
"""Our own child, with a library that comes to no end."""
DAEMON = """
import pathlib, sys, time
from appliance.inference.engine_build import BuildPlan
from appliance.inference.engine_builds import BuildOrder, EngineBuilds
graph = pathlib.Path(sys.argv[1])
with EngineBuilds(lambda _: None, lambda _: None, command=(sys.executable, "-c", sys.argv[2])) as builds:
    builds.order(BuildOrder("chest-xray", graph, graph.with_suffix(".engine"), BuildPlan("fp32", ("8.9",))))
    while builds.child is None:
        time.sleep(0.01)
    print(builds.child, flush=True)
    time.sleep(600)
"""
"""Somebody who has an engine built."""
LEAVES_A_DRAFT = """
import json, os, pathlib, sys, time
engine = pathlib.Path(json.load(sys.stdin)["engine"])
engine.with_name(f".{engine.name}.{os.getpid()}").write_bytes(b"half")
engine.with_name(f".{engine.name}.json.{os.getpid()}").write_bytes(b"half")
engine.with_name("written").touch()
time.sleep(60)
"""
SLOW = "import time, sys; sys.stdin.read(); time.sleep(60)"


def order(
    folder: Path, name: str = "encoder", *, pack: str = "chest-xray", is_good: Callable[[], bool] | None = None
) -> BuildOrder:
    """The tiny encoder, for one GPU."""
    graph = folder / f"{name}.onnx"
    graph.write_bytes(encoder_graph().SerializeToString())
    return BuildOrder(pack, graph, folder / f"{name}{SUFFIX}", BuildPlan("fp32", ("8.9",)), is_good)


def states(builds: EngineBuilds) -> list[str]:
    """Of each build, in the order in which they were ordered."""
    return [each.state for each in builds.progress()]


def good() -> bool:
    """Is there already."""
    return True


def wait_for(condition: object) -> None:
    """Until it holds, or two minutes."""
    for _ in range(12000):
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


def test_the_child_ends_with_the_daemon_and_steps_back(tmp_path: Path) -> None:
    """A stop does not wait for a build, and leaves no process; while it ran, everybody else came first, and last."""
    with EngineBuilds(lambda _: None, lambda _: None, command=(sys.executable, "-c", HANGS)) as builds:
        builds.order(order(tmp_path))
        wait_for(lambda: builds.child is not None)
        child = psutil.Process(builds.child)
        out_of_memory = Path(f"/proc/{child.pid}/oom_score_adj")
        wait_for(lambda: (child.nice(), out_of_memory.read_text().strip()) == (19, "1000"))
    assert not child.is_running()


def test_the_child_does_not_outlive_a_killed_daemon(tmp_path: Path) -> None:
    """Nobody tells it: the kernel ends it with the process that it works for, also in the middle of a long silence."""
    graph = order(tmp_path).graph
    with subprocess.Popen([sys.executable, "-c", DAEMON, str(graph), HANGS], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        child = psutil.Process(int(daemon.stdout.readline()))
        wait_for(lambda: child.nice() == 19 and "1000" in Path(f"/proc/{child.pid}/oom_score_adj").read_text())
        daemon.kill()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_child_that_was_too_slow_to_ask_ends_by_itself(tmp_path: Path) -> None:
    """A builder whose daemon is gone before it could ask to be ended with it builds nothing."""
    words = {"graph": str(order(tmp_path).graph), "engine": "e", "plan": {"compute_capabilities": []}, "daemon": 1}
    command = [sys.executable, "-m", "appliance.inference.engine_builds"]
    assert subprocess.run(command, input=json.dumps(words).encode(), check=False).returncode == 1


def test_a_build_that_hangs_is_ended(tmp_path: Path) -> None:
    """It counts as a failed attempt; after the last one the next engine has its turn."""
    with EngineBuilds(lambda _: None, lambda _: None, command=(sys.executable, "-c", SLOW), seconds=0.3) as builds:
        builds.order_all([order(tmp_path), order(tmp_path, "head", is_good=good)])
        wait_for(lambda: states(builds) == ["failed", "built"])
        assert builds.progress()[0].reason == "It was not done after 0.3 s."


def test_a_build_whose_time_cannot_be_kept_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the unit allows no thread for its limit in time, no child is left behind; the next engine has its turn."""
    children = list[int]()

    def none_left(_: threading.Timer) -> None:
        children.append(builds.child or 0)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", none_left)
    with EngineBuilds(lambda _: None, lambda _: None, command=(sys.executable, "-c", HANGS)) as builds:
        builds.order_all([order(tmp_path), order(tmp_path, "head", is_good=good)])
        wait_for(lambda: states(builds) == ["failed", "built"])
        assert builds.child is None
    assert children
    assert not any(psutil.pid_exists(child) for child in children)


def test_what_is_ordered_or_failed_is_not_ordered_again(tmp_path: Path) -> None:
    """However often a pack asks, an engine waits once, is built once, and is left alone after its attempts."""
    count = tmp_path / "count"
    with EngineBuilds(lambda _: None, lambda _: None, command=(sys.executable, "-c", COUNTED, str(count))) as builds:
        builds.order_all([order(tmp_path), order(tmp_path, "head"), order(tmp_path), order(tmp_path, "head")])
        wait_for(lambda: states(builds) == ["failed", "failed"])
        builds.order_all([order(tmp_path), order(tmp_path, pack="other")])
        assert states(builds) == ["failed", "failed"]
        builds.order(order(tmp_path, "last"))
        wait_for(lambda: states(builds) == ["failed", "failed", "failed"])
    assert count.read_text() == "xx" * 3


def test_an_engine_that_came_meanwhile_is_not_built(tmp_path: Path) -> None:
    """Two packs with one graph share its engine: the second is told, and nothing is built twice."""
    count, told = tmp_path / "count", list[str]()
    with EngineBuilds(lambda _: None, told.append, command=(sys.executable, "-c", COUNTED, str(count))) as builds:
        builds.order(order(tmp_path, is_good=good))
        wait_for(lambda: told == ["chest-xray"])
        assert states(builds) == ["built"]
    assert not count.exists()


def test_an_engine_that_does_not_fit_after_all_is_a_failure(tmp_path: Path) -> None:
    """A build that ends well with an engine for another machine is not handed over, and not begun for ever."""
    told = list[str]()
    with EngineBuilds(lambda _: None, told.append, command=(sys.executable, "-c", "pass")) as builds:
        builds.order(order(tmp_path, is_good=lambda: False))
        wait_for(lambda: states(builds) == ["failed"])
        (progress,) = builds.progress()
    assert progress.reason == "It was built, and does not fit this machine."
    assert told == []


def test_a_pack_is_told_once_of_all_its_engines(tmp_path: Path) -> None:
    """It is replayed when its last engine is done, also when that one failed; another pack's do not delay it."""
    ordered, told = threading.Event(), list[str]()

    def wait() -> bool:
        return ordered.wait(30)

    with EngineBuilds(lambda _: None, told.append, command=(sys.executable, "-c", "raise SystemExit(1)")) as builds:
        builds.order(order(tmp_path, is_good=wait))
        builds.order(order(tmp_path, "head", is_good=good))
        builds.order(order(tmp_path, "bad"))
        builds.order(order(tmp_path, "other", pack="other", is_good=good))
        ordered.set()
        wait_for(lambda: told[-1:] == ["other"])
        assert states(builds) == ["built", "built", "failed", "built"]
    assert told == ["chest-xray", "other"]


def test_the_building_thread_outlives_what_goes_wrong(tmp_path: Path) -> None:
    """A pack that can't be served anew, a full disk, a check that fails, no process to be had: the next is built."""
    told = list[str]()

    def built(pack: str) -> None:
        told.append(pack)
        raise RuntimeError(pack)

    def full(_: Sequence[BuildProgress]) -> None:
        raise OSError(28, "No space left on device")

    def broken() -> bool:
        raise RuntimeError

    with EngineBuilds(full, built, command=("/nowhere/python",)) as builds:
        builds.order(order(tmp_path, "first", pack="first", is_good=good))
        builds.order(order(tmp_path, "second", is_good=broken))
        builds.order(order(tmp_path, "third"))
        builds.order(order(tmp_path, "fourth", pack="fourth", is_good=good))
        wait_for(lambda: told == ["first", "fourth"])
        assert states(builds) == ["built", "failed", "failed", "built"]
        assert "can't be started" in builds.progress()[2].reason


def test_words_that_are_no_progress_are_passed_over(tmp_path: Path) -> None:
    """Whatever a library writes to standard output, the builder's reason is the one that is kept."""
    code = """print('5'); print('[]'); print('{"phase": 1}'); print('{"reason": "mine"}'); print('null'); exit(1)"""
    with EngineBuilds(lambda _: None, lambda _: None, command=(sys.executable, "-c", code)) as builds:
        builds.order(order(tmp_path))
        wait_for(lambda: states(builds) == ["failed"])
        assert builds.progress()[0].reason == "mine"


def test_progress_is_told_by_one_thread_at_a_time(tmp_path: Path) -> None:
    """It is written to one file: an order that comes while the builder speaks waits its turn, and none is lost."""
    speaking, overlaps, last = threading.Lock(), list[bool](), list[int]()

    def told(progress: Sequence[BuildProgress]) -> None:
        free = speaking.acquire(blocking=False)
        overlaps.append(not free)
        time.sleep(0.005)
        last[:] = [len(progress)]
        if free:
            speaking.release()

    with EngineBuilds(told, lambda _: None) as builds:
        orders = [order(tmp_path, str(number), is_good=good) for number in range(20)]
        threads = [threading.Thread(target=builds.order_all, args=(orders[start::4],)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_for(lambda: states(builds) == ["built"] * 20)
    assert not any(overlaps)
    assert last == [20]


def test_a_builder_that_may_not_step_back_builds_all_the_same(tmp_path: Path) -> None:
    """Where a sandbox forbids it, the build goes on at the priority that it has, and the log says so once."""
    builder = (sys.executable, "-c", UNPRIVILEGED)
    with capture_logs() as log, EngineBuilds(lambda _: None, lambda _: None, command=builder) as builds:
        builds.order(order(tmp_path))
        wait_for(lambda: states(builds) in (["built"], ["failed"]))
        assert states(builds) == ["built"]
    warned = [line["reason"] for line in log if line["log_level"] == "warning"]
    assert warned == ["come_last: [Errno 1] Operation not permitted"]


def test_a_killed_builder_leaves_no_draft(tmp_path: Path) -> None:
    """What it had half-written goes with it."""
    with EngineBuilds(lambda _: None, lambda _: None, command=(sys.executable, "-c", LEAVES_A_DRAFT)) as builds:
        builds.order(order(tmp_path))
        for _ in range(2):
            wait_for((tmp_path / "written").exists)
            (tmp_path / "written").unlink()
            child = builds.child
            assert child is not None
            os.kill(child, signal.SIGKILL)
        wait_for(lambda: states(builds) == ["failed"])
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.onnx"]
