"""Tiny checkpoints with what their publishers' libraries say of them, made once for all tests."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from export import efficientvit, mobilenet, repvit
from export.artefacts import file_sha256
from export.encoder import PIXEL_CENTRE
from export.teachers.checkpoints import Checkpoint
from export.teachers.contract import Preparation, prepared
from tests.fakes import checkpoints

STUDENTS = sorted({**mobilenet.DESIGNS, **repvit.DESIGNS, **efficientvit.DESIGNS})
TEXTS = ["Chest x-ray of a pneumonia", "chest"]
Pinned = Callable[[str, str], Checkpoint]


def run_child(script: str, folder: Path) -> None:
    """Run a script beside this file in a process of its own, where importing the libraries harms nobody."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name(script)), str(folder)],
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[3]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny checkpoints, `given.safetensors` and `expected.safetensors`; shared by parallel workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "references"
    with FileLock(f"{folder}.lock"):
        if not (folder / "expected.safetensors").is_file():
            _make(folder)
    return folder


@pytest.fixture(scope="session")
def given(references: Path) -> dict[str, Tensor]:
    """What the references were given.

    `*_pixels` are our own, for what a net makes of the same pixels. From `calm` (noise whose peaks no filter cuts off)
    and `waves` (64 x 64, smooth) the libraries make their own.
    """
    return load_file(references / "given.safetensors")


@pytest.fixture(scope="session")
def expected(references: Path) -> dict[str, Tensor]:
    """What the references said."""
    return load_file(references / "expected.safetensors")


@pytest.fixture(scope="session")
def pinned(references: Path) -> Pinned:
    """Makes the checkpoint of a teacher with every file of its folder pinned."""

    def make(kind: str, folder: str) -> Checkpoint:
        place = references / folder
        return Checkpoint(kind, kind, place, {path.name: file_sha256(path) for path in place.iterdir()})

    return make


def _make(folder: Path) -> None:
    folder.mkdir()
    checkpoints.rad_dino(folder / "rad-dino")
    checkpoints.medsam(folder / "medsam")
    checkpoints.biomedclip(folder / "biomedclip")
    (folder / "students.json").write_text(json.dumps(STUDENTS))
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    sam = {
        "grid": checkpoints.SAM_GRID,
        "patch": checkpoints.SAM_PATCH,
        "width": checkpoints.SAM_WIDTH,
        "depth": checkpoints.SAM_DEPTH,
        "heads": checkpoints.SAM_WIDTH // checkpoints.SAM_HEAD_WIDTH,
        "window": checkpoints.SAM_WINDOW,
        "global": list(checkpoints.SAM_GLOBAL),
        "out": checkpoints.SAM_OUT,
        "hidden": checkpoints.SAM_HIDDEN,
    }
    (folder / "sizes.json").write_text(json.dumps({"sam": sam}))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 1, 256, 256), dtype=torch.uint8, generator=generator)
    waves = torch.nn.functional.interpolate(torch.rand(2, 1, 6, 6, generator=generator), (64, 64), mode="bicubic")
    mean, deviation = checkpoints.CLIP_MEAN, checkpoints.CLIP_DEVIATION
    clip = Preparation(checkpoints.CLIP_SIDE, (mean[0], mean[1], mean[2]), (deviation[0], deviation[1], deviation[2]))
    dino = Preparation(checkpoints.DINO_SIDE, (0.5307,) * 3, (0.2583,) * 3)
    sam_pixels = prepared(images, Preparation(checkpoints.SAM_GRID * checkpoints.SAM_PATCH, (0.0,) * 3, (1.0,) * 3))
    low, high = sam_pixels.amin(dim=(1, 2, 3), keepdim=True), sam_pixels.amax(dim=(1, 2, 3), keepdim=True)
    grey = torch.nn.functional.pad(torch.nn.functional.avg_pool2d(images.double(), 2), (1, 1, 1, 1), value=PIXEL_CENTRE)
    imagenet = (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))
    given = {
        "images": images,
        "calm": images // 2 + 64,
        "waves": (waves * 120 + 60).round().to(torch.uint8),
        "boxes": torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.3, 0.0, 0.5, 0.4]]),
        "rad_dino_pixels": prepared(images, dino),
        "medsam_pixels": (sam_pixels - low) / (high - low),
        "biomedclip_pixels": prepared(images, clip),
        "student_pixels": (grey / 255.0 - imagenet[0].view(1, 3, 1, 1)) / imagenet[1].view(1, 3, 1, 1),
    }
    save_file({name: tensor.contiguous() for name, tensor in given.items()}, folder / "given.safetensors")
    run_child("reference_child.py", folder)
