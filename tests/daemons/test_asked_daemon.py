"""A worker that asks another machine's inference daemon: over TLS on both sides, for its own packs, or not at all."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from appliance.daemons import doctor_services, inference, worker
from appliance.daemons.asked_daemon import asked_daemon
from appliance.daemons.doctor_check import Health
from appliance.daemons.status import status_of
from appliance.domain.errors import SettingsError
from appliance.domain.lifecycle import StudyState
from appliance.inference.address import TlsFiles, credentials_from_files
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.generated.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from appliance.settings import Settings, load
from appliance.storage.ledger import SqlLedger
from tests.daemons.test_worker import arrive, running, until
from tests.fakes.certificates import certificate
from tests.fakes.tiny_pack import TinyPack, tiny_pack


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the site's authority, certificates of it for daemon and worker, and a stranger's own."""
    site = certificate(tmp_path, "authority")
    certificate(tmp_path, "daemon", site)
    certificate(tmp_path, "worker", site)
    certificate(tmp_path, "stranger")
    return tmp_path


@pytest.fixture
def site(files: Path, pack: TinyPack, free_port: int) -> Settings:
    """The worker's machine, which has no inference daemon of its own."""
    return _worker(files, pack, free_port)


def _worker(files: Path, pack: TinyPack, port: int, **inference_settings: Any) -> Settings:
    right = {
        "server": f"127.0.0.1:{port}",
        "tls_certificate": files / "worker.pem",
        "tls_key": files / "worker.key",
        "tls_server_authority": files / "authority.pem",
    }
    return _settings(files / "state", pack, **{**right, **inference_settings})


def _server(files: Path, pack: TinyPack, port: int) -> Settings:
    """The other machine."""
    return _settings(
        files / "other",
        pack,
        listen=f"127.0.0.1:{port}",
        threads=1,
        tls_certificate=files / "daemon.pem",
        tls_key=files / "daemon.key",
        tls_client_authority=files / "authority.pem",
    )


def _settings(state: Path, pack: TinyPack, **inference_settings: Any) -> Settings:
    (state / "run").mkdir(parents=True, exist_ok=True)
    values = {
        "state": state,
        "study": {"quiet_seconds": 0},
        "worker": {"poll_seconds": 0.05},
        "inference": inference_settings,
        "packs": {"folder": pack.folder.parent, "trusted_keys": [pack.keys.public], "allow_unvalidated": True},
    }
    return load(None, values).settings


def _answers(settings: Settings) -> bool:
    answers: bool = status_of(settings)["daemons"]["inference"]
    return answers


def test_a_study_waits_for_the_other_machine_and_is_then_done(
    site: Settings, files: Path, pack: TinyPack, free_port: int
) -> None:
    """While the server is away a study waits and says for whom; when it comes, results lie on the worker's disk."""
    with running(worker.run, site), SqlLedger.open(site.ledger_file) as ledger:
        token = arrive(ledger, files / "image.dcm")
        until(lambda: f"nobody answers at 127.0.0.1:{free_port}" in ledger.study(token).reason)
        assert ledger.study(token).state is StudyState.ANALYSING
        assert not _answers(site)
        with running(inference.run, _server(files, pack, free_port)):
            until(lambda: ledger.study(token).state is StudyState.DONE)
            assert _answers(site)
            assert [check.health for check in doctor_services.packs(site)] == [Health.OK, Health.OK]
        assert [made.kind for made in ledger.objects(token, 1)] == ["SR", "SEG"]
        assert ledger.analysis(token, 1) is not None
    assert not site.inference_socket.exists()


def test_a_server_of_another_pack_gives_no_finding(site: Settings, files: Path, free_port: int) -> None:
    """A pack of the same name and another digest is not asked, though the certificates are right; the study waits."""
    other = tiny_pack(files / "elsewhere", release=2)
    with running(inference.run, _server(files, other, free_port)):
        _waits_without_a_finding(site, files, "serves chest-xray in another version than is installed")
        (_, golden) = doctor_services.packs(site)
    assert golden.health is Health.FAILED
    assert "was answered by the pack" in golden.sentence


def test_a_server_that_does_not_say_its_pack_gives_no_finding(site: Settings, files: Path, free_port: int) -> None:
    """Any other server of the protocol, which knows models but no packs, is not believed; the study waits."""
    with _foreign(files, free_port):
        _waits_without_a_finding(site, files, "does not say which pack computed chest-xray.guard")


def _waits_without_a_finding(site: Settings, files: Path, reason: str) -> None:
    with running(worker.run, site), SqlLedger.open(site.ledger_file) as ledger:
        token = arrive(ledger, files / "image.dcm")
        until(lambda: reason in ledger.study(token).reason)
        assert ledger.study(token).state is StudyState.ANALYSING
        assert ledger.analysis(token, 1) is None
        assert ledger.objects(token, 1) == []


class _Foreign(GRPCInferenceServiceServicer):
    """A server whose models have the right names and no parameters."""

    def RepositoryIndex(self, request: Any, context: Any) -> oip.RepositoryIndexResponse:  # noqa: N802 - the protocol's name
        """One model."""
        return oip.RepositoryIndexResponse(models=[{"name": "chest-xray.guard"}])

    def ModelMetadata(self, request: Any, context: Any) -> oip.ModelMetadataResponse:  # noqa: N802 - the protocol's name
        """Inputs and outputs alone."""
        return oip.ModelMetadataResponse(name=request.name, inputs=[{"name": "image", "datatype": "UINT8"}])


@contextmanager
def _foreign(files: Path, port: int) -> Iterator[None]:
    tls = TlsFiles(files / "daemon.pem", files / "daemon.key", files / "authority.pem")
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        add_GRPCInferenceServiceServicer_to_server(_Foreign(), server)
        server.add_secure_port(f"127.0.0.1:{port}", credentials_from_files(tls))
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda files: {"tls_server_authority": files / "stranger.pem"},
        lambda files: {"tls_certificate": files / "stranger.pem", "tls_key": files / "stranger.key"},
    ],
    ids=["the server is of another authority", "the worker is a stranger"],
)
def test_certificates_that_do_not_fit_end_in_waiting(
    wrong: Callable[[Path], dict[str, Path]], site: Settings, files: Path, pack: TinyPack, free_port: int
) -> None:
    """Whichever side does not accept the other, nothing is answered, and doctor and status say so."""
    refused = _worker(files, pack, free_port, timeout_seconds=5, **wrong(files))
    with running(inference.run, _server(files, pack, free_port)):
        assert _answers(site)
        assert not _answers(refused)
        (_, golden) = doctor_services.packs(refused)
        assert golden.health is Health.FAILED
        assert "does not accept the other's certificate" in golden.sentence


@pytest.mark.parametrize("key", ["tls_certificate", "tls_key", "tls_server_authority"])
def test_a_file_that_is_not_there_stops_the_worker_at_its_start(
    key: str, files: Path, pack: TinyPack, free_port: int
) -> None:
    """A missing file is named before a study comes, by worker and doctor alike."""
    settings = _worker(files, pack, free_port, **{key: files / "none.pem"})
    with pytest.raises(SettingsError, match=r"none\.pem can't be read") as refused:
        worker.run(settings, threading.Event(), lambda: None)
    assert "inference.tls_" in str(refused.value)
    (_, golden) = doctor_services.packs(settings)
    assert golden.health is Health.FAILED
    assert "none.pem can't be read" in golden.sentence
    assert not _answers(settings)


def test_files_that_do_not_fit_each_other_are_named(files: Path, pack: TinyPack, free_port: int) -> None:
    """A key of another certificate, and a file that is no certificate, are refused before anything is sent."""
    (files / "empty.pem").touch()
    for wrong, words in (
        ({"tls_key": files / "stranger.key"}, "are no certificate with its key"),
        ({"tls_server_authority": files / "worker.key"}, "holds no certificate"),
        ({"tls_server_authority": files / "empty.pem"}, "holds no certificate"),
    ):
        with pytest.raises(SettingsError, match=words):
            asked_daemon(_worker(files, pack, free_port, **wrong), 1)


def test_another_machine_is_never_asked_without_tls(files: Path, pack: TinyPack, free_port: int) -> None:
    """Without certificate, key and authority there is no server; neither is one without host or port."""
    for key in ("tls_certificate", "tls_key", "tls_server_authority"):
        with pytest.raises(SettingsError, match="over TLS only"):
            asked_daemon(_worker(files, pack, free_port, **{key: None}), 1)
    for text in ("host", "host:0", ":9000", "unix:///run/inference.sock", "unix:9000"):
        with pytest.raises(SettingsError, match="is no server"):
            asked_daemon(_worker(files, pack, free_port, server=text), 1)
