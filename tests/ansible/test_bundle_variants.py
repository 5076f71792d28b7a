"""What the two variants of a bundle would hold, as the resolver says with a hash for every wheel."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HASHED = re.compile(r"(?m)^([a-z0-9-]+)==\S+ \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+")


@pytest.mark.parametrize(
    ("variant", "held", "not_held"),
    [("cpu", {"onnxruntime"}, {"onnxruntime-gpu"}), ("gpu", {"onnxruntime-gpu", "nvidia-ml-py"}, {"onnxruntime"})],
)
def test_each_variant_resolves_with_hashes(
    repository: Path, tmp_path: Path, variant: str, held: set[str], not_held: set[str]
) -> None:
    """Both variants have hashed wheels for Python 3.11 on x86-64; ONNX Runtime's two builds never meet; no torch."""
    found = tmp_path / "requirements.txt"
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--generate-hashes", "--extra", variant, "--python-version", "3.11"]
    command += ["--constraint", "requirements.lock", "--python-platform", "x86_64-manylinux_2_28"]
    subprocess.run([*command, "--output-file", str(found), "pyproject.toml"], cwd=repository, check=True)
    text = found.read_text(encoding="utf-8")
    names = set(HASHED.findall(text))
    assert len(names) == text.count("==") > 40
    assert held <= names
    assert not names & (not_held | {"torch"})
