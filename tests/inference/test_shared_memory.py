"""Shared memory of clients: who may give it, and that a client that changes it harms nobody."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from appliance.domain.errors import (
    RegionAccessError,
    RegionExistsError,
    RegionFullError,
    RegionRangeError,
    SharedMemoryError,
    TooManyRegionsError,
    UnknownRegionError,
)
from appliance.inference.shared_memory import CAPACITY, OWNER_CAPACITY, Region, SharedRegions

USER, GROUP = 4321, 8765


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """A region of 64 bytes that its owner lets the group read."""
    file = tmp_path / "pixels"
    file.write_bytes(bytes(range(64)))
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 1, GROUP)
    return file


@pytest.fixture
def regions(memory: Path) -> Iterator[SharedRegions]:
    """A daemon of another user, in the region's group."""
    group = memory.stat().st_gid
    with SharedRegions(memory.parent, USER, lambda: frozenset({group})) as opened:
        yield opened


def region(size: int = 64, offset: int = 0, key: str = "/pixels") -> Region:
    """The region under the name `p`."""
    return Region("p", key, offset, size)


def test_bytes_are_read_within_the_region(regions: SharedRegions) -> None:
    """Offsets count from the region's beginning."""
    regions.register(region(32, 16))
    np.testing.assert_array_equal(regions.read("p", 4, 3), [20, 21, 22])
    assert regions.status("") == (region(32, 16),)
    assert regions.read("p", 0, 0).size == 0
    for offset, size in ((30, 3), (-1, 2), (0, 33)):
        with pytest.raises(RegionRangeError, match="do not fit"):
            regions.read("p", offset, size)


def test_what_was_read_is_a_copy(regions: SharedRegions, memory: Path) -> None:
    """A client that changes its pixels after the request changes no answer."""
    regions.register(region())
    copy = regions.read("p", 0, 64)
    memory.write_bytes(bytes(64))
    np.testing.assert_array_equal(copy, range(64))


def test_memory_that_shrinks_ends_a_request_and_not_the_daemon(regions: SharedRegions, memory: Path) -> None:
    """Truncated memory would kill a process that has it mapped; here it is a sentence."""
    regions.register(region())
    os.truncate(memory, 10)
    with pytest.raises(RegionRangeError, match="has become smaller"):
        regions.read("p", 0, 64)


def test_memory_whose_owner_is_gone_is_let_go(regions: SharedRegions, memory: Path) -> None:
    """Once unlinked it is forgotten, so that a client that died leaves nothing in this process."""
    regions.register(region())
    memory.unlink()
    assert regions.status("") == ()
    with pytest.raises(UnknownRegionError):
        regions.read("p", 0, 1)


def test_memory_of_others_is_not_opened(regions: SharedRegions, memory: Path) -> None:
    """Without the group's right to read, and for a group that is not ours, the daemon does not look, even as root."""
    memory.chmod(0o600)
    with pytest.raises(RegionAccessError, match="does not let this daemon read"):
        regions.register(region())
    memory.chmod(0o640)
    stranger = SharedRegions(memory.parent, USER, lambda: frozenset({GROUP + 1}))
    with pytest.raises(RegionAccessError):
        stranger.register(region())


def test_outputs_need_the_right_to_write(regions: SharedRegions, memory: Path) -> None:
    """Read access lets nothing be written; write access does."""
    regions.register(region())
    with pytest.raises(RegionAccessError, match="write"):
        regions.write("p", 0, b"x")
    memory.chmod(0o660)
    regions.write("p", 62, b"ab")
    assert memory.read_bytes()[60:] == b"<=ab"
    with pytest.raises(RegionRangeError):
        regions.write("p", 63, b"ab")


def test_an_output_does_not_make_cut_memory_grow(regions: SharedRegions, memory: Path) -> None:
    """A region that its owner has cut is no place for an output; it stays as small as its owner wants it."""
    memory.chmod(0o660)
    regions.register(region())
    os.truncate(memory, 10)
    with pytest.raises(RegionRangeError, match="has become smaller"):
        regions.write("p", 8, b"abcd")
    assert memory.stat().st_size == 10


def test_an_output_is_written_whole(regions: SharedRegions, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that takes a part of the bytes at a time is asked again until it has all of them."""
    memory.chmod(0o660)
    regions.register(region())
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: whole(descriptor, data[:3], at))
    regions.write("p", 0, b"abcdefgh")
    assert memory.read_bytes()[:9] == b"abcdefgh\x08"


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, RegionFullError), (errno.EIO, SharedMemoryError), (0, RegionFullError)]
)
def test_memory_that_takes_no_more_is_said(
    regions: SharedRegions, memory: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[SharedMemoryError]
) -> None:
    """An output of which a part is missing is never an answer: the caller is told that memory has run out."""
    memory.chmod(0o660)
    regions.register(region())
    whole, calls = os.pwrite, 0

    def full(descriptor: int, data: memoryview, at: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            return whole(descriptor, data[:3], at)
        if number:
            raise OSError(number, os.strerror(number))
        return 0

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(SharedMemoryError) as refused:
        regions.write("p", 0, b"abcdefgh")
    assert type(refused.value) is kind


def test_memory_that_cannot_be_read_is_said(regions: SharedRegions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A region that the system can't bring in ends one request."""
    regions.register(region())

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(SharedMemoryError, match="can't be read: Input/output error"):
        regions.read("p", 0, 8)


def another_owner(memory: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key of memory that belongs to another user, though only root could give it away."""
    theirs = memory.with_name("theirs")
    shutil.copy(memory, theirs)
    if os.geteuid() == 0:
        os.chown(theirs, 1, memory.stat().st_gid)
    whole, number = os.fstat, theirs.stat().st_ino

    def fstat(descriptor: int) -> os.stat_result:
        values = list(whole(descriptor))
        if values[stat.ST_INO] == number:
            values[stat.ST_UID] += 1
        return os.stat_result(values)

    monkeypatch.setattr(os, "fstat", fstat)
    return "/theirs"


def test_all_regions_together_leave_descriptors_free(
    regions: SharedRegions, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many regions as may be registered, each written to, take at most half of a usual process's descriptors."""
    memory.chmod(0o660)
    keys = ["/pixels"] * OWNER_CAPACITY + [another_owner(memory, monkeypatch)] * (CAPACITY - OWNER_CAPACITY)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number, key in enumerate(keys):
        regions.register(Region(str(number), key, 0, 64))
        regions.write(str(number), 0, b"x")
    with pytest.raises(TooManyRegionsError, match=f"{CAPACITY} regions are registered"):
        regions.register(region())
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 512


def test_one_owner_leaves_room_for_others(
    regions: SharedRegions, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has as many regions as one owner may have is refused; another is not, and a free place can be had again."""
    theirs = another_owner(memory, monkeypatch)
    for number in range(OWNER_CAPACITY):
        regions.register(Region(str(number), "/pixels", 0, 64))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(TooManyRegionsError, match=f"{OWNER_CAPACITY} regions of the owner of /pixels"):
        regions.register(region())
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    regions.register(region(key=theirs))
    regions.unregister("0")
    regions.register(Region("q", "/pixels", 0, 64))


def test_what_does_not_fit_takes_no_memory(regions: SharedRegions) -> None:
    """A length beyond the region is refused before anything is put aside for it."""
    regions.register(region())
    with pytest.raises(RegionRangeError, match="do not fit"):
        regions.read("p", 0, 1 << 50)


@pytest.mark.parametrize("key", ["", "/", "/../pixels", "a/b", "..", "x\0y", "/" + "x" * 256])
def test_a_key_that_leads_elsewhere_is_refused(regions: SharedRegions, key: str) -> None:
    """A key is a name in the folder of shared memory, never a path."""
    with pytest.raises(RegionAccessError, match="no name of shared memory"):
        regions.register(region(key=key))


def test_what_is_no_memory_is_refused(regions: SharedRegions, memory: Path) -> None:
    """A link, a folder and a pipe are not opened; nothing there is not found."""
    (memory.parent / "link").symlink_to("/etc/passwd")
    (memory.parent / "folder").mkdir()
    os.mkfifo(memory.parent / "pipe")
    for key in ("link", "folder", "pipe"):
        with pytest.raises(RegionAccessError):
            regions.register(region(1, key=key))
    with pytest.raises(UnknownRegionError, match="no shared memory /nothing"):
        regions.register(region(key="/nothing"))


@pytest.mark.parametrize(("offset", "size"), [(0, 65), (64, 1), (0, 0), (2**62, 2**62)])
def test_a_region_beyond_its_memory_is_refused(regions: SharedRegions, offset: int, size: int) -> None:
    """Registration compares with what is there."""
    with pytest.raises(RegionRangeError, match="has 64 bytes"):
        regions.register(region(size, offset))


def test_a_name_is_taken_once(regions: SharedRegions) -> None:
    """A second registration under a name is refused; after unregistering, twice if need be, it is free."""
    regions.register(region())
    with pytest.raises(RegionExistsError):
        regions.register(region())
    regions.unregister("p")
    regions.unregister("p")
    regions.register(region())
    with pytest.raises(UnknownRegionError):
        regions.status("q")


def test_refusals_leave_no_descriptor_open(regions: SharedRegions, memory: Path) -> None:
    """However often it is refused, nothing piles up in the process."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    regions.register(region())
    for _ in range(20):
        with pytest.raises(RegionExistsError):
            regions.register(region())
        with pytest.raises(RegionRangeError):
            regions.register(Region("q", "/pixels", 0, 999))
    regions.unregister("")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
