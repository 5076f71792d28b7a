"""Decides what runs next, and where: a bounded queue with classes, ageing, deadlines and batches.

It holds no thread, no lock and no clock of its own: whoever owns it says what time it is, so that a test can hold time
still. It knows neither packs nor connections: a `key` says which asks may run together, `contents` which share work.
"""

import enum
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.domain.errors import DeadlineError, OverloadedError


class Priority(enum.IntEnum):
    """Classes of work; a lower one goes first. The numbers are the protocol's (`priority` 1 is the highest)."""

    STAT = 1
    ROUTINE = 2
    BACKGROUND = 3


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait, and how waiting is turned into rank.

    Attributes:
        images: Images that may wait; one more is refused.
        background_share: Part of `images` that background work may fill, so that it never shuts out the rest.
        routine_share: Part of `images` beyond which only STAT is taken, so that nobody shuts that out.
        ageing_seconds: Waiting time that makes up for one class: nobody starves, whatever keeps coming before him. Past
            STAT it lets one batch go for each of STAT.
    """

    images: int = 256
    background_share: float = 0.75
    routine_share: float = 0.9
    ageing_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class Batching:
    """How asks of one key are put together.

    Attributes:
        preferred: Images of one batch, from the measured latency table: more gain nothing.
        max_delay_seconds: How long the first of a batch may wait for company while there is traffic.
        image_seconds: Measured time of one image in a preferred batch, for hints to those who are refused.
    """

    preferred: int = 1
    max_delay_seconds: float = 0.0
    image_seconds: float = 0.01


@dataclass(frozen=True, slots=True)
class Place:
    """Where work is done: a device, and how many batches it computes side by side without slowing each."""

    device: str = ""
    lanes: int = 1


ONE_LANE = Place()


@dataclass(eq=False, slots=True)
class Ask:
    """Work for one caller.

    Attributes:
        key: Asks of the same key may share a batch.
        contents: One digest per image.
        place: Where it runs.
        deadline: On the owner's clock; None waits for ever.
        payload: The owner's own.
        arrived: On the owner's clock, set when it is queued.
    """

    key: Hashable
    contents: tuple[str, ...]
    priority: Priority = Priority.ROUTINE
    deadline: float | None = None
    payload: Any = None
    place: Place = ONE_LANE
    arrived: float = 0.0
    waiting: bool = field(default=False, init=False)


@dataclass(frozen=True, slots=True)
class Taken:
    """What to do now: run `batch`, tell `expired` that their time is over; with neither, look again in `again_in`."""

    batch: tuple[Ask, ...]
    expired: tuple[Ask, ...]
    again_in: float | None


_Able = Callable[[Ask], bool]


class BatchQueue:
    """The queue of one process; its owner guards it against concurrent use.

    Args:
        limits: How much may wait.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._ranks: dict[Ask, float] = {}
        self._batching: dict[Hashable, Batching] = {}
        self._crowded: set[Hashable] = set()
        self._images = 0
        self._background = 0
        self._after_stat = False

    def __len__(self) -> int:
        return len(self._ranks)

    @property
    def images(self) -> int:
        """Images that wait."""
        return self._images

    def set_batching(self, key: Hashable, batching: Batching | None) -> None:
        """Say how asks of a key are put together; None forgets the key."""
        if batching is None:
            self._batching.pop(key, None)
            self._crowded.discard(key)
        else:
            self._batching[key] = batching

    def holds(self, key: Hashable) -> bool:
        """Whether an ask of this key waits."""
        return any(ask.key == key for ask in self._ranks)

    def put(self, ask: Ask, now: float) -> None:
        """Let an ask wait for its turn.

        Raises:
            DeadlineError: Its time is over already.
            OverloadedError: Too much waits; says when to try again.
        """
        if ask.deadline is not None and ask.deadline <= now:
            raise DeadlineError("The deadline had passed when the request arrived.", "Give it more time.")
        size = len(ask.contents)
        room = self._room(ask.priority)
        held = self._background if ask.priority is Priority.BACKGROUND else self._images
        if held + size > room or self._images + size > self._limits.images:
            seconds = max(0.05, self._images * self._batching.get(ask.key, Batching()).image_seconds)
            raise OverloadedError(
                f"{held} images wait, {room} of this class may.",
                f"Try again in {seconds:.2f} s.",
                retry_after_seconds=seconds,
            )
        ask.arrived = now
        ask.waiting = True
        self._count(ask, 1)
        self._ranks[ask] = now + (ask.priority - Priority.STAT) * self._limits.ageing_seconds

    def _room(self, priority: Priority) -> int:
        limits = self._limits
        share = {Priority.BACKGROUND: limits.background_share, Priority.ROUTINE: limits.routine_share}
        return math.ceil(limits.images * share.get(priority, 1.0))

    def cancel(self, ask: Ask) -> bool:
        """Take an ask out, with all that it holds; False when it does not wait any more."""
        if not ask.waiting:
            return False
        self._leave(ask)
        return True

    def take(self, now: float, under_way: Sequence[Sequence[Ask]] = ()) -> Taken:
        """The next batch; with nothing to run, when to look again (None: when something is put or a batch ends).

        Args:
            under_way: The batches that run now. A device that is full takes nothing more, and who asks about an image
                that is being encoded waits for its features.
        """
        expired = self.expire(now)
        able = _able_beside(under_way)
        order = [ask for ask in sorted(self._ranks, key=self._ranks.__getitem__) if able(ask)]  # equals by arrival
        first = self._next(order)
        if first is None:
            return Taken((), expired, self.deadline_in(now))
        batching = self._batching.get(first.key, Batching())
        chosen = self._company(first, [ask for ask in order if ask.key == first.key], batching.preferred)
        if self._worth_waiting(first, chosen, batching, now):
            company_in = first.arrived + batching.max_delay_seconds - now
            deadline_in = self.deadline_in(now)
            return Taken((), expired, company_in if deadline_in is None else min(company_in, deadline_in))
        for ask in chosen:
            self._leave(ask)
        self._after_stat = first.priority is Priority.STAT
        self._note_crowd(first.key, len(chosen))
        return Taken(tuple(chosen), expired, None)

    def expire(self, now: float) -> tuple[Ask, ...]:
        """Take out those whose time is over."""
        expired = tuple(ask for ask in self._ranks if ask.deadline is not None and ask.deadline <= now)
        for ask in expired:
            self._leave(ask)
        return expired

    def deadline_in(self, now: float) -> float | None:
        """Seconds to the next deadline of those who wait; None when nobody has one."""
        return min((ask.deadline - now for ask in self._ranks if ask.deadline is not None), default=None)

    def _next(self, order: Sequence[Ask]) -> Ask | None:
        """Whose turn it is: by rank, but of those who aged past a STAT only one batch goes between two STAT batches.

        So a STAT waits for one batch that runs and one that aged, never for a whole backlog; and the backlog moves by a
        batch for each of STAT, however many of those come.
        """
        first = order[0] if order else None
        if first is None or first.priority is Priority.STAT or self._after_stat:
            return first
        return next((ask for ask in order if ask.priority is Priority.STAT), first)

    def _company(self, first: Ask, same_key: Sequence[Ask], preferred: int) -> list[Ask]:
        """The first ask with those that fill its batch, and those that look at the same images: they cost no encoder.

        A STAT batch takes only STAT along: others would make it longer.
        """
        chosen: list[Ask] = []
        contents: set[str] = set()
        for ask in same_key:
            fresh = set(ask.contents) - contents
            fits = len(contents) + len(fresh) <= max(preferred, len(first.contents))
            hurried = first.priority is Priority.STAT and ask.priority is not Priority.STAT
            if ask is first or not fresh or (fits and not hurried):
                chosen.append(ask)
                contents |= fresh
        return chosen

    def _worth_waiting(self, first: Ask, chosen: Sequence[Ask], batching: Batching, now: float) -> bool:
        """Whether company is likely: only under traffic, never for STAT, never longer than the delay."""
        if first.priority is Priority.STAT or first.key not in self._crowded:
            return False
        images = len({content for ask in chosen for content in ask.contents})
        return images < batching.preferred and now < first.arrived + batching.max_delay_seconds

    def _note_crowd(self, key: Hashable, asks: int) -> None:
        if asks > 1 or self.holds(key):
            self._crowded.add(key)
        else:
            self._crowded.discard(key)

    def _leave(self, ask: Ask) -> None:
        ask.waiting = False
        del self._ranks[ask]
        self._count(ask, -1)

    def _count(self, ask: Ask, sign: int) -> None:
        self._images += sign * len(ask.contents)
        if ask.priority is Priority.BACKGROUND:
            self._background += sign * len(ask.contents)


def _able_beside(under_way: Sequence[Sequence[Ask]]) -> _Able:
    """Who may run beside what runs already."""
    if not under_way:
        return lambda _: True
    taken = [batch[0].place.device for batch in under_way]
    held: dict[Hashable, set[str]] = {}
    for batch in under_way:
        for ask in batch:
            held.setdefault(ask.key, set()).update(ask.contents)

    def able(ask: Ask) -> bool:
        if taken.count(ask.place.device) >= ask.place.lanes:
            return False
        return ask.key not in held or held[ask.key].isdisjoint(ask.contents)

    return able
