# ruff: noqa: INP001 - a script beside the role, no package
"""Builds the installation bundle: one signed archive with all that a machine without network needs.

    python ansible/build_bundle.py --key KEY.pem --out build/ [--variant cpu|gpu] [--source DIR]

Wheels come from the registry that pip is set up for, at the versions of `requirements.lock`, each by its hash; they are
kept in the cache folder for the next time. Insite's own wheel is built from the source tree.
"""

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.domain.errors import BundleError, InsiteError
from appliance.governance.bundle import DESCRIPTION, SIGNATURE, SUMS, sign_sums, sums_from_files

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "3.11"
PLATFORM = "x86_64-manylinux_2_28"
CODE = ("appliance", "export", "pyproject.toml", "README.md", "LICENSE")
CONTENT = ("engines", "systemd", "ansible", "docs", "LICENSE")
"""What is taken from the source tree as it is: packs with their public keys, units, role and playbooks, the pages."""
NOT_CONTENT = ("__pycache__", ".ansible", "*.pyc")


@dataclass(frozen=True, slots=True)
class Order:
    """What to build: the variant's extra, from which tree, with whose key, and where wheels are kept between builds."""

    source: Path
    variant: str
    key: Path
    cache: Path


def build(order: Order, out: Path) -> Path:
    """Build the bundle and return its file, `insite-<version>-<variant>.tar` in `out`.

    Raises:
        BundleError: A step failed, or the key can't be used.
    """
    version = _project(order.source)["version"]
    name = f"insite-{version}-{order.variant}"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="insite-bundle-") as folder:
        content = Path(folder) / name
        wheels = content / "wheels"
        shutil.copytree(_fetched(order), content)
        own = _own_wheel(order.source, wheels)
        with (content / "requirements.txt").open("a", encoding="utf-8") as stream:
            stream.write(f"insite[{order.variant}]=={version} --hash=sha256:{_sha256(own)}\n")
        _copy_content(order.source, content)
        _run("cyclonedx_py", "requirements", "--output-format", "JSON", "--output-reproducible", "--output-file",
             content / "sbom.cdx.json", content / "requirements.txt")  # fmt: skip
        described = {
            "name": "insite",
            "version": version,
            "variant": order.variant,
            "python": PYTHON,
            "platform": PLATFORM,
        }
        (content / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        files = {str(path.relative_to(content)): _sha256(path) for path in _files(content)}
        sums = sums_from_files(files).encode()
        (content / SUMS).write_bytes(sums)
        (content / SIGNATURE).write_bytes(sign_sums(sums, order.key))
        return _archived(content, out / f"{name}.tar")


def _fetched(order: Order) -> Path:
    """A folder with `requirements.txt` and `wheels/`, from the cache where lock and needs are the same."""
    lock, project = order.source / "requirements.lock", order.source / "pyproject.toml"
    needs = json.dumps([_project(order.source)["dependencies"], _project(order.source)["optional-dependencies"]])
    digest = hashlib.sha256(lock.read_bytes() + needs.encode()).hexdigest()[:12]
    kept = order.cache / f"{order.variant}-{digest}"
    if kept.is_dir():
        return kept
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=_made(order.cache)))
    draft.chmod(0o755)
    requirements = draft / "requirements.txt"
    _run("uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--generate-hashes",
         "--extra", order.variant, "--constraint", lock, "--python-version", PYTHON, "--python-platform", PLATFORM,
         "--output-file", requirements, project)  # fmt: skip
    _run("pip", "download", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:",
         "--requirement", requirements, "--dest", draft / "wheels")  # fmt: skip
    return draft.rename(kept)


def _own_wheel(source: Path, wheels: Path) -> Path:
    with tempfile.TemporaryDirectory(prefix="insite-wheel-") as folder:
        for name in CODE:
            _copy(source / name, Path(folder) / name)
        _run("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, folder)
    (wheel,) = wheels.glob("insite-*.whl")
    return wheel


def _copy_content(source: Path, content: Path) -> None:
    for name in CONTENT:
        _copy(source / name, content / name)


def _copy(origin: Path, target: Path) -> None:
    if not origin.exists():
        raise BundleError(f"{origin} is missing.", "Build the bundle from a whole source tree.")
    target.parent.mkdir(parents=True, exist_ok=True)
    if origin.is_dir():
        shutil.copytree(origin, target, ignore=shutil.ignore_patterns(*NOT_CONTENT))
    else:
        shutil.copyfile(origin, target)


def _archived(content: Path, file: Path) -> Path:
    """Write the archive, the same bytes for the same files, in one move."""
    draft = file.with_suffix(".part")
    with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in _files(content):
            entry = tarfile.TarInfo(f"{content.name}/{path.relative_to(content)}")
            entry.size, entry.mode = path.stat().st_size, 0o644
            archive.addfile(entry, io.BytesIO(path.read_bytes()))
    return draft.rename(file)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _project(source: Path) -> dict[str, str]:
    project: dict[str, str] = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run(module: str, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
    if answer.returncode != 0:
        last = answer.stderr.strip().splitlines()[-1:] or [f"status {answer.returncode}"]
        raise BundleError(f"{module} {arguments[0]} failed: {last[0]}.", f"Run it by hand: {' '.join(command)}")


def main() -> None:
    """Read the command line, build, say where the bundle lies and how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--key", type=Path, required=True, help="private key, PEM; `insite-export keygen` makes one")
    parser.add_argument("--out", type=Path, default=ROOT / "build")
    parser.add_argument("--variant", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--source", type=Path, default=ROOT)
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "wheels")
    given = parser.parse_args()
    try:
        file = build(Order(given.source, given.variant, given.key, given.cache), given.out)
    except InsiteError as error:
        sys.exit(f"build_bundle: {error}")
    sys.stdout.write(f"{file}  {file.stat().st_size / 1e6:.0f} MB\n")


if __name__ == "__main__":
    main()
