"""A tiny data folder and recipe: random pictures and a narrow net, so that the whole chain runs in seconds."""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from export.cli import app
from export.data import DATASETS

COLUMNS = ("file", "mask", "split", "dataset", "licence", "nc", "patient_id", "sex", "age", "view", "abnormal")
NIH, KERMANY, HANNOVER, _ = DATASETS

RECIPE = """
[pack]
name = "tiny"
title = "Tiny pack of a test"
release = 1
version = "0.0.1"
licence = "Apache-2.0"
claim = "untrained"
seed = 5

[input]
name = "image"
rows = 512
columns = 512
low_percentile = 0.5
high_percentile = 99.5

[data]
tune_percent = 40
mask_side = 64
unreadable_percent_max = 5.0
adult_min_age_years = 18.0

[teacher]
architecture = "narrow"
steps = 2
batch = 8
backbone_rate = 1e-3
head_rate = 1e-3
weight_decay = 0.02
frozen_blocks = 1
ema_decay = 0.9
nih_share = 0.5
settling_steps = 1
settling_strength = 0.4
settling_rate = 0.5
settling_nih_share = 0.5
finishing_steps = 1

[second_teacher]
architecture = "narrow"
steps = 2
batch = 8
backbone_rate = 1e-3
head_rate = 1e-3
weight_decay = 0.02
frozen_blocks = 1
ema_decay = 0.9
nih_share = 0.5
settling_steps = 1
settling_strength = 0.4
settling_rate = 0.5
settling_nih_share = 0.5
finishing_steps = 1
trainings = 2

[student]
architecture = "narrow"
steps = 2
batch = 8
backbone_rate = 1e-3
head_rate = 1e-3
weight_decay = 0.02
frozen_blocks = 0
ema_decay = 0.9
nih_share = 0.5
settling_steps = 1
settling_strength = 0.4
settling_rate = 0.5
settling_nih_share = 0.5
finishing_steps = 1
starts_from_second_teacher = true
soft_label_weight = 1.0
feature_weight = 0.5
soft_mask_weight = 0.5

[guard]
made_per_kind_train = 2
made_per_kind_val = 1

[quantise]
calibration_images = 8
auc_loss_max = 1.0
dice_loss_max = 1.0
score_shift_max = 1.0

[operating]
adult_sensitivity = 0.85
paediatric_sensitivity = 0.9
guard_pass_share = 0.99

[gate]
adult_auc_min = 0.99
adult_auc_low_min = 0.99
paediatric_auc_min = 0.99
dice_min = 0.99
dice_p5_min = 0.99
ece_max = 0.01
share_of_teacher_min = 0.99
guard_pass_min = 0.99
guard_refusal_min = 0.99
int8_auc_loss_max = 1.0
int8_dice_loss_max = 1.0
int8_speed_min = 0.0
subgroup_images_min = 2
subgroup_auc_min = 0.99
subgroup_share_of_teacher_min = 0.99
sex_gap_max = 0.01
beyond_trivial_min = 0.0
beyond_trivial_share_min = 0.99
disturbed_auc_loss_max = 0.0
lung_attribution_min = 9.0

[provenance]
note = ""
"""


def rows_of_tiny_data() -> list[dict[str, str]]:
    """40 rows: both classes of both labelled sets in both splits, each patient with one image, and two unlabelled."""
    rows = []
    for number, (split, dataset, label) in enumerate(
        itertools.chain(
            itertools.product(["train"], [NIH, KERMANY], ["0", "1"] * 7),
            itertools.product(["val"], [NIH, KERMANY], ["0", "1"] * 2),
            [("train", HANNOVER, "1"), ("train", HANNOVER, "1")],
        )
    ):
        rows.append(
            {
                "file": f"images/{number:03d}.jpg",
                "mask": f"masks/{number:03d}.png" if dataset == KERMANY else "",
                "split": split,
                "dataset": dataset,
                "licence": "CC BY 4.0",
                "nc": "0",
                "patient_id": f"patient {number}",
                "sex": "F" if number % 2 else "M",
                "age": "50" if dataset == NIH else "",
                "view": "PA",
                "abnormal": label,
            }
        )
    return rows


def write_labels(folder: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = COLUMNS) -> Path:
    """Write `labels.csv`."""
    path = folder / "labels.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_dicom_index(folder: Path, names: Sequence[str]) -> None:
    """Write `index.csv` of CT slices that are free to be used, each a series of its own."""
    with (folder / "index.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "nc", "pixels_decode", "modality", "body_part", "licence", "series_uid"])
        writer.writerows([name, "0", "yes", "CT", "", "MIT", name] for name in names)


def write_data(folder: Path, rows: list[dict[str, str]]) -> Path:
    """Write random pictures, masks of a rectangle, and `labels.csv`; return the folder."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for row in rows:
        noise = rng.integers(0, 256, size=(12, 10), dtype=np.uint8)
        Image.fromarray(noise).resize((80, 96)).save(folder / row["file"])
        if row["mask"]:
            mask = np.zeros((96, 80), np.uint8)
            mask[20:70, 10:60] = 255
            Image.fromarray(mask).save(folder / row["mask"])
    write_labels(folder, rows)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of random pictures."""
    return write_data(tmp_path_factory.mktemp("data"), rows_of_tiny_data())


@pytest.fixture(scope="session")
def built(tiny_data: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of one run of `insite-export run`; nobody changes it."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("out")
    result = CliRunner().invoke(app, ["run", str(tiny_recipe), "--data", str(tiny_data), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a narrow net that learns for three steps."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def tiny_rows() -> list[dict[str, str]]:
    """The rows of the tiny data, free to be spoilt."""
    return rows_of_tiny_data()


@pytest.fixture
def tiny(tiny_data: Path, tiny_recipe: Path) -> tuple[Path, Path]:
    """Data and recipe."""
    return tiny_data, tiny_recipe
