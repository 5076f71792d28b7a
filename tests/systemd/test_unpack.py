"""`insite-unpack` refuses what it can't vouch for, in one sentence, and leaves nothing behind."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from appliance.governance.bundle import sign_sums, sums_from_files
from appliance.packs.signing import KeyPair, generate_keys

DESCRIBED = {"version": "9.9.9", "variant": "cpu", "python": "3.11", "platform": f"{os.uname().machine}-manylinux"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    """The maker's keys."""
    return generate_keys(tmp_path_factory.mktemp("keys"))


def _bundle(file: Path, key: Path, described: Mapping[str, str] = DESCRIBED, extra: Mapping[str, bytes] = {}) -> Path:
    files = {"bundle.json": json.dumps(described, indent=2).encode(), "requirements.txt": b"insite==9.9.9\n"}
    sums = sums_from_files({name: hashlib.sha256(data).hexdigest() for name, data in files.items()}).encode()
    files |= {"SHA256SUMS": sums, "SHA256SUMS.sig": sign_sums(sums, key), **extra}
    with tarfile.open(file, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"insite-9.9.9-cpu/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file


def _refusal(repository: Path, root: Path, bundle: Path, key: Path) -> str:
    program = repository / "systemd" / "insite-unpack"
    environment = {**os.environ, "INSITE_ROOT": str(root)}
    answer = subprocess.run(["sh", program, bundle, key], env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    (sentence,) = answer.stderr.splitlines()
    left = [path for path in root.rglob("*") if path.name not in {"releases", "old", "installed"}]
    assert left == []
    return sentence.removeprefix("insite-unpack: ")


def test_an_altered_file_is_found(repository: Path, tmp_path: Path, keys: KeyPair) -> None:
    """One changed byte of a listed file refuses the bundle."""
    bundle = _bundle(tmp_path / "b.tar", keys.private)
    data = bundle.read_bytes().replace(b"insite==9.9.9", b"insite==9.9.8")
    bundle.write_bytes(data)
    assert "was altered" in _refusal(repository, tmp_path / "root", bundle, keys.public)


def test_half_a_bundle_is_found(repository: Path, tmp_path: Path, keys: KeyPair) -> None:
    """An archive that ends early refuses."""
    bundle = _bundle(tmp_path / "b.tar", keys.private)
    bundle.write_bytes(bundle.read_bytes()[:700])
    assert "only a part of one" in _refusal(repository, tmp_path / "root", bundle, keys.public)


def test_a_link_in_the_archive_is_refused(repository: Path, tmp_path: Path, keys: KeyPair) -> None:
    """A link with a listed name and the listed content behind it is no file of the bundle."""
    bundle = _bundle(tmp_path / "b.tar", keys.private)
    outside = tmp_path / "requirements.txt"
    outside.write_bytes(b"insite==9.9.9\n")
    with tarfile.open(bundle) as archive:
        kept = [(entry, archive.extractfile(entry)) for entry in archive if "requirements" not in entry.name]
        with tarfile.open(tmp_path / "c.tar", "w") as changed:
            for entry, stream in kept:
                changed.addfile(entry, stream)
            link = tarfile.TarInfo("insite-9.9.9-cpu/requirements.txt")
            link.type, link.linkname = tarfile.SYMTYPE, str(outside)
            changed.addfile(link)
    assert "holds links or devices" in _refusal(repository, tmp_path / "root", tmp_path / "c.tar", keys.public)


def test_another_makers_bundle_is_refused(repository: Path, tmp_path: Path, keys: KeyPair) -> None:
    """A list that another key signed refuses."""
    stranger = generate_keys(tmp_path / "stranger")
    bundle = _bundle(tmp_path / "b.tar", stranger.private)
    assert "not signed with this key" in _refusal(repository, tmp_path / "root", bundle, keys.public)


def test_a_file_that_nobody_listed_is_refused(repository: Path, tmp_path: Path, keys: KeyPair) -> None:
    """A file beside the signed list refuses."""
    bundle = _bundle(tmp_path / "b.tar", keys.private, extra={"more.sh": b"echo"})
    assert "did not list" in _refusal(repository, tmp_path / "root", bundle, keys.public)


@pytest.mark.parametrize("version", ["../../etc", "", ".hidden", "1 2"])
def test_a_version_is_a_name_and_no_path(repository: Path, tmp_path: Path, keys: KeyPair, version: str) -> None:
    """What a signed bundle calls its version can't lead out of the releases."""
    bundle = _bundle(tmp_path / "b.tar", keys.private, {**DESCRIBED, "version": version})
    assert "which is none" in _refusal(repository, tmp_path / "root", bundle, keys.public)


def test_another_machines_bundle_is_refused(repository: Path, tmp_path: Path, keys: KeyPair) -> None:
    """The platform must be this machine's."""
    bundle = _bundle(tmp_path / "b.tar", keys.private, {**DESCRIBED, "platform": "vax-manylinux"})
    assert "is for vax-manylinux" in _refusal(repository, tmp_path / "root", bundle, keys.public)


def test_a_version_that_is_there_is_never_replaced(repository: Path, tmp_path: Path, keys: KeyPair) -> None:
    """Another bundle under the version of an unpacked one refuses."""
    release = tmp_path / "root" / "releases" / "9.9.9"
    release.mkdir(parents=True)
    (release / "installed").write_text("0" * 64 + "\n")
    bundle = _bundle(tmp_path / "b.tar", keys.private)
    root = tmp_path / "root"
    program = repository / "systemd" / "insite-unpack"
    environment = {**os.environ, "INSITE_ROOT": str(root)}
    command = ["sh", program, bundle, keys.public]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (answer.returncode, "from another bundle" in answer.stderr) == (1, True)
    assert [path.name for path in release.iterdir()] == ["installed"]


@pytest.mark.parametrize("missing", ["bundle", "key"])
def test_a_missing_file_is_named(repository: Path, tmp_path: Path, keys: KeyPair, missing: str) -> None:
    """Bundle or key that can't be read: the file is named, nothing is made."""
    bundle = tmp_path / "none.tar" if missing == "bundle" else _bundle(tmp_path / "b.tar", keys.private)
    key = tmp_path / "none.pem" if missing == "key" else keys.public
    assert "none." in _refusal(repository, tmp_path / "root", bundle, key)


@pytest.mark.parametrize("program", ["insite-unpack", "insite-switch"])
def test_the_shell_programs_are_sound(repository: Path, program: str) -> None:
    """Shellcheck has no remark."""
    if shutil.which("shellcheck") is None:
        message = "shellcheck is not installed (Debian package shellcheck)."
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    answer = subprocess.run(
        ["shellcheck", repository / "systemd" / program], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout
