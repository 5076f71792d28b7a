"""What a manifest must not contradict."""

import dataclasses
from typing import Any

import pytest

from appliance.domain.errors import ManifestError
from appliance.domain.manifest import EncoderVariant, InputSpec, PackManifest, TaskKind, TensorSpec
from appliance.packs.rules import check_manifest, is_path_in_pack
from tests.fakes.tiny_pack import tiny_pack


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> PackManifest:
    """A manifest that fits together; its first task is a segmentation, its last the guard."""
    return tiny_pack(tmp_path_factory.mktemp("pack")).manifest


EMBEDDING = TensorSpec("embedding", "FP32", (-1, 8))
FEATURES = TensorSpec("features", "FP32", (-1, 4, 16, 16))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"files": {"../evil.onnx": "0" * 64}}, "could leave the pack"),
        ({"input": InputSpec("image", 512, 512, 99, 1)}, "do not rise"),
        ({"encoder_outputs": (FEATURES,)}, "No encoder output is named embedding"),
        ({"encoder_outputs": (EMBEDDING, EMBEDDING)}, "same name"),
        ({"encoder_outputs": (EMBEDDING, TensorSpec("features", "FP31", (-1, 4)))}, "unknown datatype FP31"),
        ({"encoder_outputs": (EMBEDDING, TensorSpec("features", "FP32", (1, 4)))}, "not -1 and then positive"),
        ({"encoder_outputs": (TensorSpec("embedding", "FP16", (-1, 8)), FEATURES)}, "answers are FP32"),
        ({"variants": ()}, "no encoder variant"),
        ({"variants": (EncoderVariant("fp32", "encoder.onnx", ("a",)),) * 2}, "same precision"),
        ({"variants": (EncoderVariant("fp32", "encoder.onnx", ()),)}, "names no runtime"),
        ({"variants": (EncoderVariant("fp32", "encoder.pt", ("a",)),)}, r"no \.onnx file"),
        ({"variants": (EncoderVariant("fp16", "encoder.onnx", ("a",)),)}, "no operating point for the precision fp16"),
        ({"guard": "lungs"}, "no task of kind guard"),
        ({"guard": "nobody"}, "no task of kind guard"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    manifest: PackManifest, changes: dict[str, Any], sentence: str
) -> None:
    """The error says which two things do not fit."""
    with pytest.raises(ManifestError, match=sentence):
        check_manifest(dataclasses.replace(manifest, **changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "embedding"}, "encoder's own model"),
        ({"name": "all"}, "answers for every task"),
        ({"name": "guard"}, "same name"),
        ({"inputs": ("pixels",)}, "not outputs of the encoder"),
        ({"inputs": ()}, "not outputs of the encoder"),
        ({"outputs": (TensorSpec("score", "FP32", (-1, 1)),)}, "are not mask"),
        ({"outputs": (TensorSpec("mask", "FP16", (-1, 1)),)}, "answers are FP32"),
        ({"head": "tasks/guard/head.onnx"}, "not an .onnx file in tasks/lungs"),
        ({"head": "tasks/lungs/other.onnx"}, "is not listed"),
    ],
)
def test_a_task_that_does_not_fit_its_pack_is_refused(
    manifest: PackManifest, changes: dict[str, Any], sentence: str
) -> None:
    """The error names the task."""
    lungs = dataclasses.replace(manifest.tasks[0], **changes)
    with pytest.raises(ManifestError, match=sentence):
        check_manifest(dataclasses.replace(manifest, tasks=(lungs, *manifest.tasks[1:])))


@pytest.mark.parametrize(
    ("changes", "sentence"), [({"threshold": 1.5}, "not within 0 to 1"), ({"max_distance": None}, "no max_distance")]
)
def test_a_guard_needs_a_usable_operating_point(manifest: PackManifest, changes: dict[str, Any], sentence: str) -> None:
    """A threshold is a probability, and a guard says how far is too far."""
    guard = manifest.tasks[-1]
    point = dataclasses.replace(guard.operating_points[0], **changes)
    changed = dataclasses.replace(guard, operating_points=(point,))
    with pytest.raises(ManifestError, match=sentence):
        check_manifest(dataclasses.replace(manifest, tasks=(*manifest.tasks[:-1], changed)))


def test_a_task_that_only_embeds_needs_no_operating_point(manifest: PackManifest) -> None:
    """There is nothing to call positive in an embedding."""
    embeds = dataclasses.replace(manifest.tasks[1], kind=TaskKind.EMBEDDING, outputs=(EMBEDDING,), operating_points=())
    check_manifest(dataclasses.replace(manifest, tasks=(embeds, *manifest.tasks[2:])))


@pytest.mark.parametrize("path", ["encoder.onnx", "tasks/lungs/head.onnx", "a..b/c-d_e.json"])
def test_paths_within_a_pack_are_taken(path: str) -> None:
    """A relative path in normal form stays in the pack."""
    assert is_path_in_pack(path)


@pytest.mark.parametrize("path", ["", ".", "..", "/etc/passwd", "a/../b", "./a", "a//b", "a/", "a\\b", "ä", "a\nb"])
def test_paths_that_could_leave_a_pack_are_not(path: str) -> None:
    """Anything else is refused before the disk is touched."""
    assert not is_path_in_pack(path)
