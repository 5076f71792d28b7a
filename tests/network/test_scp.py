"""The DICOM node: what it takes, how it answers, and that nothing takes it down."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts

from appliance.domain.errors import SettingsError, StorageFullError, UnreadableFileError
from appliance.domain.ports import Destination
from appliance.network.scp import StoreServer
from appliance.network.scu import DicomSender
from appliance.settings import NodeSettings
from tests.fakes.images import small_radiograph
from tests.fakes.sink import MemorySink

COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"
SYNTAXES = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
]


@contextmanager
def association(node: Destination, *contexts: tuple[str, str], calling: str = "CR1") -> Iterator[Any]:
    """An association with the node; released at the end if it still stands."""
    entity = AE(calling)
    for sop_class, syntax in contexts or ((COMPUTED_RADIOGRAPHY, ExplicitVRLittleEndian),):
        entity.add_requested_context(sop_class, syntax)
    opened = entity.associate(node.host, node.port, ae_title=node.ae_title)
    try:
        yield opened
    finally:
        if opened.is_established:
            opened.release()


def status_of_a_store(node: Destination, sop_instance_uid: str = "1.2.3.1") -> int | None:
    """Send one image on an association of its own."""
    with association(node) as opened:
        status: int | None = opened.send_c_store(small_radiograph(sop_instance_uid)).get("Status")
        return status


def test_echo_is_answered(node: Destination) -> None:
    """C-ECHO is answered with Success."""
    DicomSender("CR1").echo(node)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_an_image_arrives_byte_for_byte_in_its_transfer_syntax(
    node: Destination, sink: MemorySink, syntax: str, tmp_path: Any
) -> None:
    """The bytes of the data set are kept exactly as they were sent, in any encoding."""
    dataset = small_radiograph()
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == JPEG2000Lossless:
        dataset.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\2\0\0\0\xff\x4f\xfe\xff\xdd\xe0\0\0\0\0"
        dataset["PixelData"].is_undefined_length = True
    with association(node, (COMPUTED_RADIOGRAPHY, syntax)) as opened:
        assert opened.send_c_store(dataset).Status == 0x0000
    dcmwrite(tmp_path / "sent.dcm", dataset, enforce_file_format=True)
    (taken,) = sink.taken
    assert (tmp_path / "sent.dcm").read_bytes().endswith(taken.data)
    assert (taken.transfer_syntax_uid, taken.sop_class_uid) == (syntax, COMPUTED_RADIOGRAPHY)
    assert (taken.sop_instance_uid, taken.calling_ae) == ("1.2.3.1", "CR1")


def test_every_storage_class_and_every_transfer_syntax_is_accepted(node: Destination) -> None:
    """Each storage SOP class and each transfer syntax that the library knows gets its presentation context."""
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts]
    for start in range(0, len(classes), 128):
        with association(node, *((uid, ExplicitVRLittleEndian) for uid in classes[start : start + 128])) as opened:
            assert not opened.rejected_contexts
    with association(node, *((COMPUTED_RADIOGRAPHY, syntax) for syntax in ALL_TRANSFER_SYNTAXES)) as opened:
        assert len(opened.accepted_contexts) == len(ALL_TRANSFER_SYNTAXES)


def test_an_unknown_transfer_syntax_is_rejected_in_negotiation(node: Destination) -> None:
    """A transfer syntax that nobody could decode later is not accepted; the others of the association are."""
    contexts = ((COMPUTED_RADIOGRAPHY, "1.2.3.4.5"), (COMPUTED_RADIOGRAPHY, ExplicitVRLittleEndian))
    with association(node, *contexts) as opened:
        assert [context.transfer_syntax[0] for context in opened.accepted_contexts] == [ExplicitVRLittleEndian]
        assert len(opened.rejected_contexts) == 1


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (StorageFullError("The disk of Jane Doe is full."), 0xA700),
        (UnreadableFileError("The file is truncated."), 0xC000),
        (RuntimeError("a bug"), 0x0110),
    ],
)
def test_what_the_sink_refuses_is_refused_and_the_next_image_is_taken(
    node: Destination, sink: MemorySink, failure: Exception, status: int
) -> None:
    """A failure has a status and a comment without patient data, and the association goes on."""
    with association(node) as opened:
        sink.failure = failure
        answer = opened.send_c_store(small_radiograph())
        assert answer.Status == status
        assert "Jane" not in answer.ErrorComment
        sink.failure = None
        assert opened.send_c_store(small_radiograph("1.2.3.2")).Status == 0x0000


def test_only_callers_on_the_list_may_store(sink: MemorySink) -> None:
    """With a list of calling AE titles, every other one is rejected when it associates."""
    settings = NodeSettings(bind="127.0.0.1", port=0, callers=("CR1",))
    with StoreServer(settings, sink) as server:
        node = Destination("node", "INSITE", "127.0.0.1", server.port)
        with association(node, calling="STRANGER") as opened:
            assert opened.is_rejected
        with association(node, calling="CR1") as opened:
            assert opened.is_established


def test_one_association_too_many_is_rejected_for_now(sink: MemorySink) -> None:
    """Above the limit an association is rejected as transient, so that the sender tries again."""
    with StoreServer(NodeSettings(bind="127.0.0.1", port=0, max_associations=1), sink) as server:
        node = Destination("node", "INSITE", "127.0.0.1", server.port)
        with association(node) as first, association(node) as second:
            assert first.is_established
            assert second.is_rejected
            assert second.acceptor.primitive.result == 0x02


def test_twenty_associations_at_once_lose_nothing(node: Destination, sink: MemorySink) -> None:
    """Twenty senders at the same time are all answered, and everything they were told is there."""
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda n: status_of_a_store(node, f"1.2.3.{n}"), range(20)))
    assert statuses == [0x0000] * 20
    assert len(sink.taken) == 20


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\xff\xff\xff\xff" + b"\0" * 100, b"\x04" * 500]
)
def test_garbage_on_the_port_leaves_the_node_up(node: Destination, garbage: bytes) -> None:
    """Bytes that are no DICOM end their own connection and nothing else."""
    with socket.create_connection((node.host, node.port), 5) as stranger:
        stranger.sendall(garbage)
    assert status_of_a_store(node) == 0x0000


def test_an_abort_in_the_middle_of_an_image_takes_nothing(node: Destination, sink: MemorySink) -> None:
    """An association that breaks off before the last byte leaves no image and no harm."""
    with association(node) as opened:
        opened.dul.socket.socket.sendall(b"\x04\x00\x00\x00\x03\xe8\x00\x00\x03\xe4\x01\x00half a message")
        opened.abort()
    assert status_of_a_store(node, "1.2.3.2") == 0x0000
    assert [each.sop_instance_uid for each in sink.taken] == ["1.2.3.2"]


def test_a_stop_finishes_the_image_in_hand(sink: MemorySink) -> None:
    """Stopping the node waits for the image being kept, and its sender still hears Success."""
    sink.gate.clear()
    answers: list[int | None] = []
    with StoreServer(NodeSettings(bind="127.0.0.1", port=0), sink) as server:
        node = Destination("node", "INSITE", "127.0.0.1", server.port)
        sending = threading.Thread(target=lambda: answers.append(status_of_a_store(node)))
        sending.start()
        assert sink.entered.wait(10)
        threading.Timer(0.3, sink.gate.set).start()
    sending.join(10)
    assert answers == [0x0000]


def test_a_port_in_use_is_named(server: StoreServer, sink: MemorySink) -> None:
    """A second node on the same port says which port is taken."""
    second = StoreServer(NodeSettings(bind="127.0.0.1", port=server.port), sink)
    with pytest.raises(SettingsError, match=str(server.port)):
        second.__enter__()
