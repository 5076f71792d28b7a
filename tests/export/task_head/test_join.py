"""A task is joined to the base that was verified, and to nothing that took its place meanwhile."""

import dataclasses
from pathlib import Path

import onnx
import pytest

from appliance.domain.errors import BaseMismatchError, PackContentError
from appliance.domain.manifest import VerifiedPack
from appliance.packs.open import open_pack
from appliance.packs.signing import PRIVATE_KEY, PUBLIC_KEY, sign_pack
from export.artefacts import file_sha256
from export.task_head.join import TrainedTask, joined, refuse_changed, write_task
from tests.fakes.tiny_pack import tiny_verified

REPORT = {
    "verdict": "pass",
    "refused_by": [],
    "validation": "research-only",
    "source": {"name": "Pictures", "licence": "CC0", "origin": "Us", "use": "Labels.", "research_only": False},
    "summary": "AUC 1.",
}


@pytest.fixture
def base(tmp_path: Path) -> VerifiedPack:
    """A tiny pack that was opened."""
    return tiny_verified(tmp_path / "tiny")


@pytest.fixture
def task(base: VerifiedPack, tmp_path: Path) -> TrainedTask:
    """A task on it."""
    old = base.manifest.task("adult-triage")
    assert old is not None
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "head.onnx").write_bytes((base.folder / old.head).read_bytes())
    return write_task(folder, dataclasses.replace(old, name="new", head="tasks/new/head.onnx"), REPORT)


def swapped(path: Path) -> None:
    """Put something else in a file's place."""
    path.write_bytes(path.read_bytes() + b" ")


def test_the_times_of_the_base_are_signed_with_the_joined_pack(
    base: VerifiedPack, task: TrainedTask, tmp_path: Path
) -> None:
    """Report and card refer to `speed.json`, which no manifest lists: it comes along, held to what was opened."""
    folder, key = base.folder, tmp_path / "tiny" / ".keys"
    (folder / "speed.json").write_text("{}")
    sign_pack(folder, key / PRIVATE_KEY)
    base = open_pack(folder, [key / PUBLIC_KEY], allow_unvalidated=True)
    made = joined(base, task, key / PRIVATE_KEY, tmp_path / "joined")
    assert (tmp_path / "joined" / "speed.json").read_text() == "{}"
    assert "speed.json" not in made.files
    swapped(folder / "speed.json")
    with pytest.raises(PackContentError, match=r"speed\.json of the base chest-xray changed after"):
        joined(base, task, key / PRIVATE_KEY, tmp_path / "joined")


def test_only_what_was_verified_is_joined(base: VerifiedPack, task: TrainedTask, tmp_path: Path) -> None:
    """A file that came into the base's folder later is not signed with it."""
    (base.folder / "later.md").write_text("Not verified.")
    key = tmp_path / "tiny" / ".keys"
    made = joined(base, task, key / PRIVATE_KEY, tmp_path / "joined")
    assert made.base_digest == base.manifest.base_digest
    assert "later.md" not in made.files
    assert open_pack(tmp_path / "joined", [key / PUBLIC_KEY], allow_unvalidated=True).manifest == made


@pytest.mark.parametrize("path", ["encoder.onnx", "tasks/lungs/head.onnx", "gate-report.json"])
def test_a_base_that_was_swapped_during_the_training_is_refused(
    base: VerifiedPack, task: TrainedTask, tmp_path: Path, path: str
) -> None:
    """Training takes minutes: what is signed is held against what was verified before, file by file."""
    refuse_changed(base)
    swapped(base.folder / path)
    key = tmp_path / "tiny" / ".keys" / PRIVATE_KEY
    with pytest.raises(PackContentError, match=f"{path} of the base chest-xray changed after"):
        joined(base, task, key, tmp_path / "joined")
    with pytest.raises(PackContentError, match=f"{path} of the base chest-xray changed after"):
        refuse_changed(base)
    (base.folder / path).unlink()
    with pytest.raises(PackContentError, match=f"{path} of the base chest-xray changed after"):
        joined(base, task, key, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_a_joined_pack_of_another_base_is_not_signed(base: VerifiedPack, task: TrainedTask, tmp_path: Path) -> None:
    """The digest that is worked out of the copied encoders must be the one that the task was trained on."""
    encoder = onnx.load(base.folder / "encoder.onnx")
    encoder.doc_string = "another one"
    onnx.save(encoder, base.folder / "encoder.onnx")
    files = {**base.manifest.files, "encoder.onnx": file_sha256(base.folder / "encoder.onnx")}
    other = VerifiedPack(dataclasses.replace(base.manifest, files=files), base.folder)
    with pytest.raises(BaseMismatchError, match="The task new was made for the base"):
        joined(other, task, tmp_path / "tiny" / ".keys" / PRIVATE_KEY, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
