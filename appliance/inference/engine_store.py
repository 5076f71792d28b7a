"""Finds engine files by the graph that they were built from: those built here, and those that came signed in a pack."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.domain.errors import EngineFileError, SignatureError
from appliance.inference.engine_file import DESCRIPTION_SUFFIX, engine_metadata

ENGINE_SUFFIX = ".engine"


@dataclass(frozen=True, slots=True)
class EngineStore:
    """Folders of engine files.

    Attributes:
        built: Where this machine's own builds lie; the daemon's own folder, which nobody else can write.
        packs: Folders of packs, each of which may be a link; an engine in one needs a signature over its description.
        check_signature: Raises `SignatureError` when the description of an engine is not signed by a trusted key.
    """

    built: Path
    packs: Sequence[Path]
    check_signature: Callable[[Path], object]

    def find(self, source_sha256: str, runtime: str) -> Path | None:
        """The engine that a runtime was given for a graph; one built here comes before one that was shipped."""
        for engine in _engines(self.built):
            if self._is_of(engine, source_sha256, runtime):
                return engine
        for folder in self.packs:
            for pack in _packs(folder):
                for engine in _engines(pack):
                    if self._is_of(engine, source_sha256, runtime) and self._is_signed(engine):
                        return engine
        return None

    def place_for(self, source_sha256: str, suffix: str) -> Path:
        """Where an engine built here goes."""
        return self.built / f"{source_sha256[:32]}{suffix}"

    def _is_of(self, engine: Path, source_sha256: str, runtime: str) -> bool:
        try:
            metadata = engine_metadata(engine)
        except EngineFileError:
            return False
        return (metadata.source_sha256, metadata.runtime) == (source_sha256, runtime)

    def _is_signed(self, engine: Path) -> bool:
        try:
            self.check_signature(engine.with_name(engine.name + DESCRIPTION_SUFFIX))
        except SignatureError:
            return False
        return True


def _packs(folder: Path) -> Iterator[Path]:
    """Where the packs of a folder really lie: those that came with the software are links, which no glob follows."""
    if folder.is_dir():
        for each in sorted(folder.iterdir()):
            if each.is_dir() and not each.name.startswith("."):
                yield each.resolve()


def _engines(folder: Path) -> Iterator[Path]:
    for description in sorted(folder.rglob(f"*{ENGINE_SUFFIX}{DESCRIPTION_SUFFIX}")):
        yield description.with_name(description.name.removesuffix(DESCRIPTION_SUFFIX))
