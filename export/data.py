"""The labelled radiographs: rows of `labels.csv` as samples, checked before a single image is read."""

import csv
import hashlib
import math
import os.path
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.domain.errors import InputError, SettingsError
from export.recipe import DataSection, DataSource

COLUMNS = (
    "file", "mask", "split", "dataset", "licence", "nc", "patient_id", "sex", "age", "view", "abnormal",
)  # fmt: skip
DATASETS = {
    "NIH ChestX-ray14": "nih",
    "Kermany pediatric chest X-ray": "kermany",
    "Hannover COVID-19 image repository": "hannover",
    "covid-chestxray-dataset (Cohen et al.), June 2020": "cohen",
}
"""The built-in data sets: as `labels.csv` names them, and as reports do. Labels are learned from the first two."""
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


def samples_from_csv(
    path: Path, section: DataSection, seed: int, sources: Sequence[DataSource] = ()
) -> tuple[Sample, ...]:
    """Read, filter and check the labels.

    Rows whose licence bars commercial use (`nc` other than 0) or asks for share-alike are left out.

    Args:
        path: `labels.csv`.
        section: The recipe's.
        seed: Decides who is in `tune`.
        sources: The recipe's data sets beside the built-in ones.

    Raises:
        SettingsError: One of `sources` has the name of another data set.
        InputError: The file can't be read, a column is missing, a value is none of the known ones, a patient is in both
            splits, a file belongs to two, or a task has one class only.
    """
    datasets = datasets_of(sources)
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
        _sample(f"{path}, line {number}", row, section, seed, datasets)
        for number, row in rows
        if row["nc"] == "0" and not row["licence"].startswith(_SHARE_ALIKE)
    )
    refuse_leakage(samples)
    refuse_shared_files((sample.file, sample.person) for sample in samples)
    refuse_one_class(samples, section, str(path))
    return samples


def refuse_one_class(samples: Sequence[Sample], section: DataSection, where: str) -> None:
    """Refuse samples of which a split has not both classes of each task.

    The adult task counts images of patients who are known to be adults, as everything that is fitted or measured does.

    Raises:
        InputError: The first such split; `where` the samples come from is said.
    """
    adults = [sample for sample in samples if (sample.age or 0.0) >= section.adult_min_age_years]
    for split in SPLITS:
        for task, counted in (("adult", adults), ("paediatric", samples)):
            classes = {getattr(sample, task) for sample in counted if sample.split == split} - {None}
            if classes != {0, 1}:
                raise InputError(
                    f"{where}: the split {split!r} has classes {sorted(classes)} for the task {task!r}.",
                    "Both classes are needed in each split: add rows or move patients. The adult task counts patients "
                    f"whose age is known and at least {section.adult_min_age_years:g} years.",
                )


def refuse_shared_files(files: Iterable[tuple[str, str]]) -> None:
    """Refuse a file that belongs to two patients, of whom one may be learned from and the other asked about.

    Args:
        files: Each file with its patient, who is in one split.

    Raises:
        InputError: The first such file.
    """
    owners: dict[str, str] = {}
    for file, patient in files:
        if owners.setdefault(os.path.normpath(file), patient) != patient:
            raise InputError(f"The file {file} belongs to two patients.", "Correct one of its rows.")


def datasets_of(sources: Iterable[DataSource]) -> dict[str, str]:
    """Every data set's name in `labels.csv` to its name in reports: the built-in ones and those of a recipe.

    Raises:
        SettingsError: Two have one name.
    """
    known = dict(DATASETS)
    for source in sources:
        if source.title in known or source.name in known.values():
            raise SettingsError(
                f"The source {source.name} ({source.title}) has a name that another data set has.",
                f"Taken are: {', '.join(f'{name} ({title})' for title, name in known.items())}.",
            )
        known[source.title] = source.name
    return known


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


def _sample(where: str, row: dict[str, str], section: DataSection, seed: int, datasets: Mapping[str, str]) -> Sample:
    dataset = datasets.get(row["dataset"])
    if dataset is None:
        raise InputError(
            f"{where}: the dataset is {row['dataset']!r}.",
            f"Known: {', '.join(datasets)}. Name another one, with its licence, as [[source]] in the recipe.",
        )
    if row["split"] not in ("train", "val"):
        raise InputError(f"{where}: the split is {row['split']!r}.", "It must be train or val.")
    label = _label(where, row["abnormal"].strip())
    row = row | {"patient_id": row["patient_id"].strip()}
    if label is not None and row["dataset"] not in DATASETS:
        raise InputError(
            f"{where}: abnormal is {label}, but `run` learns no labels of {row['dataset']!r}.",
            "Leave it empty; `insite-export task` learns labels of one's own, on the pack that `run` made.",
        )
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
