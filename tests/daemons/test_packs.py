"""Packs change while the daemon serves: nothing that was asked is lost, and nothing wrong stays active."""

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import grpc
import pytest

from appliance.daemons.packs import activate, install, list_packs, remove, rollback, shadow, verify
from appliance.domain.errors import InferenceUnavailableError, InsiteError, PackError, SignatureError
from appliance.governance.selection import FILE, Selected, read_selection, write_selection
from appliance.inference.client import OipClient
from appliance.inference.generated import open_inference_pb2_grpc as oip_grpc
from appliance.settings import Settings
from tests.fakes.inference_daemon import running, settings_for
from tests.fakes.tiny_pack import TinyPack, bright_picture, rewritten, tiny_pack


@pytest.fixture
def first(tmp_path: Path) -> TinyPack:
    """Release 1, offered on some medium."""
    return tiny_pack(tmp_path / "medium" / "1")


@pytest.fixture
def second(tmp_path: Path, first: TinyPack) -> TinyPack:
    """Release 2 by the same maker."""
    return tiny_pack(tmp_path / "medium" / "2", release=2, keys=first.keys)


@pytest.fixture
def settings(tmp_path: Path, first: TinyPack) -> Settings:
    """A site with release 1 installed."""
    site = settings_for(tmp_path / "site", first)
    (site.packs_folder).mkdir(parents=True)
    install(site, first.folder)
    return site


def spoilt(pack: TinyPack) -> TinyPack:
    """A pack, signed, whose golden cases don't hold on any machine."""
    cases = pack.folder / "golden" / "cases.json"
    cases.write_text(json.dumps(json.loads(cases.read_text()) | {"cases": [{"name": "a"}, {"name": "b"}]}))
    return rewritten(pack)


@contextmanager
def refusing(settings: Settings, code: grpc.StatusCode) -> Iterator[None]:
    """A server on the daemon's socket that ends every load with a code."""

    class Refusing(oip_grpc.GRPCInferenceServiceServicer):
        """Is there, and does not do it."""

        def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
            context.abort(code, "not now")

    settings.inference_socket.parent.mkdir(parents=True, exist_ok=True)
    server = grpc.server(ThreadPoolExecutor(1))
    oip_grpc.add_GRPCInferenceServiceServicer_to_server(Refusing(), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix://{settings.inference_socket}")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


def states(settings: Settings) -> dict[int | None, str]:
    """State of each installed release."""
    return {each["release"]: each["state"] for each in list_packs(settings)}


@contextmanager
def asking(client: OipClient) -> Iterator[list[int]]:
    """Ask without pause from four threads; yields the releases that answered, in order."""
    stop, releases, failures = threading.Event(), list[int](), list[Exception]()

    def ask() -> None:
        while not stop.is_set():
            try:
                releases.append(client.infer("chest-xray.guard", bright_picture()).provenance.release)
            except Exception as error:  # noqa: BLE001 - raised in the test's own thread
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield releases
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert failures == []


def test_installing_activates_nothing(settings: Settings, second: TinyPack) -> None:
    """A newer release lies ready; the one that served goes on, also after a start."""
    assert install(settings, second.folder).manifest.release == 2
    assert states(settings) == {1: "active", 2: "installed"}
    with running(settings) as client:
        assert client.infer("chest-xray.guard", bright_picture()).provenance.release == 1
    with pytest.raises(PackError, match="installed already"):
        install(settings, second.folder)


def test_activation_and_rollback_lose_no_request(settings: Settings, second: TinyPack) -> None:
    """While four clients ask without pause, release 2 takes over and gives way again: every request is answered."""
    install(settings, second.folder)
    with running(settings) as client, asking(client) as releases:
        assert "serves. Its golden cases held" in activate(settings, "chest-xray", 2)
        assert client.infer("chest-xray.guard", bright_picture()).provenance.release == 2
        assert states(settings) == {1: "installed", 2: "active"}
        rollback(settings, "chest-xray")
        assert client.infer("chest-xray.guard", bright_picture()).provenance.release == 1
    assert {1, 2} == set(releases)


def test_a_release_that_fails_its_golden_cases_changes_nothing(settings: Settings, second: TinyPack) -> None:
    """Activation is refused with the reason, the selection is as before, and release 1 never stopped."""
    install(settings, spoilt(second).folder)
    before = (settings.packs_folder / FILE).read_text()
    with running(settings) as client, asking(client) as releases:
        with pytest.raises(InsiteError, match="golden inputs"):
            activate(settings, "chest-xray", 2)
        assert states(settings) == {1: "active", 2: "refused"}
    assert set(releases) == {1}
    assert (settings.packs_folder / FILE).read_text() == before


def test_without_a_daemon_the_golden_cases_are_replayed_here(settings: Settings, second: TinyPack) -> None:
    """An activation while nothing runs holds from the next start on; a bad release is refused all the same."""
    install(settings, second.folder)
    assert "No daemon runs" in activate(settings, "chest-xray", 2)
    with running(settings) as client:
        assert client.infer("chest-xray.guard", bright_picture()).provenance.release == 2
    third = spoilt(tiny_pack(second.folder.parents[1] / "3", release=3, keys=second.keys))
    install(settings, third.folder)
    with pytest.raises(InsiteError, match="golden inputs"):
        activate(settings, "chest-xray", 3)
    assert read_selection(settings.packs_folder)["chest-xray"].active == 2


def test_the_last_good_release_comes_back_by_itself(settings: Settings, second: TinyPack) -> None:
    """A release that was damaged on disk leaves its place to the one before it, and the list says why."""
    install(settings, second.folder)
    activate(settings, "chest-xray", 2)
    (settings.packs_folder / "chest-xray-2" / "MODEL_CARD.md").write_text("something else")
    with running(settings) as client:
        assert client.infer("chest-xray.guard", bright_picture()).provenance.release == 1
    assert "MODEL_CARD.md" in next(each["reason"] for each in list_packs(settings) if each["state"] == "refused")
    assert states(settings) == {1: "active", None: "refused"}


def test_what_stands_in_for_a_refused_release_is_listed_as_active(settings: Settings, second: TinyPack) -> None:
    """A release that is sound on disk but does not hold here is refused; the one before it serves, and is said to."""
    spoilt(second)
    install(settings, second.folder)
    write_selection(settings.packs_folder, {"chest-xray": Selected(active=1).activated(2)})
    with running(settings) as client:
        assert client.infer("chest-xray.guard", bright_picture()).provenance.release == 1
    assert states(settings) == {1: "active", 2: "refused"}


def test_a_shadow_answers_unseen(settings: Settings, second: TinyPack) -> None:
    """A release in shadow is replayed, listed, never answers, and can be ended; the one that serves is unchanged."""
    install(settings, second.folder)
    with running(settings) as client, asking(client) as releases:
        shadow(settings, "chest-xray", 2)
        assert states(settings) == {1: "active", 2: "shadow"}
        listed = json.loads((settings.state / "run" / "packs.json").read_text())
        assert {(each["release"], each["state"]) for each in listed} == {(1, "active"), (2, "shadow")}
        with pytest.raises(PackError, match="in use"):
            remove(settings, "chest-xray", 2)
        shadow(settings, "chest-xray", None)
    assert set(releases) == {1}
    assert states(settings) == {1: "active", 2: "installed"}


@pytest.mark.parametrize("daemon", [True, False])
def test_a_rollback_ends_the_shadow_of_the_release_that_comes_back(
    settings: Settings, second: TinyPack, *, daemon: bool
) -> None:
    """The release before serves again although it ran in shadow, with a daemon and without one."""
    install(settings, second.folder)
    with running(settings) if daemon else nullcontext():
        activate(settings, "chest-xray", 2)
        shadow(settings, "chest-xray", 1)
        assert states(settings) == {1: "shadow", 2: "active"}
        rollback(settings, "chest-xray")
        assert states(settings) == {1: "active", 2: "installed"}
    assert read_selection(settings.packs_folder)["chest-xray"] == Selected(active=1, previous=2)
    with running(settings) as client:
        assert client.infer("chest-xray.guard", bright_picture()).provenance.release == 1


def test_a_release_is_not_its_own_shadow(settings: Settings) -> None:
    """The active release is refused as shadow; a file that says so all the same does not stop it."""
    with pytest.raises(PackError, match="can't run in its own shadow"):
        shadow(settings, "chest-xray", 1)
    (settings.packs_folder / FILE).write_text('{"chest-xray": {"active": 1, "shadow": 1}}')
    with running(settings) as client:
        assert client.served()


def test_without_a_daemon_a_shadow_is_replayed_too(settings: Settings, second: TinyPack) -> None:
    """What is said to run in shadow from the next start on has reproduced its own golden cases."""
    install(settings, spoilt(second).folder)
    with pytest.raises(InsiteError, match="golden inputs"):
        shadow(settings, "chest-xray", 2)
    assert states(settings) == {1: "active", 2: "installed"}


def test_a_refusal_without_a_daemon_leaves_no_selection(tmp_path: Path, first: TinyPack) -> None:
    """Where nothing was chosen before, a release that fails leaves it so, and its own reason is told."""
    site = settings_for(tmp_path / "site", first)
    site.packs_folder.mkdir(parents=True)
    install(site, spoilt(first).folder)
    with pytest.raises(InsiteError, match="golden inputs"):
        activate(site, "chest-xray", 1)
    assert read_selection(site.packs_folder) == {}


@pytest.mark.parametrize("code", [grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_busy_daemon_is_not_told_as_none(settings: Settings, second: TinyPack, code: grpc.StatusCode) -> None:
    """A daemon that is too slow or too busy is there: the change is undone and the reason told, nothing is promised."""
    install(settings, second.folder)
    before = (settings.packs_folder / FILE).read_text()
    with refusing(settings, code), pytest.raises(InferenceUnavailableError, match="not now"):
        activate(settings, "chest-xray", 2)
    assert (settings.packs_folder / FILE).read_text() == before


def test_only_what_was_chosen_or_served_before_is_tried(settings: Settings, second: TinyPack) -> None:
    """A release that was only installed does not serve when the chosen one fails; the list says what to do."""
    install(settings, second.folder)
    activate(settings, "chest-xray", 1)
    (settings.packs_folder / "chest-xray-1" / "MODEL_CARD.md").write_text("something else")
    with running(settings) as client:
        assert client.served() == ()
    listed = json.loads((settings.state / "run" / "packs.json").read_text())
    reason = next(each["reason"] for each in listed if each["release"] == 2)
    assert reason.startswith("Release 1 was chosen and does not serve.")


def test_what_the_daemon_serves_stays_chosen(tmp_path: Path, first: TinyPack, second: TinyPack) -> None:
    """Where the newest release fails and nothing was chosen, an installation keeps the older one that serves."""
    site = settings_for(tmp_path / "site", first)
    site.packs_folder.mkdir(parents=True)
    for release, pack in ((1, first), (2, spoilt(second))):
        shutil.copytree(pack.folder, site.packs_folder / f"chest-xray-{release}")
    third = tiny_pack(tmp_path / "medium" / "3", release=3, keys=first.keys)
    with running(site) as client:
        assert client.infer("chest-xray.guard", bright_picture()).provenance.release == 1
        with pytest.raises(PackError, match="in use"):
            remove(site, "chest-xray", 1)
        install(site, third.folder)
    assert read_selection(site.packs_folder)["chest-xray"].active == 1


def test_the_way_back_is_not_removed(settings: Settings, second: TinyPack, tmp_path: Path) -> None:
    """The release before the active one stays until a third is active."""
    install(settings, second.folder)
    activate(settings, "chest-xray", 2)
    with pytest.raises(PackError, match=r"is the way back, should release 2 fail"):
        remove(settings, "chest-xray", 1)
    install(settings, tiny_pack(tmp_path / "medium" / "3", release=3, keys=second.keys).folder)
    activate(settings, "chest-xray", 3)
    remove(settings, "chest-xray", 1)
    assert states(settings) == {2: "installed", 3: "active"}


def test_only_what_is_not_in_use_is_removed(settings: Settings, second: TinyPack) -> None:
    """The active release stays; another one goes, with its folder."""
    install(settings, second.folder)
    with pytest.raises(PackError, match="Activate another one first"):
        remove(settings, "chest-xray", 1)
    remove(settings, "chest-xray", 2)
    assert states(settings) == {1: "active"}
    assert not list(settings.packs_folder.glob("*2*"))
    with pytest.raises(PackError, match="not installed"):
        remove(settings, "chest-xray", 2)


def test_a_strangers_pack_is_not_installed(settings: Settings, tmp_path: Path) -> None:
    """An unsigned pack, or one by a key that nobody trusts, never enters the folder."""
    stranger = tiny_pack(tmp_path / "stranger", name="other")
    with pytest.raises(SignatureError):
        verify(settings, stranger.folder)
    with pytest.raises(SignatureError):
        install(settings, stranger.folder)
    assert {each["name"] for each in list_packs(settings)} == {"chest-xray"}


def test_rolling_back_needs_a_release_before(settings: Settings) -> None:
    """Without one, the sentence says how to go on."""
    with pytest.raises(PackError, match="No earlier release"):
        rollback(settings, "chest-xray")
    with pytest.raises(PackError, match=r"Release 9 .* not installed"):
        activate(settings, "chest-xray", 9)


def test_a_damaged_selection_is_named(settings: Settings) -> None:
    """A file that is no selection does not stop the daemon; the command line says what to do."""
    (settings.packs_folder / FILE).write_text('{"chest-xray": {"active": "newest"}}')
    with pytest.raises(PackError, match="Remove it"):
        list_packs(settings)
    with running(settings) as client:
        assert client.served()


def test_the_first_installation_keeps_the_shipped_packs(tmp_path: Path, first: TinyPack) -> None:
    """Making the folder links what came with the software, so that it goes on serving."""
    from appliance.governance.installing import prepare_folder  # noqa: PLC0415 - only here

    shipped = tmp_path / "engines"
    shutil.copytree(first.folder, shipped / "chest-xray")
    (shipped / "keys").mkdir()
    prepare_folder(tmp_path / "packs", shipped)
    assert [each.name for each in (tmp_path / "packs").iterdir()] == ["chest-xray"]
