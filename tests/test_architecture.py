"""The house stands as docs/architecture.md says: the import contracts hold, and they fail when broken."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

VIOLATIONS = {
    "a room looks up": ("appliance/imaging/violation.py", "import appliance.pipeline\n"),
    "a room looks sideways": ("appliance/imaging/violation.py", "import appliance.storage\n"),
    "a room that is on no floor": ("appliance/attic/__init__.py", '"""A room that nobody planned."""\n'),
    "a library in the wrong room": ("appliance/imaging/violation.py", "import pynetdicom\n"),
    "torch in the appliance": ("appliance/inference/violation.py", "import torch\n"),
    "the appliance knows export": ("appliance/inference/violation.py", "import export\n"),
    "export takes too much": ("export/violation.py", "import appliance.storage\n"),
}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter as `make check` does, in a copy of the tree."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
    )


@pytest.fixture
def house(tmp_path: Path, repository: Path) -> Path:
    """A copy of the packages and of the contracts."""
    for room in ("appliance", "export", "tests/contracts"):
        shutil.copytree(repository / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / "pyproject.toml", tmp_path)
    return tmp_path


def test_contracts_hold(house: Path) -> None:
    """Every import contract is kept."""
    result = lint_imports(house)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("case", VIOLATIONS)
def test_contracts_fail_on_a_violation(house: Path, case: str) -> None:
    """A module in the wrong place breaks a contract and is named."""
    file, text = VIOLATIONS[case]
    (house / file).parent.mkdir(exist_ok=True)
    (house / file).write_text(text)
    result = lint_imports(house)
    assert result.returncode == 1, result.stdout
    assert "BROKEN" in result.stdout
    assert Path(file).stem in result.stdout or "attic" in result.stdout


def test_domain_imports_numpy_and_the_standard_library_only() -> None:
    """The domain knows no outside thing but arrays."""
    graph = grimp.build_graph("appliance", include_external_packages=True, cache_dir=None)
    imported = set()
    for module in graph.modules:
        if module.startswith("appliance.domain"):
            imported |= {name.split(".")[0] for name in graph.find_modules_directly_imported_by(module)}
    assert imported - set(sys.stdlib_module_names) - {"appliance"} == {"numpy"}


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    """`insite --help` loads no engine, no database and no DICOM library."""
    heavy = {"onnxruntime", "sqlalchemy", "pydicom", "flask", "torch"}
    code = f"import sys, appliance.cli.main; print(*sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not result.stdout.strip()


@pytest.mark.parametrize("module", ["appliance.inference.onnxruntime_cpu", "export.quantise"])
def test_onnx_runtime_is_told_to_report_nothing(module: str) -> None:
    """Whichever program loads ONNX Runtime, its telemetry is off before the library is there."""
    code = (
        "import builtins, os, sys; real = builtins.__import__\n"
        "def watch(name, *rest):\n"
        "    first = name.split('.')[0] == 'onnxruntime' and 'onnxruntime' not in sys.modules\n"
        "    assert not first or os.environ.get('ORT_DISABLE_TELEMETRY') == '1', name\n"
        "    return real(name, *rest)\n"
        f"builtins.__import__ = watch\nimport {module}\nassert 'onnxruntime' in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
