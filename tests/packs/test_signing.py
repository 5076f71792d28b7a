"""Signing and verifying: whose key, which files, and never the network."""

import socket
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from appliance.domain.errors import PackContentError, SignatureError
from appliance.packs.signing import check_private_key, generate_keys, sign_pack, verify_signature
from tests.fakes.tiny_pack import TinyPack, tiny_pack


@pytest.fixture
def pack(tmp_path: Path) -> TinyPack:
    """A signed pack."""
    return tiny_pack(tmp_path)


def test_a_signature_names_the_trusted_key_that_made_it(pack: TinyPack, tmp_path: Path) -> None:
    """Of several trusted keys the one that signed is found."""
    other = generate_keys(tmp_path / "other")
    assert verify_signature(pack.folder, [other.public, pack.keys.public]) == pack.keys.public


def test_neither_signing_nor_verifying_uses_the_network(pack: TinyPack, monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is opened and no name is looked up."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    sign_pack(pack.folder, pack.keys.private)
    verify_signature(pack.folder, [pack.keys.public])


def test_a_private_key_is_its_owners_only_and_is_never_replaced(tmp_path: Path) -> None:
    """The private key has mode 0600; making keys again in the same folder is refused."""
    pair = generate_keys(tmp_path)
    assert stat.S_IMODE(pair.private.stat().st_mode) == 0o600
    with pytest.raises(SignatureError, match="exists already"):
        generate_keys(tmp_path)


def test_a_pack_signed_by_a_stranger_is_refused(pack: TinyPack, tmp_path: Path) -> None:
    """A valid signature by an untrusted key counts as none."""
    stranger = generate_keys(tmp_path / "stranger")
    with pytest.raises(SignatureError, match=r"none of the trusted keys.*packs\.trusted_keys"):
        verify_signature(pack.folder, [stranger.public])


def test_without_trusted_keys_nothing_is_trusted(pack: TinyPack) -> None:
    """An empty list of keys refuses every pack."""
    with pytest.raises(SignatureError, match="No key is trusted"):
        verify_signature(pack.folder, [])


def test_a_missing_signature_is_refused(pack: TinyPack) -> None:
    """An unsigned pack is named as such."""
    (pack.folder / "model.sig").unlink()
    with pytest.raises(SignatureError, match=r"has no model\.sig"):
        verify_signature(pack.folder, [pack.keys.public])


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"verificationMaterial": {}}', "\x00", "[" * 100_000])
def test_a_file_that_is_no_signature_is_refused(pack: TinyPack, content: str) -> None:
    """Whatever lies in model.sig, the answer is a refusal."""
    (pack.folder / "model.sig").write_text(content)
    with pytest.raises(SignatureError, match="chest-xray"):
        verify_signature(pack.folder, [pack.keys.public])


def test_a_key_file_that_is_no_key_trusts_nobody(pack: TinyPack, tmp_path: Path) -> None:
    """A broken or missing key file is named in the refusal; a good one beside it still counts."""
    broken = tmp_path / "broken.pem"
    broken.write_text("no key")
    with pytest.raises(SignatureError, match=r"broken\.pem.*missing\.pem"):
        verify_signature(pack.folder, [broken, tmp_path / "missing.pem"])
    assert verify_signature(pack.folder, [broken, pack.keys.public]) == pack.keys.public


@pytest.mark.parametrize("name", ["MODEL_CARD.md", "manifest.json", ".gitattributes", "tasks/lungs/.gitignore"])
def test_a_file_changed_or_added_after_signing_is_named(pack: TinyPack, name: str) -> None:
    """Every file is covered, also those that Git treats specially."""
    with (pack.folder / name).open("a") as stream:
        stream.write(" ")
    with pytest.raises(SignatureError, match=name):
        verify_signature(pack.folder, [pack.keys.public])


def test_engines_stand_outside_the_signature(pack: TinyPack) -> None:
    """An engine built on the appliance does not break its pack's signature."""
    (pack.folder / "encoder.trtrtx.engine").write_bytes(b"made here")
    assert verify_signature(pack.folder, [pack.keys.public]) == pack.keys.public


def test_a_link_within_a_pack_is_refused(pack: TinyPack) -> None:
    """Links are refused before anything behind them is read."""
    (pack.folder / "link.md").symlink_to("/etc/hostname")
    with pytest.raises(PackContentError, match=r"link\.md .* symbolic link"):
        verify_signature(pack.folder, [pack.keys.public])


def test_a_key_that_cannot_sign_is_named(pack: TinyPack) -> None:
    """A public key given as a private one is refused, with what is needed."""
    with pytest.raises(SignatureError, match="unencrypted private key"):
        sign_pack(pack.folder, pack.keys.public)


@pytest.mark.parametrize("kind", ["absent", "public", "encrypted", "RSA", "another curve"])
def test_a_key_is_checked_before_there_is_anything_to_sign(pack: TinyPack, tmp_path: Path, kind: str) -> None:
    """Whoever signs at the end of a long run asks at its beginning; a key that signs passes."""
    check_private_key(pack.keys.private)
    path = tmp_path / "key.pem"
    keys = {"RSA": rsa.generate_private_key(65537, 2048), "another curve": ec.generate_private_key(ec.SECP256K1())}
    if kind == "public":
        path = pack.keys.public
    elif kind != "absent":
        locked = kind == "encrypted"
        key = serialization.load_pem_private_key(pack.keys.private.read_bytes(), None) if locked else keys[kind]
        lock = serialization.BestAvailableEncryption(b"secret") if locked else serialization.NoEncryption()
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    with pytest.raises(SignatureError, match=f"{path.name} .*unencrypted private key"):
        check_private_key(path)
