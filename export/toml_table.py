"""One table of a TOML file as a dataclass: a key that is unknown, missing or of another type is an error."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from appliance.domain.errors import SettingsError

_TEXTS = (tuple[str, ...], Mapping[str, str])


def section_from_table(name: str, kind: Any, values: object) -> Any:
    """One table as its dataclass; keys with a default may be left out.

    Raises:
        SettingsError: No table, or a key that is unknown, missing or of another type; it is named.
    """
    if not isinstance(values, dict):
        raise SettingsError(f"[{name}] of the recipe is not a table.", "Write it as a TOML table.")
    fields = {each.name: each.type for each in dataclasses.fields(kind)}
    optional = {each.name for each in dataclasses.fields(kind) if _has_default(each)}
    refuse_difference(f"[{name}]", set(values), set(fields), optional)
    return kind(**{key: _value(f"{name}.{key}", fields[key], value) for key, value in values.items()})


def _has_default(each: dataclasses.Field[Any]) -> bool:
    return each.default is not dataclasses.MISSING or each.default_factory is not dataclasses.MISSING


def _value(name: str, kind: Any, value: object) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in _TEXTS:
        return _texts(name, value)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise SettingsError(f"{name} of the recipe is {value!r}.", f"It must be of type {kind.__name__}.")
    return value


def _texts(name: str, value: object) -> object:
    """A list of texts as a tuple, or a table of texts as it is."""
    texts = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise SettingsError(f"{name} of the recipe is {value!r}.", "It must hold texts.")
    return value if isinstance(value, dict) else tuple(texts)


def refuse_difference(where: str, given: set[str], known: set[str], optional: Collection[str] = ()) -> None:
    """Refuse keys that are not known, and known ones that are neither given nor optional; the first is named."""
    for key in sorted(given - known):
        raise SettingsError(f"Unknown key {key!r} in {where}.", f"Known: {', '.join(sorted(known))}.")
    for key in sorted(known - given - set(optional)):
        raise SettingsError(f"{where} lacks the key {key!r}.", "Add it to the recipe.")
