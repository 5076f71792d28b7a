"""The DICOM node: answers C-ECHO and C-STORE, and says Success only after the sink kept the image.

Verification SCP (PS3.4 annex A) and Storage SCP, level 2 (PS3.4 annex B), for every storage SOP class and transfer
syntax that pynetdicom knows. Data sets are handed on byte for byte, never decoded here.
"""

import threading
from collections.abc import Iterator
from io import BytesIO
from types import TracebackType
from typing import Any, Self, cast

from pydicom.dataset import Dataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import C_STORE

from appliance.domain.device import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from appliance.domain.errors import InsiteError, SettingsError
from appliance.domain.ports import InstanceSink
from appliance.network.status import SUCCESS, answer_for
from appliance.settings import NodeSettings
from appliance.telemetry import logger_for

VERIFICATION_SOP_CLASS = "1.2.840.10008.1.1"
CHUNK_BYTES = 1 << 20
MAX_PDU_BYTES = 1 << 18
"""Larger than pynetdicom's 16 KiB: an image of 20 MiB then comes in 80 pieces instead of 1300."""
NEGOTIATION_SECONDS = 30.0
"""For the association request after a connection (the ARTIM timer, PS3.8 9.1.5)."""
STOP_SECONDS = 10.0
"""How long a stop waits for images in hand."""


class StoreServer:
    """Listens from `with` to the end of it; the end finishes the images in hand and aborts what is idle."""

    def __init__(self, settings: NodeSettings, sink: InstanceSink) -> None:
        self._settings = settings
        self._sink = sink
        self._log = logger_for("network")
        self._in_hand: set[int] = set()
        self._answered = threading.Condition()
        self._entity = _entity(settings)
        self._server: Any = None

    def __enter__(self) -> Self:
        place = (self._settings.bind, self._settings.port)
        try:
            self._server = self._entity.start_server(
                place,
                block=False,
                evt_handlers=[
                    (evt.EVT_C_STORE, self._store),
                    (evt.EVT_DIMSE_SENT, self._sent),
                    (evt.EVT_REJECTED, self._rejected),
                ],
            )
        except OSError as error:
            raise SettingsError(
                f"The node can't listen on {place[0]} port {place[1]}: {error.strerror}.",
                "Choose another node.port or node.bind, or stop what listens there.",
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        with self._answered:
            if not self._answered.wait_for(lambda: not self._in_hand, STOP_SECONDS):
                self._log.warning("stopped with images in hand; their senders were not told Success")
        self._entity.shutdown()

    @property
    def port(self) -> int:
        """The TCP port it listens on, also where the settings leave the choice to the system."""
        return int(self._server.socket.getsockname()[1])

    def _store(self, event: evt.Event) -> Dataset:
        """Answer one C-STORE request (PS3.7 9.1.1); the association's own thread runs this."""
        with self._answered:
            self._in_hand.add(id(event.assoc))
        try:
            return self._answer(event)
        finally:
            if not event.assoc.is_established:
                self._finished(event)

    def _answer(self, event: evt.Event) -> Dataset:
        response = Dataset()
        request = cast("C_STORE", event.request)
        calling = str(event.assoc.requestor.ae_title).strip()
        try:
            self._sink.accept(
                _chunks(cast("BytesIO", request.DataSet).getbuffer()),
                transfer_syntax_uid=str(event.context.transfer_syntax),
                sop_class_uid=str(request.AffectedSOPClassUID),
                sop_instance_uid=str(request.AffectedSOPInstanceUID),
                calling_ae=calling,
            )
        except Exception as error:  # noqa: BLE001 - the top of the association's loop: every failure has its status
            answer = answer_for(error)
            response.Status = answer.status
            response.ErrorComment = answer.comment
            known = isinstance(error, InsiteError)
            self._log.warning(
                "image not taken",
                calling_ae=calling,
                status=f"{answer.status:04X}",
                reason=str(error) if known else repr(error),
                exc_info=not known,
            )
        else:
            response.Status = SUCCESS
        return response

    def _sent(self, event: evt.Event) -> None:
        self._finished(event)

    def _finished(self, event: evt.Event) -> None:
        with self._answered:
            self._in_hand.discard(id(event.assoc))
            self._answered.notify_all()

    def _rejected(self, event: evt.Event) -> None:
        requestor = event.assoc.requestor
        self._log.warning("association rejected", calling_ae=str(requestor.ae_title), address=requestor.address)


def _entity(settings: NodeSettings) -> AE:
    entity = AE(settings.ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.require_calling_aet = list(settings.callers)
    entity.maximum_associations = settings.max_associations
    entity.maximum_pdu_size = MAX_PDU_BYTES
    entity.network_timeout = settings.idle_seconds
    entity.dimse_timeout = settings.idle_seconds
    entity.acse_timeout = NEGOTIATION_SECONDS
    entity.add_supported_context(VERIFICATION_SOP_CLASS)
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
    return entity


def _chunks(data: memoryview) -> Iterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield bytes(data[start : start + CHUNK_BYTES])
