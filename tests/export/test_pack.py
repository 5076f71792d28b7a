"""A pack is there whole or not at all, whatever happens while it is written."""

import dataclasses
import errno
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.domain.errors import GateError
from appliance.domain.manifest import VerifiedPack
from appliance.packs.open import open_pack
from appliance.packs.signing import PRIVATE_KEY, PUBLIC_KEY, generate_keys
from export.artefacts import file_sha256, write_json
from export.cli import app
from export.pack import REPORTS, Parts, pack
from export.recipe import recipe_from_toml
from export.sources import Source
from export.task_head.join import TrainedTask, joined, write_task
from tests.fakes.tiny_pack import tiny_verified

SHIPPED = "engines/chest-xray"
ENGINE = "encoder.fp16.trtrtx.engine"


@pytest.fixture
def parts(repository: Path, tmp_path: Path) -> Parts:
    """The steps' artefacts as they were before they became the shipped pack, and an engine of a few bytes."""
    shipped = repository / SHIPPED
    engines, verified = tmp_path / "to_engine", tmp_path / "verify"
    engines.mkdir()
    verified.mkdir()
    (engines / ENGINE).write_bytes(b"an engine")
    for name in REPORTS:
        shutil.copy(shipped / name, verified)
    manifest = open_pack(
        shipped, [repository / "engines" / "keys" / "release.pub.pem"], allow_unvalidated=False
    ).manifest
    write_json(verified / "precisions.json", [variant.precision for variant in manifest.variants])
    points = {
        task.name: {
            each.precision: {
                "threshold": each.threshold,
                "max_distance": each.max_distance,
                "meaning": each.meaning,
            }
            for each in task.operating_points
        }
        for task in manifest.tasks
    }
    write_json(verified / "operating-points.json", points)
    return Parts(shipped, shipped / "golden", engines, verified)


def packed(repository: Path, parts: Parts, out: Path) -> None:
    """The parts as a pack under `out`, signed with a key of the test's."""
    key = out.parent / "keys" / PRIVATE_KEY
    recipe = repository / SHIPPED / "recipe.toml"
    pack(
        recipe_from_toml(recipe),
        recipe.read_bytes(),
        parts,
        private_key=key if key.is_file() else generate_keys(key.parent).private,
        out=out,
    )


def content(folder: Path) -> dict[str, str]:
    """The digest of every file by its path."""
    return {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


def full(*_: object, **__: object) -> None:
    """A disk that is full."""
    raise OSError(errno.ENOSPC, "No space left on device")


def full_for_engines(source: Path, target: Path) -> None:
    """A disk that is full when the engine comes."""
    if source.name == ENGINE:
        full()
    shutil.copyfile(source, target / source.name)


@pytest.mark.parametrize(
    "failing", [("export.pack.sign_pack", full), ("export.pack.shutil.copy", full_for_engines)], ids=["sign", "engine"]
)
def test_a_disk_that_fills_up_leaves_no_half_pack(
    repository: Path, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: tuple[str, object]
) -> None:
    """Full while signing or at the last engine: nothing is under the pack's name, and an older pack lies as it lay."""
    out = tmp_path / "pack"
    with monkeypatch.context() as broken:
        broken.setattr(*failing)
        with pytest.raises(OSError, match="No space left"):
            packed(repository, parts, out)
    assert not out.exists()
    packed(repository, parts, out)
    before = content(out)
    assert ENGINE in before
    with monkeypatch.context() as broken:
        broken.setattr(*failing)
        with pytest.raises(OSError, match="No space left"):
            packed(repository, parts, out)
    assert content(out) == before
    open_pack(out, [tmp_path / "keys" / PUBLIC_KEY], allow_unvalidated=False)


@pytest.mark.parametrize("precisions", [["fp32", "fp16"], ["fp32"]])
def test_a_precision_that_verify_refused_is_not_in_the_pack(
    repository: Path, parts: Parts, tmp_path: Path, precisions: list[str]
) -> None:
    """The pack is made without INT8, and without FP16 and its engines: neither graph nor operating point is left."""
    write_json(parts.verified / "precisions.json", precisions)
    packed(repository, parts, tmp_path / "pack")
    manifest = open_pack(tmp_path / "pack", [tmp_path / "keys" / PUBLIC_KEY], allow_unvalidated=False).manifest
    assert [variant.precision for variant in manifest.variants] == precisions
    for task in manifest.tasks:
        assert [point.precision for point in task.operating_points] == precisions
    there = set(content(tmp_path / "pack"))
    assert "encoder.int8.onnx" not in there
    assert {"encoder.fp16.onnx", ENGINE} & there == ({"encoder.fp16.onnx", ENGINE} if "fp16" in precisions else set())


@pytest.fixture
def base(tmp_path: Path) -> VerifiedPack:
    """A tiny pack that a task is joined to."""
    return tiny_verified(tmp_path / "base")


def a_task(base: VerifiedPack, folder: Path) -> TrainedTask:
    """The base's adult task under another name, as if it had been trained on the base."""
    old = base.manifest.task("adult-triage")
    assert old is not None
    folder.mkdir()
    shutil.copy(base.folder / old.head, folder)
    task = dataclasses.replace(old, name="new", head="tasks/new/head.onnx", base_digest=base.manifest.base_digest)
    source = Source("Nobody's pictures", "CC0", "Random numbers", "Labels of a test.")
    report = {"verdict": "pass", "validation": "research-only", "summary": "Nothing was measured."}
    return write_task(folder, task, report | {"source": dataclasses.asdict(source)})


@pytest.mark.parametrize("what", ["sign_pack", "save_whole", "shutil.copyfile"])
def test_a_disk_that_fills_up_leaves_no_half_joined_pack(
    base: VerifiedPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Full while copying, at the golden cases or while signing: no pack, or the older one as it lay; the base, too."""
    task, key, out = a_task(base, tmp_path / "new"), generate_keys(tmp_path / "keys").private, tmp_path / "joined"
    untouched = content(base.folder)
    for older in (False, True):
        if older:
            joined(base, task, key, out)
        before = content(out)
        with monkeypatch.context() as broken:
            broken.setattr(f"export.task_head.join.{what}", full)
            with pytest.raises(OSError, match="No space left"):
                joined(base, task, key, out)
        assert out.exists() == older
        assert content(out) == before
        assert content(base.folder) == untouched
    assert open_pack(out, [tmp_path / "keys" / PUBLIC_KEY], allow_unvalidated=True).manifest.task("new")


def test_a_task_that_nobody_audited_is_not_validated(base: VerifiedPack, tmp_path: Path) -> None:
    """A report without a shortcut audit, of a task that scores images, carries no claim to be validated."""
    task, key = a_task(base, tmp_path / "new"), generate_keys(tmp_path / "keys").private
    claiming = dataclasses.replace(task, report=dict(task.report) | {"validation": "validated"})
    with pytest.raises(GateError, match="has no shortcut audit"):
        joined(base, claiming, key, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_a_disk_that_fills_up_under_a_task_is_said(
    base: VerifiedPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`insite-export task` ends with a sentence and exit status 2, not with a traceback."""
    monkeypatch.setattr("export.cli.make_task", full)
    files = ["nothing.toml", "--labels", "nothing.csv", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    trust = ["--base", str(base.folder), "--trust", str(tmp_path / "base" / ".keys" / PUBLIC_KEY)]
    result = CliRunner().invoke(app, ["task", *files, *trust])
    assert result.exit_code == 2
    assert "No space left on device" in " ".join(result.output.split())
