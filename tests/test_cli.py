"""The command line, from outside."""

import json
import subprocess
import sys
from pathlib import Path

from appliance.storage.users import FILE_NAME, Role, UserStore
from tests.fakes.tiny_pack import tiny_pack


def insite(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run `insite` with these arguments and this standard input."""
    return subprocess.run(
        [sys.executable, "-m", "appliance.cli", *arguments], input=text, capture_output=True, text=True, check=False
    )


def test_a_user_is_added_with_a_password_from_standard_input(tmp_path: Path) -> None:
    """A viewer and an administrator are added; a short password is refused in one sentence."""
    state = str(tmp_path)
    assert insite("user", "nora", "--state", state, text="a long enough one\n").returncode == 0
    assert insite("user", "ada", "--admin", "--state", state, text="another long one\n").returncode == 0
    short = insite("user", "max", "--state", state, text="short\n")
    assert short.returncode == 1
    assert short.stderr.startswith("insite: ")
    with UserStore(tmp_path / FILE_NAME) as users:
        assert {user.name: user.role for user in users.users()} == {"nora": Role.VIEWER, "ada": Role.ADMIN}
    assert insite("user", "nora", "--remove", "--state", state).returncode == 0
    with UserStore(tmp_path / FILE_NAME) as users:
        assert [user.name for user in users.users()] == ["ada"]


def test_settings_are_printed_with_their_origin(tmp_path: Path) -> None:
    """Every setting appears with its value and where it came from; a wrong file is one sentence and status 1."""
    file = tmp_path / "insite.toml"
    file.write_text("[node]\nport = 4242\n")
    printed = insite("settings", "--config", str(file)).stdout
    (line,) = [line for line in printed.splitlines() if "node.port" in line]
    assert "4242" in line
    assert str(file) in line
    assert insite("settings", "--check", "--config", str(file)).stdout == "The settings are in order.\n"
    file.write_text("[node]\nprot = 4242\n")
    wrong = insite("settings", "--check", "--config", str(file))
    assert wrong.returncode == 1
    assert "Unknown setting node.prot" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    file.write_text('[inference]\nserver = "192.0.2.40:8001"\n')
    without_tls = insite("settings", "--check", "--config", str(file))
    assert without_tls.returncode == 1
    assert "192.0.2.40:8001 is asked over TLS only" in without_tls.stderr


def test_the_status_of_an_empty_state_folder_is_shown(tmp_path: Path) -> None:
    """Before anything runs, status says so, as JSON and as a table."""
    found = json.loads(insite("status", "--json", "--state", str(tmp_path)).stdout)
    assert found["daemons"] == {"inference": False, "node": False, "web": False}
    assert found["packs"] == []
    assert "no" in insite("status", "--state", str(tmp_path)).stdout


def test_analyse_says_what_it_did_in_lines(tmp_path: Path, pydicom_data: Path) -> None:
    """Without `--json` there is one line for each study and one for each file left out."""
    (tmp_path / "text.dcm").write_text("no DICOM")
    files = [str(pydicom_data / "US1_UNCR.dcm"), str(tmp_path / "text.dcm")]
    printed = insite("analyse", *files, "--out", str(tmp_path / "out")).stdout.splitlines()
    assert len(printed) == 2
    assert "refused: Modality is US" in printed[0]
    assert printed[1].startswith("left out: ")


def test_packs_are_changed_from_the_command_line(tmp_path: Path) -> None:
    """Verify, install, list, activate, shadow, roll back and remove each say in a line what came of it."""
    first = tiny_pack(tmp_path / "1")
    second = tiny_pack(tmp_path / "2", release=2, keys=first.keys)
    third = tiny_pack(tmp_path / "3", release=3, keys=first.keys)
    config = tmp_path / "insite.toml"
    packs = tmp_path / "packs"
    packs.mkdir()
    config.write_text(
        f'[packs]\nfolder = "{packs}"\ntrusted_keys = ["{first.keys.public}"]\nallow_unvalidated = true\n'
    )

    def run(*arguments: str) -> str:
        done = insite("packs", *arguments, "--state", str(tmp_path / "state"), "--config", str(config))
        return done.stdout if done.returncode == 0 else done.stderr

    assert run("verify", str(first.folder)).startswith("chest-xray release 1, ")
    assert run("install", str(first.folder)) == "chest-xray release 1 is installed.\n"
    assert run("install", str(second.folder)) == "chest-xray release 2 is installed.\n"
    assert "Release 2 of chest-xray serves. No daemon runs" in run("activate", "chest-xray", "2")
    listed = {each["release"]: each["state"] for each in json.loads(run("list", "--json"))}
    assert listed == {1: "installed", 2: "active"}
    assert "in use" in run("remove", "chest-xray", "2")
    assert "chest-xray is rolled back." in run("rollback", "chest-xray")
    assert "Release 2 of chest-xray runs in shadow." in run("shadow", "chest-xray", "2")
    assert "shadow" in run("list")
    assert "Nothing of chest-xray runs in shadow." in run("shadow", "chest-xray")
    assert "is the way back" in run("remove", "chest-xray", "2")
    assert run("install", str(third.folder)) == "chest-xray release 3 is installed.\n"
    assert run("remove", "chest-xray", "3") == "chest-xray release 3 is removed.\n"
    (first.folder / "MODEL_CARD.md").write_text("altered")
    assert run("verify", str(first.folder)).startswith("insite: ")


def test_a_daemon_without_a_place_for_its_state_says_so(tmp_path: Path) -> None:
    """A state folder that can't be made is one sentence, not a traceback."""
    (tmp_path / "file").write_text("in the way")
    done = insite("inference", "--state", str(tmp_path / "file" / "state"), "--listen", f"unix://{tmp_path}/s.sock")
    assert done.returncode == 1
    assert "can't be made" in done.stderr
    assert "Traceback" not in done.stderr
    wrong = insite("inference", "--state", str(tmp_path), "--listen", "0.0.0.0:9000")
    assert wrong.returncode == 1
    assert "would be open to whoever reaches it" in wrong.stderr


def test_the_soak_says_how_much_the_daemon_grew(tmp_path: Path) -> None:
    """A few cycles and requests run through the same path as many; no request fails."""
    pack = tiny_pack(tmp_path / "packs")
    config = tmp_path / "insite.toml"
    config.write_text(f'[packs]\ntrusted_keys = ["{pack.keys.public}"]\n')
    arguments = ["--packs", str(tmp_path / "packs"), "--config", str(config), "--cycles", "10", "--requests", "800"]
    found = json.loads(insite("bench", "soak", *arguments).stdout)
    assert (found["cycles"], found["requests"], found["failures"]) == (10, 800, 0)
    assert len(found["mib"]) == 6
    assert min(found["mib"]) > 0
    assert abs(found["growth"]) < 1
