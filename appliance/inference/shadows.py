"""Packs that answer in shadow: asked what the pack of their name is asked, heard by nobody but the comparison."""

from collections.abc import Mapping, Sequence
from threading import Lock

from appliance.domain.errors import InferenceError, InvalidTensorError
from appliance.domain.findings import ModelProvenance
from appliance.inference.asking import Settle, Urgency, Wanted
from appliance.inference.lanes import Lanes
from appliance.inference.loaded_pack import LoadedPack, tensor_of_input
from appliance.inference.question import Question, content_digests
from appliance.inference.scheduler import Ask, Priority
from appliance.inference.tensors import Array, check_input

WAITS_FROM = 16
"""Images in the queue from which on nothing is answered in shadow as well."""


class Shadows:
    """The shadows of one runner, at most one for each pack's name.

    Args:
        lanes: Where they answer, behind everybody else.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._swapping = Lock()
        self._packs: dict[str, LoadedPack] = {}

    def adopt(self, pack: LoadedPack) -> None:
        """Let a pack answer in shadow, in place of one of its name."""
        self._lanes.set_batching(pack, pack.batching)
        with self._swapping:
            before = self._packs.get(pack.manifest.name)
            self._packs = {**self._packs, pack.manifest.name: pack}
        self._end(before)

    def drop(self, name: str) -> None:
        """End the shadow of a pack; none is no error."""
        with self._swapping:
            gone = self._packs.get(name)
            self._packs = {each: pack for each, pack in self._packs.items() if each != name}
        self._end(gone)

    def close(self) -> None:
        """Let all go; the lanes are closed before."""
        packs, self._packs = self._packs, {}
        for pack in packs.values():
            pack.close()

    def provenances(self) -> Sequence[ModelProvenance]:
        """Who answers in shadow."""
        return tuple(pack.provenance for pack in self._packs.values())

    def on_device(self, name: str) -> bool:
        """Whether the shadow of a pack is computed elsewhere than on the CPU."""
        pack = self._packs.get(name)
        return pack is not None and pack.on_device

    def able(self, wanted: Wanted, urgency: Urgency | None) -> LoadedPack | None:
        """The pack that answers this in shadow too: never work of the background, never while much waits."""
        pack = self._packs.get(wanted.pack)
        background = urgency is not None and urgency.priority is Priority.BACKGROUND
        if pack is None or wanted.task not in pack.models or background:
            return None
        return pack if self._lanes.waiting_images <= WAITS_FROM else None

    def ask(self, pack: LoadedPack, wanted: Wanted, tensors: Mapping[str, Array], settle: Settle) -> None:
        """Queue a question for a shadow; `settle` hears also why it is not asked."""
        images = tensors.get(pack.manifest.input.name)
        try:
            if images is None:
                raise InvalidTensorError("The shadow takes another input.")
            check_input(tensor_of_input(pack.manifest.input), images)
            question = Question(
                pack.sources(wanted.task, wanted.outputs), images, settle, name=f"{wanted.model}@shadow"
            )
            with self._swapping:
                if self._packs.get(pack.manifest.name) is pack:
                    digests = content_digests(images)
                    self._lanes.submit(Ask(pack, digests, Priority.BACKGROUND, None, question, pack.place))
        except InferenceError as error:
            settle(None, error)

    def _end(self, pack: LoadedPack | None) -> None:
        if pack is not None:
            self._lanes.forget(pack)
            pack.close()
