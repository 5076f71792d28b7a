"""`insite golden-study`: one image through the running services, by DICOM in and through to its report on disk.

The doctor asks each service by itself; this asks whether they work together, under the rights that they really have.
The results are compared with what the pack recorded, and are delivered to nobody.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.daemons.pulse import node_peer
from appliance.domain.errors import GateError, InsiteError, PackError
from appliance.domain.findings import StudyAnalysis, TaskOutcome, TaskState
from appliance.domain.instance import key_of
from appliance.domain.lifecycle import OPEN_STATES, StudyState
from appliance.domain.manifest import PackManifest, TaskKind, VerifiedPack
from appliance.domain.ports import StudyRecord
from appliance.governance.golden import GoldenCases, golden_cases
from appliance.imaging.golden_file import write_golden_case, write_renamed
from appliance.imaging.header import read_instance
from appliance.network.scu import DicomSender
from appliance.packs.open import installed_packs
from appliance.settings import Settings
from appliance.storage.ledger import SqlLedger

ANSWER_SECONDS = 120.0
"""How long an answer may take beside the study's own quiet time."""
POLL_SECONDS = 0.2
_LOOK = "The study's page and the services' logs say more."


@dataclass(frozen=True, slots=True)
class GoldenStudy:
    """What came of it: each task's state by its model's name, and the kinds of objects that were made."""

    tasks: Sequence[tuple[str, TaskState]]
    objects: Sequence[str]


def run_golden_study(settings: Settings, file: Path | None = None) -> GoldenStudy:
    """Send the image and wait for its report.

    Args:
        file: A site's own DICOM file; None takes the first golden case of the first pack that has one.

    Raises:
        PackError: No pack may be used, or a score is not what the pack recorded.
        DeliveryError: The node does not take the image.
        InsiteError: No report in time, or an incomplete one.
    """
    packs = _packs(settings)
    with tempfile.TemporaryDirectory(prefix="insite-golden-") as folder:
        image = Path(folder) / "golden.dcm"
        if file is None:
            body_parts = packs[0].manifest.tasks[0].eligibility.body_parts
            write_golden_case(golden_cases(packs[0]).inputs[0, 0], body_parts[0] if body_parts else "", image)
        else:
            write_renamed(file, image)
        token = key_of(read_instance(image)).token
        caller, node = node_peer(settings)
        DicomSender(caller).send(node, [image])
    with SqlLedger.open(settings.ledger_file) as ledger:
        record = ended(ledger, token, settings.study.quiet_seconds + ANSWER_SECONDS)
        analysis = ledger.analysis(token, record.revision)
        objects = [made.kind for made in ledger.objects(token, record.revision) if Path(made.path).is_file()]
    if record.state is not StudyState.DONE or analysis is None or "SR" not in objects:
        raise InsiteError(f"The golden study ended as {record.state.value}. {record.reason}".strip(), _LOOK)
    _require_packs(analysis, packs)
    require_answers(analysis, findings=file is not None)
    if file is None:
        require_scores(analysis, packs[0].manifest, golden_cases(packs[0]))
    return GoldenStudy([(f"{each.pack}.{each.task}", each.state) for each in analysis.outcomes], objects)


def _packs(settings: Settings) -> list[VerifiedPack]:
    found = installed_packs(
        settings.packs_folder, settings.packs.trusted_keys, allow_unvalidated=settings.packs.allow_unvalidated
    )
    packs = [each for each in found if isinstance(each, VerifiedPack)]
    if not packs:
        raise PackError(f"No pack in {settings.packs_folder} may be used.", "`insite doctor` says why.")
    return packs


def ended(ledger: SqlLedger, token: str, seconds: float) -> StudyRecord:
    """The study when nothing is due for it any more.

    Raises:
        InsiteError: Work is still due after `seconds`.
    """
    deadline = time.monotonic() + seconds
    record = ledger.study(token)
    while record.state in OPEN_STATES:
        if time.monotonic() >= deadline:
            standing = f"it is {record.state.value}. {record.reason}".strip()
            raise InsiteError(f"The golden study had no answer in {seconds:.0f} s; {standing}", _LOOK)
        time.sleep(POLL_SECONDS)
        record = ledger.study(token)
    return record


def _require_packs(analysis: StudyAnalysis, packs: Sequence[VerifiedPack]) -> None:
    manifests = [pack.manifest for pack in packs]
    wrong = {each.name for each in manifests if analysis.pack_digests.get(each.name) != each.digest}
    if wrong:
        raise PackError(f"The golden study was not answered by the installed {', '.join(sorted(wrong))}.", _LOOK)


def require_answers(analysis: StudyAnalysis, *, findings: bool) -> None:
    """No task may have failed; for a real file, some task beside a guard must have found it worth an answer.

    Raises:
        GateError: One failed, or nobody answered.
    """
    for outcome in analysis.outcomes:
        if outcome.state is TaskState.FAILED:
            raise GateError(f"{outcome.task} failed on the golden study. {outcome.error}", _LOOK)
    if findings and not any(
        each.state is TaskState.RAN and each.kind is not TaskKind.GUARD for each in analysis.outcomes
    ):
        reasons = " ".join(sorted({each.reason for each in analysis.outcomes if each.reason}))
        raise GateError(f"No task answered the golden study. {reasons}", "Name an image that a task takes.")


def require_scores(analysis: StudyAnalysis, pack: PackManifest, cases: GoldenCases) -> None:
    """Every score of the first golden case must be the recorded one, the guard's among them.

    Raises:
        GateError: A score is off, or the guard did not look.
    """
    ran = [each for each in analysis.outcomes if each.pack == pack.name and each.state is TaskState.RAN]
    if pack.guard not in {each.task for each in ran}:
        raise GateError("The guard did not look at the golden study.", _LOOK)
    for outcome in ran:
        if outcome.kind is not TaskKind.SEGMENTATION:
            _require_score(outcome, cases)


def _require_score(outcome: TaskOutcome, cases: GoldenCases) -> None:
    if outcome.score is None or outcome.provenance is None:
        raise GateError(f"{outcome.task} ran on the golden study without a score.", _LOOK)
    recorded = float(cases.expected(outcome.provenance.precision, outcome.task, "score")[0].flat[0])
    if not abs(outcome.score - recorded) <= cases.tolerance.score_abs:
        raise GateError(
            f"{outcome.task} gives {outcome.score:.3f} for the golden study, recorded was {recorded:.3f}.", _LOOK
        )
