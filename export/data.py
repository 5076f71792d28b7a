"""The labelled radiographs: rows of `labels.csv` as samples, checked before a single image is read."""

import csv
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.domain.errors import InputError
from export.recipe import DataSection

COLUMNS = (
    "file", "mask", "split", "dataset", "licence", "nc", "patient_id", "sex", "age", "view", "abnormal",
)  # fmt: skip
DATASETS = {
    "NIH ChestX-ray14": "nih",
    "Kermany pediatric chest X-ray": "kermany",
    "Hannover COVID-19 image repository": "hannover",
    "covid-chestxray-dataset (Cohen et al.), June 2020": "cohen",
}
SPLITS = ("train", "tune", "val")
_SHARE_ALIKE = "CC BY-SA"


@dataclass(frozen=True, slots=True)
class Sample:
    """One radiograph: where it lies and what is known of it; None is not known, never negative.

    `adult` is the NIH label "a finding that needs a look", `paediatric` the Kermany label "pneumonia"; a case-level
    "has COVID-19" is no label of an image. `sex` is `M`, `F` or empty.
    """

    file: str
    mask: str
    dataset: str
    split: str
    patient: str
    sex: str
    age: float | None
    view: str
    adult: int | None
    paediatric: int | None

    @property
    def person(self) -> str:
        """The patient, told apart from those of other data sets who have the same number."""
        return f"{self.dataset}/{self.patient}"


def samples_from_csv(path: Path, section: DataSection, seed: int) -> tuple[Sample, ...]:
    """Read, filter and check the labels.

    Rows whose licence bars commercial use (`nc` other than 0) or asks for share-alike are left out.

    Raises:
        InputError: The file can't be read, a column is missing, a value is none of the known ones, a patient is in both
            splits, or a task has one class only.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            for column in COLUMNS:
                if column not in (reader.fieldnames or ()):
                    raise InputError(f"{path} has no column {column!r}.", "Add the column: docs/ml-engineer.md.")
            rows = [(reader.line_num, {name: row[name] or "" for name in COLUMNS}) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The labels {path} can't be read: {error}.", "Give a CSV file in UTF-8.") from error
    samples = tuple(
        _sample(f"{path}, line {number}", row, section, seed)
        for number, row in rows
        if row["nc"] == "0" and not row["licence"].startswith(_SHARE_ALIKE)
    )
    refuse_leakage(samples)
    for split in SPLITS:
        for task in ("adult", "paediatric"):
            classes = {getattr(s, task) for s in samples if s.split == split} - {None}
            if classes != {0, 1}:
                raise InputError(
                    f"{path}: the split {split!r} has classes {sorted(classes)} for the task {task!r}.",
                    "Both classes are needed in each split: add rows or move patients.",
                )
    return samples


def refuse_leakage(samples: Iterable[Sample]) -> None:
    """Refuse samples where a patient is in more than one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        splits[sample.person].add(sample.split)
    leaking = [person for person, where in splits.items() if len(where) > 1]
    if leaking:
        raise InputError(
            f"{len(leaking)} patients are in more than one split.",
            "Give all images of a patient the same split; their names are in the column `patient_id`.",
        )


def _sample(where: str, row: dict[str, str], section: DataSection, seed: int) -> Sample:
    dataset = DATASETS.get(row["dataset"])
    if dataset is None:
        raise InputError(f"{where}: the dataset is {row['dataset']!r}.", f"Known: {', '.join(DATASETS)}.")
    if row["split"] not in ("train", "val"):
        raise InputError(f"{where}: the split is {row['split']!r}.", "It must be train or val.")
    label = _label(where, row["abnormal"].strip())
    return Sample(
        file=row["file"],
        mask=row["mask"],
        dataset=dataset,
        split=_split(row, section.tune_percent, seed),
        patient=row["patient_id"],
        sex=row["sex"],
        age=_age(where, row["age"].strip()),
        view=row["view"],
        adult=label if dataset == "nih" else None,
        paediatric=label if dataset == "kermany" else None,
    )


def _label(where: str, text: str) -> int | None:
    if text not in {"", "0", "1"}:
        raise InputError(f"{where}: abnormal is {text!r}.", "It must be 0, 1 or empty for not known.")
    return int(text) if text else None


def _age(where: str, text: str) -> float | None:
    try:
        age = float(text) if text else None
    except ValueError:
        age = math.nan
    if age is not None and not 0.0 <= age < math.inf:
        raise InputError(f"{where}: the age is no number of years.", "Give one such as 50, or nothing for not known.")
    return age


def _split(row: dict[str, str], tune_percent: int, seed: int) -> str:
    if row["split"] == "val":
        return "val"
    token = hashlib.sha256(f"{seed}:{row['dataset']}:{row['patient_id']}".encode()).digest()
    return "tune" if int.from_bytes(token[:4], "big") % 100 < tune_percent else "train"
