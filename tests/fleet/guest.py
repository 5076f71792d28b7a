"""A real Debian 12 guest under systemd-nspawn, in network namespaces of the test's own, made and removed with it."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGES = "systemd,systemd-sysv,dbus,libpam-systemd,openssh-server,openssl,python3,python3-venv,nftables,iproute2"
OPERATOR, GUEST = "192.0.2.1", "192.0.2.2"
"""TEST-NET-1 (RFC 5737): these addresses exist in the two namespaces alone."""
BOOT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Guest:
    """A running guest: `shell` runs a script in it as root over SSH, from the operator's namespace."""

    namespace: str
    key: Path

    def shell(self, script: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a script with bash; with `stdin`, the script is the command and `stdin` its input."""
        ssh = ["ip", "netns", "exec", self.namespace, "ssh", "-i", str(self.key), "-o", "LogLevel=ERROR"]
        ssh += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=5"]
        command = [*ssh, f"root@{GUEST}", "bash -s" if stdin is None else script]
        data = script.encode() if stdin is None else stdin
        return subprocess.run(command, input=data, capture_output=True, check=False)


def base_image(cache: Path) -> Path:
    """The guest's root as debootstrap makes it, kept for the next time."""
    kept = cache / "bookworm"
    if not kept.is_dir():
        draft = cache / "bookworm.draft"
        shutil.rmtree(draft, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        _do("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(draft))
        draft.rename(kept)
    return kept


@contextmanager
def running_guest(base: Path, folder: Path) -> Iterator[Guest]:
    """Boot a copy of the base image; guest, namespaces and copy are gone at the end."""
    root, key, name = folder / "root", folder / "id", f"insite-{os.getpid()}"
    inside, outside = f"{name}-g", f"{name}-o"
    _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        _do("cp", "-a", str(base), str(root))
        (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        shutil.copy(key.with_suffix(".pub"), root / "root/.ssh/authorized_keys")
        for namespace in (inside, outside):
            _do("ip", "netns", "add", namespace)
            stack.callback(_do, "ip", "netns", "delete", namespace)
        _do("ip", "link", "add", "op0", "netns", outside, "type", "veth", "peer", "name", "host0", "netns", inside)
        for namespace, link, address in ((outside, "op0", OPERATOR), (inside, "host0", GUEST)):
            _do("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", link)
            for each in (link, "lo"):
                _do("ip", "-n", namespace, "link", "set", each, "up")
        boot = (
            "mount -t cgroup2 none /sys/fs/cgroup && exec systemd-nspawn --quiet --boot --register=no --keep-unit "
            f"--directory={root} --machine={name} --network-namespace-path=/run/netns/{inside} "
            "--capability=all --system-call-filter=bpf --console=pipe"
        )
        with (folder / "console.log").open("wb") as console:
            process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "bash", "-c", boot],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        guest = Guest(outside, key)
        _wait_for(guest)
        yield guest


def _wait_for(guest: Guest) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while guest.shell("true").returncode != 0:
        if time.monotonic() > deadline:
            raise TimeoutError(f"The guest did not answer in {BOOT_SECONDS:.0f} s; its console.log says why.")
        time.sleep(0.5)


def _do(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
