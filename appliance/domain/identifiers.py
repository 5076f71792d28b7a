"""Deterministic identifiers: the same content gives the same UID, so that a retry sends the same objects."""

import hashlib
import uuid
from collections.abc import Iterable


def digest_of(*parts: str) -> str:
    """Hex SHA-256 of a sequence of strings; parts are length-prefixed, so no two sequences collide by joining."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode()
        sha.update(len(data).to_bytes(8, "big"))
        sha.update(data)
    return sha.hexdigest()


def uid_from_content(kind: str, profile: str, sources: Iterable[tuple[str, str]], models: Iterable[str]) -> str:
    """A UID under 2.25 (PS3.5 B.2) derived from what an object says and from what it was made.

    Args:
        kind: What is named: `SR`, `SEG`, `series-SR`, …
        profile: The destination's encoding profile, because two encodings of one result are two instances.
        sources: (SOP Instance UID, content SHA-256) of every source image; order does not matter.
        models: Task names with pack digests; order does not matter.
    """
    flat = [f"{uid}={sha}" for uid, sha in sorted(sources)]
    digest = bytes.fromhex(digest_of("insite-uid-1", kind, profile, *flat, "|", *sorted(models)))
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"
