"""Pictures with stripes and without, each with a bright half; labels, masks, and recipes of tasks on them."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from appliance.domain.manifest import VerifiedPack
from appliance.packs.open import open_pack

Rows = list[dict[str, str]]
RECIPE = """
[task]
name = "stripes"
title = "Whether there are stripes"
release = 1
head = "linear"
intended_use = "Tests of the software."
not_for = "Patients."
claim = "research-only"

[source]
name = "Striped pictures"
licence = "CC0"
origin = "Random numbers"
research_only = false

[finding]
value = "404684003"
scheme = "SCT"
meaning = "Clinical finding"

[eligibility]
modalities = ["DX", "CR"]
body_parts = ["CHEST"]
views = []
min_age_years = 18
max_age_years = -1
unknown_age = "run-and-say"

[training]
seed = 3
variants = 2
steps = 60
batch = 8
rate = 1e-2
weight_decay = 0.01
hidden = 16
tune_percent = 30
unreadable_percent_max = 5.0
mask_side = 64

[gate]
sensitivity = 0.9
auc_low_min = 0.6
dice_min = 0.5
patients_min = 2
"""


def write_csv(folder: Path, rows: Rows) -> Path:
    """Write labels."""
    path = folder / "labels.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@dataclass(frozen=True, slots=True)
class Site:
    """A folder with images and labels."""

    folder: Path
    rows: Rows

    def labels(self, rows: Rows | None = None) -> Path:
        """The labels, or spoilt ones."""
        return write_csv(self.folder, self.rows if rows is None else rows)

    def recipe(self, **changes: str) -> Path:
        """The task's recipe, with lines changed by key."""
        lines = []
        for line in RECIPE.splitlines():
            key = line.split(" = ")[0]
            lines.append(f"{key} = {changes[key]}" if key in changes else line)
        path = self.folder / "task.toml"
        path.write_text("\n".join(lines))
        return path


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """48 pictures of 48 patients in 16 volumes, with masks of the bright half."""
    folder = tmp_path / "site"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(48):
        label = number // 3 % 2
        picture = rng.integers(0, 90, size=(96, 96), dtype=np.uint8)
        mask = np.zeros((96, 96), np.uint8)
        half = slice(48, 96) if number % 2 else slice(0, 48)
        picture[:, half] += 100
        if label:
            picture[::8] = picture[1::8] = 250
        mask[:, half] = 255
        Image.fromarray(picture).save(folder / f"{number}.png")
        Image.fromarray(mask).save(folder / f"{number}.mask.png")
        rows.append(
            {
                "file": f"{number}.png",
                "mask": f"{number}.mask.png",
                "patient": f"p{number // 3}",
                "volume": f"v{number // 3}",
                "split": "val" if number >= 36 else "train",
                "label": str(label),
            }
        )
    return Site(folder, rows)


@pytest.fixture(scope="session")
def base(repository: Path) -> VerifiedPack:
    """The shipped pack."""
    return open_pack(repository / "engines" / "chest-xray", [key_of(repository)], allow_unvalidated=False)


def key_of(repository: Path) -> Path:
    """The public key of the shipped pack."""
    return repository / "engines" / "keys" / "release.pub.pem"
