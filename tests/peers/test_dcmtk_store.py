"""dcmtk's `echoscu`, `storescu` and `storescp` against our node and our sender."""

import subprocess
import time
from pathlib import Path

import pytest
from pydicom import dcmread

from appliance.domain.errors import DeliveryError
from appliance.domain.ports import Destination
from appliance.network.scu import DicomSender
from tests.fakes.images import write_radiograph
from tests.peers.conftest import RunningNode, free_port

pytestmark = pytest.mark.peer

ENCODINGS = {
    "-xe": ("RG1_UNCR.dcm", "1.2.840.10008.1.2.1"),
    "-xi": ("RG3_UNCR.dcm", "1.2.840.10008.1.2"),
    "-xb": ("MR2_UNCR.dcm", "1.2.840.10008.1.2.2"),
    "-xd": ("MR2_UNCR.dcm", "1.2.840.10008.1.2.1.99"),
    "-xv": ("RG1_J2KR.dcm", "1.2.840.10008.1.2.4.90"),
    "-xr": ("emri_small_RLE.dcm", "1.2.840.10008.1.2.5"),
}
"""By the option with which `storescu` proposes an encoding: a real file, and the transfer syntax that arrives."""


def run_scu(program: str, node: RunningNode, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of dcmtk's SCUs against the node."""
    place = (node.destination.host, str(node.destination.port))
    return subprocess.run(
        [program, "-aec", "INSITE", "-aet", "DCMTK", *arguments[:-1], *place, *arguments[-1:]]
        if arguments
        else [program, "-aec", "INSITE", *place],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_echoscu_is_answered(running_node: RunningNode) -> None:
    """`echoscu` ends with status 0."""
    assert run_scu("echoscu", running_node).returncode == 0


@pytest.mark.parametrize("option", ENCODINGS)
def test_storescu_sends_real_files(running_node: RunningNode, pydicom_data: Path, option: str) -> None:
    """Real files in native, big endian, deflated, JPEG 2000 and RLE encoding are taken and read back."""
    name, syntax = ENCODINGS[option]
    sent = run_scu("storescu", running_node, option, str(pydicom_data / name))
    assert sent.returncode == 0, sent.stderr
    (study,) = running_node.ledger.studies()
    (stored,) = running_node.ledger.instances(study.token)
    before, after = dcmread(pydicom_data / name), dcmread(stored.path)
    assert after.SOPInstanceUID == before.SOPInstanceUID
    assert after.file_meta.TransferSyntaxUID == stored.instance.identity.transfer_syntax_uid == syntax
    assert len(after.PixelData) == len(before.PixelData)
    assert stored.calling_ae == "DCMTK"


def test_storescu_sends_the_same_image_twice(running_node: RunningNode, tmp_path: Path) -> None:
    """A repeated image is Success to `storescu` and stays one image here."""
    file = write_radiograph(tmp_path / "a.dcm")
    for _ in range(2):
        assert run_scu("storescu", running_node, "-xe", str(file)).returncode == 0
    assert [study.images for study in running_node.ledger.studies()] == [1]


def test_storescu_hears_that_an_identifier_is_taken(running_node: RunningNode, tmp_path: Path) -> None:
    """Other bytes under a known SOP Instance UID are refused with a status that `storescu` prints."""
    run_scu("storescu", running_node, "-xe", str(write_radiograph(tmp_path / "a.dcm")))
    other = write_radiograph(tmp_path / "b.dcm", ViewPosition="AP")
    refused = run_scu("storescu", running_node, "-d", "-xe", str(other))
    assert "0x0111" in refused.stdout + refused.stderr
    assert [incident.what for incident in running_node.ledger.incidents()] == ["identity conflict"]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pynetdicom drops a refused socket unclosed
def test_our_sender_delivers_to_storescp(tmp_path: Path) -> None:
    """What we send arrives at dcmtk's receiver with the same data set."""
    folder = tmp_path / "received"
    folder.mkdir()
    port = free_port()
    file = write_radiograph(tmp_path / "a.dcm")
    receiver = subprocess.Popen(["storescp", "-od", str(folder), "+xe", str(port)])
    try:
        peer = Destination("dcmtk", "STORESCP", "127.0.0.1", port)
        _echo_until_up(peer)
        DicomSender("INSITE").send(peer, [file])
    finally:
        receiver.terminate()
        receiver.wait()
    (received,) = folder.iterdir()
    assert dcmread(received) == dcmread(file)


def _echo_until_up(peer: Destination) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            DicomSender("INSITE").echo(peer)
        except DeliveryError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        else:
            return
