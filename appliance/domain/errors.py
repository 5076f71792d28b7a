"""The one tree of errors; each edge (DICOM status, gRPC code, HTTP page, exit status) maps it once.

Every error carries two sentences: what happened, naming the thing, and the way forward. Neither may hold patient
data: the first line of an error reaches logs and pages.
"""

from appliance.domain.engine_file import EngineRefusal


class InsiteError(Exception):
    """The root of everything that Insite raises on purpose.

    Args:
        message: What happened, naming the thing (a path, a tag, a setting).
        way_forward: What the reader can do about it; may be empty where nothing can be done.
    """

    def __init__(self, message: str, way_forward: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.way_forward = way_forward

    def __str__(self) -> str:
        return f"{self.message} {self.way_forward}".strip()


class SettingsError(InsiteError):
    """A setting is unknown, malformed or contradicts another."""


class InputError(InsiteError):
    """Something from outside (a file, an association, a request) can't be used."""


class UnreadableFileError(InputError):
    """A file is not DICOM, is truncated, or lacks an attribute that identifies it."""


class DataSetMismatchError(InputError):
    """A data set says another SOP class or instance than the request that brought it."""


class PixelDecodeError(InputError):
    """The pixel data can't be decoded, or there is none."""


class IdentityConflictError(InputError):
    """The same SOP Instance UID arrived before with other content, or under another study or patient."""


class StorageError(InsiteError):
    """The ledger or the spool could not be written or read."""


class StorageFullError(StorageError):
    """Too little space is left to accept more."""


class UnknownStudyError(StorageError):
    """The ledger has no such study."""


class TransitionError(InsiteError):
    """An event is not allowed in the present state of a study or a delivery."""


class PackError(InsiteError):
    """A model pack must not be used."""


class ManifestError(PackError):
    """The manifest is missing, malformed, or of an unknown version."""


class SignatureError(PackError):
    """The signature is missing, made by an untrusted key, or does not fit the files."""


class PackContentError(PackError):
    """A file differs from its digest, is missing, is not listed, or is a link."""


class BaseMismatchError(PackError):
    """A task is bound to another base than the one it lies beside."""


class GateError(PackError):
    """The gate report is missing or refuses the pack, or the golden cases do not reproduce on this machine."""


class CrashedLoadError(GateError):
    """The process that loaded the pack in this way before died of it."""


class EngineFileError(PackContentError):
    """An engine file can't be built, or may not be loaded here; `refusal` says which of the two and why."""

    def __init__(self, message: str, way_forward: str = "", *, refusal: EngineRefusal | None = None) -> None:
        super().__init__(message, way_forward)
        self.refusal = refusal


class UnvalidatedPackError(PackError):
    """The pack is marked as untrained, synthetic or research-only and nobody allowed it."""


class BundleError(InsiteError):
    """An installation bundle is altered, incomplete, or signed by nobody we trust."""


class InferenceError(InsiteError):
    """The inference daemon could not answer."""


class UnknownModelError(InferenceError):
    """No such model, or no such version of it, is served."""


class InvalidTensorError(InferenceError):
    """A request's tensor has another name, shape, datatype, count or length than the model's metadata says."""


class InferenceUnavailableError(InferenceError):
    """The daemon is not there, is loading or is overloaded: trying again later may help."""


class OverloadedError(InferenceUnavailableError):
    """The queue is full; `retry_after_seconds` says when there is likely to be room."""

    def __init__(self, message: str, way_forward: str = "", *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message, way_forward)
        self.retry_after_seconds = retry_after_seconds


class DeadlineError(InferenceError):
    """The time that the caller gave ran out before the answer was there."""


class NotOfferedError(InferenceError):
    """The protocol has it, this daemon does not, and says so."""


class SharedMemoryError(InferenceError):
    """A region of shared memory can't be used."""


class UnknownRegionError(SharedMemoryError):
    """No region of this name is registered, or there is no such memory."""


class RegionExistsError(SharedMemoryError):
    """The name is taken."""


class TooManyRegionsError(SharedMemoryError):
    """As many regions are registered as may be, by all owners together or by this one."""


class RegionAccessError(SharedMemoryError):
    """The region belongs to somebody who does not give this daemon the right to it."""


class RegionRangeError(SharedMemoryError):
    """The region is smaller than what is asked of it."""


class RegionFullError(SharedMemoryError):
    """There is no memory left for what is to be written into the region."""


class ProvenanceError(InferenceError):
    """The answer was computed by another pack, base or precision than planned."""


class ReportError(InsiteError):
    """A result object could not be made from the source images."""


class DeliveryError(InsiteError):
    """A destination did not take an object; `permanent` says whether trying again is pointless."""

    def __init__(self, message: str, way_forward: str = "", *, permanent: bool = False) -> None:
        super().__init__(message, way_forward)
        self.permanent = permanent
