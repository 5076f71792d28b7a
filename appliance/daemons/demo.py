"""`insite demo`: real DICOM files through the whole chain, beside a small receiving PACS, on free ports."""

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from rich.console import Console

from appliance.daemons.demo_pacs import FolderSink, Received
from appliance.daemons.demo_report import show, write_report
from appliance.daemons.serve import port_of
from appliance.daemons.supervisor import Supervisor
from appliance.domain.errors import InputError, InsiteError
from appliance.domain.findings import StudyAnalysis, TaskState
from appliance.domain.instance import Instance, key_of
from appliance.domain.lifecycle import OPEN_STATES, StudyState
from appliance.domain.ports import Destination
from appliance.imaging.header import read_instance
from appliance.network.scp import StoreServer
from appliance.network.scu import DicomSender
from appliance.settings import NodeSettings
from appliance.storage.ledger import SqlLedger

PACS = "DEMOPACS"
READY_SECONDS = 90.0
ANSWER_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class DemoCase:
    """One real file of the PyPI package `pydicom-data`, and which tasks must run on it."""

    file: str
    title: str
    runs: frozenset[str] = frozenset()


CASES = (
    DemoCase("RG1_UNCR.dcm", "Chest radiograph, adult, PA", frozenset({"adult-triage", "guard", "lungs"})),
    DemoCase("RG3_UNCR.dcm", "Leg radiograph"),
    DemoCase("explicit_VR-UN.dcm", "CT, abdomen"),
    DemoCase("MR-SIEMENS-DICOM-WithOverlays.dcm", "MR, abdomen"),
    DemoCase("US1_UNCR.dcm", "Ultrasound, colour"),
)


@dataclass(frozen=True, slots=True)
class DemoStudy:
    """What became of one case: outcomes, objects at the PACS, seconds from sending to the last object."""

    case: DemoCase
    source: Path
    instance: Instance
    state: StudyState
    analysis: StudyAnalysis
    received: Sequence[Received]
    seconds: float

    def objects(self) -> str:
        """The kinds of the objects at the PACS, in order of arrival."""
        return ", ".join(each.instance.image.modality for each in self.received)

    def problems(self) -> list[str]:
        """What did not happen as it must; empty when all is well."""
        ran = {outcome.task for outcome in self.analysis.outcomes if outcome.state is TaskState.RAN}
        kinds = sorted(each.instance.image.modality for each in self.received)
        wanted = ["SEG", "SR"] if "lungs" in self.case.runs else ["SR"]
        silent = [each.task for each in self.analysis.outcomes if each.state is not TaskState.RAN and not each.reason]
        found = []
        if self.state is not StudyState.DONE:
            found.append(f"the study ended as {self.state.value}")
        if ran != self.case.runs:
            found.append(
                f"ran: {', '.join(sorted(ran)) or 'nothing'}; due: {', '.join(sorted(self.case.runs)) or 'nothing'}"
            )
        if kinds != wanted:
            found.append(f"objects at the PACS: {', '.join(kinds) or 'none'}; due: {', '.join(wanted)}")
        if silent:
            found.append(f"no reason given for {', '.join(silent)}")
        return found


def run_demo(out: Path, console: Console) -> int:
    """Run the demo and leave results, pictures and `report.html` in `out`.

    Returns:
        0 when every study was answered as it must be, else 1.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    sources = _sources()
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="insite-demo-")))
        pacs = FolderSink(out / "pacs")
        node = NodeSettings(ae_title=PACS, bind="127.0.0.1", port=0, min_free_mib=0)
        server = stack.enter_context(StoreServer(node, pacs))
        config = _write_config(state, server.port)
        arguments = ["--state", str(state), "--config", str(config)]
        console.print("Starting the appliance …")
        supervisor = stack.enter_context(Supervisor(arguments, {"INSITE_LOG__LEVEL": "error"}))
        supervisor.wait_ready(READY_SECONDS)
        _check_packs(state)
        destination = Destination("insite", "INSITE", "127.0.0.1", port_of(state, "node", 0))
        sent: dict[str, float] = {}
        for case, source in sources:
            console.print(f"Sending {case.file} ({case.title}) by C-STORE …")
            sent[case.file] = time.monotonic()
            DicomSender("MODALITY").send(destination, [source])
        with SqlLedger.open(state / "ledger.db") as ledger:
            studies = [_follow(case, source, sent[case.file], ledger, pacs) for case, source in sources]
    write_report(studies, out)
    return show(studies, out, console)


def _sources() -> list[tuple[DemoCase, Path]]:
    try:
        files = distribution("pydicom-data").files or []
    except PackageNotFoundError:
        raise InputError("The demo's DICOM files are missing.", "Install the PyPI package pydicom-data.") from None
    found = {file.name: Path(str(file.locate())) for file in files}
    return [(case, found[case.file]) for case in CASES]


def _write_config(state: Path, pacs_port: int) -> Path:
    peer = {"name": "demo-pacs", "ae_title": PACS, "host": "127.0.0.1", "port": pacs_port}
    peers = "\n".join(f"{key} = {json.dumps(value)}" for key, value in peer.items())
    config = state / "insite.toml"
    config.write_text(
        '[node]\nbind = "127.0.0.1"\nport = 0\nmin_free_mib = 64\n'
        "[study]\nquiet_seconds = 1.0\n[worker]\npoll_seconds = 0.2\n[web]\nport = 0\n"
        f"[[destinations]]\n{peers}\n",
        encoding="utf-8",
    )
    return config


def _check_packs(state: Path) -> None:
    """Say at once that no pack speaks: without one, studies would wait."""
    packs = json.loads((state / "run" / "packs.json").read_text(encoding="utf-8"))
    if not any(pack["state"] == "active" for pack in packs):
        reasons = " ".join(f"{pack['name']}: {pack['reason']}" for pack in packs)
        raise InsiteError(
            f"No pack can be used. {reasons}", "Rebuild it with `make pack`, or check out the repository again."
        )


def _follow(case: DemoCase, source: Path, sent: float, ledger: SqlLedger, pacs: FolderSink) -> DemoStudy:
    instance = read_instance(source)
    token = key_of(instance).token
    deadline = time.monotonic() + ANSWER_SECONDS
    record = ledger.study(token)
    while record.state in OPEN_STATES:
        if time.monotonic() > deadline:
            raise InsiteError(f"{case.file} had no answer in {ANSWER_SECONDS:.0f} s; it is {record.state.value}.")
        time.sleep(0.1)
        record = ledger.study(token)
    analysis = ledger.analysis(token, record.revision)
    if analysis is None:
        raise InsiteError(f"{case.file} was not analysed: {record.reason}")
    received = pacs.of_study(instance.identity.study_uid)
    last = max((each.at for each in received), default=time.monotonic())
    return DemoStudy(case, source, instance, record.state, analysis, received, last - sent)
