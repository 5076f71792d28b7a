"""The first step of an image: from a stream of bytes to a file and a row, both on disk before the sender hears so.

Order: bytes to `incoming/`, read back and checked, placed under their study, row written, `incoming/` emptied. A crash
before the row leaves the incoming file, which the next start takes up again; a row never names a missing file.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from pydicom.filereader import read_file_meta_info

from appliance.domain.device import made_here
from appliance.domain.errors import DataSetMismatchError, IdentityConflictError, InputError, StorageError
from appliance.domain.instance import Instance, key_of
from appliance.domain.ports import Incident, Ledger, StoredInstance
from appliance.imaging.header import read_instance
from appliance.storage.part10 import DataSetOrigin
from appliance.storage.spool import Incoming, Spool
from appliance.telemetry import logger_for


class Receiver:
    """Implements `InstanceSink` on a spool and a ledger; safe for threads."""

    def __init__(self, spool: Spool, ledger: Ledger, clock: Callable[[], datetime]) -> None:
        self._spool = spool
        self._ledger = ledger
        self._clock = clock
        self._log = logger_for("receive")

    def accept(
        self,
        chunks: Iterator[bytes],
        *,
        transfer_syntax_uid: str,
        sop_class_uid: str,
        sop_instance_uid: str,
        calling_ae: str,
    ) -> bool:
        """Keep an encoded data set; see `InstanceSink.accept`.

        Raises:
            DataSetMismatchError: The data set's identifiers differ from those given.
            UnreadableFileError, IdentityConflictError, StorageFullError, StorageError: As their names say.
        """
        origin = DataSetOrigin(sop_class_uid, sop_instance_uid, transfer_syntax_uid, calling_ae)
        try:
            with self._spool.receive(chunks, origin) as incoming:
                instance = self._read(incoming)
                _require_same_identifiers(instance, origin)
                return self._register(incoming, instance, calling_ae)
        except IdentityConflictError:
            raise
        except InputError as error:
            self._tell("not readable", "", f"{calling_ae} sent an image that could not be kept. {error}")
            raise

    def take_up(self) -> int:
        """Finish what a crash interrupted; called once at start, before the first association.

        Returns:
            How many images were registered that were not known before.

        Raises:
            StorageError: The spool or the ledger can't be used.
        """
        registered = 0
        for incoming in self._spool.leftovers():
            try:
                instance = self._read(incoming)
                registered += self._register(incoming, instance, _source_of(incoming.path))
            except InputError as error:
                self._log.warning("leftover dropped; its sender was not told that it arrived", error=str(error))
        return registered

    def _read(self, incoming: Incoming) -> Instance:
        instance = read_instance(incoming.path)
        if instance.identity.content_sha256 != incoming.content_sha256:
            raise StorageError(
                f"{incoming.path} does not read back as it was written.", "Check the disk of the state folder."
            )
        return instance

    def _register(self, incoming: Incoming, instance: Instance, calling_ae: str) -> bool:
        path = self._spool.keep(incoming, key_of(instance).token, instance.identity)
        stored = StoredInstance(instance, path, self._clock(), calling_ae, made_here(instance))
        try:
            new = self._ledger.add_instance(stored)
        except IdentityConflictError as error:
            aside = self._spool.set_aside(incoming)
            self._spool.discard(path)
            self._tell("identity conflict", instance.identity.study_uid, f"{error} The other is kept as {aside.name}.")
            raise
        self._log.info("image received", study=key_of(instance).token, new=new, own_result=stored.own_result)
        return new

    def _tell(self, what: str, study_uid: str, sentence: str) -> None:
        self._log.warning("image refused", what=what, study_uid=study_uid, reason=sentence)
        self._ledger.add_incident(Incident(self._clock(), study_uid, what, sentence))


def _require_same_identifiers(instance: Instance, origin: DataSetOrigin) -> None:
    identity = instance.identity
    if (identity.sop_class_uid, identity.sop_instance_uid) != (origin.sop_class_uid, origin.sop_instance_uid):
        raise DataSetMismatchError(
            f"The request names SOP instance {origin.sop_instance_uid} of class {origin.sop_class_uid}, its data set "
            f"{identity.sop_instance_uid} of class {identity.sop_class_uid}.",
            "The sender has to mend one of them.",
        )


def _source_of(path: Path) -> str:
    return str(read_file_meta_info(path).get("SourceApplicationEntityTitle", ""))
