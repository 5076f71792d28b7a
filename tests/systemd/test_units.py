"""The units as systemd itself reads them: no complaint, little exposure, and the limits that must never go missing."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SERVICES = ("inference", "node", "worker", "web")
INFERENCE = ("inference", "inference-tcp")
"""The two that run the inference daemon."""
MOST_EXPOSED = {f"insite-{service}": 1.6 for service in (*SERVICES, "inference-tcp")}
MOST_EXPOSED |= {"insite-inference": 1.2, "nftables-insite": 1.6}
PROGRAM = "/opt/insite/current/venv/bin/insite"


@pytest.fixture(scope="module")
def units(repository: Path) -> Path:
    """The folder of the units, where `systemd-analyze` can judge them."""
    if shutil.which("systemd-analyze") is None:
        message = "systemd-analyze is not installed (Debian package systemd)."
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return repository / "systemd"


def _settings(unit: Path) -> dict[str, list[str]]:
    """Every `key=value` of a unit and its drop-ins, those that all four share among them, in systemd's order."""
    found: dict[str, list[str]] = {}
    folders = ("insite-.service.d", f"{unit.name}.d")
    drop_ins = [file for folder in folders for file in (unit.parent / folder).glob("*.conf")]
    for file in (unit, *sorted(drop_ins, key=lambda file: file.name)):
        for line in file.read_text(encoding="utf-8").splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("unit", MOST_EXPOSED)
def test_a_service_exposes_little(units: Path, unit: str) -> None:
    """The exposure that systemd measures stays at or under 1.2 for the inference daemon and 1.6 for the others."""
    assert _exposure(units, unit) <= MOST_EXPOSED[unit]


def _exposure(units: Path, unit: str) -> float:
    answer = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", units / f"{unit}.service"],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"},
        capture_output=True,
        text=True,
        check=True,
    )
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", answer.stdout)
    assert exposure is not None
    return float(exposure[1])


def test_a_gpu_exposes_little_more(units: Path, tmp_path: Path) -> None:
    """With the drop-in of the gpu variant the inference service keeps under its bound, and sees the devices."""
    shutil.copytree(units, tmp_path, dirs_exist_ok=True)
    (tmp_path / "insite-inference.service.d").mkdir(exist_ok=True)
    shutil.copy(units / "gpu.conf", tmp_path / "insite-inference.service.d" / "20-site.conf")
    assert _exposure(tmp_path, "insite-inference") <= MOST_EXPOSED["insite-inference"]
    assert "PrivateDevices=no" in (units / "gpu.conf").read_text(encoding="utf-8")


def test_systemd_has_no_remark_on_any_unit(units: Path, tmp_path: Path) -> None:
    """`systemd-analyze verify` prints nothing: it exits with 0 on a misspelt key, so any line is a failure."""
    assert _remarks(units, tmp_path) == ""


def test_a_misspelt_key_is_found(units: Path, tmp_path: Path) -> None:
    """The check itself is shown to fail on a key that systemd does not know."""
    assert "ProtectSistem" in _remarks(units, tmp_path, "ProtectSystem=", "ProtectSistem=")


def _remarks(units: Path, folder: Path, old: str = "", new: str = "") -> str:
    shutil.copytree(units, folder, dirs_exist_ok=True)
    for file in folder.rglob("*"):
        if file.is_file():
            text = re.sub(r"User=\S+", "User=root", file.read_text(encoding="utf-8").replace(PROGRAM, "/bin/true"))
            file.write_text(text.replace(old, new) if old else text, encoding="utf-8")
    answer = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            *sorted(map(str, folder.glob("*.service"))),
            str(folder / "insite.target"),
        ],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in (answer.stdout + answer.stderr).splitlines() if "insite" in line or str(folder) in line]
    return "\n".join(ours)


def test_the_inference_daemon_has_no_network_and_sees_no_received_file(repository: Path) -> None:
    """It has a network of its own without any interface but loopback, and of the state folder only run/ and packs/."""
    found = _settings(repository / "systemd" / "insite-inference.service")
    assert found["PrivateNetwork"] == ["yes"]
    assert found["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert found["TemporaryFileSystem"] == ["/var/lib:ro"]
    assert found["BindPaths"] == ["/var/lib/insite/run"]
    assert found["BindReadOnlyPaths"] == ["-/var/lib/insite/packs"]
    assert found["Group"] == ["insite-run"]
    assert "SupplementaryGroups" not in found


def test_a_builder_of_engines_may_step_back_and_no_more(units: Path) -> None:
    """Of the calls that alter resources an inference service may make setpriority(2) alone; the others may make none.

    nice(3) asks for the present priority first, which every service may.
    """
    resources = _calls("@resources")
    for service in (*SERVICES, "inference-tcp"):
        allowed = _allowed(_settings(units / f"insite-{service}.service")["SystemCallFilter"])
        assert allowed & resources == ({"setpriority"} if service in INFERENCE else set())
        assert {"getpriority", "prctl", "execve"} <= allowed


def _allowed(filters: list[str]) -> set[str]:
    """The system calls that a list of allowed ones lets through, as systemd.exec(5) reads it."""
    allowed = _calls("@default")
    for line in filters:
        named = {call for word in line.removeprefix("~").split() for call in _calls(word)}
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


def _calls(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    said = subprocess.run(["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True)
    members = [line.strip() for line in said.stdout.splitlines()[1:]]
    return {call for each in members if each and not each.startswith("#") for call in _calls(each)}


@pytest.mark.parametrize("service", INFERENCE)
def test_a_builder_that_runs_out_of_memory_takes_nobody_along(repository: Path, service: str) -> None:
    """An inference service goes on without a process of it that the kernel ended."""
    assert _settings(repository / "systemd" / f"insite-{service}.service")["OOMPolicy"] == ["continue"]


def test_a_daemon_that_stands_still_says_no_last_words(repository: Path) -> None:
    """The watchdog's signal is none that Python's faulthandler takes for a crash: no pack is left out for it (ADR 24).

    Nor is it one that a library handles: gunicorn takes SIGQUIT for a request to stop.
    """
    for service in (*SERVICES, "inference-tcp"):
        found = _settings(repository / "systemd" / f"insite-{service}.service")
        assert found["WatchdogSignal"] == ["SIGKILL"]


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_has_a_user_of_its_own(repository: Path, service: str) -> None:
    """No two services share a user, and systemd-sysusers makes each."""
    found = _settings(repository / "systemd" / f"insite-{service}.service")
    assert found["User"] == [f"insite-{service}"]
    assert f"u     insite-{service}" in (repository / "systemd" / "sysusers.conf").read_text(encoding="utf-8")


def test_only_the_web_service_sees_log_ins_and_audit(repository: Path) -> None:
    """Node and worker can't open the users, the session key or the audit."""
    for service in ("node", "worker"):
        hidden = " ".join(_settings(repository / "systemd" / f"insite-{service}.service")["InaccessiblePaths"])
        for path in ("keys", "audit", "users.db"):
            assert f"/var/lib/insite/{path}" in hidden


def test_no_service_reports_to_a_librarys_maker(repository: Path) -> None:
    """ONNX Runtime's telemetry, on by default in its wheels, is off in every service."""
    for service in SERVICES:
        found = _settings(repository / "systemd" / f"insite-{service}.service")
        assert "ORT_DISABLE_TELEMETRY=1" in found["Environment"]


def test_every_relaxed_line_says_why(repository: Path) -> None:
    """A line that opens the network or another's files stands under a comment with its reason."""
    for service in SERVICES:
        lines = (repository / "systemd" / f"insite-{service}.service").read_text(encoding="utf-8").splitlines()
        for key in ("PrivateNetwork=no", "UMask=", "IPAddressDeny="):
            for place, line in enumerate(lines):
                if line.startswith(key):
                    block = lines[:place][::-1]
                    reason = next((each for each in block if each.startswith("#") or not each), "")
                    assert reason.startswith("#"), f"insite-{service}: {line}"


def test_sysusers_and_tmpfiles_are_well_formed(units: Path, tmp_path: Path) -> None:
    """systemd-sysusers and systemd-tmpfiles make users and folders of an empty root from them."""
    (tmp_path / "etc").mkdir()
    users = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", units / "sysusers.conf"], capture_output=True, text=True, check=False
    )
    assert (users.returncode, users.stderr) == (0, "") or "Creating" in users.stderr
    names = (tmp_path / "etc" / "passwd").read_text(encoding="utf-8")
    assert all(f"insite-{service}:" in names for service in SERVICES)
    lines = (units / "tmpfiles.conf").read_text(encoding="utf-8").splitlines()
    assert all(len(line.split()) == 6 for line in lines if line and not line.startswith("#"))
