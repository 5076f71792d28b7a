"""The operator's desk and the hospital around the guest: playbooks, a PACS of dcmtk, a modality that stores."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydicom import dcmread

from tests.fakes.radiographs import ROOT, write_radiograph
from tests.fleet.bundles import Bundles
from tests.fleet.guest import GUEST, MODALITY, OPERATOR, PACS, Guest

SETTINGS: dict[str, Any] = {
    "node": {"ae_title": "INSITE", "port": 11112, "min_free_mib": 64},
    "study": {"quiet_seconds": 2.0},
    "web": {"bind": "0.0.0.0"},  # noqa: S104 - the guest's own
    "destinations": [{"name": "pacs", "ae_title": "PACS", "host": PACS, "port": 104}],
}
DELIVERY_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Played:
    """What a playbook said, and how many changes it reported."""

    text: str
    changed: int


def blocks(page: Path, where: str) -> list[str]:
    """The page's shell blocks that are marked for a place, `operator` or `host`."""
    return re.findall(rf"```sh {where}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


class Hospital:
    """The operator follows the page's commands; a receiving PACS (dcmtk's storescp) stands beside.

    Args:
        page: The operator's blocks of docs/fleet.md; the first takes the playbooks out of the bundle.
    """

    def __init__(self, guest: Guest, desk: Path, page: Sequence[str], bundles: Bundles) -> None:
        self.guest = guest
        self._desk = desk
        self._bundles = bundles
        self._first, *rest = page
        self._commands = {block.split()[-1]: block.strip() for block in rest}
        self._pacs = desk / "pacs"
        self._stack = ExitStack()
        self.installed_at = float("inf")

    def __enter__(self) -> Self:
        self._pacs.mkdir()
        storescp = shutil.which("storescp")
        assert storescp, "dcmtk is not installed."
        command = [storescp, "--aetitle", "PACS", "--fork", "--output-directory", str(self._pacs), "104"]
        process = subprocess.Popen(self.guest.outside(*command))
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def take_out(self, bundle: Path) -> subprocess.CompletedProcess[bytes]:
        """Put a bundle on the desk and take its playbooks out of it, by the page's first block."""
        for name, file in (("insite.tar", bundle), ("maker.pub.pem", self._bundles.keys.public)):
            (self._desk / name).unlink(missing_ok=True)
            (self._desk / name).symlink_to(file)
        return subprocess.run(["bash", "-ec", self._first], cwd=self._desk, check=False, capture_output=True)

    def take(self, version: str, golden: Path | None = None) -> None:
        """Put a version on the desk and into the inventory; without a golden file, the pack's own case proves it."""
        answer = self.take_out(self._bundles.of(version))
        assert answer.returncode == 0, answer.stderr
        inventory = {
            "insite": {
                "vars": {
                    "ansible_user": "root",
                    "ansible_ssh_private_key_file": str(self.guest.key),
                    "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
                    "insite_bundle": str(self._desk / "insite.tar"),
                    "insite_maker_key": str(self._desk / "maker.pub.pem"),
                    "insite_operators": [OPERATOR],
                    "insite_senders": [OPERATOR, MODALITY],
                    "insite_readers": [MODALITY],
                    "insite_min_free_mib": 512,
                    "insite_golden_study": str(golden or ""),
                },
                "hosts": {"hospital-a": {"ansible_host": GUEST, "insite_settings": SETTINGS}},
            }
        }
        (self._desk / "ansible" / "inventory.yml").write_text(json.dumps(inventory), encoding="utf-8")

    def play(self, playbook: str, *options: str, **values: Any) -> Played:
        """Run the page's command for a playbook; it must succeed. Values go over the inventory's."""
        answer = self._run(playbook, *options, **values)
        text = answer.stdout + answer.stderr
        assert answer.returncode == 0, text
        if playbook == "install.yml" and self.installed_at == float("inf"):
            self.installed_at = time.time()
        (changed,) = re.findall(r"hospital-a\s+: ok=\d+\s+changed=(\d+)", text)
        return Played(text, int(changed))

    def refused(self, playbook: str, *sentences: str, **values: Any) -> None:
        """Run it; it must fail with these sentences, not with a traceback."""
        answer = self._run(playbook, **values)
        text = answer.stdout + answer.stderr
        assert answer.returncode != 0, text
        assert "Traceback" not in text, text
        for sentence in sentences:
            assert sentence in text, text

    def received(self) -> set[str]:
        """The studies that the PACS has results of."""
        return {str(dcmread(file, stop_before_pixels=True).StudyInstanceUID) for file in self._pacs.iterdir()}

    def versions_that_spoke(self) -> set[str]:
        """The Software Versions (0018,1020) of every result that the PACS has."""
        found = (dcmread(file, stop_before_pixels=True) for file in self._pacs.iterdir())
        return {str(dataset.SoftwareVersions) for dataset in found}

    def kept_images(self) -> set[str]:
        """The SOP Instance UIDs in the guest's ledger whose files are on its disk."""
        query = (
            "import pathlib, sqlite3; rows = sqlite3.connect('/var/lib/insite/ledger.db').execute("
            "'select sop_instance_uid, path from insite_instances'); "
            "print(*[uid for uid, path in rows if pathlib.Path(path).is_file()])"
        )
        return set(self.guest.says(f'python3 -c "{query}"').split())

    def wait_until_delivered(self, images: Sequence[str]) -> None:
        """Return when the PACS has results of each image's study; one image is one study here."""
        wanted = {uid.removesuffix(".1.1") for uid in images}
        assert wanted
        deadline = time.monotonic() + DELIVERY_SECONDS
        while missing := wanted - self.received():
            assert time.monotonic() < deadline, f"no results of {missing}"
            time.sleep(1)

    def connects(self, source: str, port: int) -> bool:
        """Whether the guest takes a TCP connection from a source address."""
        program = f"import socket; socket.create_connection(('{GUEST}', {port}), 3, ('{source}', 0))"
        command = self.guest.outside(sys.executable, "-c", program)
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def strays(self) -> Sequence[str]:
        """The guest's packets since the installation to anybody but operator, senders, readers and the PACS."""
        configured = " or ".join(f"dst host {address}" for address in (OPERATOR, MODALITY, PACS))
        return self.guest.sent(f"not ({configured})", self.installed_at)

    def _run(self, playbook: str, *options: str, **values: Any) -> subprocess.CompletedProcess[str]:
        ours = {name: value for name, value in values.items() if name.startswith("insite_")}
        settings = {name: value for name, value in values.items() if not name.startswith("insite_")}
        if settings:
            merged = {**SETTINGS}
            for section, value in settings.items():
                merged[section] = {**SETTINGS.get(section, {}), **value} if isinstance(value, dict) else value
            ours["insite_settings"] = merged
        command = [*self._commands[playbook].split(), *options, "--extra-vars", json.dumps(ours)]
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            self.guest.outside(*command),
            cwd=self._desk / "ansible",
            env={**os.environ, "PATH": programs, "ANSIBLE_NOCOLOR": "1", "HOME": str(self._desk), "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )


class Store:
    """A modality that stores one new study after another, and remembers what was acknowledged."""

    _numbers = iter(range(100_000, 10_000_000))

    def __init__(self, hospital: Hospital, name: str) -> None:
        self._hospital = hospital
        self._folder = hospital.guest.capture.parent / f"store-{name}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on)
        self.acknowledged: list[str] = []
        self.refused = 0

    def __enter__(self) -> Self:
        self._folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Store until stopped."""
        self._thread.start()

    def stop(self) -> None:
        """End the storing."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def send(self) -> None:
        """Store one new study, once; what is refused is counted."""
        number = next(self._numbers)
        file = write_radiograph(self._folder / f"{number}.dcm", number)
        command = ["storescu", "--call", "INSITE", "--timeout", "5", "--dimse-timeout", "20", GUEST, "11112", str(file)]
        answer = subprocess.run(self._hospital.guest.outside(*command), capture_output=True, check=False)
        if answer.returncode == 0:
            self.acknowledged.append(f"{ROOT}.{number}.1.1")
        else:
            self.refused += 1

    def _go_on(self) -> None:
        while not self._stop.wait(0.5):
            self.send()
