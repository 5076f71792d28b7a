"""Where the daemon listens, and where a client finds it: a Unix socket, or a TCP port with TLS on both sides."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from appliance.domain.errors import SettingsError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: our certificate and its key, and the authority that signed the certificate of the other side."""

    certificate: Path
    key: Path
    authority: Path


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
    try:
        host, port = _host_and_port(text)
    except ValueError:
        raise SettingsError(f"{text!r} is no address to listen on.", "Give unix:///path or host:port.") from None
    if tls is None:
        raise SettingsError(
            f"{text} would be open to whoever reaches it.",
            "Set inference.tls_certificate, inference.tls_key and inference.tls_client_authority.",
        )
    return TcpAddress(host, port, tls)


def server_from_text(text: str, tls: TlsFiles | None) -> TcpAddress:
    """Parse the `host:port` at which a client finds a server.

    Raises:
        SettingsError: It is none, or the TLS files are missing.
    """
    try:
        host, port = _host_and_port(text)
    except ValueError:
        host, port = "", 0
    if port == 0 or text.startswith("unix:"):
        raise SettingsError(f"{text!r} is no server in inference.server.", "Give host:port, or nothing.")
    if tls is None:
        raise SettingsError(
            f"The inference server {text} is asked over TLS only.",
            "Set inference.tls_certificate, inference.tls_key and inference.tls_server_authority.",
        )
    return TcpAddress(host, port, tls)


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:  # noqa: PLR2004 - TCP's largest port
        raise ValueError(text)
    return host.strip("[]"), int(port)


def credentials_from_files(tls: TlsFiles) -> grpc.ServerCredentials:
    """Mutual TLS: a client without a certificate of the authority does not get a word in.

    Raises:
        SettingsError: A file can't be read.
    """
    key, certificate, authority = _contents(tls)
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=authority, require_client_auth=True)


def client_credentials_from_files(tls: TlsFiles) -> grpc.ChannelCredentials:
    """Mutual TLS from the client's side: only a server with a certificate of the authority hears anything.

    Raises:
        SettingsError: A file can't be read or is no PEM file of its kind, or the key is not the certificate's.
    """
    key, certificate, authority = _contents(tls)
    try:  # gRPC looks into the files at the first connection only, and then says it in its own log
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=authority.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise SettingsError(f"{tls.authority} holds no certificate in PEM.", "Correct inference.tls_*.") from error
    try:
        context.load_cert_chain(tls.certificate, tls.key, password="")
    except ssl.SSLError as error:
        raise SettingsError(
            f"{tls.certificate} and {tls.key} are no certificate with its key, unencrypted, in PEM.",
            "Correct inference.tls_*.",
        ) from error
    return grpc.ssl_channel_credentials(authority, key, certificate)


def _contents(tls: TlsFiles) -> tuple[bytes, bytes, bytes]:
    try:
        return tls.key.read_bytes(), tls.certificate.read_bytes(), tls.authority.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{error.filename} can't be read: {error.strerror}.",
            "Correct inference.tls_*, or let the service's user read the file.",
        ) from error
