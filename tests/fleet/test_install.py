"""The page docs/fleet.md, followed word by word in a real guest without network."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.packs.signing import KeyPair, generate_keys
from tests.fleet.guest import Guest, base_image, running_guest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.fleet,
]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    """The maker's keys."""
    return generate_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def bundle(keys: KeyPair, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU bundle of this source tree."""
    out = tmp_path_factory.mktemp("bundle")
    command = [sys.executable, "ansible/build_bundle.py", "--key", keys.private, "--out", out]
    subprocess.run(command, cwd=repository, check=True, env={**os.environ, "PYTHONPATH": str(repository)})
    (file,) = out.glob("insite-*-cpu.tar")
    return file


@pytest.fixture(scope="module")
def guest(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """An empty guest with loopback and the operator's link alone."""
    with running_guest(base_image(repository / "build" / "fleet"), tmp_path_factory.mktemp("guest")) as guest:
        yield guest


def _blocks(repository: Path) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (repository / "docs" / "fleet.md").read_text(encoding="utf-8"), re.DOTALL)


def _copy(guest: Guest, data: bytes, path: str) -> None:
    assert guest.shell(f"cat > {path}", data).returncode == 0


@pytest.mark.parametrize("kind", ["altered", "half"])
def test_a_bad_bundle_stops_at_the_first_block(
    guest: Guest, bundle: Path, keys: KeyPair, repository: Path, kind: str
) -> None:
    """An altered or half-copied bundle is refused before a release folder exists."""
    data = bytearray(bundle.read_bytes())
    if kind == "half":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 1
    _copy(guest, bytes(data), "/root/insite.tar")
    _copy(guest, keys.public.read_bytes(), "/root/maker.pub.pem")
    assert guest.shell(_blocks(repository)[0]).returncode != 0
    assert guest.shell('test -z "$(ls /opt/insite/releases)"').returncode == 0


def test_the_page_ends_with_a_green_doctor(guest: Guest, bundle: Path, keys: KeyPair, repository: Path) -> None:
    """From the copied bundle to a green doctor, in under four minutes; the bundle has less than 350 MB."""
    assert bundle.stat().st_size < 350e6
    started = time.monotonic()
    _copy(guest, bundle.read_bytes(), "/root/insite.tar")
    _copy(guest, keys.public.read_bytes(), "/root/maker.pub.pem")
    for block in _blocks(repository):
        answer = guest.shell(block)
        said = (answer.stdout + answer.stderr).decode()
        assert answer.returncode == 0, f"{block}\n{said}"
    seconds = time.monotonic() - started
    sys.stdout.write(f"{said}\nbundle {bundle.stat().st_size / 1e6:.0f} MB, installed and green in {seconds:.0f} s\n")
    assert "All is in order." in said
    assert seconds < 240


def test_the_inference_daemon_sees_no_received_file(guest: Guest) -> None:
    """From inside the running service there is no spool, no ledger, and no interface but loopback."""
    inside = "nsenter --target $(systemctl show --property MainPID --value insite-inference)"
    assert guest.shell(f"{inside} --mount ls /var/lib/insite").stdout.split() == [b"run"]
    assert (
        guest.shell(f"{inside} --net ls /sys/class/net > /dev/null; {inside} --net ip -o link").stdout.count(b"\n") == 1
    )
