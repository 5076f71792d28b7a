"""What the GPU says of itself, through a fake management library; the real one has every name that is used."""

from typing import Any

import pynvml
import pytest

from appliance.inference.nvml import GpuMonitor
from tests.fakes.fake_gpu import FakeNvml


def test_the_fake_has_only_what_the_library_has() -> None:
    """Each function and constant of the fake is one of the real library."""
    names = [name for name in vars(FakeNvml) if name.lower().startswith("nvml")]
    assert [name for name in names if not hasattr(pynvml, name)] == []
    for name in ("nvmlClocksEventReasonSwPowerCap", "NVML_VOLATILE_ECC", "NVML_TEMPERATURE_GPU"):
        assert getattr(pynvml, name) == getattr(FakeNvml, name)


def test_a_sound_gpu_is_described() -> None:
    """Name, generation, driver, memory, temperature, load and power, in plain units."""
    with GpuMonitor(library=FakeNvml()) as monitor:
        state = monitor.state()
    assert state is not None
    assert (state.name, state.uuid, state.compute_capability, state.driver) == (
        "NVIDIA L4",
        "GPU-1234",
        "8.9",
        "580.65.06",
    )
    assert (state.total_bytes, state.free_bytes) == (24 << 30, 6 << 30)
    assert (state.temperature, state.utilisation, state.power_watts) == (61, 0.4, 35.5)
    assert (state.throttled, state.ecc_errors, state.xid_errors, state.sound) == ((), 0, (), True)


def test_a_gpu_in_trouble_says_so() -> None:
    """Clocks that are held down have their reasons; memory errors and XIDs make it unsound."""
    with GpuMonitor(library=FakeNvml(reasons=64 | 4, ecc=2, xids=(79, 31))) as monitor:
        state = monitor.state()
        again = monitor.state()
    assert state is not None
    assert state.throttled == ("thermal", "power")
    assert (state.ecc_errors, state.xid_errors, state.sound) == (2, (79, 31), False)
    assert again is not None
    assert again.xid_errors == (79, 31)


@pytest.mark.parametrize(("xids", "sound"), [((13, 31, 43, 45), True), ((48,), False), ((31, 79), False)])
def test_a_faulty_program_does_not_condemn_the_gpu(xids: tuple[int, ...], sound: bool) -> None:  # noqa: FBT001 - a case
    """XIDs that a program caused are listed and counted; those of the hardware make the GPU unsound."""
    with GpuMonitor(library=FakeNvml(xids=xids)) as monitor:
        state = monitor.state()
    assert state is not None
    assert (state.xid_errors, state.sound) == (xids, sound)


def test_what_a_gpu_cannot_say_is_left_out() -> None:
    """A GPU without ECC or power sensor is no error."""
    silent = frozenset({"nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetPowerUsage", "nvmlEventSetCreate"})
    with GpuMonitor(library=FakeNvml(silent=silent)) as monitor:
        state = monitor.state()
    assert state is not None
    assert (state.ecc_errors, state.power_watts, state.sound) == (None, None, True)


@pytest.mark.parametrize(
    ("library", "problem"),
    [
        (FakeNvml(driver_missing=True), "no NVIDIA driver answers"),
        (FakeNvml(count=0), "knows no GPU 0"),
        (FakeNvml(silent=frozenset({"nvmlDeviceGetHandleByIndex"})), "does not answer"),
        (FakeNvml(silent=frozenset({"nvmlDeviceGetCount"})), "does not answer"),
    ],
)
def test_without_a_gpu_there_is_nothing_to_see(library: Any, problem: str) -> None:
    """No driver, no device, one that is lost: states, not errors; the reason is kept."""
    with GpuMonitor(library=library) as monitor:
        assert monitor.state() is None
        assert problem in monitor.problem


def test_a_gpu_that_fell_off_the_bus_is_gone() -> None:
    """A device that stops answering is reported as gone, with what the driver said."""
    with GpuMonitor(library=FakeNvml(silent=frozenset({"nvmlDeviceGetMemoryInfo"}))) as monitor:
        assert monitor.state() is None
        assert "does not answer" in monitor.problem


def test_this_machine_is_asked_for_real() -> None:
    """The real library answers, or says why it can't."""
    with GpuMonitor() as monitor:
        assert monitor.state() is not None or monitor.problem
