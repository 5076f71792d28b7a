"""One verified pack in memory: its encoder, its heads, and the features of the last images."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

import numpy as np

from appliance.domain.errors import InferenceError, InvalidTensorError, PackContentError, UnknownModelError
from appliance.domain.findings import ModelProvenance
from appliance.domain.manifest import (
    ALL,
    EMBEDDING,
    EncoderVariant,
    InputSpec,
    PackManifest,
    TaskManifest,
    TensorSpec,
    VerifiedPack,
)
from appliance.inference.engine import Engine, HoldsThreads, Runtime, SharesMemory, SideBySide
from appliance.inference.features import EmbeddingCache, FeatureRow
from appliance.inference.heads import head_outputs, joined
from appliance.inference.question import Answering, Question, Source
from appliance.inference.scheduler import Batching, Place
from appliance.inference.tensors import MAX_BATCH, Array, Tensor, described, fits, not_finite

CPU = "cpu"
CACHED_IMAGES = 16
"""Enough for the tasks of the studies that are worked on at the same time; features are a few megabytes each."""


class LoadedPack:
    """The engines of one pack; whoever made it closes it.

    Several threads may ask it, but no two at once about the same image: the second would encode it again.

    `batching` says how questions are best put together; whoever measured it sets it.

    Args:
        pack: What to load; every file is hashed again as it is read, so that what was verified is what runs.
        choice: The encoder variant and the runtime that serves it.
        clock: Seconds, for the timing of questions.

    Raises:
        PackContentError: A graph can't be loaded, changed since it was verified, or is not as the manifest says.
    """

    def __init__(
        self,
        pack: VerifiedPack,
        choice: tuple[EncoderVariant, Runtime],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manifest = pack.manifest
        self._outputs, self._sources = _models_of(pack.manifest)
        self._clock = clock
        self._cache = EmbeddingCache(CACHED_IMAGES)
        self.batching = Batching()
        variant, runtime = choice
        for_heads = runtime.for_heads() if isinstance(runtime, HoldsThreads) else runtime
        if isinstance(runtime, SharesMemory):
            runtime, for_heads = runtime.shared_by(len(pack.manifest.tasks))
        self.place = place_of(runtime)
        self._working = runtime.working if isinstance(runtime, SideBySide) else nullcontext
        with ExitStack() as loading:
            self._encoder = _load(pack, variant.file, variant.precision, runtime)
            loading.callback(self._encoder.close)
            _check_tensors(
                variant.file, self._encoder, (tensor_of_input(pack.manifest.input),), pack.manifest.encoder_outputs
            )
            self._heads: dict[str, Engine] = {}
            for task in pack.manifest.tasks:
                self._heads[task.name] = _load(pack, task.head, variant.precision, for_heads)
                loading.callback(self._heads[task.name].close)
                _check_tensors(task.head, self._heads[task.name], _inputs_of(pack.manifest, task), task.outputs)
            self._open = loading.pop_all()
        self.provenance = ModelProvenance(
            pack=pack.manifest.name,
            release=pack.manifest.release,
            pack_digest=pack.manifest.digest,
            base_digest=pack.manifest.base_digest,
            precision=variant.precision,
        )

    @property
    def manifest(self) -> PackManifest:
        """The manifest of what is loaded."""
        return self._manifest

    @property
    def runtime(self) -> str:
        """The runtime that serves it."""
        return self._encoder.runtime

    @property
    def on_device(self) -> bool:
        """Whether it is computed elsewhere than on the CPU."""
        return self.place.device != CPU

    @property
    def models(self) -> tuple[str, ...]:
        """Names without the pack's: its tasks, `embedding`, and `all`."""
        return tuple(self._outputs)

    def outputs(self, model: str) -> tuple[TensorSpec, ...]:
        """The tensors that a model answers with.

        Raises:
            UnknownModelError: The pack has no such model.
        """
        if model not in self._outputs:
            raise UnknownModelError(
                f"The pack {self._manifest.name} has no task {model}.", f"It has {', '.join(self.models)}."
            )
        return self._outputs[model]

    def sources(self, model: str, outputs: Sequence[str] = ()) -> Mapping[str, Source]:
        """Where outputs of a model come from; without names, all of them.

        Raises:
            UnknownModelError, InvalidTensorError: The pack has no such model, or that has no such output.
        """
        names = [spec.name for spec in self.outputs(model)]
        unknown = next((name for name in outputs if name not in names), None)
        if unknown is not None:
            raise InvalidTensorError(
                f"The model {self._manifest.model_name(model)} has no output {unknown}.", f"It has {', '.join(names)}."
            )
        sources = self._sources[model]
        return {name: sources[name] for name in outputs} if outputs else sources

    def encode_seconds(self, images: Array) -> float:
        """How long the encoder takes for a batch; for the latency table, before the pack serves."""
        started = self._clock()
        self._encoder.run_on_device({self._manifest.input.name: images})
        return self._clock() - started

    @contextmanager
    def crowded(self) -> Iterator[None]:
        """Until the end of the `with`, encode as while other lanes have work too."""
        with self._working(), self._working():
            yield

    def answer(self, questions: Sequence[tuple[Question, tuple[str, ...]]]) -> None:
        """Answer questions together: the encoder sees each image once, each head its images at once.

        Args:
            questions: Each with the content digests of its images. Every question is settled, whatever happens; one
                that fails takes no other along.
        """
        with self._working():
            self._answer(questions)

    def _answer(self, questions: Sequence[tuple[Question, tuple[str, ...]]]) -> None:
        rows, spoilt = self._features(questions)
        able: list[Answering] = []
        for question, digests in questions:
            error = next((spoilt[digest] for digest in digests if digest in spoilt), None)
            if error is None:
                able.append(Answering(question, [rows[digest] for digest in digests]))
            else:
                question.settle(None, error)
        for task in dict.fromkeys(source[0] for each in able for source in each.question.sources.values()):
            asked = [each for each in able if task in each.tasks and not each.question.settled]
            if asked:
                self._answer_one_task(task, asked)

    def close(self) -> None:
        """Free the engines and what they computed."""
        self._cache.clear()
        self._open.close()

    def _features(
        self, questions: Sequence[tuple[Question, tuple[str, ...]]]
    ) -> tuple[dict[str, FeatureRow], dict[str, BaseException]]:
        """The features of every image, computed where not remembered, and the errors of those that have none."""
        rows: dict[str, FeatureRow] = {}
        fresh: dict[str, Array] = {}
        for question, digests in questions:
            for position, digest in enumerate(digests):
                if digest in rows or digest in fresh:
                    question.timing.cache_hits += 1
                elif (known := self._cache.get(digest)) is not None:
                    rows[digest] = known
                    question.timing.cache_hits += 1
                else:
                    fresh[digest] = question.images[position : position + 1]
        started = self._clock()
        spoilt: dict[str, BaseException] = {}
        wanted = list(fresh.items())
        for start in range(0, len(wanted), MAX_BATCH):
            self._encode(dict(wanted[start : start + MAX_BATCH]), rows, spoilt)
        seconds = self._clock() - started
        for question, _ in questions:
            question.timing.encoder = seconds
            question.timing.batch = len(wanted)
        return rows, spoilt

    def _encode(
        self, images: Mapping[str, Array], rows: dict[str, FeatureRow], spoilt: dict[str, BaseException]
    ) -> None:
        batch = next(iter(images.values())) if len(images) == 1 else np.concatenate(list(images.values()))
        try:
            found = self._run_encoder(batch)
        except Exception as error:  # noqa: BLE001 - told to those who asked; one image must not fail the others
            if len(images) == 1:
                spoilt.update(dict.fromkeys(images, error))
                return
            for digest, image in images.items():
                self._encode({digest: image}, rows, spoilt)
            return
        for row, digest in enumerate(images):
            try:
                self._check_row("encoder", found, row)
            except InferenceError as error:
                spoilt[digest] = error
            else:
                rows[digest] = FeatureRow(found, row)
                self._cache.put(digest, rows[digest])

    def _run_encoder(self, batch: Array) -> dict[str, Tensor]:
        outputs = self._encoder.run_on_device({self._manifest.input.name: batch})
        found = {spec.name: outputs[spec.name] for spec in self._manifest.encoder_outputs}
        for spec in self._manifest.encoder_outputs:
            self._check_shape("encoder", spec, found[spec.name], len(batch))
        return found

    def _answer_one_task(self, task: str, asked: Sequence[Answering]) -> None:
        started = self._clock()
        try:
            found = self._run_task(task, [row for each in asked for row in each.rows])
        except Exception as error:  # noqa: BLE001 - told to those who asked
            if len(asked) > 1:
                for each in asked:
                    self._answer_one_task(task, [each])
            else:
                asked[0].question.settle(None, error)
            return
        seconds = self._clock() - started
        start = 0
        for each in asked:
            each.question.timing.head += seconds
            stop = start + len(each.rows)
            outputs = {name: array[start:stop] for name, array in found.items()}
            start = stop
            try:
                for row in range(len(each.rows)):
                    self._check_row(task, outputs, row)
            except InferenceError as error:
                each.question.settle(None, error)
            else:
                each.take(task, outputs, self.provenance)

    def _run_task(self, task: str, rows: Sequence[FeatureRow]) -> dict[str, Array]:
        """The outputs of a task, or the embedding, for feature rows, in their order."""
        specs = self.outputs(task)
        if task == EMBEDDING:
            found = {spec.name: joined([row.host(spec.name) for row in rows]) for spec in specs}
        else:
            outputs = head_outputs(self._heads[task], rows)
            found = {spec.name: outputs[spec.name] for spec in specs}
        for spec in specs:
            self._check_shape(task, spec, found[spec.name], len(rows))
        return found

    def _check_shape(self, model: str, spec: TensorSpec, tensor: Tensor, images: int) -> None:
        if not fits(spec, tensor) or tensor.shape[0] != images:
            raise InferenceError(
                f"The output {spec.name} of {self._manifest.name}.{model} is {tensor.dtype} {list(tensor.shape)}, "
                f"not {described(spec)}.",
                "Build the pack again.",
            )

    def _check_row(self, model: str, tensors: Mapping[str, Tensor], row: int) -> None:
        """Refuse what is not finite; features on a GPU are judged by what the heads make of them."""
        name = not_finite({name: each[row] for name, each in tensors.items() if isinstance(each, np.ndarray)})
        if name is not None:
            raise InferenceError(
                f"The output {name} of {self._manifest.name}.{model} is not finite.",
                "The image can't be judged by this pack; report the case to the pack's maker.",
            )


def choices_of(manifest: PackManifest, runtimes: Sequence[Runtime]) -> tuple[tuple[EncoderVariant, Runtime], ...]:
    """What a machine with these runtimes can serve, in the manifest's order of preference."""
    return tuple(
        (variant, runtime) for variant in manifest.variants for runtime in runtimes if runtime.name in variant.runtimes
    )


def place_of(runtime: Runtime) -> Place:
    """Where a runtime's engines compute: the GPU takes one batch at a time, whoever's it is."""
    return Place(CPU, runtime.lanes) if isinstance(runtime, SideBySide) else Place("device")


def tensor_of_input(spec: InputSpec) -> TensorSpec:
    """A pack's input as a tensor of the protocol."""
    return TensorSpec(spec.name, "UINT8", (-1, 1, spec.rows, spec.columns))


def _models_of(
    manifest: PackManifest,
) -> tuple[Mapping[str, tuple[TensorSpec, ...]], Mapping[str, Mapping[str, Source]]]:
    """The outputs of every model of a pack, and where each output comes from."""
    embedding = tuple(tensor for tensor in manifest.encoder_outputs if tensor.name == EMBEDDING)
    outputs = {**{task.name: task.outputs for task in manifest.tasks}, EMBEDDING: embedding}
    sources: dict[str, dict[str, Source]] = {
        model: {spec.name: (model, spec.name) for spec in specs} for model, specs in outputs.items()
    }
    own = [(task.name, spec) for task in manifest.tasks for spec in task.outputs]
    outputs[ALL] = tuple(replace(spec, name=f"{task}.{spec.name}") for task, spec in own)
    sources[ALL] = {f"{task}.{spec.name}": (task, spec.name) for task, spec in own}
    return outputs, sources


def _load(pack: VerifiedPack, path: str, precision: str, runtime: Runtime) -> Engine:
    title = f"{path} of the pack {pack.manifest.name}"
    try:
        graph = (pack.folder / path).read_bytes()
    except OSError as error:
        raise PackContentError(f"{title} can't be read: {error.strerror}.", "Install the pack again.") from error
    if hashlib.sha256(graph).hexdigest() != pack.manifest.files[path]:
        raise PackContentError(f"{title} changed after it was verified.", "Install the pack again.")
    return runtime.load(graph, title=title, precision=precision)


def _inputs_of(manifest: PackManifest, task: TaskManifest) -> tuple[TensorSpec, ...]:
    return tuple(tensor for tensor in manifest.encoder_outputs if tensor.name in task.inputs)


def _check_tensors(path: str, engine: Engine, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    for what, named, found in (("input", inputs, engine.inputs), ("output", outputs, engine.outputs)):
        by_name = {tensor.name: tensor for tensor in found}
        missing = [tensor for tensor in named if not _agree(tensor, by_name.get(tensor.name))]
        extra = set(by_name) - {tensor.name for tensor in named} if what == "input" else set()
        if missing or extra:
            raise PackContentError(
                f"{path} has the {what}s {'; '.join(described(tensor) for tensor in found)}, "
                f"but the manifest says {'; '.join(described(tensor) for tensor in named)}.",
                "Build the pack again.",
            )


def _agree(named: TensorSpec, found: TensorSpec | None) -> bool:
    return (
        found is not None
        and found.datatype == named.datatype
        and len(found.shape) == len(named.shape)
        and all(a == b or -1 in {a, b} for a, b in zip(found.shape, named.shape, strict=True))
    )
