"""Groups of adults by sex, age and view: which are large enough to be judged, and of which images it is not known."""

from collections.abc import Sequence
from typing import Any

from export.gate_rules import Subgroup, is_judged
from export.images import ImageSet
from export.metrics import ratio
from export.operating import Labelled
from export.recipe import GateSection

AGE_BANDS = ((18.0, 40.0), (40.0, 60.0), (60.0, 200.0))
SMALL = 10
"""Fewer positives or negatives than this make no AUC worth printing."""
NOT_JUDGED = "not judged, too few"
KNOWABLE = ("sex", "age", "view")


def subgroups(cases: Labelled) -> dict[str, list[bool]]:
    """Which cases are in each group by sex, age band and view; cases of which it is not known are in none."""
    groups: dict[str, list[bool]] = {}
    for sex in sorted(set(cases.sexes) - {""}):
        groups[f"sex {sex}"] = [each == sex for each in cases.sexes]
    for low, high in AGE_BANDS:
        chosen = [age is not None and low <= age < high for age in cases.ages]
        if any(chosen):
            groups[f"age {low:g} to {high - 1:g}" if high < AGE_BANDS[-1][1] else f"age {low:g} and over"] = chosen
    views = sorted(set(cases.views) - {""})
    if len(views) > 1:
        groups |= {f"view {view}": [each == view for each in cases.views] for view in views}
    return groups


def is_enough(cases: Labelled) -> bool:
    """Whether there are enough images of both classes for an AUC."""
    return _rarer(cases) >= SMALL


def subgroup_table(groups: Sequence[Subgroup], cases: Labelled, gate: GateSection) -> dict[str, Any]:
    """Student against its teachers in each group of adults, and which groups are too small for the gate.

    Args:
        groups: Those with an AUC, and all adults as `all`.
        cases: The labelled adults.
        gate: Its bound on a group's images.
    """
    measured = {group.name: group for group in groups}
    rows = []
    for name, chosen in ({"all": [True] * len(cases.labels)} | subgroups(cases)).items():
        group = measured.get(name)
        areas = (
            ("too few", "too few", "")
            if group is None
            else (f"{group.auc:.3f}", f"{group.teacher_auc:.3f}", _share(group))
        )
        enough = "yes" if name == "all" else _enough(group, cases.select(chosen), gate)
        rows.append([name, sum(chosen), *areas, enough])
    return {
        "title": "adult-triage: student against its teachers by subgroup",
        "columns": ["group", "images", "student AUC", "teachers' AUC", "share [95 %]", "enough for the gate"],
        "rows": rows,
        "note": f"An AUC is given from {SMALL} images of each class on. The gate judges a group that has one from "
        f"{gate.subgroup_images_min} images on, all adults by rules of their own, and the gap between the sexes "
        "whatever their number. The share's interval: bootstrap samples of patients, each drawn for both. No group of "
        "children is judged. All are of one data set; its scanners are not recorded.",
    }


def unknown_table(data: ImageSet) -> dict[str, Any]:
    """Validation images of which sex, age or view is not known, by data set."""
    val = [data.samples[index] for index in data.select(split="val")]
    rows = []
    for name in ("all", *sorted({sample.dataset for sample in val})):
        chosen = [sample for sample in val if name in ("all", sample.dataset)]
        rows.append([name, len(chosen), *(sum(getattr(s, what) in ("", None) for s in chosen) for what in KNOWABLE)])
    return {
        "title": "Validation images of unknown sex, age or view",
        "columns": ["data set", "images", *(f"{what} unknown" for what in KNOWABLE)],
        "rows": rows,
        "note": "An image of which it is not known is in no subgroup by it; one of unknown age is not among the adults "
        "of adult-triage.",
    }


def limits(groups: dict[str, Any], unknown: dict[str, Any]) -> list[str]:
    """What both tables leave open, as sentences for the card.

    Args:
        groups: As `subgroup_table` made it.
        unknown: As `unknown_table` made it.
    """
    open_groups = [f"{row[0]} ({row[-1]})" for row in groups["rows"] if row[-1] != "yes"]
    everyone = unknown["rows"][0]
    counts = ", ".join(f"{what} of {count}" for what, count in zip(KNOWABLE, everyone[2:], strict=True))
    sentences = [f"Of {everyone[1]} validation images, not known: {counts}."]
    if open_groups:
        sentences.insert(0, f"Groups of adults that the gate does not judge by themselves: {'; '.join(open_groups)}.")
    return sentences


def _share(group: Subgroup) -> str:
    return f"{ratio(group.auc, group.teacher_auc):.3f}" if group.share is None else str(group.share)


def _enough(group: Subgroup | None, cases: Labelled, gate: GateSection) -> str:
    count = len(cases.labels)
    if count < gate.subgroup_images_min:
        return f"{NOT_JUDGED}: {count}"
    return "yes" if group is not None and is_judged(group, gate) else f"{NOT_JUDGED} of one class: {_rarer(cases)}"


def _rarer(cases: Labelled) -> int:
    positive = int(cases.labels.sum())
    return min(positive, len(cases.labels) - positive)
