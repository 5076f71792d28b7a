"""Remembers which way to serve a pack brought the daemon down, so that the next start leaves exactly that one out.

A mark lies on disk from before a pack is loaded until it was replayed. A process that crashes leaves it behind with the
interpreter's last words in it (`faulthandler`). One that was killed from outside leaves it without: a power cut says
nothing of a pack, the end of the unit's memory may; so that counts when it came several times in a row.
"""

import faulthandler
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from appliance.domain.errors import CrashedLoadError, PackError
from appliance.domain.manifest import PackManifest
from appliance.inference.runner import Choice
from appliance.telemetry import logger_for

KILLS = 3
"""Deaths without a word in a row that count as a crash; the unit allows five starts before it gives up."""


@dataclass(frozen=True, slots=True)
class LoadMarks:
    """Marks kept in a folder; it is made when the first is written.

    Attributes:
        folder: Where.
        software: The version of this software: what another one left is not held against a pack.
    """

    folder: Path
    software: str

    @contextmanager
    def during(self, manifest: PackManifest, choice: Choice) -> Iterator[None]:
        """Hold a mark while a pack is loaded and replayed in one way.

        Raises:
            CrashedLoadError: The last process that loaded it so died of it.
        """
        file = self._file(manifest.digest, choice)
        killed = self._killed_before(file, manifest, choice)
        mark = {"software": self.software, "runtime_version": choice.version, "killed": killed}
        marked = _written(file, json.dumps(mark) + "\n")
        if marked is None:
            yield
            return
        was_enabled = faulthandler.is_enabled()
        try:
            with marked:
                faulthandler.enable(marked, all_threads=False)
                try:
                    yield
                finally:
                    faulthandler.disable()
                    if was_enabled and sys.__stderr__ is not None:
                        faulthandler.enable(sys.__stderr__)
        finally:
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def holds(self, digest: str) -> bool:
        """Whether any way to serve a pack is marked."""
        return any(self.folder.glob(f"{digest}.*"))

    def lift(self, digest: str) -> None:
        """Let a pack be tried again in every way.

        Raises:
            PackError: The marks can't be removed.
        """
        try:
            for file in self.folder.glob(f"{digest}.*"):
                file.unlink(missing_ok=True)
        except OSError as error:
            raise PackError(
                f"The mark of a crash in {self.folder} can't be removed: {error.strerror}.", "Run this as root."
            ) from error

    def _file(self, digest: str, choice: Choice) -> Path:
        way = hashlib.sha256(f"{choice.precision} {choice.runtime}".encode()).hexdigest()[:16]
        return self.folder / f"{digest}.{way}"

    def _killed_before(self, file: Path, manifest: PackManifest, choice: Choice) -> int:
        """How often in a row a process was killed while it loaded this; a crash is an error."""
        try:
            first, _, last_words = file.read_text(encoding="utf-8", errors="replace").partition("\n")
            mark = json.loads(first)
            if (mark["software"], mark["runtime_version"]) != (self.software, choice.version):
                return 0
            killed = int(mark["killed"]) + 1
        except (OSError, ValueError, TypeError, KeyError):
            return 0
        if not last_words and killed < KILLS:
            return killed
        how = last_words.partition("\n")[0] or f"killed {killed} times in a row"
        raise CrashedLoadError(
            f"The daemon died while it loaded release {manifest.release} of {manifest.name} in {choice.precision} on "
            f"{choice.runtime}: {how}.",
            f"It is left out with this version of the software; `insite packs activate {manifest.name} "
            f"{manifest.release}` tries it again.",
        )


def _written(file: Path, text: str) -> IO[str] | None:
    """The whole mark in one move, open for last words; None where it can't be written: a full disk refuses no pack."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = draft.open("w", encoding="utf-8")
        try:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
            draft.replace(file)
        except OSError:
            stream.close()
            raise
    except OSError as error:
        logger_for("inference").error("what is being loaded can't be marked", file=str(file), reason=str(error))
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        return None
    return stream
