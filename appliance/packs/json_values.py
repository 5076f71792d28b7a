"""Reads JSON strictly: each field taken once, by type, and a sentence that names the field when it does not fit."""

import enum
import json
import math
import re
from typing import Any, TypeVar

from appliance.domain.errors import ManifestError

SCHEMA_HINT = "Build the pack again with `insite-export`."

E = TypeVar("E", bound=enum.Enum)


def values_from_json(data: bytes, where: str) -> Any:
    """Parse UTF-8 JSON; duplicate keys, NaN and infinities are refused.

    Raises:
        ManifestError: It is not such JSON; `where` names the file.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where} is not valid JSON: {error}.", SCHEMA_HINT) from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return fields


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON number")


class Fields:
    """The fields of one JSON object; call `end` after the last one, so that unknown fields are errors.

    Args:
        value: What the JSON holds at this place.
        where: How to name the place in an error: a file, then the path within it.
    """

    def __init__(self, value: object, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise self._error("is no JSON object")
        self._left = dict(value)

    def text(self, key: str, pattern: str = r".+") -> str:
        """A string that matches `pattern` as a whole; line breaks count as characters."""
        value = self._take(key)
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.DOTALL):
            raise self._error(f"field {key!r} is {value!r}, not a text of the form {pattern}")
        return value

    def integer(self, key: str, least: int) -> int:
        """An integer of at least `least`."""
        return self._integer(key, self._take(key), least)

    def number(self, key: str) -> float:
        """A finite number."""
        return self._number(key, self._take(key))

    def optional_number(self, key: str) -> float | None:
        """A finite number, or None for null; the field must be there."""
        value = self._take(key)
        return None if value is None else self._number(key, value)

    def choice(self, key: str, kind: type[E]) -> E:
        """A member of an enumeration, by its value."""
        value = self._take(key)
        for member in kind:
            if member.value == value:
                return member
        known = ", ".join(str(member.value) for member in kind)
        raise self._error(f"field {key!r} is {value!r}; known are {known}")

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of non-empty strings."""
        values = self._list(key)
        if not all(isinstance(value, str) and value for value in values):
            raise self._error(f"field {key!r} is no list of texts")
        return tuple(values)

    def integers(self, key: str, least: int) -> tuple[int, ...]:
        """A list of integers, each of at least `least`."""
        return tuple(self._integer(key, value, least) for value in self._list(key))

    def within(self, key: str) -> "Fields":
        """A nested object."""
        return Fields(self._take(key), f"{self.where}, {key}")

    def each(self, key: str) -> tuple["Fields", ...]:
        """A list of nested objects."""
        return tuple(Fields(value, f"{self.where}, {key}[{number}]") for number, value in enumerate(self._list(key)))

    def pairs(self, key: str, pattern: str) -> dict[str, str]:
        """An object of strings that each match `pattern`, under keys of any kind."""
        nested = self.within(key)
        return {name: nested.text(name, pattern) for name in tuple(nested._left)}  # noqa: SLF001 - the same class

    def end(self) -> None:
        """Refuse whatever was not taken."""
        if self._left:
            raise self._error(f"has the unknown field {min(self._left)!r}")

    def _take(self, key: str) -> Any:
        if key not in self._left:
            raise self._error(f"lacks the field {key!r}")
        return self._left.pop(key)

    def _list(self, key: str) -> list[Any]:
        value = self._take(key)
        if not isinstance(value, list):
            raise self._error(f"field {key!r} is no list")
        return value

    def _integer(self, key: str, value: object, least: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self._error(f"field {key!r} holds {value!r}, not an integer of at least {least}")
        return value

    def _number(self, key: str, value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self._error(f"field {key!r} holds {value!r}, not a number")
        return float(value)

    def _error(self, sentence: str) -> ManifestError:
        return ManifestError(f"{self.where} {sentence}.", SCHEMA_HINT)
