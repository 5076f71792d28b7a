"""Runs the models of several packs in this process: what the daemon serves, and what `insite analyse` calls itself."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from appliance.domain.errors import (
    InferenceError,
    InferenceUnavailableError,
    InvalidTensorError,
    PackContentError,
    UnknownModelError,
)
from appliance.domain.findings import ModelProvenance
from appliance.domain.manifest import TensorSpec, VerifiedPack
from appliance.domain.ports import Answer, ServedModel
from appliance.inference.asking import Settle, Urgency, Wanted
from appliance.inference.cpus import run_threads
from appliance.inference.engine import Runtime
from appliance.inference.lanes import Lanes
from appliance.inference.latency import batching_from, latency_table
from appliance.inference.loaded_pack import LoadedPack, choices_of, tensor_of_input
from appliance.inference.onnxruntime_cpu import OnnxRuntimeCpu
from appliance.inference.question import Question, content_digests
from appliance.inference.scheduler import Ask, Batching, QueueLimits
from appliance.inference.shadow import ShadowComparison
from appliance.inference.shadows import Shadows
from appliance.inference.statistics import Statistics
from appliance.inference.tensors import Array, check_input, described
from appliance.inference.traffic import Traffic


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model as metadata shows it: tensors, the runtime behind it, and which pack it comes from."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runtime: str
    provenance: ModelProvenance


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to serve a pack: a precision of its encoder on a runtime of a certain version."""

    precision: str
    runtime: str
    version: str


class PackRunner:
    """Serves models `<pack>.<task>`, `<pack>.embedding` and `<pack>.all`; implements `Inference`.

    Several tasks of one base on one image share one encoder pass, also when they are asked for at the same time.

    Args:
        packs: Loaded at once; more may be added later.
        threads: Threads of one run; 0 takes the CPUs that this process may use, sixteen at most.
        runtimes: In order of preference; default: ONNX Runtime on the CPU.
        limits: Of the queue.
        clock: Seconds; deadlines and statistics are on it.

    Raises:
        PackContentError: A pack can't be loaded.
    """

    def __init__(
        self,
        packs: Sequence[VerifiedPack] = (),
        threads: int = 0,
        *,
        runtimes: Sequence[Runtime] | None = None,
        limits: QueueLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runtimes = tuple(runtimes) if runtimes is not None else (OnnxRuntimeCpu(threads or run_threads()),)
        self._clock = clock
        self._packs: dict[str, LoadedPack] = {}
        self._coming: frozenset[str] = frozenset()
        self.differences = ShadowComparison()
        self._swapping = Lock()
        self.statistics = Statistics()
        self.traffic = Traffic()
        self._failing: Callable[[str], None] = lambda _: None
        self._lanes = Lanes(limits or QueueLimits(), self._work, self._give_up, clock)
        self._shadows = Shadows(self._lanes)
        try:
            for pack in packs:
                self.add(pack)
        except PackContentError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def choices(self, pack: VerifiedPack) -> tuple[Choice, ...]:
        """The precisions and runtimes in which this machine can serve a pack, in the manifest's order."""
        return tuple(
            Choice(variant.precision, runtime.name, runtime.version)
            for variant, runtime in choices_of(pack.manifest, self._runtimes)
        )

    def add(self, pack: VerifiedPack, choice: Choice | None = None) -> ModelProvenance:
        """Load one more pack, in its first choice unless another is named, and say how it is served.

        Raises:
            PackContentError: No variant fits this machine, it can't be loaded, or the name is taken.
            EngineFileError: An engine of it may not be loaded here.
        """
        name = pack.manifest.name
        if name in self._packs:
            raise PackContentError(
                f"Release {self._packs[name].manifest.release} of the pack {name} is loaded already.",
                "Remove it first, or remove one of the two folders.",
            )
        loaded = self._load(pack, choice)
        with self._swapping:
            self._packs = {**self._packs, name: loaded}
        return loaded.provenance

    @contextmanager
    def loading(self, name: str) -> Iterator[None]:
        """While a pack that does not serve yet is loaded elsewhere, who asks for it is told to come again."""
        self._coming = self._coming | {name}
        try:
            yield
        finally:
            self._coming = self._coming - {name}

    def measure(self, name: str) -> Batching:
        """Measure a pack's latency table and batch by it from now on; the pack must not serve yet."""
        pack = self._packs[name]
        self.set_batching(name, batching_from(latency_table(pack), pack.place.lanes))
        return pack.batching

    def set_batching(self, name: str, batching: Batching) -> None:
        """Batch a pack's questions as was measured before."""
        pack = self._packs[name]
        pack.batching = batching
        self._lanes.set_batching(pack, batching)

    def adopt(self, other: "PackRunner", name: str) -> None:
        """Serve the pack of this name that another runner loaded, in place of our own, without dropping a request.

        Who asked the old one before is answered by the old one; it is closed when the last of them has been.
        """
        pack = other.give(name)
        self._lanes.set_batching(pack, pack.batching)
        with self._swapping:
            before = self._packs.get(name)
            self._packs = {**self._packs, name: pack}
        if before is not None:
            self._retire(before)

    def when_failing(self, failing: Callable[[str], None]) -> None:
        """Say whom to tell, by a pack's name, that a question failed on a device; called in the lane's thread."""
        self._failing = failing

    def give(self, name: str) -> LoadedPack:
        """Hand a pack over with its last request answered; whoever takes it closes it."""
        with self._swapping:
            pack = self._packs[name]
            self._packs = {each: loaded for each, loaded in self._packs.items() if each != name}
        self._lanes.drain(pack)
        return pack

    def remove(self, name: str) -> None:
        """Let a pack go when its last request is answered; a name that is not loaded is no error."""
        with self._swapping:
            gone = self._packs.get(name)
            self._packs = {each: pack for each, pack in self._packs.items() if each != name}
        if gone is not None:
            self._retire(gone)

    def close(self) -> None:
        """Answer who waits, then let all packs go."""
        self._lanes.close()
        packs, self._packs = self._packs, {}
        for pack in packs.values():
            pack.close()
        self._shadows.close()

    def infer(self, model: str, image: NDArray[np.uint8]) -> Answer:
        """Run one model on one image; see `Inference.infer`."""
        pack, _ = self._find(model, "")
        return self.run(Wanted(model), {pack.manifest.input.name: image})

    def run(self, wanted: Wanted, tensors: Mapping[str, Array]) -> Answer:
        """Run one model on named tensors and wait for the answer.

        Raises:
            UnknownModelError, InvalidTensorError, OverloadedError, InferenceError: As their names say.
        """
        answer: Future[Answer] = Future()
        self.submit(wanted, tensors, partial(_fulfil, answer))
        return answer.result()

    def submit(
        self, wanted: Wanted, tensors: Mapping[str, Array], settle: Settle, urgency: Urgency | None = None
    ) -> Ask:
        """Queue a question and return at once; `settle` gets the answer or the error, in the lane's thread.

        Args:
            tensors: Owned by the runner from now on; nobody may change them.

        Raises:
            UnknownModelError, InvalidTensorError, OverloadedError, DeadlineError: As their names say; `settle` is not
                called then.
        """
        shadow = self._shadows.able(wanted, urgency)
        if shadow is None:
            return self._queue(wanted, tensors, settle, urgency)
        if not wanted.outputs:  # the shadow may have tasks that ours has not
            described = self.describe(wanted.model, wanted.version)
            wanted = replace(wanted, outputs=tuple(spec.name for spec in described.outputs))
        settle, unseen = self.differences.pair(wanted.model, settle)
        # The served question first: its shadow must take neither its turn nor the last place of the queue.
        ask = self._queue(wanted, tensors, settle, urgency)
        self._shadows.ask(shadow, wanted, tensors, unseen)
        return ask

    def _queue(self, wanted: Wanted, tensors: Mapping[str, Array], settle: Settle, urgency: Urgency | None) -> Ask:
        while True:
            pack, question, digests = self._question(wanted, tensors, settle)
            seconds = (urgency or Urgency()).seconds
            deadline = None if seconds is None else self._clock() + seconds
            ask = Ask(pack, digests, (urgency or Urgency()).priority, deadline, question, pack.place)
            with self._swapping:
                # A pack that was swapped meanwhile is being drained: the question is for its successor.
                if self._packs.get(pack.manifest.name) is pack:
                    try:
                        self._lanes.submit(ask)
                    except InferenceError:
                        self.statistics.failed(wanted.model)
                        raise
                    return ask

    def _question(
        self, wanted: Wanted, tensors: Mapping[str, Array], settle: Settle
    ) -> tuple[LoadedPack, Question, tuple[str, ...]]:
        pack, model = self._find(wanted.model, wanted.version)
        spec = tensor_of_input(pack.manifest.input)
        if set(tensors) != {spec.name}:
            raise InvalidTensorError(
                f"The request brings {', '.join(sorted(tensors)) or 'no input'}.", f"Expected is {described(spec)}."
            )
        images = tensors[spec.name]
        check_input(spec, images)
        question = Question(pack.sources(model, wanted.outputs), images, settle, name=wanted.model)
        return pack, question, content_digests(images)

    def adopt_shadow(self, other: "PackRunner", name: str) -> None:
        """Let a pack that another runner loaded answer unseen what ours of the same name answers."""
        self._shadows.adopt(other.give(name))

    def drop_shadow(self, name: str) -> None:
        """End the shadow of a pack; none is no error."""
        self._shadows.drop(name)

    def shadows(self) -> Sequence[ModelProvenance]:
        """The packs that answer in shadow."""
        return self._shadows.provenances()

    def cancel(self, ask: Ask) -> bool:
        """Take a question back; False when it is being answered or is answered."""
        return self._lanes.cancel(ask)

    def served(self) -> Sequence[ServedModel]:
        """The models that are ready, sorted by name."""
        return tuple(
            ServedModel(f"{name}.{model}", pack.provenance, tuple(spec.name for spec in pack.outputs(model)))
            for name, pack in sorted(self._packs.items())
            for model in sorted(pack.models)
        )

    def describe(self, model: str, version: str = "") -> ModelDescription:
        """Metadata of one model.

        Raises:
            UnknownModelError: No such model, or not of this version.
        """
        pack, task = self._find(model, version)
        inputs = (tensor_of_input(pack.manifest.input),)
        return ModelDescription(model, inputs, pack.outputs(task), pack.runtime, pack.provenance)

    @property
    def largest_image(self) -> int:
        """Bytes of the largest image that a loaded pack takes; 0 without packs."""
        sizes = [pack.manifest.input.rows * pack.manifest.input.columns for pack in self._packs.values()]
        return max(sizes, default=0)

    @property
    def most_waiting_images(self) -> int:
        """Images that may be in the queue."""
        return self._lanes.most_waiting_images

    def on_device(self, name: str) -> bool:
        """Whether the pack of this name that serves is computed elsewhere than on the CPU."""
        pack = self._packs.get(name)
        return pack is not None and pack.on_device

    def shadow_on_device(self, name: str) -> bool:
        """Whether the pack of this name that answers in shadow is computed elsewhere than on the CPU."""
        return self._shadows.on_device(name)

    @property
    def waiting_images(self) -> int:
        """Images in the queue."""
        return self._lanes.waiting_images

    def _load(self, pack: VerifiedPack, choice: Choice | None) -> LoadedPack:
        able = choices_of(pack.manifest, self._runtimes)
        wanted = [
            (variant, runtime)
            for variant, runtime in able
            if choice is None or (variant.precision, runtime.name) == (choice.precision, choice.runtime)
        ]
        if not wanted:
            raise PackContentError(
                f"The pack {pack.manifest.name} has no encoder for "
                f"{' or '.join(runtime.name for runtime in self._runtimes)}.",
                "Build the pack with a variant for this machine.",
            )
        return LoadedPack(pack, wanted[0], self._clock)

    def _retire(self, pack: LoadedPack) -> None:
        self._lanes.forget(pack)
        pack.close()

    def _find(self, model: str, version: str) -> tuple[LoadedPack, str]:
        name, _, task = model.partition(".")
        pack = self._packs.get(name)
        if pack is None and name in self._coming:
            raise InferenceUnavailableError(f"The pack {name} is loading.", "Ask again in a few seconds.")
        if pack is None or task not in pack.models:
            known = ", ".join(served.name for served in self.served()) or "no model"
            raise UnknownModelError(f"The model {model} is not served.", f"Served: {known}.")
        if version not in {"", str(pack.manifest.release)}:
            raise UnknownModelError(
                f"Version {version} of the model {model} is not served.", f"Served is {pack.manifest.release}."
            )
        return pack, task

    def _work(self, batch: Sequence[Ask]) -> None:
        now = self._clock()
        for ask in batch:
            ask.payload.timing.queue = now - ask.arrived
        pack: LoadedPack = batch[0].key  # type: ignore[assignment]
        with self.traffic.batch():
            pack.answer([(ask.payload, ask.contents) for ask in batch])
        if pack.on_device and any(ask.payload.failed for ask in batch):
            self._failing(pack.manifest.name)
        self.statistics.batch([(ask.payload, len(ask.contents)) for ask in batch], self._clock() - now)

    def _give_up(self, ask: Ask, error: Exception) -> None:
        question: Question = ask.payload
        if not question.settled:
            self.statistics.failed(question.name)
            question.settle(None, error)


def _fulfil(answer: "Future[Answer]", found: Answer | None, error: BaseException | None) -> None:
    if found is None:
        answer.set_exception(error or AssertionError("neither an answer nor an error"))
    else:
        answer.set_result(found)
