"""`insite-switch` between stand-in releases: what is in effect at the end, wherever it fails or is cut off.

systemd, nft and a release's own program are stand-ins here; `make test-fleet` runs the same program over the real ones.
"""

import fcntl
import itertools
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = """#!/bin/sh
# A release's program that says what the test wrote into the release's file "says".
here=${0%/venv/bin/insite}
fails() { grep -qsx "$1" "$here/fails"; }
case $1 in
  settings) ! grep -qs colour "$4" || { echo "insite: Unknown setting colour in $4." >&2; exit 1; } ;;
  doctor) case "$*" in *--json*) echo '{"checks": []}'; exit 0 ;; esac
    ! fails doctor || { echo "FAILED  worker: The worker does not run."; exit 1; } ;;
  golden-study) ! fails golden || { echo "insite: guard gives 0.9."; exit 1; }; echo "The golden study was answered." ;;
esac
"""
SYSTEMCTL = """#!/bin/sh
case $1 in start) ! grep -qsx start "$INSITE_ROOT/current/fails" || exit 1 ;; esac
"""
CUT = """#!/bin/sh
# Ends everything before the command number $CUT_AT, as a power cut does.
if [ -n "${CUT_AT:-}" ]; then
  echo >> "$CUT_FILE"
  [ "$(wc -l < "$CUT_FILE")" != "$CUT_AT" ] || kill -9 0
fi
exec %s "$@"
"""
CUTTABLE = ("cp", "mv", "ln", "rm", "mkdir", "install", "sed", "tee", "sync")
SILENT = ("systemd-sysusers", "systemd-tmpfiles", "nft")


@dataclass(frozen=True)
class Effect:
    """What runs: the release, its settings, its unit, and the drop-in with its peers."""

    version: str
    settings: str
    unit: str
    peers: str


@dataclass(frozen=True)
class Machine:
    """A machine under one folder."""

    folder: Path
    program: Path

    @property
    def root(self) -> Path:
        """What /opt/insite is."""
        return self.folder / "opt"

    def release(self, version: str, *extra: str) -> Path:
        """Unpack a release with a unit of its own and the settings that it wants."""
        release = self.root / "releases" / version
        for name in ("systemd/insite-.service.d", "venv/bin", "wanted", "site"):
            (release / name).mkdir(parents=True)
        (release / "systemd" / "insite-.service.d" / "10-hardening.conf").write_text("[Service]\n")
        for name in ("insite-worker", *extra):
            (release / "systemd" / f"{name}.service").write_text(f"# {version}\n")
        (release / "systemd" / "insite.target").write_text("[Unit]\nWants=insite-worker.service\n")
        for name in ("sysusers.conf", "tmpfiles.conf"):
            (release / "systemd" / name).write_text("")
        (release / "venv" / "bin" / "insite").write_text(PROGRAM)
        (release / "venv" / "bin" / "insite").chmod(0o755)
        (release / "installed").write_text("digest\n")
        self.want(version, f"settings of {version}")
        return release

    def want(self, version: str, settings: str) -> None:
        """Write what the operator asks for."""
        wanted = self.root / "releases" / version / "wanted"
        drop_in = wanted / "units" / "insite-worker.service.d"
        drop_in.mkdir(parents=True, exist_ok=True)
        (wanted / "units" / "insite-web.service.d").mkdir(exist_ok=True)
        (wanted / "insite.toml").write_text(f"# {settings}\n")
        (drop_in / "20-site.conf").write_text(f"# peers of {settings}\n")

    def fails(self, version: str, *what: str) -> None:
        """Let a release fail at `start`, `doctor` or `golden`."""
        (self.root / "releases" / version / "fails").write_text("".join(f"{each}\n" for each in what))

    def run(self, *words: str, cut_at: int = 0, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
        """Run insite-switch; with `cut_at`, until the power goes before that command."""
        (self.folder / "cuts").unlink(missing_ok=True)
        environment = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "INSITE_ROOT": str(self.root),
            "INSITE_UNITS": str(self.folder / "units"),
            "INSITE_ETC": str(self.folder / "etc"),
            "INSITE_STATE": str(self.folder / "state"),
            "CUT_FILE": str(self.folder / "cuts"),
            "CUT_AT": str(cut_at or ""),
        }
        return subprocess.run(
            ["sh", self.program, *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
            umask=umask,
        )

    def effect(self) -> Effect:
        """What is in effect now."""
        site, units = self.folder / "etc" / "insite" / "insite.toml", self.folder / "units"
        return Effect(
            (self.root / "current").resolve().name,
            site.read_text().strip("# \n"),
            (units / "insite-worker.service").read_text().strip("# \n"),
            (units / "insite-worker.service.d" / "20-site.conf").read_text().strip("# \n"),
        )

    def settled(self) -> bool:
        """Whether nothing is left of a change: no journal, no hold, and what is in effect was proved."""
        left = [self.root / "switching", self.folder / "state" / "run" / "proving"]
        return not any(each.exists() for each in left) and (self.root / "current" / "site" / "proved").exists()


def of(version: str, settings: str = "") -> Effect:
    """A release in effect as a whole."""
    settings = settings or f"settings of {version}"
    return Effect(version, settings, version, f"peers of {settings}")


@pytest.fixture
def machine(repository: Path, tmp_path: Path) -> Machine:
    """A machine on which version 1 is in effect and version 2 lies beside it."""
    machine = Machine(tmp_path / "machine", repository / "systemd" / "insite-switch")
    for name in ("bin", "units", "etc", "state/run"):
        (machine.folder / name).mkdir(parents=True)
    programs = {"systemctl": SYSTEMCTL} | {name: CUT % f"/usr/bin/{name}" for name in CUTTABLE}
    programs |= dict.fromkeys(SILENT, "#!/bin/sh\n")
    for name, text in programs.items():
        (machine.folder / "bin" / name).write_text(text)
        (machine.folder / "bin" / name).chmod(0o755)
    machine.release("1", "insite-gone")
    assert machine.run("to", "1").returncode == 0
    machine.release("2")
    return machine


def test_a_release_that_holds_is_in_effect(machine: Machine) -> None:
    """Code, settings, units and peers are the new version's; units that it lacks are gone; the old one is kept."""
    assert machine.effect() == of("1")
    assert (machine.folder / "units" / "insite-gone.service").exists()
    answer = machine.run("to", "2")
    assert answer.returncode == 0, answer.stdout
    assert machine.effect() == of("2")
    assert machine.settled()
    assert not (machine.folder / "units" / "insite-gone.service").exists()
    assert (machine.root / "previous").resolve().name == "1"
    assert "Version 2 is in effect." in (machine.root / "last-switch").read_text()


@pytest.mark.parametrize("failure", ["start", "doctor", "golden"])
def test_a_release_that_does_not_hold_goes_back(machine: Machine, failure: str) -> None:
    """A service that does not start, a failing doctor, a wrong golden study: all is as before, with the reason."""
    machine.fails("2", failure)
    answer = machine.run("to", "2")
    assert answer.returncode == 1
    assert machine.effect() == of("1")
    assert machine.settled()
    assert "Version 1 is in effect as before." in (machine.root / "last-switch").read_text()


def test_settings_that_do_not_hold_go_back_to_those_of_before(machine: Machine) -> None:
    """Of three settings in turn the third fails: the second is in effect again, not the first."""
    machine.want("1", "second")
    assert machine.run("to", "1").returncode == 0
    machine.want("1", "third")
    machine.fails("1", "golden")
    assert machine.run("to", "1").returncode == 1
    assert machine.effect() == of("1", "second")
    assert machine.settled()


def test_settings_that_a_release_does_not_take_change_nothing(machine: Machine) -> None:
    """An unknown key is said, and what runs is not touched."""
    machine.want("2", "colour = 1")
    answer = machine.run("to", "2")
    assert answer.returncode == 1
    assert "Nothing was changed. insite: Unknown setting colour" in answer.stdout
    assert machine.effect() == of("1")


def test_a_rollback_has_the_settings_of_its_time(machine: Machine) -> None:
    """Back is the version before with the settings that were in effect with it."""
    machine.run("to", "2")
    machine.want("1", "wanted later")
    assert machine.run("back").returncode == 0
    assert machine.effect() == of("1")
    assert machine.run("back").returncode == 0
    assert machine.effect() == of("2")


def test_without_a_release_before_there_is_no_way_back(machine: Machine) -> None:
    """A rollback says so and changes nothing."""
    answer = machine.run("back")
    assert (answer.returncode, "no release to go back to" in answer.stdout) == (1, True)
    assert machine.effect() == of("1")


def test_a_failed_first_installation_is_not_taken_for_a_proved_one(repository: Path, machine: Machine) -> None:
    """Without a release before, the new one stays and lacks its proof, so that the next play tries again."""
    (machine.root / "current").unlink()
    machine.fails("2", "golden")
    assert machine.run("to", "2").returncode == 1
    assert not machine.settled()
    machine.fails("2")
    assert machine.run("to", "2").returncode == 0
    assert machine.settled()


def test_two_changes_at_once_are_not_made(machine: Machine) -> None:
    """While another run holds the lock, this one ends with status 75 and touches nothing, its words included."""
    before = (machine.root / "last-switch").read_text()
    with (machine.root / ".switch-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = machine.run("to", "2")
    assert (answer.returncode, "Another change is under way." in answer.stderr) == (75, True)
    assert (machine.root / "last-switch").read_text() == before


def test_what_services_read_is_readable_under_any_umask(machine: Machine) -> None:
    """By hand as a careful root, settings can still be read by the services."""
    assert machine.run("to", "2", umask=0o077).returncode == 0
    for name in ("etc/insite", "etc/insite/insite.toml", "units/insite-worker.service.d/20-site.conf"):
        assert (machine.folder / name).stat().st_mode & 0o044 == 0o044


def test_a_closed_terminal_does_not_stop_the_way_back(machine: Machine) -> None:
    """With nobody left to read its words, a failing change still ends on the version before."""
    machine.fails("2", "golden")
    for name in ("tee", "cat"):
        (machine.folder / "bin" / name).write_text("#!/bin/sh\nexit 141\n")
        (machine.folder / "bin" / name).chmod(0o755)
    assert machine.run("to", "2").returncode == 1
    assert machine.effect() == of("1")
    assert machine.settled()


@pytest.mark.parametrize("to", ["another version", "other settings", "settings that fail"])
def test_a_power_cut_anywhere_ends_on_a_proved_release(machine: Machine, to: str) -> None:
    """Cut before any of its commands and resumed at boot, a change is whole or undone: never something between."""
    version, settings = ("2", "settings of 2") if to == "another version" else ("1", "changed")
    machine.want(version, settings)
    if to == "settings that fail":
        machine.fails("1", "golden")
    ends = {of("1"), of(version, settings)}
    as_it_was = machine.folder.with_name("as-it-was")
    shutil.copytree(machine.folder, as_it_was, symlinks=True)
    for cut_at in itertools.count(1):
        shutil.rmtree(machine.folder)
        shutil.copytree(as_it_was, machine.folder, symlinks=True)
        if machine.run("to", version, cut_at=cut_at).returncode != -signal.SIGKILL:
            break
        machine.run("resume")
        assert machine.effect() in ends, f"cut before command {cut_at}"
        assert machine.settled(), f"cut before command {cut_at}"
    assert cut_at > 20
    assert machine.settled()
