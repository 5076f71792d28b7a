"""Sending results: what counts as delivered, what is tried again, and what never can be."""

import socket
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless
from pynetdicom import AE, evt

from appliance.domain.errors import DeliveryError, StorageFullError, UnreadableFileError
from appliance.domain.ports import Destination
from appliance.network.scp import StoreServer
from appliance.network.scu import DicomSender
from appliance.settings import NodeSettings
from tests.fakes.images import small_radiograph, write_radiograph
from tests.fakes.sink import MemorySink

CLASSES = [f"1.2.840.10008.5.1.4.1.1.{last}" for last in ("1", "2", "4")]


@pytest.fixture
def sender() -> DicomSender:
    """The appliance as a sender."""
    return DicomSender("INSITE")


def test_all_files_arrive_over_one_association(
    sender: DicomSender, node: Destination, sink: MemorySink, tmp_path: Path
) -> None:
    """Files of several SOP classes go out together, under the appliance's AE title."""
    files = [write_radiograph(tmp_path / uid, f"1.2.3.{i}", SOPClassUID=uid) for i, uid in enumerate(CLASSES)]
    sender.send(node, files)
    sender.send(node, files)
    assert [taken.sop_class_uid for taken in sink.taken] == CLASSES * 2
    assert {taken.calling_ae for taken in sink.taken} == {"INSITE"}


def test_a_full_peer_is_worth_another_try(
    sender: DicomSender, node: Destination, sink: MemorySink, tmp_path: Path
) -> None:
    """Out of Resources (A700) is transient: the delivery is tried again later."""
    sink.failure = StorageFullError("full")
    with pytest.raises(DeliveryError, match="A700") as caught:
        sender.send(node, [write_radiograph(tmp_path / "a.dcm")])
    assert not caught.value.permanent


def test_a_peer_that_can_not_understand_is_not_tried_again(
    sender: DicomSender, node: Destination, sink: MemorySink, tmp_path: Path
) -> None:
    """Cannot Understand (C000) is permanent: the same bytes would fail again."""
    sink.failure = UnreadableFileError("odd")
    with pytest.raises(DeliveryError, match="C000") as caught:
        sender.send(node, [write_radiograph(tmp_path / "a.dcm")])
    assert caught.value.permanent


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pynetdicom drops a refused socket unclosed
def test_nobody_at_the_address_is_transient(sender: DicomSender, tmp_path: Path) -> None:
    """A peer that is down is named with its address and tried again later."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        nobody = Destination("pacs", "PACS", "127.0.0.1", port)
        with pytest.raises(
            DeliveryError, match=rf"pacs \(PACS at 127\.0\.0\.1 port {port}\) does not answer"
        ) as caught:
            sender.send(nobody, [write_radiograph(tmp_path / "a.dcm")])
        assert not caught.value.permanent
        with pytest.raises(DeliveryError):
            sender.echo(nobody)


@pytest.mark.parametrize("host", ["pacs.invalid", "a" * 64 + ".invalid"])
def test_a_host_name_that_nobody_knows_is_transient(sender: DicomSender, host: str) -> None:
    """A host name that can't be resolved is named and tried again later: the name service may be down."""
    with pytest.raises(DeliveryError, match=f"{host}, can't be found") as caught:
        sender.echo(Destination("pacs", "PACS", host, 104))
    assert not caught.value.permanent


def test_a_peer_that_accepts_no_presentation_context_is_permanent(sender: DicomSender, tmp_path: Path) -> None:
    """A PACS that takes none of the objects offered is told apart from one that does not answer."""
    entity = AE("PACS")
    entity.add_supported_context(CLASSES[1], ExplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    assert server is not None
    try:
        peer = Destination("pacs", "PACS", "127.0.0.1", server.socket.getsockname()[1])
        with pytest.raises(DeliveryError, match=f"takes no objects of SOP class {CLASSES[0]}") as caught:
            sender.send(peer, [write_radiograph(tmp_path / "a.dcm")])
        assert caught.value.permanent
    finally:
        server.shutdown()


def test_a_rejected_association_says_so(sender: DicomSender, sink: MemorySink, tmp_path: Path) -> None:
    """A peer that does not know our AE title is named; its administrator can mend it, so it is tried again."""
    with StoreServer(NodeSettings(bind="127.0.0.1", port=0, callers=("OTHER",)), sink) as server:
        peer = Destination("pacs", "PACS", "127.0.0.1", server.port)
        with pytest.raises(DeliveryError, match="rejected the association") as caught:
            sender.send(peer, [write_radiograph(tmp_path / "a.dcm")])
    assert not caught.value.permanent


def test_an_object_class_that_the_peer_refuses_is_permanent(sender: DicomSender, tmp_path: Path) -> None:
    """A PACS without support for an object or its encoding is told apart from one that is busy."""
    entity = AE("PACS")
    entity.add_supported_context(CLASSES[1], ExplicitVRLittleEndian)
    entity.add_supported_context(CLASSES[0], ExplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: 0)])
    assert server is not None
    peer = Destination("pacs", "PACS", "127.0.0.1", server.socket.getsockname()[1])
    compressed = small_radiograph()
    compressed.file_meta.TransferSyntaxUID = JPEG2000Lossless
    compressed.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    compressed["PixelData"].is_undefined_length = True
    compressed.save_as(tmp_path / "j2k.dcm", enforce_file_format=True)
    known = write_radiograph(tmp_path / "known.dcm", "1.2.3.8")
    try:
        for refused in (write_radiograph(tmp_path / "mr.dcm", SOPClassUID=CLASSES[2]), tmp_path / "j2k.dcm"):
            with pytest.raises(DeliveryError) as caught:
                sender.send(peer, [known, refused])
            assert caught.value.permanent
            assert "SOP class" in str(caught.value)
    finally:
        server.shutdown()


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB007, 0x0111])
def test_success_warnings_and_duplicates_are_delivered(sender: DicomSender, tmp_path: Path, status: int) -> None:
    """A PACS that stores with a warning, or has the object already, has taken it."""

    def answer(_: evt.Event) -> Dataset:
        response = Dataset()
        response.Status = status
        return response

    entity = AE("PACS")
    entity.add_supported_context(CLASSES[0], ExplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)])
    assert server is not None
    try:
        peer = Destination("pacs", "PACS", "127.0.0.1", server.socket.getsockname()[1])
        sender.send(peer, [write_radiograph(tmp_path / "a.dcm")])
    finally:
        server.shutdown()


def test_a_peer_that_breaks_off_is_transient(sender: DicomSender, tmp_path: Path) -> None:
    """An association aborted before the answer leaves the delivery open."""
    entity = AE("PACS")
    entity.add_supported_context(CLASSES[0], ExplicitVRLittleEndian)

    def abort(event: evt.Event) -> int:
        event.assoc.abort()
        return 0

    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, abort)])
    assert server is not None
    try:
        peer = Destination("pacs", "PACS", "127.0.0.1", server.socket.getsockname()[1])
        files = [write_radiograph(tmp_path / name, f"1.2.3.{n}") for n, name in enumerate("ab", start=1)]
        with pytest.raises(DeliveryError, match="broke off") as caught:
            sender.send(peer, files)
        assert not caught.value.permanent
    finally:
        server.shutdown()


def test_a_missing_or_foreign_file_is_named(sender: DicomSender, node: Destination, tmp_path: Path) -> None:
    """A result file that is gone or is no DICOM can't be delivered, now or later."""
    (tmp_path / "text.dcm").write_text("no DICOM")
    for name in ("text.dcm", "gone.dcm"):
        with pytest.raises(DeliveryError, match=name) as caught:
            sender.send(node, [tmp_path / name])
        assert caught.value.permanent


def test_an_echo_that_is_not_answered_with_success_is_no_success(sender: DicomSender) -> None:
    """A peer that answers C-ECHO with a failure is not reported as reachable."""
    entity = AE("PACS")
    entity.add_supported_context("1.2.840.10008.1.1")
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_ECHO, lambda _: 0x0122)])
    assert server is not None
    try:
        with pytest.raises(DeliveryError, match="0122"):
            sender.echo(Destination("pacs", "PACS", "127.0.0.1", server.socket.getsockname()[1]))
    finally:
        server.shutdown()
