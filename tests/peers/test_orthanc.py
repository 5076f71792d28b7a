"""Orthanc as the hospital's PACS: it sends to our node, and takes what we send."""

from pathlib import Path

import pytest
from pydicom import dcmread

from appliance.network.scu import DicomSender
from tests.fakes.images import write_radiograph
from tests.peers.conftest import Orthanc, RunningNode

pytestmark = pytest.mark.peer


def test_orthanc_sends_to_our_node(orthanc: Orthanc, running_node: RunningNode, tmp_path: Path) -> None:
    """A PACS that forwards a study to us sees it taken, and its own C-ECHO answered."""
    there = running_node.destination
    orthanc.ask("/modalities/insite", {"AET": there.ae_title, "Host": there.host, "Port": there.port}, "PUT")
    orthanc.ask("/modalities/insite/echo", {}, "POST")
    instance = orthanc.upload(write_radiograph(tmp_path / "a.dcm"))
    answer = orthanc.ask("/modalities/insite/store", {"Resources": [instance], "Synchronous": True}, "POST")
    assert answer["FailedInstancesCount"] == 0
    (study,) = running_node.ledger.studies()
    (stored,) = running_node.ledger.instances(study.token)
    assert (stored.calling_ae, stored.instance.identity.sop_instance_uid) == ("ORTHANC", "1.2.3.1")


def test_orthanc_takes_what_we_send_once_and_again(orthanc: Orthanc, tmp_path: Path) -> None:
    """A delivery that is repeated leaves one instance at the PACS, with the data set that we sent."""
    sender = DicomSender("INSITE")
    file = write_radiograph(tmp_path / "a.dcm")
    sender.echo(orthanc.destination)
    for _ in range(2):
        sender.send(orthanc.destination, [file])
    (instance,) = orthanc.ask("/instances")
    received = tmp_path / "back.dcm"
    received.write_bytes(orthanc.ask(f"/instances/{instance}/file"))
    assert dcmread(received) == dcmread(file)
