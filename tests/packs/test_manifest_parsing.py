"""Manifests: what is read, what is refused with which sentence, and what the digests depend on."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.errors import ManifestError
from appliance.domain.manifest import PackManifest
from appliance.packs.manifest_json import (
    canonical_json,
    manifest_to_json,
    task_manifest_to_json,
)
from appliance.packs.manifest_parsing import pack_manifest_from_json
from tests.fakes.tiny_pack import tiny_pack

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> PackManifest:
    """A complete manifest."""
    return tiny_pack(tmp_path_factory.mktemp("pack")).manifest


def read(manifest: PackManifest, pack: Change = lambda _: None, task: Change = lambda _: None) -> PackManifest:
    """Write a manifest as JSON, change it and its first task, and read it again."""
    values = manifest_to_json(manifest)
    pack(values)
    tasks = [task_manifest_to_json(each) for each in manifest.tasks]
    task(tasks[0])
    data = {
        values["tasks"][place]: json.dumps(each).encode() for place, each in enumerate(tasks[: len(values["tasks"])])
    }
    return pack_manifest_from_json(json.dumps(values).encode(), data)


def test_a_manifest_reads_back_as_it_was_written(manifest: PackManifest) -> None:
    """JSON holds all of a manifest; digests are worked out again."""
    assert read(manifest) == manifest


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda values: values.pop("title"), "lacks the field 'title'"),
        (lambda values: values.update(colour="red"), "unknown field 'colour'"),
        (lambda values: values.update(schema="insite-pack-manifest/9"), "this software reads"),
        (lambda values: values.update(release="1"), "'release' holds '1'"),
        (lambda values: values.update(release=0), "at least 1"),
        (lambda values: values.update(release=True), "'release' holds True"),
        (lambda values: values.update(name="Chest X-ray"), "'name' is 'Chest X-ray'"),
        (lambda values: values.update(validation="fine"), "known are validated, untrained"),
        (lambda values: values.update(tasks="lungs"), "'tasks' is no list"),
        (lambda values: values.update(tasks=[""]), "no list of texts"),
        (lambda values: values.update(input=[]), "manifest.json, input is no JSON object"),
        (lambda values: values["input"].update(rows=1.5), "'rows' holds 1.5"),
        (lambda values: values["input"].update(low_percentile="low"), "not a number"),
        (lambda values: values["files"].update({"encoder.onnx": "abc"}), "'encoder.onnx' is 'abc'"),
        (lambda values: values["files"].pop("encoder.onnx"), "encoder.onnx is not among"),
        (lambda values: values["encoder_outputs"][0].update(shape=[-2]), "at least -1"),
    ],
)
def test_a_malformed_manifest_is_refused_by_its_field(manifest: PackManifest, change: Change, sentence: str) -> None:
    """The error names the field that does not fit."""
    with pytest.raises(ManifestError, match=sentence.replace("[", r"\[")):
        read(manifest, pack=change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda values: values.update(schema="insite-task-manifest/0"), "this software reads"),
        (lambda values: values.update(name="other"), "tasks/lungs/manifest.json calls its task 'other'"),
        (lambda values: values.update(kind="magic"), "known are classification"),
        (lambda values: values["eligibility"].update(min_age_years="x"), "'min_age_years' holds 'x'"),
        (lambda values: values["finding"].update(value=""), "'value' is ''"),
        (
            lambda values: values["operating_points"][0].pop("meaning"),
            r"operating_points\[0\] lacks the field 'meaning'",
        ),
    ],
)
def test_a_malformed_task_is_refused_by_its_file(manifest: PackManifest, change: Change, sentence: str) -> None:
    """The error names the task's file and the field."""
    with pytest.raises(ManifestError, match=sentence):
        read(manifest, task=change)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"{", "not valid JSON"),
        (b'{"name": 1, "name": 2}', "stands twice"),
        (b'{"name": NaN}', "NaN is no JSON number"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "is no JSON object"),
    ],
)
def test_what_is_no_manifest_is_refused(data: bytes, sentence: str) -> None:
    """Broken JSON, doubled keys, and numbers that JSON does not have are refused."""
    with pytest.raises(ManifestError, match=sentence):
        pack_manifest_from_json(data, {})


def test_a_task_without_a_manifest_and_a_manifest_without_a_task_are_refused(manifest: PackManifest) -> None:
    """The tasks named and the task folders are the same."""
    values = json.dumps(manifest_to_json(manifest)).encode()
    tasks = {each.name: json.dumps(task_manifest_to_json(each)).encode() for each in manifest.tasks}
    with pytest.raises(ManifestError, match=r"The task stray is not named in manifest\.json"):
        pack_manifest_from_json(values, tasks | {"stray": b"{}"})
    del tasks["guard"]
    with pytest.raises(ManifestError, match=r"The task guard has no tasks/guard/manifest\.json"):
        pack_manifest_from_json(values, tasks)


def test_the_canonical_form_is_the_published_one() -> None:
    """Canonical JSON sorts keys and writes numbers as RFC 8785 says."""
    assert canonical_json({"b": [1e21, 0.002, 1.0], "a": "€\n"}) == '{"a":"€\\n","b":[1e+21,0.002,1]}'.encode()
    with pytest.raises(ManifestError, match="no canonical JSON form"):
        canonical_json({"number": float("nan")})


def test_the_base_digest_knows_the_encoder_but_not_the_tasks(manifest: PackManifest) -> None:
    """A task is added without touching the base; another encoder is another base."""

    def other_guard_sentence(values: dict[str, Any]) -> None:
        values.update(intended_use="Something else.")

    def other_encoder(values: dict[str, Any]) -> None:
        values["files"] = copy.deepcopy(values["files"]) | {"encoder.onnx": "0" * 64}

    same_base = read(manifest, pack=other_guard_sentence)
    assert (same_base.base_digest, same_base.digest != manifest.digest) == (manifest.base_digest, True)
    assert read(manifest, pack=other_encoder).base_digest != manifest.base_digest


def test_the_digest_does_not_depend_on_layout(manifest: PackManifest, tmp_path: Path) -> None:
    """Key order and white space of manifest.json do not change a pack's digest."""
    values = manifest_to_json(manifest)
    turned = dict(reversed(values.items()))
    tasks = {each.name: json.dumps(task_manifest_to_json(each), indent=8).encode() for each in manifest.tasks}
    assert pack_manifest_from_json(json.dumps(turned, indent=8).encode(), tasks).digest == manifest.digest
