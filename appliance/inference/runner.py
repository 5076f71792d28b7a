"""Runs the models of several packs in this process: what the daemon serves, and what `insite analyse` calls itself."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from appliance.domain.errors import InvalidTensorError, PackContentError, UnknownModelError
from appliance.domain.findings import ModelProvenance
from appliance.domain.manifest import TensorSpec, VerifiedPack
from appliance.domain.ports import Answer, ServedModel
from appliance.inference.cpus import usable_cpus
from appliance.inference.engine import Runtime
from appliance.inference.loaded_pack import LoadedPack, best_variant, tensor_of_input
from appliance.inference.onnxruntime_cpu import OnnxRuntimeCpu
from appliance.inference.tensors import Array, check_input, described


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model as metadata shows it: tensors, the runtime behind it, and which pack it comes from."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runtime: str
    provenance: ModelProvenance


class PackRunner:
    """Serves models `<pack>.<task>` and `<pack>.embedding`; implements `Inference`.

    Several tasks of one base on one image share one encoder pass, also when they are asked for at the same time.

    Args:
        packs: Loaded at once; more may be added later.
        threads: Threads of one run; 0 takes the CPUs that this process may use.
        runtimes: In order of preference; default: ONNX Runtime on the CPU.

    Raises:
        PackContentError: A pack can't be loaded.
    """

    def __init__(
        self, packs: Sequence[VerifiedPack] = (), threads: int = 0, *, runtimes: Sequence[Runtime] | None = None
    ) -> None:
        self._runtimes = tuple(runtimes) if runtimes is not None else (OnnxRuntimeCpu(threads or usable_cpus()),)
        self._device = Lock()
        self._packs: dict[str, LoadedPack] = {}
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

    def can_load(self, pack: VerifiedPack, without: Collection[str] = ()) -> bool:
        """Whether a pack has a variant for this machine, precisions in `without` left out."""
        return best_variant(pack.manifest, self._runtimes, without) is not None

    def add(self, pack: VerifiedPack, without: Collection[str] = ()) -> ModelProvenance:
        """Load one more pack in its best precision, those in `without` left out, and say how it is served.

        Raises:
            PackContentError: No variant fits this machine, it can't be loaded, or the name is taken.
        """
        name = pack.manifest.name
        if name in self._packs:
            raise PackContentError(
                f"Release {self._packs[name].manifest.release} of the pack {name} is loaded already.",
                "Remove it first, or remove one of the two folders.",
            )
        choice = best_variant(pack.manifest, self._runtimes, without)
        if choice is None:
            raise PackContentError(
                f"The pack {name} has no encoder for {' or '.join(runtime.name for runtime in self._runtimes)}.",
                "Build the pack with a variant for this machine.",
            )
        loaded = LoadedPack(pack, choice, self._device)
        self._packs = {**self._packs, name: loaded}
        return loaded.provenance

    def remove(self, name: str) -> None:
        """Let a pack go; a name that is not loaded is no error."""
        gone = self._packs.get(name)
        if gone is not None:
            self._packs = {each: pack for each, pack in self._packs.items() if each != name}
            gone.close()

    def close(self) -> None:
        """Let all packs go."""
        for name in tuple(self._packs):
            self.remove(name)

    def infer(self, model: str, image: NDArray[np.uint8]) -> Answer:
        """Run one model on one image; see `Inference.infer`."""
        pack, task = self._find(model, "")
        return self._run(pack, task, {pack.manifest.input.name: image})

    def run(self, model: str, version: str, tensors: Mapping[str, Array]) -> Answer:
        """Run one model on named tensors, as a request of the protocol brings them.

        Args:
            version: The release that must answer; empty for whichever is served.

        Raises:
            UnknownModelError, InvalidTensorError, InferenceError: As their names say.
        """
        pack, task = self._find(model, version)
        return self._run(pack, task, tensors)

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

    def _find(self, model: str, version: str) -> tuple[LoadedPack, str]:
        name, _, task = model.partition(".")
        pack = self._packs.get(name)
        if pack is None or task not in pack.models:
            known = ", ".join(served.name for served in self.served()) or "no model"
            raise UnknownModelError(f"The model {model} is not served.", f"Served: {known}.")
        if version not in {"", str(pack.manifest.release)}:
            raise UnknownModelError(
                f"Version {version} of the model {model} is not served.", f"Served is {pack.manifest.release}."
            )
        return pack, task

    def _run(self, pack: LoadedPack, task: str, tensors: Mapping[str, Array]) -> Answer:
        spec = tensor_of_input(pack.manifest.input)
        if set(tensors) != {spec.name}:
            raise InvalidTensorError(
                f"The request brings {', '.join(sorted(tensors)) or 'no input'}.", f"Expected is {described(spec)}."
            )
        check_input(spec, tensors[spec.name])
        return pack.run(task, tensors[spec.name])
