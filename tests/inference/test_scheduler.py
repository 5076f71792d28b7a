"""The queue of a device, with time held still: classes, ageing, deadlines, batches, bounds."""

import weakref
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.domain.errors import DeadlineError, OverloadedError
from appliance.inference.scheduler import Ask, Batching, BatchQueue, Place, Priority, QueueLimits

STAT, ROUTINE, BACKGROUND = Priority.STAT, Priority.ROUTINE, Priority.BACKGROUND


def ask(name: str, priority: Priority = ROUTINE, *, key: str = "pack", deadline: float | None = None) -> Ask:
    """An ask about one image of its own."""
    return Ask(key, (name,), priority, deadline, name)


def queue_of(*asks: tuple[float, Ask], preferred: int = 1, delay: float = 0.0, images: int = 256) -> BatchQueue:
    """A queue into which asks came at given times."""
    queue = BatchQueue(QueueLimits(images=images, ageing_seconds=2.0))
    queue.set_batching("pack", Batching(preferred, delay, 0.01))
    for now, each in asks:
        queue.put(each, now)
    return queue


def names(asks: Sequence[Ask]) -> list[str]:
    """What the asks are called."""
    return [each.payload for each in asks]


def order_of(queue: BatchQueue, now: float) -> list[str]:
    """The asks in the order in which they would run, one batch after the other."""
    order: list[str] = []
    while batch := queue.take(now).batch:
        order += names(batch)
    return order


def test_the_urgent_go_first_and_equals_by_arrival() -> None:
    """STAT before routine before background; within a class, who came first."""
    queue = queue_of((0, ask("b", BACKGROUND)), (0, ask("r1")), (0.1, ask("r2")), (0.2, ask("s", STAT)))
    assert order_of(queue, 0.3) == ["s", "r1", "r2", "b"]


def test_nobody_starves() -> None:
    """Who has waited the ageing time of a class goes before those of that class who came later, however many come."""
    queue = queue_of((0, ask("old", BACKGROUND)), *((2.1 + number / 100, ask(f"r{number}")) for number in range(9)))
    assert order_of(queue, 3) == ["old", *(f"r{number}" for number in range(9))]
    queue = queue_of(
        (0, ask("old", BACKGROUND)), *((4.1 + number / 100, ask(f"s{number}", STAT)) for number in range(9))
    )
    assert order_of(queue, 5) == ["s0", "old", *(f"s{number}" for number in range(1, 9))]
    queue = queue_of((0, ask("young", BACKGROUND)), (3.9, ask("s", STAT)))
    assert order_of(queue, 5) == ["s", "young"]


def test_the_urgent_never_wait_for_a_backlog() -> None:
    """However much has aged, a STAT goes next; between two of STAT one batch of the backlog goes, in its order."""
    queue = queue_of(*((number / 100, ask(f"r{number}")) for number in range(40)))
    assert names(queue.take(9).batch) == ["r0"]
    assert names(queue.take(9).batch) == ["r1"]
    for number in range(3):
        queue.put(ask(f"s{number}", STAT), 9 + number / 100)
    assert order_of(queue, 9.1)[:7] == ["s0", "r2", "s1", "r3", "s2", "r4", "r5"]


@given(st.lists(st.tuples(st.floats(0, 10), st.sampled_from(Priority)), max_size=40))
def test_of_two_batches_one_is_stat_while_stat_waits(arrivals: list[tuple[float, Priority]]) -> None:
    """Whoever came when: while a STAT waits no two batches without one follow each other."""
    asks = [(now, ask(str(number), each)) for number, (now, each) in enumerate(sorted(arrivals, key=lambda a: a[0]))]
    queue = queue_of(*asks, preferred=3)
    before = STAT
    while any(each.waiting and each.priority is STAT for _, each in asks):
        batch = queue.take(20).batch
        assert STAT in {before, batch[0].priority}
        before = batch[0].priority


@given(st.lists(st.tuples(st.floats(0, 10), st.sampled_from(Priority)), max_size=40))
def test_every_ask_runs_exactly_once(arrivals: list[tuple[float, Priority]]) -> None:
    """Whatever comes in whatever order, nothing is lost and nothing runs twice."""
    queue = queue_of(*((now, ask(str(number), each)) for number, (now, each) in enumerate(arrivals)), preferred=4)
    assert sorted(order_of(queue, 20)) == sorted(str(number) for number in range(len(arrivals)))
    assert (len(queue), queue.images) == (0, 0)


def test_a_batch_holds_the_preferred_number_of_images() -> None:
    """Asks of one key are put together up to the preferred size; another key's wait for their own batch."""
    queue = queue_of(*((0, ask(str(number))) for number in range(5)), (0, ask("other", key="x")), preferred=4)
    assert names(queue.take(0).batch) == ["0", "1", "2", "3"]
    assert names(queue.take(0).batch) == ["4"]
    assert names(queue.take(0).batch) == ["other"]


def test_questions_about_one_image_share_its_encoder_pass() -> None:
    """Asks about an image that is in the batch anyway join it, however full it is: they cost no encoder."""
    heads = [Ask("pack", ("image",), payload=f"head{number}") for number in range(6)]
    queue = queue_of((0, heads[0]), (0, ask("between")), *((0, head) for head in heads[1:]), preferred=1)
    assert names(queue.take(0).batch) == [f"head{number}" for number in range(6)]
    assert names(queue.take(0).batch) == ["between"]


def test_a_stat_batch_takes_no_routine_work_along() -> None:
    """What would make an urgent batch longer waits for the next one."""
    queue = queue_of((0, ask("r")), (0, ask("s1", STAT)), (0, ask("s2", STAT)), preferred=4)
    assert names(queue.take(0).batch) == ["s1", "s2"]
    assert names(queue.take(0).batch) == ["r"]


def test_company_is_waited_for_only_under_traffic() -> None:
    """A lone request runs at once; after a crowd the next one waits, at most the delay, and never when it is STAT."""
    queue = queue_of((0, ask("lone")), preferred=4, delay=0.002)
    assert names(queue.take(0).batch) == ["lone"]
    for number in range(5):
        queue.put(ask(str(number)), 1)
    assert len(queue.take(1).batch) == 4
    waiting = queue.take(1.0005)
    assert (waiting.batch, waiting.again_in) == ((), pytest.approx(0.0015))
    assert names(queue.take(1.002).batch) == ["4"]
    for number in range(5):
        queue.put(ask(f"more{number}"), 2)
    queue.take(2)
    queue.take(2.01)
    for number in range(5):
        queue.put(ask(f"again{number}"), 3)
    queue.take(3)
    queue.put(ask("urgent", STAT), 3)
    assert names(queue.take(3).batch) == ["urgent"]


def test_an_expired_ask_is_told_and_never_run() -> None:
    """A deadline that passes in the queue comes out as expired; one that has passed already is refused."""
    late, patient = ask("late", deadline=1.0), ask("patient")
    queue = queue_of((0, late), (0, patient))
    taken = queue.take(1.0)
    assert (names(taken.expired), names(taken.batch)) == (["late"], ["patient"])
    with pytest.raises(DeadlineError, match="had passed"):
        queue.put(ask("too late", deadline=0.5), 0.6)
    assert queue.images == 0


def test_while_company_is_waited_for_deadlines_are_kept() -> None:
    """The queue asks to be looked at again when the next deadline passes."""
    queue = queue_of(*((0, ask(str(number))) for number in range(5)), preferred=4, delay=1.0)
    queue.take(0)
    queue.put(ask("short", BACKGROUND, deadline=0.3), 0)
    assert queue.take(0.1).again_in == pytest.approx(0.2)
    assert names(queue.take(0.3).expired) == ["short"]


def test_a_cancelled_ask_leaves_the_queue() -> None:
    """Its place is free at once, it never runs, and cancelling it again is no error."""
    first, second = ask("1"), ask("2")
    queue = queue_of((0, first), (0, second), images=2)
    assert queue.cancel(first)
    assert not queue.cancel(first)
    queue.put(ask("3"), 0)
    assert order_of(queue, 0) == ["2", "3"]


class Pixels:
    """Something that is seen to go."""


def test_a_cancelled_ask_is_held_no_longer() -> None:
    """However many come and go while nothing is taken, the queue holds those who wait and nobody's pixels."""
    queue = queue_of((0, ask("waits")))
    pixels: list[weakref.ref[Pixels]] = []
    for number in range(5000):
        gone = Ask("pack", (str(number),), payload=Pixels())
        pixels.append(weakref.ref(gone.payload))
        queue.put(gone, 0)
        assert queue.cancel(gone)
    del gone
    assert not any(each() for each in pixels)
    assert len(queue) == 1
    assert order_of(queue, 0) == ["waits"]


def test_a_full_queue_says_when_to_come_again() -> None:
    """The hint is how long what waits will take; background work can't fill the queue alone."""
    queue = queue_of(*((0, ask(str(number), BACKGROUND)) for number in range(6)), images=8)
    with pytest.raises(OverloadedError, match=r"Try again in 0\.06 s") as refused:
        queue.put(ask("one more", BACKGROUND), 0)
    assert refused.value.retry_after_seconds == pytest.approx(0.06)
    queue.put(ask("r1"), 0)
    queue.put(ask("r2"), 0)
    with pytest.raises(OverloadedError, match="8 images wait, 8 of this class may"):
        queue.put(ask("r3"), 0)
    assert order_of(queue, 0)[:2] == ["r1", "r2"]
    queue.put(ask("room again", BACKGROUND), 0)


def test_nobody_shuts_out_the_urgent() -> None:
    """However much routine work waits, there is room for STAT."""
    queue = queue_of(*((0, ask(str(number))) for number in range(18)), images=20)
    with pytest.raises(OverloadedError):
        queue.put(ask("routine"), 0)
    queue.put(ask("urgent", STAT), 0)
    assert names(queue.take(0).batch) == ["urgent"]


def test_a_key_that_is_forgotten_is_batched_by_default() -> None:
    """After its pack is gone nothing of it is kept."""
    queue = queue_of((0, ask("1")), (0, ask("2")), preferred=4)
    queue.set_batching("pack", None)
    assert queue.holds("pack")
    assert names(queue.take(0).batch) == ["1"]
    assert not queue.holds("other")


def test_a_device_takes_as_many_batches_as_it_has_lanes() -> None:
    """What one device has no room for waits, while work for another goes on; a free lane is given to the urgent."""
    cpu, gpu = Place("cpu", 2), Place("gpu", 1)
    waiting = [
        Ask("pack", (name,), priority, payload=name, place=place)
        for name, priority, place in (
            ("c1", ROUTINE, cpu), ("g1", ROUTINE, gpu), ("c2", ROUTINE, cpu), ("g2", ROUTINE, gpu), ("c3", STAT, cpu),
            ("c4", ROUTINE, cpu),
        )
    ]  # fmt: skip
    queue = queue_of(*((number / 10, each) for number, each in enumerate(waiting)))
    under_way = [queue.take(1, ()).batch]
    assert names(under_way[0]) == ["c3"]
    for expected in ("c1", "g1"):
        under_way.append(queue.take(1, under_way).batch)
        assert names(under_way[-1]) == [expected]
    full = queue.take(1, under_way)
    assert (full.batch, full.again_in) == ((), None)
    del under_way[0]
    assert names(queue.take(1, under_way).batch) == ["c2"]


def test_who_asks_about_an_image_that_is_encoded_waits_for_its_features() -> None:
    """It runs when that batch is done, not beside it; another pack's features are its own affair."""
    place = Place("cpu", 4)
    first, again, other = (
        Ask(key, ("image",), payload=name, place=place)
        for key, name in (("pack", "first"), ("pack", "again"), ("another pack", "other"))
    )
    queue = queue_of((0, first))
    under_way = [queue.take(0).batch]
    queue.put(again, 0)
    queue.put(other, 0)
    assert names(queue.take(0, under_way).batch) == ["other"]
    assert queue.take(0, under_way).batch == ()
    assert names(queue.take(0).batch) == ["again"]


def test_deadlines_are_kept_while_every_lane_is_taken() -> None:
    """Who waits for a lane is told when his time is over: the queue asks to be looked at again."""
    queue = queue_of((0, ask("runs")), (0, ask("waits", deadline=0.5)))
    under_way = [queue.take(0).batch]
    assert queue.take(0.1, under_way).again_in == pytest.approx(0.4)
    assert names(queue.take(0.5, under_way).expired) == ["waits"]
