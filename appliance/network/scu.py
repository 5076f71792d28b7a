"""Sends DICOM files to a destination by C-STORE, and to no other address than the one it is given."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE

from appliance.domain.device import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from appliance.domain.errors import DeliveryError
from appliance.domain.ports import Destination
from appliance.network.status import SUCCESS, is_permanent, is_taken
from appliance.telemetry import logger_for

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
VERIFICATION_SOP_CLASS = "1.2.840.10008.1.1"
MOST_CONTEXTS = 128
"""Presentation contexts of one association (PS3.8 9.3.2.2: odd numbers from 1 to 255)."""
_NATIVE = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
"""Encodings into which a native data set can be turned on the way."""


@dataclass(frozen=True, slots=True)
class _Item:
    path: Path
    sop_class_uid: str
    transfer_syntax_uid: str

    @property
    def context(self) -> tuple[str, str]:
        return self.sop_class_uid, self.transfer_syntax_uid


class DicomSender:
    """Implements `Sender`; sending the same files again is harmless, because they keep their SOP Instance UIDs.

    Args:
        ae_title: The calling AE title.
    """

    def __init__(self, ae_title: str) -> None:
        self._ae_title = ae_title
        self._log = logger_for("network")

    def send(self, destination: Destination, paths: Sequence[Path]) -> None:
        """Send all files; see `Sender.send`. More than 128 kinds of objects take several associations.

        Raises:
            DeliveryError: Some file was not taken; `permanent` when trying again is pointless.
        """
        items = [_item(path) for path in paths]
        kinds = sorted({item.context for item in items})
        for start in range(0, len(kinds), MOST_CONTEXTS):
            batch = kinds[start : start + MOST_CONTEXTS]
            wanted: dict[str, list[str]] = {}
            for sop_class, syntax in batch:
                wanted.setdefault(sop_class, []).extend(_NATIVE if syntax in _NATIVE else (syntax,))
            with self._association(destination, wanted) as association:
                for message, item in enumerate((each for each in items if each.context in batch), start=1):
                    self._store(association, destination, item, message)

    def echo(self, destination: Destination) -> None:
        """C-ECHO (PS3.7 9.1.5).

        Raises:
            DeliveryError: No answer, or not Success.
        """
        with self._association(destination, {VERIFICATION_SOP_CLASS: list(_NATIVE)}) as association:
            status = association.send_c_echo().get("Status")
            if status != SUCCESS:
                raise _refused(destination, "C-ECHO", status)

    @contextmanager
    def _association(self, destination: Destination, wanted: dict[str, list[str]]) -> Iterator[Any]:
        entity = AE(self._ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.connection_timeout = CONNECT_SECONDS
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = ANSWER_SECONDS
        for sop_class, syntaxes in wanted.items():
            for syntax in dict.fromkeys(syntaxes):
                entity.add_requested_context(sop_class, syntax)
        try:
            association = entity.associate(destination.host, destination.port, ae_title=destination.ae_title)
        except (OSError, UnicodeError) as error:  # a name with an overlong label is a UnicodeError of the IDNA codec
            raise DeliveryError(
                f"The address of {destination.name}, {destination.host}, can't be found.",
                "Check the host name and the name service, or give an IP address.",
            ) from error
        if not association.is_established:
            raise _not_associated(destination, association)
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    def _store(self, association: Any, destination: Destination, item: _Item, message: int) -> None:
        usable = _NATIVE if item.transfer_syntax_uid in _NATIVE else (item.transfer_syntax_uid,)
        accepted = {(cx.abstract_syntax, cx.transfer_syntax[0]) for cx in association.accepted_contexts}
        if not any((item.sop_class_uid, syntax) in accepted for syntax in usable):
            raise DeliveryError(
                f"{destination.name} takes no objects of SOP class {item.sop_class_uid} "
                f"in transfer syntax {item.transfer_syntax_uid}.",
                "Ask its administrator to allow them, then retry the study.",
                permanent=True,
            )
        try:
            status = association.send_c_store(item.path, msg_id=message).get("Status")
        except RuntimeError as error:
            raise _refused(destination, "C-STORE", None) from error
        except ValueError as error:
            raise DeliveryError(f"{item.path} can't be encoded.", "Retry the study.", permanent=True) from error
        if status is None or not is_taken(status):
            raise _refused(destination, "C-STORE", status)
        if status != SUCCESS:
            self._log.warning("taken with a warning", destination=destination.name, status=f"{status:04X}")


def _item(path: Path) -> _Item:
    try:
        meta = read_file_meta_info(path)
        return _Item(path, str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID))
    except (OSError, InvalidDicomError, AttributeError) as error:
        raise DeliveryError(f"{path} can't be read as a DICOM file.", "Retry the study.", permanent=True) from error


def _not_associated(destination: Destination, association: Any) -> DeliveryError:
    where = f"{destination.name} ({destination.ae_title} at {destination.host} port {destination.port})"
    if association.is_rejected:
        answer = association.acceptor.primitive
        return DeliveryError(
            f"{where} rejected the association: {answer.reason_str}.",
            "Its administrator has to allow the appliance's AE title.",
        )
    if association.rejected_contexts and not association.accepted_contexts:
        classes = ", ".join(sorted({str(context.abstract_syntax) for context in association.rejected_contexts}))
        return DeliveryError(
            f"{where} takes no objects of SOP class {classes} in the encodings offered.",
            "Ask its administrator to allow them, then retry the study.",
            permanent=True,
        )
    return DeliveryError(f"{where} does not answer.", "Check address, port, firewall and that it runs.")


def _refused(destination: Destination, request: str, status: int | None) -> DeliveryError:
    if status is None:
        return DeliveryError(f"{destination.name} broke off during {request}.", "Look into its log.")
    return DeliveryError(
        f"{destination.name} answered {request} with status {status:04X}.",
        "Look into its log.",
        permanent=is_permanent(status),
    )
