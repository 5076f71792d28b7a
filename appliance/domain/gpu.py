"""What is known of a GPU at one moment."""

from dataclasses import dataclass

APPLICATION_XIDS = frozenset({13, 31, 43, 45})
"""XIDs that a faulty program causes on a sound GPU: an exception in a kernel, a page fault of its memory, a channel
stopped because of it, and the clean-up after it. NVIDIA, "XID Errors"; any program on the GPU can raise them."""


@dataclass(frozen=True, slots=True)
class GpuState:
    """One NVIDIA GPU.

    Attributes:
        compute_capability: Its generation (`8.9`).
        driver: Version of the driver.
        total_bytes, free_bytes: Of its memory.
        temperature: Degrees Celsius; None where it can't be read, as with the four after it.
        utilisation: Part of the last sampling time in which a kernel ran, 0 to 1.
        power_watts: Drawn now.
        throttled: Why its clocks are held down (`thermal`, `power`, `hardware`); empty when they are not.
        ecc_errors: Uncorrected memory errors since the driver was loaded.
        xid_errors: Critical errors that the driver reported since we listen, those of programs among them.
    """

    name: str
    uuid: str
    compute_capability: str
    driver: str
    total_bytes: int
    free_bytes: int
    temperature: int | None = None
    utilisation: float | None = None
    power_watts: float | None = None
    throttled: tuple[str, ...] = ()
    ecc_errors: int | None = None
    xid_errors: tuple[int, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether it reported no error that makes its results doubtful."""
        return not self.ecc_errors and APPLICATION_XIDS.issuperset(self.xid_errors)
