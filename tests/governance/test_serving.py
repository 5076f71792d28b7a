"""How a pack is served is chosen by what was measured on this machine, and remembered."""

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from appliance.domain.errors import EngineFileError, GateError, InferenceError
from appliance.domain.manifest import EncoderVariant, VerifiedPack
from appliance.governance.measured import Measured, machine_name
from appliance.governance.serving import serve_best
from appliance.inference.latency import batching_from
from appliance.inference.runner import Choice, PackRunner
from appliance.inference.scheduler import Batching
from appliance.inference.traffic import Traffic
from appliance.packs.open import open_pack
from tests.fakes.tiny_pack import bright_picture, tiny_pack
from tests.fakes.two_precisions import two_precisions
from tests.fakes.watched_runtime import Outputs, WatchedRuntime


@pytest.fixture
def pack(tmp_path: Path) -> VerifiedPack:
    """A pack with an INT8 variant, preferred by its manifest, and an FP32 one; both give the same."""
    again = two_precisions(tiny_pack(tmp_path / "packs"))
    return open_pack(again.folder, [again.keys.public], allow_unvalidated=True)


def remembered(file: Path, pack: VerifiedPack, runner: PackRunner, seconds: dict[str, float]) -> Measured:
    """Measurements of both precisions, as an earlier start left them."""
    measured = Measured(file, "this machine")
    for choice in runner.choices(pack):
        measured.keep(pack.manifest.digest, choice, Batching(2, 0.001, seconds[choice.precision]))
    return measured


@pytest.mark.parametrize(
    ("seconds", "precision", "reason"),
    [
        ({"int8": 0.004, "fp32": 0.010}, "int8", ""),
        ({"int8": 0.010, "fp32": 0.004}, "fp32", "int8 on onnxruntime-cpu takes 10.0 ms an image, fp32"),
        ({"int8": 0.0101, "fp32": 0.010}, "int8", ""),
    ],
    ids=["faster", "slower", "the same"],
)
def test_the_fastest_that_is_right_serves(
    pack: VerifiedPack, tmp_path: Path, seconds: dict[str, float], precision: str, reason: str
) -> None:
    """A quantised encoder that is slower here gives way, with both times as the reason; noise decides nothing."""
    with PackRunner((), 1) as runner:
        serving = serve_best(pack, runner, remembered(tmp_path / "m.json", pack, runner, seconds))
        assert runner.infer("chest-xray.guard", bright_picture()).provenance.precision == precision
    assert " ".join(each.reason for each in serving.rejected).startswith(reason)
    assert len(serving.rejected) == (1 if reason else 0)


def test_a_measurement_that_cannot_be_kept_refuses_nothing(pack: VerifiedPack, tmp_path: Path) -> None:
    """On a full disk a pack is measured, and served; the next start measures it again."""
    file = tmp_path / "gone" / "measured.json"
    with PackRunner((), 1) as runner:
        assert serve_best(pack, runner, Measured(file, "m")).report.cases
    file.mkdir(parents=True)
    with PackRunner((), 1) as runner:
        assert serve_best(pack, runner, Measured(file, "m")).report.cases
    assert [each.name for each in file.parent.iterdir()] == ["measured.json"]


def test_what_is_measured_is_remembered(pack: VerifiedPack, tmp_path: Path) -> None:
    """The first start measures every way to serve, the next one none; another machine measures again."""
    runs: list[str] = []

    def watch(title: str, outputs: Outputs) -> Outputs:
        runs.append(title)
        return outputs

    file = tmp_path / "m.json"
    counts = []
    for machine in ("one", "one", "two"):
        runs.clear()
        with PackRunner((), runtimes=[WatchedRuntime(watch)]) as runner:
            serve_best(pack, runner, Measured(file, machine))
        counts.append(sum(title.startswith("encoder") for title in runs))
    assert counts[0] == counts[2] > counts[1]
    assert len(json.loads(file.read_text())) == 4


def test_what_was_measured_beside_others_is_not_remembered(pack: VerifiedPack, tmp_path: Path) -> None:
    """A time that was taken while somebody was served decides now, and is taken again at the next start."""
    traffic, served = Traffic(), [True]

    def watch(_: str, outputs: Outputs) -> Outputs:
        with traffic.batch() if served else nullcontext():
            return outputs

    measured = Measured(tmp_path / "m.json", "this machine", traffic)
    for remembered in (0, 2):
        with PackRunner((), runtimes=[WatchedRuntime(watch)]) as runner:
            assert serve_best(pack, runner, measured).report.cases
            assert (
                sum(measured.find(pack.manifest.digest, each) is not None for each in runner.choices(pack))
                == remembered
            )
        served.clear()
    with traffic.batch():
        still = traffic.from_here()
    assert not still()


def test_a_damaged_memory_is_made_anew(pack: VerifiedPack, tmp_path: Path) -> None:
    """The file is a cache: whatever is in it, the daemon starts."""
    file = tmp_path / "m.json"
    choice = Choice("fp32", "onnxruntime-cpu", "1")
    for content in ("", "[]", '{"a": 1}', "not json"):
        file.write_text(content)
        assert Measured(file, "m").find(pack.manifest.digest, choice) is None
    Measured(file, "m").keep(pack.manifest.digest, choice, Batching(4, 0.002, 0.003))
    assert Measured(file, "m").find(pack.manifest.digest, choice) == Batching(4, 0.002, 0.003)


class RefusingRuntime(WatchedRuntime):
    """A runtime whose engines are all refused, as a GPU's on a machine without one."""

    @property
    def name(self) -> str:
        """As a GPU's."""
        return "tensorrt-rtx"

    def load(self, graph: bytes, *, title: str, precision: str) -> object:  # type: ignore[override]
        """Refuse."""
        raise EngineFileError(f"The engine of {title} needs a GPU.", "ONNX Runtime serves.")


def test_a_refused_engine_gives_way_to_onnx_runtime(pack: VerifiedPack, tmp_path: Path) -> None:
    """The pack is served all the same, and the reason is kept; with nothing else it is the pack's own."""
    variants = (EncoderVariant("fp32", "encoder.onnx", ("tensorrt-rtx", "onnxruntime-cpu")),)
    manifest = dataclasses.replace(pack.manifest, variants=variants)
    for_gpu = VerifiedPack(manifest, pack.folder)
    refusing, working = RefusingRuntime(lambda _, outputs: outputs), WatchedRuntime(lambda _, outputs: outputs)
    with PackRunner((), runtimes=[refusing, working]) as runner:
        for measured in (None, Measured(tmp_path / "m.json", "m")):
            serving = serve_best(for_gpu, runner, measured)
            assert [each.runtime for each in serving.rejected] == ["tensorrt-rtx"]
            assert "needs a GPU" in serving.rejected[0].reason
            runner.remove("chest-xray")
    with PackRunner((), runtimes=[refusing]) as runner, pytest.raises(EngineFileError, match="needs a GPU"):
        serve_best(for_gpu, runner)


def test_a_way_that_has_no_memory_for_a_batch_gives_way(pack: VerifiedPack, tmp_path: Path) -> None:
    """Golden cases hold one by one, batches do not fit: another way serves; with no other the pack is refused."""

    class Small(WatchedRuntime):
        """A device with room for one image."""

        name = "onnxruntime-cuda"

    def small(title: str, outputs: Outputs) -> Outputs:
        if title.startswith("encoder") and len(next(iter(outputs.values()))) > 1:
            raise InferenceError(f"ONNX Runtime failed on {title}: out of memory.", "See the log.")
        return outputs

    variants = (EncoderVariant("fp32", "encoder.onnx", ("onnxruntime-cuda", "onnxruntime-cpu")),)
    for_gpu = VerifiedPack(dataclasses.replace(pack.manifest, variants=variants), pack.folder)
    both = [Small(small), WatchedRuntime(lambda _, outputs: outputs)]
    with PackRunner((), runtimes=both) as runner:
        serving = serve_best(for_gpu, runner, Measured(tmp_path / "m.json", "m"))
        assert runner.describe("chest-xray.guard").runtime == "onnxruntime-cpu"
    assert "out of memory" in serving.rejected[0].reason
    with PackRunner((), runtimes=both[:1]) as runner:
        with pytest.raises(GateError, match="out of memory"):
            serve_best(for_gpu, runner, Measured(tmp_path / "m.json", "m"))
        assert runner.served() == ()


def test_batches_are_as_large_as_they_pay() -> None:
    """A larger batch is preferred only where an image in it is clearly cheaper; the delay is a part of its time."""
    dear = {1: 0.010, 2: 0.019, 4: 0.037, 8: 0.073}
    assert batching_from(dear) == Batching(1, 0.0, 0.010)
    assert batching_from(dear, lanes=4) == Batching(1, 0.0, 0.0025)
    cheaper = batching_from({1: 0.010, 2: 0.012, 4: 0.016, 8: 0.031})
    assert (cheaper.preferred, cheaper.image_seconds) == (4, pytest.approx(0.004))
    assert cheaper.max_delay_seconds == pytest.approx(0.0016)


def test_a_machine_is_known_by_processor_and_threads(tmp_path: Path) -> None:
    """Where the processor can't be read its architecture stands in."""
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: AMD EPYC\n")
    assert machine_name(2, file) == "AMD EPYC with 2 threads"
    assert machine_name(2, tmp_path / "none").endswith(" with 2 threads")
