"""`insite bench inference` measures every ratio in one run, and leaves what it found where CI keeps it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.daemons.bench_inference import ratios_of_peers
from appliance.daemons.bench_inference_table import GOALS, WITHOUT_GOAL, table_of


@pytest.mark.slow
def test_the_short_form_measures_everything(repository: Path) -> None:
    """No ratio is judged here: the machine is busy. Each is there, is a number, and the servers lost no request."""
    artefact = repository / "build" / "bench-inference.json"
    artefact.parent.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "appliance.cli", "bench", "inference", "--json", "--short"],
        capture_output=True,
        text=True,
        check=False,
        cwd=repository,
        env={**os.environ, "INSITE_STATE": str(artefact.parent / "no-state")},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    artefact.write_text(done.stdout)
    assert set(found["ratios"]) == {*GOALS, *WITHOUT_GOAL}
    missing = {name for name, value in found["ratios"].items() if value is None}
    assert missing in (set(), set(ratios_of_peers()))
    assert all("make bench" in found["raw"]["left_out"][name] for name in missing)
    assert found["ratios"]["errors_of_many_clients"] == 0
    crowd = found["raw"]["crowd"]
    assert crowd["alive"]
    assert crowd["refused_with_hint"] == crowd["failures"]["RESOURCE_EXHAUSTED"] > 0
    assert all(each["background_answers"] > 0 for each in found["raw"]["urgent"])
    assert len(found["raw"]["in_process_settings"]) == 16
    assert table_of(found).row_count == len(GOALS) + len(WITHOUT_GOAL)
