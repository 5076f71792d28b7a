"""Which inference daemon the worker asks, and with it whoever looks after the worker: this machine's, or another's."""

from pathlib import Path

from appliance.inference.address import TlsFiles, client_credentials_from_files, server_from_text
from appliance.inference.client import OipClient
from appliance.settings import InferenceSettings, Settings


def asked_daemon(settings: Settings, timeout_seconds: float) -> OipClient:
    """A client of the daemon that the worker asks; nothing is sent before the first call.

    Raises:
        SettingsError: `inference.server` is no address, or a TLS file is missing, can't be read or does not fit.
    """
    section = settings.inference
    if not section.server:
        return OipClient(f"unix://{settings.inference_socket}", timeout_seconds)
    server = server_from_text(section.server, tls_files(section, section.tls_server_authority))
    return OipClient(section.server, timeout_seconds, client_credentials_from_files(server.tls))


def tls_files(section: InferenceSettings, authority: Path | None) -> TlsFiles | None:
    """Our certificate, its key and the other side's authority; None where one of them is not set."""
    certificate, key = section.tls_certificate, section.tls_key
    return TlsFiles(certificate, key, authority) if certificate and key and authority else None
