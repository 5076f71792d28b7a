"""One verified pack in memory: its encoder, its heads, and the features of the last images."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from threading import Lock

import numpy as np

from appliance.domain.errors import InferenceError, PackContentError, UnknownModelError
from appliance.domain.findings import ModelProvenance
from appliance.domain.manifest import EncoderVariant, InputSpec, PackManifest, TaskManifest, TensorSpec, VerifiedPack
from appliance.domain.ports import Answer
from appliance.inference.engine import Engine, Runtime
from appliance.inference.feature_cache import FeatureCache, Features
from appliance.inference.tensors import Array, described, fits

EMBEDDING = "embedding"
"""The model, beside the tasks, that answers with the encoder's own summary of an image."""

CACHED_IMAGES = 8
"""Enough for the tasks of the studies that are worked on at the same time; features are a few megabytes each."""


class LoadedPack:
    """The engines of one pack; close it to free them.

    Args:
        pack: What to load; every file is hashed again as it is read, so that what was verified is what runs.
        choice: The encoder variant and the runtime that serves it.
        device: Held while a graph runs: all graphs share the same CPUs.

    Raises:
        PackContentError: A graph can't be loaded, changed since it was verified, or is not as the manifest says.
    """

    def __init__(self, pack: VerifiedPack, choice: tuple[EncoderVariant, Runtime], device: Lock) -> None:
        self._manifest = pack.manifest
        self._device = device
        self._cache = FeatureCache(CACHED_IMAGES)
        variant, runtime = choice
        with ExitStack() as loading:
            self._encoder = _load(pack, variant.file, variant.precision, runtime)
            loading.callback(self._encoder.close)
            _check_tensors(
                variant.file, self._encoder, (tensor_of_input(pack.manifest.input),), pack.manifest.encoder_outputs
            )
            self._heads: dict[str, Engine] = {}
            for task in pack.manifest.tasks:
                self._heads[task.name] = _load(pack, task.head, variant.precision, runtime)
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
    def models(self) -> tuple[str, ...]:
        """Names without the pack's: its tasks, and `embedding`."""
        return (*self._heads, EMBEDDING)

    def outputs(self, model: str) -> tuple[TensorSpec, ...]:
        """The tensors that a model answers with."""
        if model == EMBEDDING:
            return tuple(tensor for tensor in self._manifest.encoder_outputs if tensor.name == EMBEDDING)
        task = self._manifest.task(model)
        if task is None:
            raise UnknownModelError(
                f"The pack {self._manifest.name} has no task {model}.", f"It has {', '.join(self.models)}."
            )
        return task.outputs

    def run(self, model: str, image: Array) -> Answer:
        """Run one model on checked images, UINT8 [N, 1, rows, columns].

        Raises:
            UnknownModelError: No such task.
            InferenceError: An output is not finite or not as the manifest says; it is never handed on.
        """
        specs = self.outputs(model)
        features = self._features(image)
        if model == EMBEDDING:
            outputs: Mapping[str, Array] = features
        else:
            head = self._heads[model]
            with self._device:
                outputs = head.run({spec.name: features[spec.name] for spec in head.inputs})
        return Answer({spec.name: self._checked(model, spec, outputs[spec.name]) for spec in specs}, self.provenance)

    def close(self) -> None:
        """Free the engines; a run in progress ends normally."""
        self._open.close()

    def _features(self, image: Array) -> Features:
        key = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()
        return self._cache.get(key, lambda: self._encode(image))

    def _encode(self, image: Array) -> Features:
        with self._device:
            outputs = self._encoder.run({self._manifest.input.name: image})
        return {
            spec.name: self._checked("encoder", spec, outputs[spec.name]) for spec in self._manifest.encoder_outputs
        }

    def _checked(self, model: str, spec: TensorSpec, array: Array) -> Array:
        name = f"The output {spec.name} of {self._manifest.name}.{model}"
        if not fits(spec, array):
            raise InferenceError(
                f"{name} is {array.dtype} {list(array.shape)}, not {described(spec)}.", "Build the pack again."
            )
        if not np.isfinite(array).all():
            raise InferenceError(
                f"{name} is not finite.", "The image can't be judged by this pack; report the case to the pack's maker."
            )
        return array


def best_variant(
    manifest: PackManifest, runtimes: Sequence[Runtime], without: Collection[str] = ()
) -> tuple[EncoderVariant, Runtime] | None:
    """The manifest's first variant that a runtime of this machine serves, precisions in `without` left out."""
    candidates = (
        (variant, runtime)
        for variant in manifest.variants
        if variant.precision not in without
        for runtime in runtimes
        if runtime.name in variant.runtimes
    )
    return next(candidates, None)


def tensor_of_input(spec: InputSpec) -> TensorSpec:
    """A pack's input as a tensor of the protocol."""
    return TensorSpec(spec.name, "UINT8", (-1, 1, spec.rows, spec.columns))


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
