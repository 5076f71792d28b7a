"""The threads that compute: side by side where a device can, never twice for one image, and all of them ended."""

import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from appliance.domain.errors import DeadlineError, InferenceUnavailableError
from appliance.inference.lanes import Lanes
from appliance.inference.scheduler import Ask, Place, QueueLimits

TWO = Place("cpu", 2)
LONG = 10.0


class Work:
    """Batches that stand still until they are let go; tells which have begun and which are done."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.done: list[str] = []
        self.go = threading.Event()
        self._changed = threading.Condition()

    def __call__(self, batch: Sequence[Ask]) -> None:
        """The work of a lane."""
        self._note(self.begun, batch)
        assert self.go.wait(LONG)
        self._note(self.done, batch)

    def begins(self, count: int) -> list[str]:
        """Wait until so many asks have begun; their names, sorted."""
        return self._when(self.begun, count)

    def ends(self, count: int) -> list[str]:
        """Wait until so many asks are done; their names, sorted."""
        return self._when(self.done, count)

    def _note(self, where: list[str], batch: Sequence[Ask]) -> None:
        with self._changed:
            where.extend(ask.payload for ask in batch)
            self._changed.notify_all()

    def _when(self, where: list[str], count: int) -> list[str]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(where) >= count, LONG), where
            return sorted(where)


@pytest.fixture
def work() -> Work:
    """Work that waits."""
    return Work()


@pytest.fixture
def lanes(work: Work) -> Iterator[Lanes]:
    """Lanes that do it; every ask that is given up fails the test."""
    given_up: list[tuple[Ask, Exception]] = []
    made = Lanes(QueueLimits(), work, lambda each, error: given_up.append((each, error)))
    yield made
    work.go.set()
    made.close()
    assert given_up == []


def threads_of(lanes: Lanes) -> list[str]:
    """Names of the threads of these lanes that live; another test's are none of ours."""
    return [thread.name for thread in lanes._threads if thread.is_alive()]


def ask(name: str, image: str = "", place: Place = TWO) -> Ask:
    """An ask about one image, its own unless named."""
    return Ask("pack", (image or name,), payload=name, place=place)


def test_a_device_with_two_lanes_computes_two_batches_at_once(lanes: Lanes, work: Work) -> None:
    """Two begin before either is done; the third begins when there is room."""
    for name in ("a", "b", "c"):
        lanes.submit(ask(name))
    assert work.begins(2) == ["a", "b"]
    assert lanes.waiting_images == 1
    work.go.set()
    assert work.ends(3) == ["a", "b", "c"]


def test_devices_do_not_wait_for_each_other(lanes: Lanes, work: Work) -> None:
    """A device of one lane has a thread of its own beside those of the other."""
    for each in (ask("a"), ask("b"), ask("g", place=Place("gpu", 1)), ask("h", place=Place("gpu", 1))):
        lanes.submit(each)
    assert work.begins(3) == ["a", "b", "g"]
    work.go.set()
    assert work.ends(4) == ["a", "b", "g", "h"]


def test_one_image_is_never_in_two_lanes(lanes: Lanes, work: Work) -> None:
    """Who asks about an image that is under way waits, though a lane is free."""
    lanes.submit(ask("first", "image"))
    assert work.begins(1) == ["first"]
    lanes.submit(ask("again", "image"))
    lanes.submit(ask("other"))
    assert work.begins(2) == ["first", "other"]
    work.go.set()
    assert work.ends(3) == ["again", "first", "other"]


def test_draining_waits_for_every_lane(lanes: Lanes, work: Work) -> None:
    """A key is drained when no lane works for it any more."""
    lanes.submit(ask("a"))
    lanes.submit(ask("b"))
    work.begins(2)
    drained = threading.Event()

    def drain() -> None:
        lanes.drain("pack")
        drained.set()

    thread = threading.Thread(target=drain)
    thread.start()
    assert not drained.is_set()
    work.go.set()
    assert drained.wait(LONG)
    thread.join()
    assert sorted(work.done) == ["a", "b"]


def test_closing_runs_what_waits_and_takes_nothing_new(work: Work) -> None:
    """The threads end when the queue is empty; an ask that comes later is refused."""
    lanes = Lanes(QueueLimits(), work, lambda *_: None)
    for name in ("a", "b", "c", "d"):
        lanes.submit(ask(name))
    work.begins(2)
    work.go.set()
    lanes.close()
    assert sorted(work.done) == ["a", "b", "c", "d"]
    with pytest.raises(InferenceUnavailableError, match="stopping"):
        lanes.submit(ask("late"))
    assert threads_of(lanes) == []


def test_a_deadline_is_told_while_every_lane_is_taken(work: Work) -> None:
    """Who waits behind a run that does not end hears in time that he waits in vain; one who has longer goes on."""
    told: list[tuple[str, type[Exception]]] = []
    heard = threading.Event()

    def give_up(each: Ask, error: Exception) -> None:
        told.append((each.payload, type(error)))
        heard.set()

    lanes = Lanes(QueueLimits(), work, give_up)
    alone = Place("gpu", 1)
    lanes.submit(ask("runs", place=alone))
    work.begins(1)
    for name, seconds in (("patient", 1000.0), ("late", 0.05)):
        each = ask(name, place=alone)
        each.deadline = time.monotonic() + seconds
        lanes.submit(each)
    assert heard.wait(LONG)
    assert told == [("late", DeadlineError)]
    assert lanes.waiting_images == 1
    work.go.set()
    lanes.close()
    assert sorted(work.done) == ["patient", "runs"]
    assert threads_of(lanes) == []


def test_an_ask_that_cannot_be_told_ends_no_thread(work: Work) -> None:
    """Others are told of their deadline after it, by the same thread; lanes go on, and nothing stays under way."""
    told: list[str] = []
    heard = threading.Event()

    def give_up(each: Ask, error: Exception) -> None:
        told.append(each.payload)
        if each.payload == "deaf":
            raise RuntimeError(error)
        heard.set()

    lanes = Lanes(QueueLimits(), work, give_up)
    alone = Place("gpu", 1)
    lanes.submit(ask("runs", place=alone))
    work.begins(1)
    for round_ in range(2):
        heard.clear()
        deadline = time.monotonic() + 0.05
        for name in ("deaf", f"late {round_}"):
            each = ask(name, place=alone)
            each.deadline = deadline
            lanes.submit(each)
        assert heard.wait(LONG)
    assert told == ["deaf", "late 0", "deaf", "late 1"]
    assert sorted(threads_of(lanes)) == ["deadlines", "lane-gpu-0"]
    work.go.set()
    lanes.drain("pack")
    lanes.close()


def test_a_lane_that_cannot_tell_leaves_no_batch_under_way() -> None:
    """Work that raises, for one who can't be told either, is over: its key is drained, and the lane goes on."""
    ran = threading.Event()

    def fail(batch: Sequence[Ask]) -> None:
        if batch[0].payload == "bad":
            raise ValueError("broken")
        ran.set()

    def give_up(_: Ask, error: Exception) -> None:
        raise RuntimeError(error)

    lanes = Lanes(QueueLimits(), fail, give_up)
    lanes.submit(ask("bad", place=Place("gpu", 1)))
    lanes.drain("pack")
    lanes.submit(ask("good", place=Place("gpu", 1)))
    assert ran.wait(LONG)
    lanes.close()


def test_a_deadline_beyond_what_a_thread_can_wait_ends_no_lane(lanes: Lanes, work: Work) -> None:
    """A client may give thousands of years: a lane that is free meanwhile goes on."""
    lanes.submit(ask("first", "image"))
    work.begins(1)
    patient = ask("again", "image")
    patient.deadline = time.monotonic() + 1e12
    lanes.submit(patient)
    lanes.submit(ask("other"))
    assert work.begins(2) == ["first", "other"]
    work.go.set()
    assert work.ends(3) == ["again", "first", "other"]
    assert len([name for name in threads_of(lanes) if name.startswith("lane-cpu")]) == 2


def test_asks_with_later_deadlines_wake_nobody(lanes: Lanes, work: Work) -> None:
    """Who watches the time sleeps on until the first deadline, though its ask is answered long before."""
    work.go.set()
    deadlines = [time.monotonic() + 1000 + number for number in range(5)]
    for number, deadline in enumerate(deadlines):
        each = ask(str(number))
        each.deadline = deadline
        lanes.submit(each)
        work.ends(number + 1)
        assert lanes._wakes_at == deadlines[0]


def test_without_a_deadline_nobody_watches_the_time(lanes: Lanes, work: Work) -> None:
    """No thread for deadlines is made before there is one."""
    lanes.submit(ask("a"))
    work.begins(1)
    assert "deadlines" not in threads_of(lanes)


def test_where_no_thread_can_be_started_an_ask_is_refused(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for a lane that never comes; as soon as there is one, asks run."""
    start = threading.Thread.start

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lanes = Lanes(QueueLimits(), work, lambda *_: None)
    monkeypatch.setattr(threading.Thread, "start", none_left)
    with pytest.raises(InferenceUnavailableError, match="can't start a thread"):
        lanes.submit(ask("refused"))
    assert lanes.waiting_images == 0
    monkeypatch.setattr(threading.Thread, "start", start)
    lanes.submit(ask("runs"))
    work.go.set()
    assert work.ends(1) == ["runs"]
    lanes.close()


def test_work_that_raises_is_given_up_and_the_lane_goes_on() -> None:
    """Each ask of the batch is told; the next batch runs."""
    told: list[tuple[str, str]] = []
    ran = threading.Event()

    def fail(batch: Sequence[Ask]) -> None:
        if batch[0].payload == "bad":
            raise ValueError("broken")
        ran.set()

    lanes = Lanes(QueueLimits(), fail, lambda each, error: told.append((each.payload, str(error))))
    lanes.submit(ask("bad"))
    lanes.submit(ask("good"))
    assert ran.wait(LONG)
    lanes.close()
    assert told == [("bad", "broken")]
