"""What the report needs of an analysis and the ledger does not hold: the masks, and when the analysis was made.

One file a revision, on disk before the ledger says "analysed". The time is chosen here once, so that a report made
again after a crash has the same bytes.
"""

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.domain.errors import StorageError
from appliance.domain.findings import SegmentationMask, StudyAnalysis, TaskOutcome


@dataclass(frozen=True, eq=False, slots=True)
class Kept:
    """An analysis with its masks, and the aware time that its report bears."""

    analysis: StudyAnalysis
    created: datetime


class KeptAnalyses:
    """Files in one folder, for revisions between analysis and report.

    Args:
        clock: The present time, aware.
    """

    def __init__(self, folder: Path, clock: Callable[[], datetime]) -> None:
        self._folder = folder
        self._clock = clock

    def keep(self, token: str, analysis: StudyAnalysis) -> None:
        """Write the masks; when this returns they are on disk.

        Raises:
            StorageError: They could not be written.
        """
        arrays: dict[str, NDArray[Any]] = {}
        masks = []
        masked = [(outcome, outcome.mask) for outcome in analysis.outcomes if outcome.mask is not None]
        for index, (outcome, mask) in enumerate(masked):
            arrays[f"mask{index}"] = np.packbits(mask.pixels)
            masks.append([outcome.pack, outcome.task, list(mask.pixels.shape), mask.area_mm2])
        arrays["header"] = np.array(json.dumps({"created": self._clock().isoformat(), "masks": masks}))
        try:
            self._write(self._file(token, analysis.revision), arrays)
        except OSError as error:
            raise StorageError(
                f"The masks of revision {analysis.revision} of study {token} can't be written: {error.strerror}.",
                "Free space on the state folder's disk.",
            ) from error

    def restore(self, token: str, analysis: StudyAnalysis) -> Kept:
        """The analysis of the ledger, with its masks again.

        Raises:
            StorageError: The masks are missing or damaged.
        """
        file = self._file(token, analysis.revision)
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                header = json.loads(str(arrays["header"]))
                masks = {
                    (pack, task): SegmentationMask(_unpacked(arrays[f"mask{index}"], tuple(shape)), area)
                    for index, (pack, task, shape, area) in enumerate(header["masks"])
                }
                created = datetime.fromisoformat(header["created"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise StorageError(f"The masks in {file} can't be read: {error}.", "Analyse the study again.") from error
        outcomes = tuple(_masked(outcome, masks) for outcome in analysis.outcomes)
        return Kept(replace(analysis, outcomes=outcomes), created)

    def drop(self, token: str, revision: int) -> None:
        """Remove the masks of a revision that is reported, or has ended; the result objects hold them."""
        self._file(token, revision).unlink(missing_ok=True)

    def _file(self, token: str, revision: int) -> Path:
        return self._folder / f"{token}-{revision}.npz"

    def _write(self, file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        with draft.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
        sync_folder(self._folder)


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on disk: a rename survives a power cut only then."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unpacked(bits: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.bool_]:
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(np.bool_)


def _masked(outcome: TaskOutcome, masks: Mapping[tuple[str, str], SegmentationMask]) -> TaskOutcome:
    mask = masks.get((outcome.pack, outcome.task))
    return outcome if mask is None else replace(outcome, mask=mask)
