"""Typed settings: a TOML file, `INSITE_*` variables over it, the command line over both; unknown keys are errors."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from appliance.domain.errors import SettingsError
from appliance.domain.ports import Destination

DEFAULT_CONFIG = Path("/etc/insite/insite.toml")
SHIPPED_PACKS = Path(__file__).resolve().parents[1] / "engines"
"""Packs and public keys that come with the software, as root-owned as its code."""


def shipped_keys() -> tuple[Path, ...]:
    """The public keys that come with the software."""
    return tuple(sorted((SHIPPED_PACKS / "keys").glob("*.pem")))


AeTitle = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=16, pattern=r"^[ -\[\]-~]+$")
]
"""An AE title: 1 to 16 characters of the default repertoire without backslash (PS3.5 6.2)."""
Port = Annotated[int, Field(ge=0, le=65535)]
"""A TCP port; 0 asks the system for a free one (the demo and the tests do)."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class NodeSettings(_Section):
    """The DICOM node that receives studies."""

    ae_title: AeTitle = "INSITE"
    """AE title by which senders call the appliance."""
    bind: str = "0.0.0.0"  # noqa: S104 - a DICOM node must be reachable; the firewall of the role limits who reaches it
    """Address to listen on."""
    port: Port = 11112
    """TCP port to listen on."""
    callers: tuple[AeTitle, ...] = ()
    """Calling AE titles that may store; empty takes any."""
    max_associations: Annotated[int, Field(ge=1, le=1000)] = 32
    """Associations served at the same time; one more is rejected as transient."""
    idle_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Seconds of silence after which an association is aborted."""
    min_free_mib: Annotated[int, Field(ge=0)] = 1024
    """MiB that must stay free on the state folder's disk; below it a C-STORE is answered with Out of Resources."""


class StudySettings(_Section):
    """When a study counts as complete, and how far it is analysed."""

    quiet_seconds: Annotated[float, Field(ge=0)] = 20.0
    """Seconds without a new image after which a study counts as complete."""
    max_images: Annotated[int, Field(ge=1)] = 16
    """Eligible images of one study that are analysed; further ones are named in the result."""


class InferenceSettings(_Section):
    """The inference daemon."""

    socket: Path | None = None
    """Unix socket to serve on; default: `run/inference.sock` in the state folder."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of one inference; 0 takes the CPUs that this process may use."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that the worker waits for one answer."""
    listen: str = ""
    """Where the daemon listens instead: `unix:///path`, or `host:port` with TLS on both sides; default: `socket`."""
    server: str = ""
    """`host:port` of another machine's inference daemon for the worker to ask over TLS; default: this machine's."""
    tls_certificate: Path | None = None
    """PEM file of our certificate: the daemon's with `listen`, the worker's with `server`."""
    tls_key: Path | None = None
    """PEM file of that certificate's key, unencrypted."""
    tls_client_authority: Path | None = None
    """PEM file of the authority whose certificates clients must show, for `listen`."""
    tls_server_authority: Path | None = None
    """PEM file of the authority whose certificate the server must show, for `server`."""
    metrics: str = ""
    """Where `GET /metrics` is answered: `unix:///path`, `127.0.0.1:port` or `off`; default: a socket in `run/`."""
    queue_images: Annotated[int, Field(ge=1, le=4096)] = 256
    """Images that may wait; one more is refused with a hint when to try again. Each may be a request of up to 4 MiB:
    with more than the default, give the unit more memory too (`MemoryMax`)."""
    ageing_seconds: Annotated[float, Field(gt=0)] = 2.0
    """Seconds of waiting that make up for one class of urgency (STAT, routine, background)."""


class PackSettings(_Section):
    """Model packs and whom we trust to sign them."""

    folder: Path | None = None
    """Folder of the installed packs; default: `packs` in the state folder if there is one, else the shipped packs."""
    trusted_keys: tuple[Path, ...] = Field(default_factory=shipped_keys)
    """PEM files of the public keys whose signatures are accepted; default: those shipped with the software."""
    allow_unvalidated: bool = False
    """Whether packs marked untrained, synthetic or research-only may be activated."""


class WorkerSettings(_Section):
    """The worker that carries a study from images to delivered results."""

    poll_seconds: Annotated[float, Field(gt=0)] = 1.0
    """Seconds between two sweeps for complete studies."""
    concurrency: Annotated[int, Field(ge=1, le=64)] = 2
    """Studies worked on at the same time."""
    delivery_attempts: Annotated[int, Field(ge=1)] = 20
    """Attempts at one destination before a delivery counts as dead."""
    delivery_retry_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Seconds before the second attempt; doubled after each, up to an hour."""


class WebSettings(_Section):
    """The status site."""

    bind: str = "127.0.0.1"
    """Address to listen on; the hospital's own TLS proxy or the role decides who reaches it."""
    port: Port = 8080
    """TCP port to listen on."""
    session_minutes: Annotated[int, Field(ge=1)] = 30
    """Minutes without a click after which a log-in ends."""
    secure_cookie: bool = False
    """Whether the session cookie is sent over TLS only; set it where a TLS proxy stands in front."""


class DestinationSettings(_Section):
    """A peer that gets the results by C-STORE."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    """Short name for page and log: lower-case letters, digits and hyphens."""
    ae_title: AeTitle
    """AE title of the peer."""
    host: str
    """Host name or address of the peer."""
    port: Annotated[int, Field(ge=1, le=65535)] = 104
    """TCP port of the peer."""

    def destination(self) -> Destination:
        """This peer as the pipeline knows it."""
        return Destination(self.name, self.ae_title, self.host, self.port)


class LogSettings(_Section):
    """Logs, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is written."""
    format: Literal["json", "text"] = "json"
    """One JSON object a line, or text for a terminal."""


class Settings(BaseSettings):
    """All settings of one appliance."""

    model_config = SettingsConfigDict(
        env_prefix="INSITE_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    state: Path = Path("/var/lib/insite")
    """Folder of everything that the appliance keeps."""
    node: NodeSettings = NodeSettings()
    study: StudySettings = StudySettings()
    inference: InferenceSettings = InferenceSettings()
    packs: PackSettings = PackSettings()
    worker: WorkerSettings = WorkerSettings()
    web: WebSettings = WebSettings()
    destinations: tuple[DestinationSettings, ...] = ()
    """Peers that get every result."""
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(  # noqa: D102 - the library's hook, documented there
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)

    @property
    def inference_socket(self) -> Path:
        """The Unix socket of this machine's inference daemon."""
        return self.inference.socket or self.state / "run" / "inference.sock"

    @property
    def packs_folder(self) -> Path:
        """The folder of installed packs."""
        installed = self.state / "packs"
        return self.packs.folder or (installed if installed.is_dir() else SHIPPED_PACKS)

    @property
    def ledger_file(self) -> Path:
        """The SQLite database."""
        return self.state / "ledger.db"

    @property
    def spool_folder(self) -> Path:
        """The folder of received files."""
        return self.state / "spool"

    @property
    def results_folder(self) -> Path:
        """The folder of result objects."""
        return self.state / "results"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each dotted key where its value came from: `default`, a file, a variable, the command line."""

    settings: Settings
    origins: Mapping[str, str]


def load(config: Path | None, overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Read the settings.

    Args:
        config: A TOML file that must exist; None takes `/etc/insite/insite.toml` if there is one.
        overrides: Nested values of the command line, over file and variables.

    Raises:
        SettingsError: A file that can't be read, an unknown key, a value that does not fit.
    """
    file = config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    layers = [
        (str(file), _toml(file) if file else {}),
        ("environment", _environment()),
        ("command line", dict(overrides or {})),
    ]
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        _merge(merged, layer)
        origins.update({key: origin for key, _ in flat(layer)})
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise SettingsError(_sentence(error, origins), "`insite settings` lists every setting.") from None
    keys = [key for key, _ in flat(settings.model_dump())]
    return Loaded(settings, {key: origins.get(key, "default") for key in keys})


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested settings with its dotted key."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file} can't be read: {error.strerror}.", "Name another file with --config.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not TOML: {error}.", "Mend that line.") from error


def _environment() -> dict[str, Any]:
    return dict(EnvSettingsSource(Settings)())


def _merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        below = into.get(key)
        if isinstance(below, dict) and isinstance(value, Mapping):
            _merge(below, value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _sentence(error: ValidationError, origins: Mapping[str, str]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    origin = origins.get(key, "the settings")
    if first["type"] == "extra_forbidden":
        return f"Unknown setting {key} in {origin}."
    return f"Setting {key} in {origin}: {first['msg']}."
