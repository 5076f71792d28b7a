"""What the demo shows: a table on the terminal, pictures with contours, one self-contained page."""

import base64
from collections.abc import Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.table import Table

from appliance.domain.errors import InputError
from appliance.domain.findings import TaskOutcome, TaskState
from appliance.imaging.display import load_display
from appliance.imaging.overlay import overlay_png
from appliance.reporting.read_back import masks_of

if TYPE_CHECKING:
    from appliance.daemons.demo import DemoStudy

BANNER = "AI result, unverified"


def write_report(studies: Sequence["DemoStudy"], out: Path) -> None:
    """Write `<case>.png` for each picture and `report.html`, which needs no other file."""
    pictures = {study.case.file: _picture(study, out) for study in studies}
    page = Environment(
        loader=PackageLoader("appliance.daemons"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("demo.html")
    html = page.render(studies=studies, pictures=pictures, words=words_of, banner=BANNER, version=version("insite"))
    (out / "report.html").write_text(html, encoding="utf-8")


def show(studies: Sequence["DemoStudy"], out: Path, console: Console) -> int:
    """Print what happened; 0 when each study was answered as it must be."""
    table = Table("study", "task", "what happened", "objects", "seconds")
    for study in studies:
        cells = [f"{study.case.title}\n({study.case.file})", study.objects(), f"{study.seconds:.1f}"]
        for words, outcomes in groupby(study.analysis.outcomes, words_of):
            tasks = "\n".join(outcome.task for outcome in outcomes)
            table.add_row(cells[0], tasks, words, cells[1], cells[2])
            cells = ["", "", ""]
        table.add_section()
    console.print(table)
    for warning in sorted({warning for study in studies for warning in study.analysis.warnings}):
        console.print(warning, style="bold")
    problems = [f"{study.case.file}: {problem}" for study in studies for problem in study.problems()]
    for problem in problems:
        console.print(f"NOT AS IT MUST BE: {problem}", style="bold")
    console.print(f"DICOM results: {out / 'pacs'}\nPictures and report: {out / 'report.html'}", soft_wrap=True)
    console.print("Every study was answered as it must be." if not problems else "The demo failed.")
    return 1 if problems else 0


def words_of(outcome: TaskOutcome) -> str:
    """One line of what a task says."""
    if outcome.state is not TaskState.RAN:
        return f"{outcome.state.value}: {outcome.reason}"
    parts = ["ran"]
    if outcome.score is not None:
        parts.append(f"score {outcome.score:.2f}")
    if outcome.operating_point is not None and outcome.positive is not None:
        sign = "at or above" if outcome.positive else "below"
        parts.append(f"{sign} the operating point {outcome.operating_point.threshold:.2f}")
    return ", ".join([*parts, *outcome.notes])


def _picture(study: "DemoStudy", out: Path) -> str:
    """The picture with the contour as base64 PNG; empty where the file holds none that can be drawn."""
    try:
        display = load_display(study.source)
    except InputError:
        return ""
    mask = None
    for each in study.received:
        if each.instance.image.modality == "SEG":
            mask = masks_of(each.path).get(study.instance.identity.sop_instance_uid)
    png = overlay_png(display, mask, longest_side=700, banner=BANNER if mask is not None else "No AI result")
    (out / study.case.file).with_suffix(".png").write_bytes(png)
    return base64.b64encode(png).decode()
