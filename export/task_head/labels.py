"""The labels of a new task: rows of a CSV file as cases, checked before an image is read."""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.domain.errors import InputError
from export.task_head.recipe import MIL, SEGMENTATION, TaskRecipe

SPLITS = ("train", "tune", "val")
_COMMON = ("file", "patient", "split")


@dataclass(frozen=True, slots=True)
class Case:
    """What one answer is given for: an image, or all images of a volume.

    `label` is 0 or 1, -1 for a segmentation; `mask` is a file, empty elsewhere. Paths are relative to the data folder.
    """

    files: tuple[str, ...]
    patient: str
    split: str
    label: int
    mask: str


def columns_of(head: str) -> tuple[str, ...]:
    """The columns that a head's labels need."""
    return (*_COMMON, *{SEGMENTATION: ("mask",), MIL: ("volume", "label")}.get(head, ("label",)))


def cases_from_csv(path: Path, recipe: TaskRecipe) -> tuple[Case, ...]:
    """Read and check the labels.

    Columns: `file`, `patient`, `split` (`train` or `val`), and `label` (0 or 1), or `mask` (a file) for a
    segmentation; `volume` names the images that belong together for a `mil` head. Rows without a label are left out;
    of a volume, all or none.

    Raises:
        InputError: The file can't be read, a column is missing, a value is none of the known ones, a path leaves the
            folder, an image is listed twice, a patient is in two splits, a volume contradicts itself, or a split has
            one class only.
    """
    columns = columns_of(recipe.task.head)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            for column in columns:
                if column not in (reader.fieldnames or ()):
                    raise InputError(
                        f"{path} has no column {column!r}.", f"A {recipe.task.head} head needs {', '.join(columns)}."
                    )
            rows = [(reader.line_num, {name: (row[name] or "").strip() for name in columns}) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The labels {path} can't be read: {error}.", "Give a CSV file in UTF-8.") from error
    known = "mask" if recipe.task.head == SEGMENTATION else "label"
    labelled = {row.get("volume", number) for number, row in rows if row[known]}
    kept = [(number, row) for number, row in rows if row.get("volume", number) in labelled]
    for number, row in kept:
        _check(path, number, row)
    _refuse_twice(path, kept)
    cases = _grouped(path, [row for _, row in kept], recipe)
    _refuse_leakage(path, cases)
    refuse_one_class(path, cases, recipe)
    return cases


def _check(path: Path, number: int, row: dict[str, str]) -> None:
    where = f"{path}, line {number}"
    if row["split"] not in {"train", "val"}:
        raise InputError(f"{where}: the split is {row['split']!r}.", "It must be train or val.")
    if row.get("label", "") not in {"0", "1", ""}:
        raise InputError(f"{where}: the label is {row['label']!r}.", "It must be 0, 1 or empty for not known.")
    for name in ("file", "patient", "volume"):
        if name in row and not row[name]:
            raise InputError(f"{where}: {name} is empty.", "Every row needs it.")
    for name in ("file", "mask"):
        parts = Path(row.get(name, "")).parts
        if ".." in parts or Path(row.get(name, "")).is_absolute():
            raise InputError(f"{where}: {row[name]!r} leaves the data folder.", "Give paths within it.")


def _refuse_twice(path: Path, rows: Iterable[tuple[int, dict[str, str]]]) -> None:
    lines: dict[Path, int] = {}
    for number, row in rows:
        first = lines.setdefault(Path(row["file"]), number)
        if first != number:
            raise InputError(
                f"{path}, line {number}: {row['file']!r} is in line {first} already.", "List every image once."
            )


def _grouped(path: Path, rows: Sequence[dict[str, str]], recipe: TaskRecipe) -> tuple[Case, ...]:
    groups: dict[str, list[dict[str, str]]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[row.get("volume", str(number))].append(row)
    cases = []
    for name, members in groups.items():
        first = members[0]
        for other in members[1:]:
            for key in ("patient", "split", "label"):
                if other[key] != first[key]:
                    raise InputError(
                        f"{path}: the volume {name!r} has two values of {key}: {first[key]!r} and {other[key]!r}.",
                        "All rows of a volume must agree.",
                    )
        cases.append(
            Case(
                files=tuple(member["file"] for member in members),
                patient=first["patient"],
                split=_split(first, recipe),
                label=int(first.get("label", "-1")),
                mask=first.get("mask", ""),
            )
        )
    return tuple(cases)


def _split(row: dict[str, str], recipe: TaskRecipe) -> str:
    if row["split"] == "val":
        return "val"
    token = hashlib.sha256(f"{recipe.training.seed}:{row['patient']}".encode()).digest()
    return "tune" if int.from_bytes(token[:4], "big") % 100 < recipe.training.tune_percent else "train"


def _refuse_leakage(path: Path, cases: Iterable[Case]) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        splits[case.patient].add(case.split)
    leaking = sorted(patient for patient, where in splits.items() if len(where) > 1)
    if leaking:
        raise InputError(
            f"{path}: {len(leaking)} patients are in more than one split.",
            "Give all images of a patient the same split; their names are in the column `patient`.",
        )


def refuse_one_class(path: Path, cases: Sequence[Case], recipe: TaskRecipe) -> None:
    """Refuse cases of which a split has not every class.

    Raises:
        InputError: The first such split; `path` is where the cases come from.
    """
    for split in SPLITS:
        classes = {case.label for case in cases if case.split == split}
        needed = {-1} if recipe.task.head == SEGMENTATION else {0, 1}
        if classes != needed:
            raise InputError(
                f"{path}: the split {split!r} has the classes {sorted(classes)}, needed are {sorted(needed)}.",
                "Add rows or move patients; `tune` is taken from the patients of `train` by tune_percent.",
            )
