"""Reads manifests out of JSON: every field by type, then the whole against the rules of `rules.py`."""

from collections.abc import Mapping

from appliance.domain.errors import ManifestError
from appliance.domain.manifest import (
    PACK_SCHEMA,
    TASK_SCHEMA,
    Code,
    EligibilityRules,
    EncoderVariant,
    InputSpec,
    OperatingPoint,
    PackManifest,
    TaskKind,
    TaskManifest,
    TensorSpec,
    UnknownAge,
    Validation,
)
from appliance.packs.json_values import SCHEMA_HINT, Fields, values_from_json
from appliance.packs.manifest_json import MANIFEST, base_digest, pack_digest, task_manifest_path
from appliance.packs.rules import check_manifest

_NAME = r"[a-z0-9][a-z0-9-]{0,63}"
_SHA256 = r"[0-9a-f]{64}"
_ANYTHING = r".*"


def pack_manifest_from_json(data: bytes, tasks: Mapping[str, bytes]) -> PackManifest:
    """Parse and check a base manifest with the manifests of its tasks.

    Args:
        data: The bytes of `manifest.json`.
        tasks: Task name to the bytes of its manifest, for exactly the tasks that `manifest.json` names.

    Raises:
        ManifestError: Malformed, of an unknown version, or contradicting itself; the sentence names the field.
    """
    values = values_from_json(data, MANIFEST)
    fields = _of_schema(Fields(values, MANIFEST), PACK_SCHEMA)
    name = fields.text("name", _NAME)
    spec = _input(fields.within("input"))
    outputs = tuple(_tensor(each) for each in fields.each("encoder_outputs"))
    variants = tuple(_variant(each) for each in fields.each("variants"))
    files = fields.pairs("files", _SHA256)
    named = fields.texts("tasks")
    for task in sorted(set(named) ^ set(tasks)):
        what = "has no" if task in named else "is not named in manifest.json but has a"
        raise ManifestError(f"The task {task} {what} {task_manifest_path(task)}.", SCHEMA_HINT)
    manifest = PackManifest(
        name=name,
        title=fields.text("title"),
        release=fields.integer("release", 1),
        version=fields.text("version"),
        licence=fields.text("licence"),
        validation=fields.choice("validation", Validation),
        intended_use=fields.text("intended_use"),
        not_for=fields.text("not_for"),
        udi=fields.text("udi", _ANYTHING),
        input=spec,
        encoder_outputs=outputs,
        variants=variants,
        guard=fields.text("guard", _NAME),
        tasks=tuple(_named(task, task_manifest_from_json(tasks[task], task_manifest_path(task))) for task in named),
        files=files,
        gate_report_id=fields.text("gate_report_id", _SHA256),
        base_digest=base_digest(name, spec, outputs, variants, files),
        digest=pack_digest(values),
    )
    fields.end()
    check_manifest(manifest)
    return manifest


def task_manifest_from_json(data: bytes, where: str) -> TaskManifest:
    """Parse one task's manifest.

    Raises:
        ManifestError: Malformed or of an unknown version; the sentence names the field.
    """
    fields = _of_schema(Fields(values_from_json(data, where), where), TASK_SCHEMA)
    manifest = TaskManifest(
        name=fields.text("name", _NAME),
        title=fields.text("title"),
        kind=fields.choice("kind", TaskKind),
        release=fields.integer("release", 1),
        base_digest=fields.text("base_digest", _SHA256),
        head=fields.text("head"),
        inputs=fields.texts("inputs"),
        outputs=tuple(_tensor(each) for each in fields.each("outputs")),
        finding=_code(fields.within("finding")),
        operating_points=tuple(_operating_point(each) for each in fields.each("operating_points")),
        eligibility=_eligibility(fields.within("eligibility")),
        intended_use=fields.text("intended_use"),
        not_for=fields.text("not_for"),
    )
    fields.end()
    return manifest


def _named(name: str, task: TaskManifest) -> TaskManifest:
    if task.name != name:
        raise ManifestError(f"{task_manifest_path(name)} calls its task {task.name!r}.", SCHEMA_HINT)
    return task


def _of_schema(fields: Fields, known: str) -> Fields:
    schema = fields.text("schema")
    if schema != known:
        raise ManifestError(
            f"{fields.where} is of schema {schema!r}; this software reads {known!r}.",
            "Install the software release that the pack was made for.",
        )
    return fields


def _input(fields: Fields) -> InputSpec:
    spec = InputSpec(
        name=fields.text("name"),
        rows=fields.integer("rows", 1),
        columns=fields.integer("columns", 1),
        low_percentile=fields.number("low_percentile"),
        high_percentile=fields.number("high_percentile"),
    )
    fields.end()
    return spec


def _tensor(fields: Fields) -> TensorSpec:
    spec = TensorSpec(fields.text("name"), fields.text("datatype", r"[A-Z0-9]+"), fields.integers("shape", -1))
    fields.end()
    return spec


def _variant(fields: Fields) -> EncoderVariant:
    variant = EncoderVariant(fields.text("precision", r"[a-z0-9]+"), fields.text("file"), fields.texts("runtimes"))
    fields.end()
    return variant


def _code(fields: Fields) -> Code:
    code = Code(fields.text("value"), fields.text("scheme"), fields.text("meaning"))
    fields.end()
    return code


def _operating_point(fields: Fields) -> OperatingPoint:
    point = OperatingPoint(
        precision=fields.text("precision", r"[a-z0-9]+"),
        threshold=fields.number("threshold"),
        max_distance=fields.optional_number("max_distance"),
        meaning=fields.text("meaning"),
    )
    fields.end()
    return point


def _eligibility(fields: Fields) -> EligibilityRules:
    rules = EligibilityRules(
        modalities=fields.texts("modalities"),
        body_parts=fields.texts("body_parts"),
        views=fields.texts("views"),
        min_age_years=fields.optional_number("min_age_years"),
        max_age_years=fields.optional_number("max_age_years"),
        unknown_age=fields.choice("unknown_age", UnknownAge),
    )
    fields.end()
    return rules
