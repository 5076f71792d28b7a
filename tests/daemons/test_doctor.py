"""The doctor's lines: what is wrong is named with its way forward, and only that makes it fail."""

import fcntl
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from appliance.daemons import doctor_machine, doctor_services
from appliance.daemons.doctor import as_values, examine, excused, healthy, lines_of, names_failed_in
from appliance.daemons.doctor_check import Check, Health
from appliance.domain.errors import InputError
from appliance.inference.runner import PackRunner
from appliance.inference.server import InferenceServer
from appliance.packs.open import open_pack
from appliance.settings import Settings, load
from appliance.storage.ledger import SqlLedger
from appliance.telemetry import logger_for
from tests.fakes.tiny_pack import TinyPack

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""pynetdicom drops a refused socket unclosed."""


@pytest.fixture
def settings(tmp_path: Path, free_port: int, pack: TinyPack) -> Settings:
    """Settings of a site whose state folder exists and whose services do not run."""
    (tmp_path / "state" / "run").mkdir(parents=True)
    return _settings(tmp_path, free_port, pack)


def _settings(folder: Path, port: int, pack: TinyPack, **more: Any) -> Settings:
    values = {
        "state": folder / "state",
        "node": {"bind": "127.0.0.1", "port": port, "min_free_mib": 1},
        "web": {"port": port},
        "inference": {"timeout_seconds": 20, "threads": 1},
        "packs": {"folder": folder / "packs", "trusted_keys": [pack.keys.public], "allow_unvalidated": True},
    }
    return load(None, {**values, **more}).settings


@pytest.fixture
def serving(settings: Settings, pack: TinyPack) -> Iterator[Settings]:
    """The same site with an inference daemon that serves the pack."""
    with ExitStack() as stack:
        verified = open_pack(pack.folder, [pack.keys.public], allow_unvalidated=True)
        runner = stack.enter_context(PackRunner([verified], 1))
        stack.enter_context(InferenceServer(runner, settings.inference_socket, version="1", log=logger_for("test")))
        yield settings


def _only(checks: Iterator[Check], health: Health) -> list[Check]:
    return [check for check in checks if check.health is health]


def test_without_services_each_missing_part_is_named(settings: Settings) -> None:
    """Every service that does not answer fails with the log to look at; the exit status follows."""
    found = examine(settings, lambda: NOW)
    failures = {check.name: check for check in found if check.health is Health.FAILED}
    assert {"node", "worker", "web", "queue"} <= failures.keys()
    assert all(check.way_forward for check in failures.values())
    assert not healthy(found)


def test_lines_and_json_say_the_same(settings: Settings) -> None:
    """One line a check with its way forward, and the same for programs."""
    found = examine(settings, lambda: NOW)
    lines = list(lines_of(found))
    values = json.loads(json.dumps(as_values(found)))
    assert len(lines) == len(found) + 1
    assert lines[-1].endswith("checks failed.")
    assert [each["name"] for each in values["checks"]] == [check.name for check in found]
    assert values["healthy"] is False
    assert list(lines_of([Check("disk", Health.OK, "Room.")]))[-1] == "All is in order."


@pytest.mark.parametrize(
    ("says", "status", "health"),
    [
        ("", 0, Health.OK),
        ("Error: No such file or directory", 1, Health.FAILED),
        ("Operation not permitted (you must be root)", 1, Health.WARNING),
    ],
)
def test_a_firewall_that_is_not_in_force_fails(tmp_path: Path, says: str, status: int, health: Health) -> None:
    """Where rules were written, their table must be loaded; without rights to look, that is only said."""
    rules, program = tmp_path / "firewall.nft", tmp_path / "nft"
    program.write_text(f'#!/bin/sh\necho "{says}" >&2\nexit {status}\n', encoding="utf-8")
    program.chmod(0o755)
    assert list(doctor_machine.firewall(rules, str(program))) == []
    rules.touch()
    (check,) = doctor_machine.firewall(rules, str(program))
    assert check.health is health
    (missing,) = doctor_machine.firewall(rules, str(tmp_path / "none"))
    assert missing.health is Health.WARNING


def test_what_failed_before_a_change_does_not_fail_it(settings: Settings, tmp_path: Path) -> None:
    """Failures that an earlier report names become warnings, others stay; a file that is no report is refused."""
    found = examine(settings, lambda: NOW)
    report = tmp_path / "before.json"
    report.write_text(json.dumps(as_values(found)), encoding="utf-8")
    assert healthy(excused(found, names_failed_in(report)))
    assert not healthy(excused([*found, Check("new", Health.FAILED, "Broken.")], names_failed_in(report)))
    report.write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="no report of the doctor"):
        names_failed_in(report)


def test_golden_cases_are_answered_by_the_running_daemon(serving: Settings) -> None:
    """A pack in order and a daemon that serves it give two good lines."""
    found = list(doctor_services.packs(serving))
    assert [check.health for check in found] == [Health.OK, Health.OK]
    assert "golden cases answered" in found[1].sentence


def test_an_altered_pack_fails(settings: Settings, pack: TinyPack) -> None:
    """A pack whose file changed since it was signed is refused by name."""
    (pack.folder / "gate-report.json").write_text("{}", encoding="utf-8")
    (found,) = doctor_services.packs(settings)
    assert found.health is Health.FAILED
    assert pack.folder.name in found.name


def test_no_pack_at_all_fails(settings: Settings, pack: TinyPack, tmp_path: Path, free_port: int) -> None:
    """An appliance without a pack does nothing, so that is a failure."""
    empty = tmp_path / "empty"
    empty.mkdir()
    (found,) = doctor_services.packs(_settings(tmp_path, free_port, pack, packs={"folder": empty}))
    assert found.health is Health.FAILED


def test_a_full_disk_fails_and_a_filling_one_warns(
    settings: Settings, tmp_path: Path, free_port: int, pack: TinyPack
) -> None:
    """Too little space is a failure; little more than needed a warning; no state folder a failure."""
    (plenty,) = doctor_machine.disk(settings)
    free = int(plenty.sentence.split()[0])
    (full,) = doctor_machine.disk(_settings(tmp_path, free_port, pack, node={"min_free_mib": free * 10}))
    (filling,) = doctor_machine.disk(_settings(tmp_path, free_port, pack, node={"min_free_mib": int(free / 1.5)}))
    (nowhere,) = doctor_machine.disk(_settings(tmp_path / "elsewhere", free_port, pack))
    states = [check.health for check in (plenty, full, filling, nowhere)]
    assert states == [Health.OK, Health.FAILED, Health.WARNING, Health.FAILED]


def test_files_that_others_may_read_are_named_with_the_command_that_mends(settings: Settings, pack: TinyPack) -> None:
    """Patient data, secrets and trusted keys with too wide a mode fail, each with its chmod."""
    pack.keys.public.chmod(0o644)
    (settings.state / "keys").mkdir()
    secret = settings.state / "keys" / "web.key"
    secret.write_bytes(b"")
    secret.chmod(0o600)
    assert [check.health for check in doctor_machine.permissions(settings)] == [Health.OK]
    secret.chmod(0o644)
    pack.keys.public.chmod(0o666)
    found = list(doctor_machine.permissions(settings))
    assert [check.way_forward for check in found] == [f"chmod o= {secret}", f"chmod go-w {pack.keys.public}"]


def test_a_worker_is_known_by_its_lock(settings: Settings) -> None:
    """A held lock means that a worker runs, a free one that it does not."""
    file = settings.state / "run" / "worker.lock"
    file.touch()
    (free,) = doctor_services.worker(settings)
    with file.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (running,) = doctor_services.worker(settings)
    assert (free.health, running.health) == (Health.FAILED, Health.OK)


def test_an_empty_queue_is_in_order(settings: Settings) -> None:
    """A ledger without studies is read without a remark."""
    SqlLedger.open(settings.ledger_file).close()
    (found,) = doctor_services.queue(settings, NOW)
    assert found.health is Health.OK


def test_a_ledger_that_is_none_fails(settings: Settings) -> None:
    """A damaged ledger is a failure in its own words."""
    settings.ledger_file.write_bytes(b"no database" * 100)
    (found,) = doctor_services.queue(settings, NOW)
    assert found.health is Health.FAILED


def test_a_site_that_listens_is_in_order(settings: Settings, free_port: int) -> None:
    """A port that takes connections is enough for the status site."""
    with socket.create_server(("127.0.0.1", free_port)):
        (found,) = doctor_services.web(settings)
    assert found.health is Health.OK


def test_a_silent_destination_fails_and_none_at_all_warns(
    settings: Settings, tmp_path: Path, free_port: int, pack: TinyPack
) -> None:
    """A configured peer that does not answer is named with address and port."""
    (none,) = doctor_services.destinations(settings)
    peer = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": free_port}
    (silent,) = doctor_services.destinations(_settings(tmp_path, free_port, pack, destinations=[peer]))
    assert (none.health, silent.health) == (Health.WARNING, Health.FAILED)
    assert str(free_port) in silent.sentence
