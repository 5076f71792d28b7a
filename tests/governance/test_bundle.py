"""A bundle that is not exactly what its maker signed gets a sentence, not an installation."""

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from appliance.domain.errors import BundleError
from appliance.governance.bundle import (
    DESCRIPTION,
    SIGNATURE,
    SUMS,
    files_from_sums,
    sign_sums,
    sums_from_files,
    verify_bundle,
)
from appliance.packs.signing import KeyPair, generate_keys

FOLDER = "insite-1.2.3-cpu"
CONTENT = {
    DESCRIPTION: json.dumps({"version": "1.2.3", "variant": "cpu"}).encode(),
    "wheels/some.whl": b"wheel" * 5000,
    "systemd/insite.target": b"[Unit]\n",
}


@pytest.fixture
def keys(tmp_path: Path) -> KeyPair:
    """A maker's key pair."""
    return generate_keys(tmp_path / "keys")


def _signed(keys: KeyPair, content: Mapping[str, bytes] = CONTENT) -> dict[str, bytes]:
    sums = sums_from_files({name: hashlib.sha256(data).hexdigest() for name, data in content.items()}).encode()
    return {**content, SUMS: sums, SIGNATURE: sign_sums(sums, keys.private)}


def _archive(file: Path, content: Mapping[str, bytes], folder: str = FOLDER) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, data in content.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file


def test_a_bundle_as_its_maker_signed_it_is_accepted(tmp_path: Path, keys: KeyPair) -> None:
    """A whole, unaltered bundle tells its version, its variant and how many files it holds."""
    found = verify_bundle(_archive(tmp_path / "b.tar", _signed(keys)), keys.public)
    assert (found.version, found.variant, found.files) == ("1.2.3", "cpu", 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"wheels/some.whl": b"other"}, "wheels/some.whl in .* was altered"),
        ({"wheels/more.whl": b"more"}, "holds wheels/more.whl, which its maker did not list"),
        ({SUMS: b""}, "was not signed with the key"),
        ({SIGNATURE: b"no signature"}, "was not signed with the key"),
    ],
)
def test_an_altered_bundle_is_refused(tmp_path: Path, keys: KeyPair, change: dict[str, bytes], sentence: str) -> None:
    """Whatever differs is named."""
    file = _archive(tmp_path / "b.tar", {**_signed(keys), **change})
    with pytest.raises(BundleError, match=sentence):
        verify_bundle(file, keys.public)


def test_a_missing_file_is_named(tmp_path: Path, keys: KeyPair) -> None:
    """A bundle without one of its files is refused."""
    content = _signed(keys)
    del content["wheels/some.whl"]
    with pytest.raises(BundleError, match=r"lacks wheels/some\.whl"):
        verify_bundle(_archive(tmp_path / "b.tar", content), keys.public)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.8])
def test_a_half_copied_bundle_is_refused(tmp_path: Path, keys: KeyPair, kept: float) -> None:
    """A copy that broke off is never taken for a whole one."""
    file = _archive(tmp_path / "b.tar", _signed(keys))
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(BundleError, match=r"Copy it again|no archive"):
        verify_bundle(file, keys.public)


def test_an_unknown_key_is_refused(tmp_path: Path, keys: KeyPair) -> None:
    """A bundle that somebody else signed is refused."""
    stranger = generate_keys(tmp_path / "stranger")
    with pytest.raises(BundleError, match=r"was not signed with the key signing-key\.pub\.pem"):
        verify_bundle(_archive(tmp_path / "b.tar", _signed(stranger)), keys.public)


@pytest.mark.parametrize("data", [b"", b"not a key"])
def test_a_file_that_is_no_key_is_named(tmp_path: Path, keys: KeyPair, data: bytes) -> None:
    """A wrong key file gets a sentence, on both sides."""
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(data)
    with pytest.raises(BundleError, match="is no public key"):
        verify_bundle(_archive(tmp_path / "b.tar", _signed(keys)), wrong)
    with pytest.raises(BundleError, match="can't be used"):
        sign_sums(b"", wrong)


def test_what_is_no_bundle_is_refused(tmp_path: Path, keys: KeyPair) -> None:
    """A missing file, another file and an archive of something else get their sentences."""
    other = tmp_path / "other.tar"
    with pytest.raises(BundleError, match="No such file"):
        verify_bundle(other, keys.public)
    other.write_bytes(b"x" * 2048)
    with pytest.raises(BundleError, match="is no archive"):
        verify_bundle(other, keys.public)
    with pytest.raises(BundleError, match="holds no SHA256SUMS"):
        verify_bundle(_archive(other, {"file": b""}), keys.public)


def test_a_path_out_of_the_bundle_is_refused(tmp_path: Path, keys: KeyPair) -> None:
    """Unpacking can never write outside of the bundle's folder."""
    with pytest.raises(BundleError, match="no plain file under"):
        verify_bundle(_archive(tmp_path / "b.tar", {"x": b""}, "../elsewhere"), keys.public)


def test_standard_tools_check_a_bundle_too(tmp_path: Path, keys: KeyPair) -> None:
    """A machine without Insite verifies with openssl and sha256sum, as the role does."""
    content = _signed(keys)
    for name, data in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    subprocess.run(
        ["openssl", "dgst", "-sha256", "-verify", keys.public, "-signature", SIGNATURE, SUMS],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path, check=True, capture_output=True)


def test_the_list_survives_its_form() -> None:
    """Paths and digests come back from the list as they went in."""
    files = {"a b/c": "0" * 64, "d": "f" * 64}
    assert files_from_sums(sums_from_files(files)) == files
