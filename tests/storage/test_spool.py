"""The spool: bytes kept exactly, on disk before anybody is told, and nothing left over."""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from pydicom import dcmread

from appliance.domain.errors import StorageError, StorageFullError
from appliance.domain.instance import InstanceIdentity
from appliance.imaging.header import read_instance
from appliance.storage.part10 import DataSetOrigin, file_head
from appliance.storage.spool import CHECK_EVERY_BYTES, Incoming, Spool
from tests.fakes.images import small_radiograph

ORIGIN = DataSetOrigin("1.2.840.10008.5.1.4.1.1.1", "1.2.3.1", "1.2.840.10008.1.2.1", "CR1")
IDENTITY = InstanceIdentity("1.2.3.1", ORIGIN.sop_class_uid, "1.2.3.9", "1.2.3", ORIGIN.transfer_syntax_uid, "0" * 64)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """An empty spool."""
    return Spool(tmp_path / "spool", 0)


def encoded(tmp_path: Path) -> bytes:
    """A small radiograph's data set without the file's head."""
    small_radiograph().save_as(tmp_path / "a.dcm", enforce_file_format=True)
    whole = (tmp_path / "a.dcm").read_bytes()
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


def files_in(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_a_received_data_set_becomes_a_file_that_others_can_read(spool: Spool, tmp_path: Path) -> None:
    """The file is DICOM Part 10, names its source, and holds the data set byte for byte."""
    data = encoded(tmp_path)
    with spool.receive(iter([data[:100], data[100:]]), ORIGIN) as incoming:
        path = spool.keep(incoming, "token", IDENTITY)
    assert path.read_bytes() == file_head(ORIGIN) + data
    assert incoming.content_sha256 == sha256(data).hexdigest() == read_instance(path).identity.content_sha256
    meta = dcmread(path).file_meta
    assert (meta.MediaStorageSOPInstanceUID, meta.SourceApplicationEntityTitle) == ("1.2.3.1", "CR1")
    assert (meta.TransferSyntaxUID, meta.ImplementationVersionName) == (ORIGIN.transfer_syntax_uid, "INSITE")
    assert files_in(tmp_path / "spool") == [path]


def test_the_folder_is_closed_to_others(spool: Spool, tmp_path: Path) -> None:
    """Patient data is for owner and group only."""
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) & 0o007 == 0


def test_the_same_bytes_have_one_place_and_other_bytes_another(spool: Spool) -> None:
    """Repeating an image makes no second file; other bytes never overwrite the first."""
    places = []
    for data in (b"one", b"one", b"two"):
        with spool.receive(iter([data]), ORIGIN) as incoming:
            places.append(spool.keep(incoming, "token", IDENTITY))
    assert places[0] == places[1] != places[2]
    assert places[0].read_bytes().endswith(b"one")


def test_a_damaged_file_is_healed_by_the_same_bytes_again(spool: Spool) -> None:
    """A kept file that the disk damaged holds the right bytes again when its sender repeats the image."""
    with spool.receive(iter([b"one"]), ORIGIN) as incoming:
        place = spool.keep(incoming, "token", IDENTITY)
    whole = place.read_bytes()
    place.chmod(0o600)
    place.write_bytes(whole[:-1] + b"X")
    with spool.receive(iter([b"one"]), ORIGIN) as incoming:
        assert spool.keep(incoming, "token", IDENTITY) == place
    assert place.read_bytes() == whole
    assert [file.name for file in place.parent.iterdir()] == [place.name]


def test_a_removed_file_is_there_again_after_the_same_bytes(spool: Spool) -> None:
    """What was removed by hand to make room comes back to its place when its sender repeats the image."""
    with spool.receive(iter([b"one"]), ORIGIN) as incoming:
        place = spool.keep(incoming, "token", IDENTITY)
    whole = place.read_bytes()
    place.unlink()
    with spool.receive(iter([b"one"]), ORIGIN) as incoming:
        assert spool.keep(incoming, "token", IDENTITY) == place
    assert place.read_bytes() == whole


def test_names_reveal_no_identifiers(spool: Spool) -> None:
    """Paths hold digests, so that an identifier can't lead out of the folder or into a log."""
    odd = replace(IDENTITY, sop_instance_uid="../../etc/passwd", series_uid="/tmp")  # noqa: S108 - never opened
    with spool.receive(iter([b"x"]), ORIGIN) as incoming:
        path = spool.keep(incoming, "token", odd)
    assert path.parent.parent.name == "token"
    assert "passwd" not in str(path)


def test_below_the_free_space_limit_nothing_is_taken(tmp_path: Path) -> None:
    """A nearly full disk refuses images before it is full, and keeps no part of them."""
    spool = Spool(tmp_path / "spool", 1 << 40)
    with pytest.raises(StorageFullError, match="must stay free"), spool.receive(iter([b"x"]), ORIGIN):
        pass
    assert files_in(tmp_path / "spool") == []


def test_a_disk_that_fills_while_an_image_comes_in_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A huge image is stopped on the way when the limit is reached."""
    spool = Spool(tmp_path / "spool", 1)
    real = os.statvfs(tmp_path)

    def chunks() -> Iterator[bytes]:
        yield b"\0" * CHECK_EVERY_BYTES
        pytest.fail("The second chunk was asked for.")

    free = iter([10 << 30, 0])

    class Usage:
        def __init__(self) -> None:
            self.free = next(free)

    assert real
    monkeypatch.setattr("appliance.storage.spool.shutil.disk_usage", lambda _: Usage())
    with pytest.raises(StorageFullError), spool.receive(chunks(), ORIGIN):
        pass
    assert files_in(tmp_path / "spool") == []


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, StorageFullError), (errno.EIO, StorageError)])
def test_what_the_disk_says_becomes_a_sentence(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StorageError]
) -> None:
    """A full disk and a broken one are told apart."""

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("appliance.storage.spool.os.fsync", fail)
    with pytest.raises(StorageError) as caught, spool.receive(iter([b"x"]), ORIGIN):
        pass
    assert type(caught.value) is kind


def test_after_a_crash_whole_files_are_handed_out_and_parts_removed(spool: Spool, tmp_path: Path) -> None:
    """Leftovers that were complete get a second chance; what was still growing was never promised."""
    incoming = tmp_path / "spool" / "incoming"
    (incoming / "a.part").write_bytes(b"half")
    (incoming / "b.whole").write_bytes(file_head(ORIGIN) + b"data")
    assert list(spool.leftovers()) == [Incoming(incoming / "b.whole", sha256(b"data").hexdigest())]
    assert files_in(incoming) == []


def test_leftovers_of_a_living_process_are_left_alone(spool: Spool, tmp_path: Path) -> None:
    """What another node is receiving right now is not taken from under it."""
    with spool.receive(iter([b"x"]), ORIGIN) as incoming:
        assert list(Spool(tmp_path / "spool", 0).leftovers()) == []
        assert incoming.path.exists()


def test_a_leftover_stays_when_it_could_not_be_dealt_with(spool: Spool, tmp_path: Path) -> None:
    """A failure while taking up a leftover leaves it for the next start."""
    whole = tmp_path / "spool" / "incoming" / "b.whole"
    whole.write_bytes(file_head(ORIGIN) + b"data")
    found = spool.leftovers()
    next(found)
    found.close()
    assert whole.exists()
