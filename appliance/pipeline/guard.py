"""The guard looks first: which images of a study the other tasks of a pack may speak of, and why not the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from appliance.domain.eligibility import refusal_of
from appliance.domain.errors import (
    InferenceError,
    InferenceUnavailableError,
    ManifestError,
    PixelDecodeError,
    ProvenanceError,
    UnreadableFileError,
)
from appliance.domain.findings import Refusal, RefusalCode
from appliance.domain.manifest import PackManifest, TaskKind, TaskManifest
from appliance.domain.ports import Inference, StoredInstance
from appliance.imaging.display import DisplayImage, OrientationError, load_display
from appliance.imaging.model_input import NoContrastError, model_input_from_display
from appliance.pipeline.question import Reading, ask, failure_sentence
from appliance.telemetry import logger_for

Picture: TypeAlias = NDArray[np.uint8]
"""The encoder's input, uint8 [rows, columns]."""


@dataclass(frozen=True, eq=False, slots=True)
class Look:
    """What came of showing one image to the guard; without a refusal, the other tasks may speak of it.

    Attributes:
        picture: None where the image was not decoded.
        reading: The guard's answer; None where it was not asked or could not answer.
        score: The guard's score, 0 without a reading.
        failure: Why the guard could not answer; empty when it did or was not asked.
        left_out: Eligible, but beyond the number of images that are looked at in one study.
    """

    stored: StoredInstance
    refusal: Refusal | None = None
    picture: Picture | None = None
    reading: Reading | None = None
    score: float = 0.0
    failure: str = ""
    left_out: bool = False


class Pictures:
    """Decoded files; the last one is kept, because a study of one image is asked about it several times."""

    def __init__(self) -> None:
        self._last: tuple[Path, DisplayImage] | None = None

    def display(self, path: Path) -> DisplayImage:
        """The displayed picture of a file; errors are those of `load_display`."""
        if self._last is None or self._last[0] != path:
            self._last = (path, load_display(path))
        return self._last[1]


def guard_of(manifest: PackManifest) -> TaskManifest:
    """The pack's guard.

    Raises:
        ManifestError: The pack names none, so nothing of it may speak.
    """
    task = manifest.task(manifest.guard)
    if task is None or task.kind is not TaskKind.GUARD:
        raise ManifestError(f"Pack {manifest.name} has no guard task {manifest.guard}.", "Install a pack with a guard.")
    return task


def look_at(
    images: Sequence[StoredInstance], manifest: PackManifest, inference: Inference, pictures: Pictures, max_images: int
) -> list[Look]:
    """Show the images that the guard takes to the guard, at most `max_images`, in the order given.

    Raises:
        InferenceUnavailableError, ProvenanceError: Of the inference daemon; the whole analysis is tried again later.
    """
    task = guard_of(manifest)
    looks = []
    shown = 0
    for stored in images:
        refusal = refusal_of(stored.instance, task.eligibility)
        if refusal is not None:
            looks.append(Look(stored, refusal))
        elif shown == max_images:
            looks.append(Look(stored, left_out=True))
        else:
            shown += 1
            looks.append(_show(stored, manifest, task, inference, pictures))
    return looks


def _show(
    stored: StoredInstance, manifest: PackManifest, task: TaskManifest, inference: Inference, pictures: Pictures
) -> Look:
    try:
        display = pictures.display(stored.path)
        picture = model_input_from_display(display.pixels, manifest.input)
    except (PixelDecodeError, UnreadableFileError) as error:
        return Look(stored, Refusal(RefusalCode.PIXELS_UNREADABLE, error.message))
    except OrientationError as error:
        return Look(stored, Refusal(RefusalCode.ORIENTATION, error.message))
    except NoContrastError as error:
        return Look(stored, Refusal(RefusalCode.NO_CONTRAST, error.message))
    try:
        return _judge(stored, picture, ask(inference, manifest, task, picture), manifest)
    except (InferenceUnavailableError, ProvenanceError):
        raise
    except InferenceError as error:
        logger_for("pipeline").error("guard could not answer", pack=manifest.name, error=str(error))
        unguarded = Refusal(
            RefusalCode.GUARD_UNAVAILABLE, "The guard could not judge this image, so no other task may speak of it."
        )
        return Look(stored, unguarded, picture, failure=failure_sentence(task, error))


def _judge(stored: StoredInstance, picture: Picture, reading: Reading, manifest: PackManifest) -> Look:
    score, distance = reading.probability("score"), reading.number("distance")
    limit = reading.point.max_distance
    if limit is None:
        raise InferenceError(f"The guard of pack {manifest.name} has no greatest distance.", "Install a complete pack.")
    refusal = None
    if score < reading.point.threshold:
        refusal = Refusal(
            RefusalCode.NOT_RECOGNISED,
            f"The guard does not recognise this picture as one that {manifest.title} reads "
            f"(score {score:.2f}, at least {reading.point.threshold:.2f} is needed).",
        )
    elif distance > limit:
        refusal = Refusal(
            RefusalCode.OUT_OF_DISTRIBUTION,
            f"The picture is unlike those that {manifest.title} was made from "
            f"(distance {distance:.1f}, at most {limit:.1f} is allowed).",
        )
    return Look(stored, refusal, picture, reading, score)
