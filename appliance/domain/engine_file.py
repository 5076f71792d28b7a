"""What is known of an engine file: from what, by what and for which GPUs it was built; why one may not be loaded."""

import enum
from dataclasses import dataclass

ENGINE_SCHEMA = "insite-engine/1"


class EngineRefusal(enum.Enum):
    """Why an engine file may not be loaded here; the word goes into logs and answers."""

    NO_DESCRIPTION = "no-description"
    NOT_AN_ENGINE = "not-an-engine"
    TRUNCATED = "truncated"
    ALTERED = "altered"
    OTHER_SOURCE = "other-source"
    OTHER_RUNTIME = "other-runtime"
    NO_RUNTIME = "no-runtime"
    NO_GPU = "no-gpu"
    OTHER_GPU = "other-gpu"
    UNSIGNED = "unsigned"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class EngineMetadata:
    """The description that lies beside an engine file; without it the file is never opened.

    Attributes:
        runtime: The runtime's name, as manifests write it (`tensorrt-rtx`).
        runtime_version: The only version of the runtime that reads the file (`1.7.1.116`).
        compute_capabilities: GPUs that it was compiled for (`8.6`), in rising order.
        precision: What it computes in (`fp16`); the types come from the graph that it was built from.
        max_batch: Largest first dimension of an input.
        source_sha256: Hex SHA-256 of the ONNX file that it was built from.
        sha256, size_bytes: Of the engine file itself.
        build_seconds: How long the build took on the machine that made it.
    """

    runtime: str
    runtime_version: str
    compute_capabilities: tuple[str, ...]
    precision: str
    max_batch: int
    source_sha256: str
    sha256: str
    size_bytes: int
    build_seconds: float


@dataclass(frozen=True, slots=True)
class EngineHost:
    """What a machine can run: runtimes by name with their versions, and its GPU.

    Attributes:
        runtimes: Name to version, of the runtimes that are installed.
        compute_capability: Of the GPU (`8.9`); None where there is none or its driver is missing.
    """

    runtimes: tuple[tuple[str, str], ...]
    compute_capability: str | None

    def version(self, runtime: str) -> str | None:
        """The installed version of a runtime, or None."""
        return dict(self.runtimes).get(runtime)
