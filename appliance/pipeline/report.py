"""Turns a kept analysis into result objects in their folder: all of them, or none."""

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from appliance.domain.errors import StorageFullError
from appliance.domain.findings import ResultObject
from appliance.domain.ports import Reporter, StoredInstance
from appliance.pipeline.kept import Kept, sync_folder


class StudyReporting:
    """Writes to `<folder>/<token>/<revision>/` through a draft beside it.

    Args:
        folder: The state folder's `results`.
    """

    def __init__(self, reporter: Reporter, folder: Path) -> None:
        self._reporter = reporter
        self._folder = folder

    def write(
        self, token: str, kept: Kept, images: Sequence[StoredInstance], earlier: Sequence[ResultObject]
    ) -> Sequence[ResultObject]:
        """Write the result objects; when this returns they are on disk, and the same call makes the same bytes.

        Args:
            earlier: What was made of earlier revisions. The same identifier means the same content: then the file made
                before is taken over byte for byte, because no receiver may get two versions of one object.

        Raises:
            ReportError: The source images can't carry the result.
            StorageFullError: The disk is full.
        """
        final = self._folder / token / str(kept.analysis.revision)
        draft = final.with_name(f".{final.name}.draft")
        sources = {stored.instance.identity.sop_instance_uid: stored.path for stored in images}
        try:
            _clear(draft)
            draft.mkdir(parents=True)
            written = self._reporter.write(kept.analysis, sources, kept.created, draft, earlier)
            _take_over(earlier, written)
            for path in draft.iterdir():
                _sync_file(path)
            sync_folder(draft)
            _clear(final)
            draft.rename(final)
            sync_folder(final.parent)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StorageFullError(f"No space is left for results in {self._folder}.", "Free some.") from error
            raise
        return [replace(result, path=str(final / Path(result.path).name)) for result in written]


def _take_over(earlier: Sequence[ResultObject], written: Sequence[ResultObject]) -> None:
    known = {each.sop_instance_uid: Path(each.path) for each in earlier}
    for result in written:
        before = known.get(result.sop_instance_uid)
        if before is not None and before.is_file():
            shutil.copyfile(before, result.path)


def _clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
