"""The gate report as a page: tables, curves and maps drawn as SVG out of `gate-report.json` and `speed.json` alone."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jinja2
import markupsafe
from PIL import Image

from export.images import ImageSet

SIDE, MARGIN = 260, 34
COLOURS = ("#8a93a0", "#1f5fbf", "#c2570c", "#0a6b2d")
PIECE = 30
Point = tuple[float, float]
CASE_COLUMNS = ("file", "label", "score", "dice")
T = TypeVar("T")
TEACHERS = "teachers"
"""How `gate-report.json` calls the line of the teachers together."""


def html_report(title: str, report: Mapping[str, Any], speeds: Mapping[str, Any]) -> str:
    """The page of a gate report; the same report and times make the same page.

    Args:
        title: The pack's title.
        report: What `gate-report.json` holds.
        speeds: What `speed.json` holds; its tables and rules stand in place of those of the report without times.
    """
    shown = {
        **report,
        "worst_cases": _in_order(report["worst_cases"]),
        "rules": _with_times(report["rules"], speeds),
        "refused_precisions": {
            name: _with_times(rules, speeds) for name, rules in sorted(report["refused_precisions"].items())
        },
        "tables": _timed(report["tables"], speeds["tables"]),
    }
    return (
        _environment()
        .get_template("gate-report.html")
        .render(title=title, report=shown, speeds=speeds, roc=roc_chart, calibration=calibration_chart, heat=heat_map)
    )


def _with_times(rules: Sequence[Sequence[str]], speeds: Mapping[str, Any]) -> list[Sequence[str]]:
    timed = {row[0]: row for row in speeds["rules"]}
    return [timed.get(row[0], row) for row in rules]


def _timed(tables: Sequence[Mapping[str, Any]], timed: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    by_title = {table["title"]: table for table in timed}
    kept = [by_title.pop(table["title"], table) for table in tables]
    return [*kept, *by_title.values()]


def _in_order(worst: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Classifications before segmentations, and a case's columns in the order in which they are read."""
    return {
        task: [{name: case[name] for name in CASE_COLUMNS if name in case} for case in cases]
        for task, cases in sorted(worst.items(), key=lambda item: (any("dice" in case for case in item[1]), item[0]))
    }


def worst_case_pictures(worst: Mapping[str, Sequence[Mapping[str, Any]]], data: ImageSet) -> str:
    """A page with the pictures of the worst cases, for the eyes of whoever has the data."""
    places = {sample.file: index for index, sample in enumerate(data.samples)}
    files = {case["file"] for cases in worst.values() for case in cases}
    pictures = {file: _png(data, places[file]) for file in sorted(files)}
    return _environment().get_template("worst-cases.html").render(worst=worst, pictures=pictures)


def _teachers_first(lines: Mapping[str, T]) -> dict[str, T]:
    """One order and so one colour for each model, whether the report comes from memory or from its file."""
    return dict(sorted(lines.items(), key=lambda item: (item[0] != TEACHERS, item[0])))


def roc_chart(lines: Mapping[str, Sequence[Point]]) -> markupsafe.Markup:
    """ROC curves by model."""
    lines = _teachers_first(lines)
    drawn = [_line(points, colour) for points, colour in zip(lines.values(), COLOURS, strict=False)]
    return _chart([_line([(0, 0), (1, 1)], "#d5d9de"), *drawn], list(lines))


def calibration_chart(lines: Mapping[str, Sequence[tuple[float, float, int]]]) -> markupsafe.Markup:
    """Calibration points by model."""
    lines = _teachers_first(lines)
    drawn = [_line([(0, 0), (1, 1)], "#d5d9de")]
    for points, colour in zip(lines.values(), COLOURS, strict=False):
        drawn.append(_line([(x, y) for x, y, _ in points], colour))
        for x, y, count in points:
            place = f'cx="{_across(x):.1f}" cy="{_up(y):.1f}"'
            drawn.append(f'<circle {place} r="{2 + count**0.5 / 3:.1f}" fill="{colour}" fill-opacity=".6"/>')
    return _chart(drawn, list(lines))


def heat_map(each: Mapping[str, Any]) -> markupsafe.Markup:
    """Influence by piece of the picture, the lungs' pieces framed."""
    highest = max(max(row) for row in each["influence"]) or 1.0
    side = PIECE * len(each["influence"])
    parts = []
    for row, (values, areas) in enumerate(zip(each["influence"], each["lungs"], strict=True)):
        for column, (value, area) in enumerate(zip(values, areas, strict=True)):
            place = f'x="{column * PIECE + 1}" y="{row * PIECE + 1}" width="{PIECE - 2}" height="{PIECE - 2}"'
            frame = "#1f5fbf" if area > 0.5 else "#e4e7eb"  # noqa: PLR2004 - more lung than not
            parts.append(
                f'<rect {place} fill="#c2570c" fill-opacity="{value / highest:.2f}" stroke="{frame}">'
                f"<title>{100 * value:.1f} % of the influence, {100 * area:.0f} % lung</title></rect>"
            )
    label = "Map of influence by piece of the picture"
    return markupsafe.Markup(  # noqa: S704 - numbers and constants only
        f'<svg role="img" aria-label="{label}" width="{side}" height="{side}">{"".join(parts)}</svg>'
    )


def _chart(shapes: Sequence[str], names: Sequence[str]) -> markupsafe.Markup:
    box = f'<rect x="{MARGIN}" y="6" width="{SIDE}" height="{SIDE}" fill="none" stroke="#8a93a0"/>'
    ticks = "".join(
        f'<text x="{_across(x):.0f}" y="{SIDE + 20}" text-anchor="middle">{x:g}</text>'
        f'<text x="{MARGIN - 5}" y="{_up(x) + 4:.0f}" text-anchor="end">{x:g}</text>'
        for x in (0.0, 0.5, 1.0)
    )
    legend = "".join(
        f'<text x="{SIDE + MARGIN - 8}" y="{SIDE - 8 - 15 * number}" text-anchor="end" style="fill:{COLOURS[number]}">'
        f"{markupsafe.escape(name)}</text>"
        for number, name in enumerate(names)
    )
    size = f'width="{SIDE + MARGIN + 14}" height="{SIDE + 28}"'
    label = markupsafe.escape("Chart of " + ", ".join(names))
    return markupsafe.Markup(  # noqa: S704 - numbers, constants and escaped names only
        f'<svg role="img" aria-label="{label}" {size}>{box}{ticks}{"".join(shapes)}{legend}</svg>'
    )


def _line(points: Sequence[Point], colour: str) -> str:
    places = " ".join(f"{_across(x):.1f},{_up(y):.1f}" for x, y in points)
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.6"/>'


def _across(x: float) -> float:
    return MARGIN + SIDE * x


def _up(y: float) -> float:
    return 6 + SIDE * (1 - y)


def _png(data: ImageSet, index: int) -> str:
    stream = io.BytesIO()
    Image.fromarray(data.images[index]).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("export"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
