"""The load that the bench sends: as calls or in streams, to one model or to each in turn."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.inference.bench_load import COUNTER_BYTES, IN_STREAM, Found, Load, _Client, run_load
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.runner import PackRunner
from appliance.inference.server import InferenceServer
from appliance.inference.statistics import ModelCounts
from appliance.telemetry import logger_for
from tests.fakes.tiny_pack import tiny_verified


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[PackRunner]:
    """Two tasks of a tiny pack, served on `s.sock` in the test's folder."""
    with (
        PackRunner([tiny_verified(tmp_path / "packs")], 1) as runner,
        InferenceServer(runner, tmp_path / "s.sock", version="1", log=logger_for("test")),
    ):
        yield runner


def counted(runner: PackRunner, images: int) -> dict[str, ModelCounts]:
    """What was counted of each model, once all images are: a batch is counted when its callers have their answers."""
    ended = time.monotonic() + 10
    while sum(each.images for each in runner.statistics.snapshot().values()) < images and time.monotonic() < ended:
        time.sleep(0.01)
    return runner.statistics.snapshot()


def sent(folder: Path, *models: str, **changes: bool) -> Found:
    """What came of three rounds of two clients."""
    return asyncio.run(
        run_load(Load(f"unix://{folder}/s.sock", models, clients=2, count=3, **changes))  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_every_request_brings_an_image_of_its_own(
    runner: PackRunner, tmp_path: Path, *, stream: bool, shared: bool
) -> None:
    """Whichever way it goes: two clients, one round that is not counted and three that are, no features remembered."""
    found = sent(tmp_path, "chest-xray.embedding", stream=stream, shared=shared)
    assert (found.answers, len(found.milliseconds), found.failures) == (6, 6, {})
    counts = counted(runner, 8)["chest-xray.embedding"]
    assert (counts.images, counts.cache_hit.count, counts.cache_miss.count) == (8, 0, 8)


def test_a_request_is_what_the_protocol_serialises() -> None:
    """Put together from parts, it is to the byte what the message gives as a whole; only the counter goes on."""
    sender = _Client(Load("unix:///nowhere", ("a", "b"), output_name="y", rows=4, columns=300, priority=2), 3)
    first, second = sender.requests(), sender.requests()
    for one in first + second:
        assert oip.ModelInferRequest.FromString(one).SerializeToString(deterministic=True) == one
    a, b = (oip.ModelInferRequest.FromString(one) for one in first)
    assert (a.model_name, b.model_name) == ("a", "b")
    assert (list(a.inputs[0].shape), a.outputs[0].name, a.parameters["priority"].uint64_param) == (
        [1, 1, 4, 300],
        "y",
        2,
    )
    assert [len(each) for each in a.raw_input_contents] == [1200]
    assert a.raw_input_contents == b.raw_input_contents
    later = oip.ModelInferRequest.FromString(second[0]).raw_input_contents[0]
    assert later[COUNTER_BYTES:] == a.raw_input_contents[0][COUNTER_BYTES:]
    assert later[:COUNTER_BYTES] != a.raw_input_contents[0][:COUNTER_BYTES]


@pytest.mark.parametrize(("in_turn", "each", "known"), [(True, 4, 0), (False, 8, 8)])
def test_models_are_asked_in_turn_or_all_about_one_image(
    runner: PackRunner, tmp_path: Path, *, in_turn: bool, each: int, known: int
) -> None:
    """In turn each request has its own image, so that no model finds the features that another needed."""
    found = sent(tmp_path, "chest-xray.guard", "chest-xray.lungs", in_turn=in_turn, shared=True)
    assert (found.answers, found.failures) == (6, {})
    counts = counted(runner, 2 * each)
    assert [counts[f"chest-xray.{task}"].images for task in ("guard", "lungs")] == [each, each]
    assert sum(counts[f"chest-xray.{task}"].cache_hit.count for task in ("guard", "lungs")) == known


@pytest.mark.parametrize(("stream", "kind"), [(True, IN_STREAM), (False, "NOT_FOUND")])
def test_a_refused_request_is_no_answer(runner: PackRunner, tmp_path: Path, *, stream: bool, kind: str) -> None:
    """A stream goes on behind a refusal, and each refusal is counted."""
    del runner
    found = sent(tmp_path, "chest-xray.heart", stream=stream)
    assert (found.answers, found.failures) == (0, {kind: 6})
