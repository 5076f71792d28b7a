"""`insite analyse`: files in, result objects out, through the steps that the worker runs, in one process."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from appliance.domain.device import DeviceIdentity
from appliance.domain.errors import PackError, ReportError
from appliance.domain.findings import StudyAnalysis, TaskOutcome
from appliance.domain.identifiers import uid_from_content
from appliance.domain.instance import StudyKey
from appliance.domain.manifest import PackManifest
from appliance.domain.ports import StoredInstance
from appliance.governance.serving import serve_best
from appliance.inference.runner import PackRunner
from appliance.packs.open import PackProblem, installed_packs
from appliance.pipeline.analyse import StudyAnalyser
from appliance.pipeline.offline import gather
from appliance.reporting.reporter import DicomReporter
from appliance.settings import Settings


def analyse_paths(paths: Sequence[Path], out: Path, settings: Settings) -> dict[str, Any]:
    """Analyse every study in files and folders and write `OUT/<study>/{SR,SEG}….dcm`.

    Returns:
        `{"studies": [{"study_uid", "files", "tasks", "objects", "error"}], "unreadable": [{"path", "reason"}]}`, as
        documented for `--json`; `error` is empty unless the study's results could not be written.

    Raises:
        PackError: No pack can be used.
    """
    out.mkdir(parents=True, exist_ok=True)
    gathered = gather(paths)
    with PackRunner(threads=settings.inference.threads) as runner:
        manifests = _served(settings, runner)
        analyser = StudyAnalyser(runner, manifests, settings.study.max_images)
        reporter = DicomReporter(_device(settings))
        studies = [_study(key, images, analyser, reporter, out) for key, images in gathered.studies.items()]
    unreadable = [{"path": str(left.path), "reason": left.reason} for left in gathered.unreadable]
    return {"studies": studies, "unreadable": unreadable}


def lines_of(found: dict[str, Any]) -> Iterator[str]:
    """One line a study and one a file left out, for a terminal."""
    for study in found["studies"]:
        tasks = "; ".join(_words(task) for task in study["tasks"])
        error = f" · {study['error']}" if study["error"] else ""
        yield f"{study['study_uid']} · {study['files']} files · {tasks}{error}"
    for left in found["unreadable"]:
        yield f"left out: {left['path']} · {left['reason']}"


def _served(settings: Settings, runner: PackRunner) -> list[PackManifest]:
    """Load every usable pack as the inference daemon does; one that can't be used never stops the others."""
    found = installed_packs(
        settings.packs_folder, settings.packs.trusted_keys, allow_unvalidated=settings.packs.allow_unvalidated
    )
    manifests, problems = [], []
    for pack in found:
        try:
            if isinstance(pack, PackProblem):
                raise pack.error
            serve_best(pack, runner)
            manifests.append(pack.manifest)
        except PackError as error:
            problems.append(str(error))
    if not manifests:
        folder = settings.packs_folder
        raise PackError(f"No pack in {folder} can be used. {' '.join(problems)}".strip(), "Install a signed pack.")
    return manifests


def _device(settings: Settings) -> DeviceIdentity:
    uid = uid_from_content("device", "insite analyse", (), ())
    return DeviceIdentity("analyse", uid, version("insite"), settings.node.ae_title)


def _study(
    key: StudyKey, images: list[StoredInstance], analyser: StudyAnalyser, reporter: DicomReporter, out: Path
) -> dict[str, Any]:
    analysis = analyser.analyse(key, 1, images)
    sources = {stored.instance.identity.sop_instance_uid: stored.path for stored in images}
    objects, error = [], ""
    try:
        written = reporter.write(analysis, sources, datetime.now(UTC), out / key.token)
        objects = [str(result.path) for result in written]
    except ReportError as problem:
        error = str(problem)
    return {
        "study_uid": key.study_uid,
        "files": len(images),
        "tasks": [_task(outcome, analysis) for outcome in analysis.outcomes],
        "objects": objects,
        "error": error,
    }


def _task(outcome: TaskOutcome, analysis: StudyAnalysis) -> dict[str, Any]:
    return {
        "task": outcome.task,
        "state": outcome.state.value,
        "reason": outcome.reason,
        "refusal": outcome.refusal.code.value if outcome.refusal else "",
        "score": outcome.score,
        "operating_point": outcome.operating_point.threshold if outcome.operating_point else None,
        "positive": outcome.positive,
        "pack": outcome.pack,
        "digest": analysis.pack_digests.get(outcome.pack, ""),
        "validation": analysis.validations.get(outcome.pack, ""),
        "notes": list(outcome.notes),
    }


def _words(task: dict[str, Any]) -> str:
    if task["state"] != "ran":
        return f"{task['task']} {task['state']}: {task['reason']}"
    return task["task"] if task["score"] is None else f"{task['task']} {task['score']:.2f}"
