"""Building: what the export side is spared, and what it is told."""

import dataclasses
from pathlib import Path

import pytest

from appliance.domain.errors import ManifestError
from appliance.domain.manifest import EncoderVariant
from appliance.packs.build import write_manifests
from tests.fakes.tiny_pack import rewritten, tiny_pack


def test_writing_again_gives_the_same_digest(tmp_path: Path) -> None:
    """A pack's digest depends on its content alone: not on the signature, an engine, or when it was written."""
    pack = tiny_pack(tmp_path)
    (pack.folder / "encoder.trtrtx.engine").write_bytes(b"made elsewhere")
    again = rewritten(pack)
    assert again.manifest == pack.manifest
    assert "encoder.trtrtx.engine" not in again.manifest.files
    assert "model.sig" not in again.manifest.files


def test_an_old_signature_does_not_outlive_its_manifest(tmp_path: Path) -> None:
    """Writing manifests removes the signature that no longer fits."""
    pack = tiny_pack(tmp_path)
    write_manifests(pack.folder, pack.manifest)
    assert not (pack.folder / "model.sig").exists()


def test_a_missing_file_is_named_before_anything_is_written(tmp_path: Path) -> None:
    """The builder says which step's file is not there."""
    pack = tiny_pack(tmp_path)
    draft = dataclasses.replace(
        pack.manifest, variants=(EncoderVariant("int8", "encoder.int8.onnx", ("onnxruntime-cpu",)),)
    )
    with pytest.raises(ManifestError, match=r"encoder\.int8\.onnx can't be read"):
        write_manifests(pack.folder, draft)
