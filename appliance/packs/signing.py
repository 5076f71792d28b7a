"""Signs packs and verifies their signatures, in the OpenSSF model-signing format, with keys of our own and no network.

The signature covers every file but itself and engine files: those are made on the machine that runs them. So it also
covers the files that the manifest does not list (`files.UNLISTED`).
"""

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing, verifying

from appliance.domain.errors import SignatureError
from appliance.packs.files import SIGNATURE, pack_files, stands_outside

PRIVATE_KEY = "signing-key.pem"
PUBLIC_KEY = "signing-key.pub.pem"

_KEY_KIND = "Give a PEM file of an unencrypted private key on the curve P-256, P-384 or P-521."
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MALFORMED = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    RecursionError,
    InvalidSignature,
    UnsupportedAlgorithm,
)
"""What the library raises for a signature or key that is not one; it has no error of its own."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Files of a private key (PEM, readable by its owner only) and of its public key (PEM)."""

    private: Path
    public: Path


def generate_keys(folder: Path) -> KeyPair:
    """Make a new pair of P-256 keys in a folder.

    Raises:
        SignatureError: A private key is there already; it is never replaced.
    """
    pair = KeyPair(folder / PRIVATE_KEY, folder / PUBLIC_KEY)
    key = ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(pair.private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise SignatureError(f"{pair.private} exists already.", "Name another folder for the new keys.") from None
    with os.fdopen(handle, "wb") as stream:
        stream.write(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    pair.public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return pair


def check_private_key(private_key: Path) -> None:
    """Find out whether a key can sign, before there is anything to be signed.

    Raises:
        SignatureError: The key can't be used.
    """
    try:
        key = serialization.load_pem_private_key(private_key.read_bytes(), None)
        usable = isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES
    except (*_MALFORMED, OSError) as error:
        raise SignatureError(f"The private key {private_key} can't be read: {error}.", _KEY_KIND) from error
    if not usable:
        raise SignatureError(f"The private key {private_key} is of another kind than signs packs.", _KEY_KIND)


def sign_pack(folder: Path, private_key: Path) -> Path:
    """Sign a complete pack folder and return the signature's file, `model.sig` in it.

    Raises:
        SignatureError: The key can't be used.
        PackContentError: The folder holds a symbolic link.
    """
    signature = folder / SIGNATURE
    try:
        signer = signing.Config()  # type: ignore[no-untyped-call]
        signer.use_elliptic_key_signer(private_key=private_key)
        signer.set_hashing_config(_hashing(folder)).sign(folder, signature)
    except (*_MALFORMED, OSError) as error:
        raise SignatureError(
            f"The pack {folder.name} can't be signed with {private_key}: {error}.",
            _KEY_KIND,
        ) from error
    return signature


def verify_signature(folder: Path, public_keys: Sequence[Path]) -> Path:
    """Check that a trusted key signed a pack and that its files are still those, and return the key's file.

    Raises:
        SignatureError: No signature, none by a trusted key, or files that differ from the signed ones.
        PackContentError: The folder holds a symbolic link.
    """
    signature = folder / SIGNATURE
    if not signature.is_file():
        raise SignatureError(f"The pack {folder.name} has no {SIGNATURE}.", "Install a signed pack.")
    if not public_keys:
        raise SignatureError(
            f"No key is trusted, so the pack {folder.name} can't be verified.", "Set packs.trusted_keys."
        )
    covered = _hashing(folder)
    reasons = []
    for key in public_keys:
        try:
            verifier = verifying.Config()  # type: ignore[no-untyped-call]
            verifier.use_elliptic_key_verifier(public_key=key)
            verifier.set_hashing_config(covered).verify(folder, signature)
        except (*_MALFORMED, OSError) as error:
            reasons.append(f"{key.name}: {_reason(error)}")
        else:
            return key
    raise SignatureError(
        f"The pack {folder.name} was changed after it was signed, or was signed by none of the trusted keys "
        f"({'; '.join(reasons)}).",
        "Install the pack again from its original, or add its maker's public key to packs.trusted_keys.",
    )


def sign_file(file: Path, private_key: Path) -> Path:
    """Sign one file beside a pack, such as an engine's description; the signature is named `<file less .json>.sig`.

    Raises:
        SignatureError: The key can't be used.
    """
    try:
        key = serialization.load_pem_private_key(private_key.read_bytes(), None)
        signature = key.sign(file.read_bytes(), ec.ECDSA(hashes.SHA256()))  # type: ignore[union-attr,call-arg,arg-type]
    except (*_MALFORMED, OSError) as error:
        raise SignatureError(f"{file.name} can't be signed with {private_key}: {error}.", _KEY_KIND) from error
    where = signature_of(file)
    where.write_bytes(signature)
    return where


def verify_file(file: Path, public_keys: Sequence[Path]) -> Path:
    """Check that a trusted key signed a file, and return the key's file.

    Raises:
        SignatureError: No signature, or none by a trusted key.
    """
    try:
        signature, content = signature_of(file).read_bytes(), file.read_bytes()
    except OSError as error:
        raise SignatureError(
            f"{file.name} has no signature: {error.strerror}.", "Sign it, or build it here."
        ) from error
    for key in public_keys:
        with contextlib.suppress(*_MALFORMED, OSError):
            trusted = serialization.load_pem_public_key(key.read_bytes())
            trusted.verify(signature, content, ec.ECDSA(hashes.SHA256()))  # type: ignore[union-attr,call-arg,arg-type]
            return key
    raise SignatureError(f"{file.name} was signed by none of the trusted keys.", "Build it here.")


def signature_of(file: Path) -> Path:
    """Where the signature of a file beside a pack lies."""
    return file.with_name(file.name.removesuffix(".json") + ".sig")


def _reason(error: Exception) -> str:
    """What the library says, without the digests in which a reader would drown."""
    text = str(error).strip() or type(error).__name__
    differences = re.findall(r"Hash mismatch for '[^']*'|(?:Extra|Missing)[^\"]*", text)
    return "; ".join(differences) or text


def _hashing(folder: Path) -> hashing.Config:
    outside = [path for path in pack_files(folder) if stands_outside(path)]
    config = hashing.Config()  # type: ignore[no-untyped-call]
    config.use_file_serialization(hashing_algorithm="sha256")
    return config.set_ignored_paths(paths=[SIGNATURE, *outside], ignore_git_paths=False)
