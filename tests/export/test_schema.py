"""The published schemas describe the manifests that are really written."""

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

from appliance.domain.errors import ManifestError
from export.schema import PACK, TASK, check_against_schema, schema


@pytest.fixture
def shipped(repository: Path, tmp_path: Path) -> Path:
    """A copy of the shipped pack's manifests."""
    source = repository / "engines" / "chest-xray"
    for path in source.rglob("manifest.json"):
        target = tmp_path / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


@pytest.mark.parametrize("name", [PACK, TASK])
def test_the_schemas_are_valid(name: str) -> None:
    """Both schemas are themselves valid JSON Schema, draft 2020-12."""
    jsonschema.Draft202012Validator.check_schema(schema(name))


def test_the_shipped_manifests_follow_them(shipped: Path) -> None:
    """The base manifest and every task's manifest follow their schema."""
    check_against_schema(shipped)


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [("manifest.json", "release", 0), ("manifest.json", "surprise", 1), ("tasks/lungs/manifest.json", "kind", "magic")],
)
def test_what_does_not_fit_is_named(shipped: Path, file: str, field: str, value: object) -> None:
    """A wrong or unknown field is refused, by file and field."""
    path = shipped / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ManifestError, match=field):
        check_against_schema(shipped)
