"""The maker's workshop: bundles of this source tree under other versions, some of them spoilt on purpose."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from appliance.packs.signing import generate_keys

TREE = ("appliance", "export", "engines", "systemd", "ansible", "docs", "pyproject.toml", "requirements.lock")
TREE += ("README.md", "LICENSE")
CRASH = '\nraise SystemExit("This worker was made not to start.")\n'


class Bundles:
    """Builds each bundle once.

    Args:
        repository: The source tree; its folder build/wheels keeps downloaded wheels.
        folder: Where bundles and keys are put.
    """

    def __init__(self, repository: Path, folder: Path) -> None:
        self._repository = repository
        self._folder = folder
        self.keys = generate_keys(folder / "maker")
        self.foreign_key = generate_keys(folder / "foreign").public
        self._spoilers = {"0.1.1": _crash, "0.1.2": _forge, "0.1.3": _misread}

    def of(self, version: str) -> Path:
        """A version's bundle: 0.1.1's worker does not start, 0.1.2's pack was altered, 0.1.3 makes scores up."""
        file = self._folder / f"insite-{version}-cpu.tar"
        if not file.exists():
            tree = self._folder / f"tree-{version}"
            for name in TREE:
                source = self._repository / name
                if source.is_dir():
                    shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", ".ansible"))
                else:
                    shutil.copyfile(source, tree / name)
            project = tree / "pyproject.toml"
            named = re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', project.read_text(encoding="utf-8"))
            project.write_text(named, encoding="utf-8")
            if version in self._spoilers:
                self._spoilers[version](tree)
            command = [sys.executable, self._repository / "ansible" / "build_bundle.py", "--key", self.keys.private]
            command += ["--out", self._folder, "--source", tree, "--cache", self._repository / "build" / "wheels"]
            subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(self._repository)})
            shutil.rmtree(tree)
        return file

    def with_other_playbook(self, version: str) -> Path:
        """A copy in which a playbook is another than its maker signed."""
        file = self._folder / "other-playbook.tar"
        data = self.of(version).read_bytes()
        file.write_bytes(data.replace(b"- name: Install Insite\n", b"- name: Install Malice\n", 1))
        assert file.read_bytes() != data
        return file

    def damaged(self, version: str, damage: str) -> Path:
        """A copy that is `half` there, or `altered` by one bit."""
        data = bytearray(self.of(version).read_bytes())
        if damage == "half":
            del data[len(data) // 2 :]
        else:
            data[len(data) // 2] ^= 1
        file = self._folder / f"{damage}.tar"
        file.write_bytes(data)
        return file


def _crash(tree: Path) -> None:
    with (tree / "appliance" / "daemons" / "worker.py").open("a", encoding="utf-8") as stream:
        stream.write(CRASH)


def _forge(tree: Path) -> None:
    signature = tree / "engines" / "chest-xray" / "model.sig"
    signature.write_bytes(signature.read_bytes().replace(b"A", b"B", 1))


def _misread(tree: Path) -> None:
    question = tree / "appliance" / "pipeline" / "question.py"
    true, untrue = "        value = self.number(output)\n", "        value = 0.99\n"
    text = question.read_text(encoding="utf-8")
    assert true in text
    question.write_text(text.replace(true, untrue), encoding="utf-8")
