"""The manifests' JSON schemas, for other software that reads packs; each pack is checked against them as it is made.

`appliance/packs` reads manifests by its own, stricter rules; the schemas say the same to the outside world.
"""

import json
from pathlib import Path
from typing import Any

import jsonschema

from appliance.domain.errors import ManifestError
from appliance.packs.manifest_json import MANIFEST

PACK, TASK = "insite-pack-manifest-1.schema.json", "insite-task-manifest-1.schema.json"


def schema(name: str) -> dict[str, Any]:
    """One of the schemas `PACK` and `TASK`."""
    document: dict[str, Any] = json.loads((Path(__file__).parent / "schemas" / name).read_text())
    return document


def check_against_schema(folder: Path) -> None:
    """Check the manifests of a pack folder.

    Raises:
        ManifestError: The first field that does not fit, by its path.
    """
    _check(folder / MANIFEST, schema(PACK))
    for manifest in sorted(folder.glob(f"tasks/*/{MANIFEST}")):
        _check(manifest, schema(TASK))


def _check(path: Path, document: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(document)
    error = jsonschema.exceptions.best_match(validator.iter_errors(json.loads(path.read_text())))
    if error is not None:
        where = "/".join(str(part) for part in error.absolute_path) or "the whole"
        raise ManifestError(
            f"{path.name} does not follow its schema at {where}: {error.message}.", "Correct the recipe."
        )
