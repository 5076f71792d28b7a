"""A real Debian 12 guest under systemd-nspawn, in network namespaces of the test's own, made and removed with it."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGES = "systemd,systemd-sysv,dbus,libpam-systemd,openssh-server,openssl,python3,python3-venv,nftables,iproute2"
OPERATOR, GUEST, PACS, MODALITY, STRANGER = ("192.0.2.1", "192.0.2.2", "192.0.2.20", "192.0.2.17", "192.0.2.99")
"""TEST-NET-1 (RFC 5737): these addresses exist in the two namespaces alone."""
ELSEWHERE = "198.51.100.7"
"""TEST-NET-2: nobody's; the guest's packets to it end on the operator's side of the link."""
BOOT_SECONDS = 60.0
REBOOTS = 133
"""The status with which systemd-nspawn ends when its guest wants to start again."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A running guest, and the operator's namespace at the other end of its one link.

    Attributes:
        capture: Every packet on that link, in pcap format, from before the guest's boot.
        link_address: The guest's own address on that link, hexadecimal with colons.
    """

    namespace: str
    key: Path
    capture: Path
    link_address: str

    def shell(self, script: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a script with bash as root over SSH; with `stdin`, the script is the command and `stdin` its input."""
        ssh = ["ssh", "-i", str(self.key), "-o", "LogLevel=ERROR", "-o", "StrictHostKeyChecking=no"]
        ssh += ["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=5", "-o", "ServerAliveInterval=10"]
        command = self.outside(*ssh, f"root@{GUEST}", "bash -s" if stdin is None else script)
        data = script.encode() if stdin is None else stdin
        return subprocess.run(command, input=data, capture_output=True, check=False)

    def says(self, script: str) -> str:
        """What a script that must succeed prints."""
        answer = self.shell(script)
        assert answer.returncode == 0, f"{script}\n{(answer.stdout + answer.stderr).decode()}"
        return answer.stdout.decode().strip()

    def outside(self, *command: str) -> list[str]:
        """The same command in the operator's namespace."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def sent(self, expression: str, since: float = 0.0) -> Sequence[str]:
        """The guest's IP packets of the capture that match a pcap filter, one line each, from a point of time on."""
        chosen = f"ether src {self.link_address} and (ip or ip6) and ({expression})"
        command = ["tcpdump", "-n", "-tt", "-r", str(self.capture), chosen]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        return [line for line in lines if float(line.split()[0]) >= since]

    def reboot(self) -> None:
        """Start the guest again and wait until it answers."""
        name = "cat /proc/sys/kernel/random/boot_id"
        before = self.says(name)
        self.shell("systemctl reboot")
        deadline = time.monotonic() + BOOT_SECONDS
        while self.shell(name).stdout.decode().strip() in {"", before}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"The guest did not start again in {BOOT_SECONDS:.0f} s; its console.log says why.")
            time.sleep(0.5)


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
        addresses = [("op0", outside, each) for each in (OPERATOR, PACS, MODALITY, STRANGER)]
        for link, namespace, address in [*addresses, ("host0", inside, GUEST)]:
            _do("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", link)
        guest = Guest(outside, key, folder / "link.pcap", _link_address(inside))
        for link, namespace in (("op0", outside), ("host0", inside)):
            for each in (link, "lo"):
                _do("ip", "-n", namespace, "link", "set", each, "up")
        _do("ip", "-n", inside, "route", "add", "default", "via", OPERATOR)
        _started(
            stack,
            guest.outside("tcpdump", "-i", "op0", "-s", "128", "-U", "-w", str(guest.capture)),
            folder / "tcpdump.log",
        )
        boot = (
            "mount -t cgroup2 none /sys/fs/cgroup; trap 'kill $guest; wait $guest; exit' TERM; while :; do "
            f"systemd-nspawn --quiet --boot --register=no --keep-unit --directory={root} --machine={name} "
            f"--network-namespace-path=/run/netns/{inside} --capability=all --system-call-filter=bpf --console=pipe "
            "--bind=/dev/null:/dev/nvidia0 & "
            f"guest=$!; wait $guest; [ $? = {REBOOTS} ] || exit; done"
        )
        command = ["unshare", "--mount", "--propagation", "private", "bash", "-c", boot]
        _started(stack, command, folder / "console.log")
        _wait_for(guest)
        yield guest


def _started(stack: ExitStack, command: Sequence[str], log: Path) -> None:
    with log.open("wb") as console:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
    stack.callback(process.wait)
    stack.callback(process.terminate)


def _link_address(namespace: str) -> str:
    said = subprocess.run(
        ["ip", "-n", namespace, "-o", "link", "show", "host0"], capture_output=True, text=True, check=True
    ).stdout
    return said.split("link/ether ")[1].split()[0]


def _wait_for(guest: Guest) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while guest.shell("true").returncode != 0:
        if time.monotonic() > deadline:
            raise TimeoutError(f"The guest did not answer in {BOOT_SECONDS:.0f} s; its console.log says why.")
        time.sleep(0.5)


def _do(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
