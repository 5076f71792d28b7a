"""The role and the playbooks, as Ansible and its linter read them, and what the role's templates make of variables."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.settings import load

PROGRAMS = Path(sys.executable).parent
PLAYBOOKS = ("install.yml", "upgrade.yml", "rollback.yml", "status.yml")
VARIABLES: dict[str, Any] = {
    "insite_settings": {
        "node": {"ae_title": 'A "B"', "port": 11112, "callers": ["CT1", "CR 2"]},
        "study": {"quiet_seconds": 2.5},
        "inference": {"server": "[2001:db8::40]:8001"},
        "destinations": [
            {"name": "pacs", "ae_title": "PACS", "host": "192.0.2.20", "port": 104},
            {"name": "archive", "ae_title": "ARCHIVE", "host": "2001:db8::20", "port": 11112},
        ],
    },
    "insite_operators": ["192.0.2.0/28"],
    "insite_senders": ["192.0.2.16/28", "2001:db8::/64"],
    "insite_readers": ["192.0.2.32/28"],
    "insite_time_servers": ["192.0.2.53"],
    "insite_ssh_port": 2222,
}


def _run(folder: Path, home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(home), "ANSIBLE_NOCOLOR": "1", "NO_COLOR": "1", "LC_ALL": "C.UTF-8"}
    environment |= {"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "ANSIBLE_HOME": str(home)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def content(repository: Path, tmp_path: Path) -> Path:
    """A copy of ansible/, because the linter writes beside what it reads."""
    return Path(shutil.copytree(repository / "ansible", tmp_path / "ansible"))


def test_the_linter_has_no_remark_at_its_strictest(content: Path, tmp_path: Path) -> None:
    """ansible-lint passes offline in the profile "production"."""
    answer = _run(content, tmp_path, "ansible-lint", "--offline", "--strict", "--profile", "production", ".")
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_linter_finds_what_is_wrong(content: Path, tmp_path: Path) -> None:
    """The check itself is shown to fail on a task without a module's full name."""
    broken = content / "status.yml"
    broken.write_text(broken.read_text(encoding="utf-8").replace("ansible.builtin.include_role", "include_role"))
    answer = _run(content, tmp_path, "ansible-lint", "--offline", "--strict", "--profile", "production", "status.yml")
    assert answer.returncode != 0
    assert "fqcn" in answer.stdout


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_each_playbook_reads(content: Path, tmp_path: Path, playbook: str) -> None:
    """Ansible reads every playbook with the example inventory."""
    answer = _run(content, tmp_path, "ansible-playbook", "-i", "inventory.example.yml", "--syntax-check", playbook)
    assert answer.returncode == 0, answer.stderr


def _rendered(content: Path, home: Path, template: str, **more: Any) -> Path:
    target = home / template.removesuffix(".j2")
    module = {"src": f"{content}/roles/insite/templates/{template}", "dest": str(target), "mode": "0644"}
    values = json.dumps({**VARIABLES, **more})
    command = ["ansible", "localhost", "-c", "local", "-m", "ansible.builtin.template", "-a", json.dumps(module)]
    command += ["-e", f"@{content}/roles/insite/defaults/main.yml", "-e", values]
    answer = _run(home, home, *command, "-e", f"ansible_python_interpreter={sys.executable}")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return target


def test_variables_become_settings(content: Path, tmp_path: Path) -> None:
    """Any nesting of insite_settings is read back by the appliance as it was given, with the release's own packs."""
    settings = load(_rendered(content, tmp_path, "insite.toml.j2")).settings
    assert settings.node.ae_title == 'A "B"'
    assert settings.node.callers == ("CT1", "CR 2")
    assert settings.study.quiet_seconds == 2.5
    assert [(each.name, each.host, each.port) for each in settings.destinations] == [
        ("pacs", "192.0.2.20", 104),
        ("archive", "2001:db8::20", 11112),
    ]
    assert settings.inference.server == "[2001:db8::40]:8001"
    assert settings.packs.folder == Path("/opt/insite/current/engines")


def test_the_firewall_names_each_peer_and_nobody_else(content: Path, tmp_path: Path) -> None:
    """In come operators, senders and readers, each to one port; out go destinations, inference and time alone."""
    rules = _rendered(content, tmp_path, "firewall.nft.j2").read_text(encoding="utf-8")
    accepted = [line.split(" accept")[0].strip() for line in rules.splitlines() if "addr" in line]
    assert accepted == [
        "ip saddr 192.0.2.0/28 tcp dport 2222",
        "ip saddr 192.0.2.16/28 tcp dport 11112",
        "ip6 saddr 2001:db8::/64 tcp dport 11112",
        "ip saddr 192.0.2.32/28 tcp dport 8080",
        "ip daddr 192.0.2.0/28 tcp sport 2222",
        "ip daddr 192.0.2.20 tcp dport 104",
        "ip6 daddr 2001:db8::20 tcp dport 11112",
        "ip6 daddr 2001:db8::40 tcp dport 8001",
        "ip daddr 192.0.2.53 udp dport 123",
    ]
    assert rules.count("policy drop;") == 3
    assert "policy accept" not in rules


def test_a_service_may_speak_with_its_peers_alone(content: Path, tmp_path: Path) -> None:
    """A service's drop-in adds its peers to the unit's own address, and lifts nothing else."""
    text = _rendered(
        content, tmp_path, "peers.conf.j2", item={"service": "node", "peers": ["192.0.2.16/28"]}
    ).read_text()
    assert [line for line in text.splitlines() if line and not line.startswith("#")] == [
        "[Service]",
        "IPAddressAllow=192.0.2.16/28",
    ]


def test_without_an_inference_server_nobody_is_let_out_to_one(content: Path, tmp_path: Path) -> None:
    """The worker that asks its own machine's daemon needs no opening."""
    local = {**VARIABLES["insite_settings"], "inference": {"threads": 2}}
    rules = _rendered(content, tmp_path, "firewall.nft.j2", insite_settings=local).read_text(encoding="utf-8")
    assert 'comment "inference"' not in rules
    assert 'comment "time"' in rules
