"""Where the daemon listens: a Unix socket, or a TCP port with TLS on both sides."""

from dataclasses import dataclass
from pathlib import Path

import grpc

from appliance.domain.errors import SettingsError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: our certificate and its key, and the authority whose clients are let in."""

    certificate: Path
    key: Path
    client_authority: Path


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket."""

    path: Path


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host and port; 0 asks the system for a free one. Never without TLS."""

    host: str
    port: int
    tls: TlsFiles


Address = UnixAddress | TcpAddress


def address_from_text(text: str, tls: TlsFiles | None) -> Address:
    """Parse `unix:///path`, `unix:path` or `host:port`.

    Raises:
        SettingsError: It is neither, or a port without TLS files.
    """
    if text.startswith("unix:"):
        return UnixAddress(Path(text.removeprefix("unix:").removeprefix("//")))
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:  # noqa: PLR2004 - TCP's largest port
        raise SettingsError(f"{text!r} is no address to listen on.", "Give unix:///path or host:port.")
    if tls is None:
        raise SettingsError(
            f"{text} would be open to whoever reaches it.",
            "Set inference.tls_certificate, inference.tls_key and inference.tls_client_authority.",
        )
    return TcpAddress(host.strip("[]"), int(port), tls)


def credentials_from_files(tls: TlsFiles) -> grpc.ServerCredentials:
    """Mutual TLS: a client without a certificate of the authority does not get a word in.

    Raises:
        SettingsError: A file can't be read.
    """
    try:
        key, certificate, authority = (file.read_bytes() for file in (tls.key, tls.certificate, tls.client_authority))
    except OSError as error:
        raise SettingsError(f"{error.filename} can't be read: {error.strerror}.", "Correct inference.tls_*.") from error
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=authority, require_client_auth=True)
