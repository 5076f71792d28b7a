"""Engine files: what their first bytes and their description say, and why one may not be loaded here."""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.domain.engine_file import EngineHost, EngineMetadata, EngineRefusal
from appliance.domain.errors import EngineFileError
from appliance.inference.engine_file import checked_engine, description_of, engine_metadata, write_engine

SOURCE = "5" * 64
HOST = EngineHost((("tensorrt-rtx", "1.7.1.116"),), "8.9")


def content(version: tuple[int, int, int, int] = (1, 7, 1, 116)) -> bytes:
    """Bytes that begin as an engine of TensorRT for RTX does, and hold nothing."""
    return struct.pack("<4s4xQQ4B4s", b"vtrt", 2, 100, *version, b"vtrt") + bytes(68)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine with its description, for 8.6 and 8.9."""
    data = content()
    metadata = EngineMetadata(
        "tensorrt-rtx",
        "1.7.1.116",
        ("8.6", "8.9"),
        "fp16",
        8,
        SOURCE,
        hashlib.sha256(data).hexdigest(),
        len(data),
        1.5,
    )
    file = tmp_path / "encoder.trtrtx.engine"
    write_engine(file, memoryview(data), metadata)
    return file


def test_what_is_written_is_read(engine: Path) -> None:
    """An engine that fits comes back with its description and its bytes; nothing else lies in the folder."""
    metadata, data = checked_engine(engine, SOURCE, HOST)
    assert metadata == engine_metadata(engine)
    assert (metadata.compute_capabilities, metadata.build_seconds, data) == (("8.6", "8.9"), 1.5, content())
    assert {file.name for file in engine.parent.iterdir()} == {engine.name, description_of(engine).name}


def describe(**changes: object) -> Callable[[Path], None]:
    """Change values of the description."""

    def change(engine: Path) -> None:
        file = description_of(engine)
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("spoil", "refusal", "sentence"),
    [
        (lambda e: description_of(e).unlink(), EngineRefusal.NO_DESCRIPTION, "No such file"),
        (lambda e: description_of(e).write_text("[]"), EngineRefusal.NO_DESCRIPTION, "no usable description"),
        (describe(schema="insite-engine/2"), EngineRefusal.NO_DESCRIPTION, "not of the schema insite-engine/1"),
        (describe(size_bytes="100"), EngineRefusal.NO_DESCRIPTION, "another type"),
        (describe(compute_capabilities="8.9"), EngineRefusal.NO_DESCRIPTION, "no list"),
        (describe(more=1), EngineRefusal.NO_DESCRIPTION, "more"),
        (lambda e: e.unlink(), EngineRefusal.TRUNCATED, "can't be read"),
        (lambda e: e.write_bytes(content()[:90]), EngineRefusal.TRUNCATED, "has 90 bytes, but says that it has 100"),
        (lambda e: e.write_bytes(content()[:20]), EngineRefusal.TRUNCATED, "is no engine"),
        (lambda e: e.write_bytes(b"ONNX" * 25), EngineRefusal.NOT_AN_ENGINE, "is no engine of TensorRT for RTX"),
        (describe(size_bytes=99), EngineRefusal.TRUNCATED, "its description says 99"),
        (lambda e: e.write_bytes(content()[:-1] + b"x"), EngineRefusal.ALTERED, "not the one"),
        (describe(runtime_version="1.7.2.0"), EngineRefusal.ALTERED, "not the one"),
        (describe(source_sha256="6" * 64), EngineRefusal.OTHER_SOURCE, "from the graph 666666666666, not from 5555"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(
    engine: Path, spoil: Callable[[Path], object], refusal: EngineRefusal, sentence: str
) -> None:
    """Missing, foreign, cut, altered, or made from another graph: each has its own reason."""
    spoil(engine)
    with pytest.raises(EngineFileError, match=sentence) as refused:
        checked_engine(engine, SOURCE, HOST)
    assert refused.value.refusal is refusal
    assert refused.value.way_forward


@pytest.mark.parametrize(
    ("host", "refusal", "sentence"),
    [
        (EngineHost((), "8.9"), EngineRefusal.NO_RUNTIME, "which is not installed"),
        (EngineHost((("tensorrt-rtx", "1.8"),), "8.9"), EngineRefusal.OTHER_RUNTIME, "installed is 1.8"),
        (dataclasses.replace(HOST, compute_capability=None), EngineRefusal.NO_GPU, "8.6 or 8.9, but this machine has"),
        (dataclasses.replace(HOST, compute_capability="7.5"), EngineRefusal.OTHER_GPU, "this one has 7.5"),
    ],
)
def test_a_machine_that_cannot_run_it_says_why(
    engine: Path, host: EngineHost, refusal: EngineRefusal, sentence: str
) -> None:
    """No runtime, another version of it, no GPU, another GPU: each has its own reason."""
    with pytest.raises(EngineFileError, match=sentence) as refused:
        checked_engine(engine, SOURCE, host)
    assert refused.value.refusal is refusal


def test_an_engine_is_replaced_whole(engine: Path) -> None:
    """Writing again leaves the new engine with its own description."""
    data = content((1, 8, 0, 1))
    metadata = dataclasses.replace(
        engine_metadata(engine), runtime_version="1.8.0.1", sha256=hashlib.sha256(data).hexdigest()
    )
    write_engine(engine, memoryview(data), metadata)
    assert checked_engine(engine, SOURCE, EngineHost((("tensorrt-rtx", "1.8.0.1"),), "8.6"))[0] == metadata
