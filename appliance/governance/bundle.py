"""Says whether an installation bundle is the one that its maker signed: whole, unaltered, nothing added.

A bundle is a tar archive with one folder. In it `SHA256SUMS` lists every other file in the form of sha256sum(1), and
`SHA256SUMS.sig` is an ECDSA signature over that list, in the form of openssl-dgst(1): a target without Insite can check
both with standard tools, and the Ansible role does.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.domain.errors import BundleError

SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
DESCRIPTION = "bundle.json"
LARGEST_LIST = 4 << 20
"""Bytes that the list, the signature or the description may have; they are read whole."""

_AGAIN = "Copy it again from its original."


@dataclass(frozen=True, slots=True)
class BundleIdentity:
    """What a verified bundle says of itself.

    Attributes:
        version: The software's version.
        variant: `cpu` or `gpu`.
        files: How many files it holds beside list and signature.
    """

    version: str
    variant: str
    files: int


def verify_bundle(file: Path, public_key: Path) -> BundleIdentity:
    """Check a bundle against its signed list, without unpacking anything.

    Args:
        public_key: PEM file of the key that the maker's bundles are signed with; obtained on another way.

    Raises:
        BundleError: It can't be read to its end, is signed by another key, or differs from what was signed.
    """
    with _archive(file) as archive:
        found, small = _hashed(archive, file)
    for name in (SUMS, SIGNATURE, DESCRIPTION):
        if name not in small:
            raise BundleError(f"{file} holds no {name}, so it is no bundle of Insite or not all of one.", _AGAIN)
    _check_signature(small[SUMS], small[SIGNATURE], file, public_key)
    listed = files_from_sums(small[SUMS].decode("utf-8", "replace"))
    for name in sorted(listed.keys() - found.keys()):
        raise BundleError(f"{file} lacks {name}.", _AGAIN)
    for name in sorted(found.keys() - listed.keys() - {SUMS, SIGNATURE}):
        raise BundleError(f"{file} holds {name}, which its maker did not list.", _AGAIN)
    for name, digest in sorted(listed.items()):
        if found[name] != digest:
            raise BundleError(f"{name} in {file} was altered.", _AGAIN)
    described = json.loads(small[DESCRIPTION])
    return BundleIdentity(str(described["version"]), str(described["variant"]), len(listed))


def sums_from_files(files: Mapping[str, str]) -> str:
    """The list in the form of sha256sum(1), from paths to hex digests."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))


def files_from_sums(text: str) -> dict[str, str]:
    """Paths to hex digests, from a list in the form of sha256sum(1)."""
    return {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines()) if name}


def sign_sums(sums: bytes, private_key: Path) -> bytes:
    """The signature over a list: ECDSA with SHA-256, DER.

    Raises:
        BundleError: The key can't be used.
    """
    try:
        key = serialization.load_pem_private_key(private_key.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BundleError(f"{private_key} can't be used: {error}.", "`insite-export keygen` makes a pair.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BundleError(f"{private_key} is no elliptic-curve key.", "`insite-export keygen` makes a pair.")
    return key.sign(sums, ec.ECDSA(hashes.SHA256()))


def _check_signature(sums: bytes, signature: bytes, file: Path, public_key: Path) -> None:
    try:
        key = serialization.load_pem_public_key(public_key.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise BundleError(f"{public_key} is no public key: {error}.", "Name the maker's PEM file.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise BundleError(f"{public_key} is no elliptic-curve key.", "Name the maker's PEM file.")
    try:
        key.verify(signature, sums, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise BundleError(
            f"{file} was not signed with the key {public_key.name}, or its list was altered.",
            "Get the bundle from its maker again, or the maker's key on a way that you trust.",
        ) from None


@contextmanager
def _archive(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(file, "r:") as archive:
            yield archive
    except OSError as error:
        raise BundleError(f"{file} can't be read: {error.strerror or error}.", "Name another file.") from error
    except tarfile.TarError as error:
        raise BundleError(f"{file} is no archive or only a part of one: {error}.", _AGAIN) from error


def _hashed(archive: tarfile.TarFile, file: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Digests of all files by path under the one folder, and the bytes of the few that are read."""
    found: dict[str, str] = {}
    small: dict[str, bytes] = {}
    for member in archive:
        name = _name(member, file)
        if name in found:
            raise BundleError(f"{file} holds {name} twice.", _AGAIN)
        stream = archive.extractfile(member)
        if stream is None:
            raise BundleError(f"{member.name} in {file} is no plain file.", _AGAIN)
        if name in {SUMS, SIGNATURE, DESCRIPTION}:
            small[name] = _whole(stream, member, file)
            found[name] = hashlib.sha256(small[name]).hexdigest()
        else:
            found[name] = _digest(stream)
    return found, small


def _name(member: tarfile.TarInfo, file: Path) -> str:
    path = PurePosixPath(member.name)
    if not member.isreg() or path.is_absolute() or ".." in path.parts or len(path.parts) < 2:  # noqa: PLR2004 - folder/file
        raise BundleError(f"{member.name} in {file} is no plain file under the bundle's folder.", _AGAIN)
    return str(PurePosixPath(*path.parts[1:]))


def _whole(stream: IO[bytes], member: tarfile.TarInfo, file: Path) -> bytes:
    if member.size > LARGEST_LIST:
        raise BundleError(f"{member.name} in {file} is too large.", _AGAIN)
    return stream.read()


def _digest(stream: IO[bytes]) -> str:
    sha = hashlib.sha256()
    while block := stream.read(1 << 20):
        sha.update(block)
    return sha.hexdigest()
