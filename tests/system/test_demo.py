"""`insite demo`: the whole chain on real files, judged from outside."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from appliance.reporting.read_back import masks_of


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One run of the demo: its folder and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "demo-out"
    result = subprocess.run(
        [sys.executable, "-m", "appliance.cli", "demo", "--out", str(out)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return out, result.stdout


@pytest.mark.slow
def test_the_demo_answers_every_study(demo: tuple[Path, str]) -> None:
    """The chest radiograph ran with SR and SEG; leg, CT, MR and ultrasound each came back as an SR of refusals."""
    out, printed = demo
    assert "Every study was answered as it must be." in printed
    modalities = sorted(path.name.split("-")[0] for path in (out / "pacs").glob("*.dcm"))
    assert modalities == ["SEG", "SR", "SR", "SR", "SR", "SR"]


@pytest.mark.slow
def test_the_page_needs_no_other_file(demo: tuple[Path, str]) -> None:
    """`report.html` refers to nothing outside itself and says that the result is unverified."""
    html = (demo[0] / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    assert "AI result, unverified" in html
    assert html.count("<article>") == 5


@pytest.mark.slow
def test_the_segmentation_is_on_the_image_grid(demo: tuple[Path, str]) -> None:
    """The SEG has the radiograph's own rows and columns and covers a plausible share of it."""
    (seg,) = (demo[0] / "pacs").glob("SEG-*.dcm")
    ((_, mask),) = masks_of(seg).items()
    assert mask.shape == (1955, 1841)
    assert 0.05 < mask.mean() < 0.6


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.skipif(
    shutil.which("dciodvfy") is None and os.environ.get("CI") != "true",
    reason="dciodvfy (Debian: dicom3tools) is not installed",
)
def test_dciodvfy_finds_no_error_in_what_the_pacs_got(demo: tuple[Path, str]) -> None:
    """The standard's own checker has no Error for any object that the demo delivered."""
    for path in (demo[0] / "pacs").glob("*.dcm"):
        result = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("Error")]
        assert errors == [], f"{path.name}: {pydicom.dcmread(path).Modality}"
