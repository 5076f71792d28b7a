"""The runner: the contract of inference in process, and what only its owner sees."""

import dataclasses
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from appliance.domain.errors import (
    InferenceError,
    InferenceUnavailableError,
    InvalidTensorError,
    PackContentError,
    UnknownModelError,
)
from appliance.domain.manifest import EncoderVariant, TensorSpec, VerifiedPack
from appliance.inference.asking import Wanted
from appliance.inference.metrics import metrics_text
from appliance.inference.question import content_digests
from appliance.inference.runner import PackRunner
from appliance.inference.scheduler import QueueLimits
from tests.contracts.inference_contract import InferenceContract
from tests.fakes.tiny_pack import bright_picture, tiny_verified
from tests.fakes.watched_runtime import Outputs, WatchedRuntime


class TestPackRunner(InferenceContract):
    """The suite, in process."""

    @pytest.fixture
    def inference(self, pack: VerifiedPack) -> Iterator[PackRunner]:
        """One thread."""
        with PackRunner([pack], 1) as runner:
            yield runner


def watched(pack: VerifiedPack, watch: Callable[[str, Outputs], Outputs]) -> PackRunner:
    """A runner whose engines a test can see into."""
    return PackRunner([pack], runtimes=[WatchedRuntime(watch)])


def test_tasks_on_one_image_share_one_encoder_pass(pack: VerifiedPack) -> None:
    """Five models on one image, at once and again later, run the encoder once; another image runs it again."""
    runs: list[str] = []

    def watch(title: str, outputs: Outputs) -> Outputs:
        runs.append(title)
        return outputs

    with watched(pack, watch) as runner:
        models = [model.name for model in runner.served()] * 2
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda model: runner.infer(model, bright_picture()), models))
        encoder = "encoder.onnx of the pack chest-xray"
        assert runs.count(encoder) == 1
        runner.infer("chest-xray.lungs", bright_picture() + 1)
        assert runs.count(encoder) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("graph", ["encoder.onnx", "tasks/lungs/head.onnx"])
def test_an_output_that_is_not_finite_is_never_a_result(pack: VerifiedPack, value: float, graph: str) -> None:
    """NaN and infinity, in features or in an answer, end in an error."""

    def spoil(title: str, outputs: Outputs) -> Outputs:
        return (
            {name: np.full_like(array, value) for name, array in outputs.items()}
            if title.startswith(graph)
            else outputs
        )

    with watched(pack, spoil) as runner, pytest.raises(InferenceError, match="not finite"):
        runner.infer("chest-xray.lungs", bright_picture())


def test_an_output_of_another_shape_is_never_a_result(pack: VerifiedPack) -> None:
    """What the manifest does not describe is not handed on."""

    def cut(_: str, outputs: Outputs) -> Outputs:
        return {name: array[..., :1] if name == "mask" else array for name, array in outputs.items()}

    with watched(pack, cut) as runner, pytest.raises(InferenceError, match=r"mask .* not mask FP32 \[-1, 1, 16, 16\]"):
        runner.infer("chest-xray.lungs", bright_picture())


def test_one_graph_runs_at_a_time(pack: VerifiedPack) -> None:
    """All graphs share the same CPUs, so they take turns."""
    inside, most, lock = 0, 0, threading.Lock()

    def watch(_: str, outputs: Outputs) -> Outputs:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.002)
        with lock:
            inside -= 1
        return outputs

    with watched(pack, watch) as runner, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda level: runner.infer("chest-xray.guard", bright_picture() - level), range(8)))
    assert most == 1


def test_packs_come_and_go_without_the_others_noticing(pack: VerifiedPack, tmp_path: Path) -> None:
    """A pack can be added and removed while others serve; removing what is not there is no error."""
    other = tiny_verified(tmp_path, name="other", release=7)
    with PackRunner((), 1) as runner:
        assert runner.served() == ()
        assert runner.largest_image == 0
        assert runner.add(pack).precision == "fp32"
        assert runner.add(other).release == 7
        assert runner.largest_image == 512 * 512
        assert runner.infer("other.guard", bright_picture()).provenance.release == 7
        runner.remove("other")
        runner.remove("other")
        with pytest.raises(UnknownModelError):
            runner.infer("other.guard", bright_picture())
        assert runner.infer("chest-xray.guard", bright_picture())


def test_two_releases_of_one_pack_do_not_serve_side_by_side(pack: VerifiedPack) -> None:
    """A model's name stands for one pack."""
    with PackRunner([pack], 1) as runner, pytest.raises(PackContentError, match=r"Release 1 .* loaded already"):
        runner.add(pack)


def test_a_version_that_is_not_served_is_refused(pack: VerifiedPack) -> None:
    """A request may name the release; another release is not found."""
    with PackRunner([pack], 1) as runner:
        assert runner.run(Wanted("chest-xray.guard", "1"), {"image": bright_picture()})
        with pytest.raises(UnknownModelError, match="Version 2 of the model"):
            runner.run(Wanted("chest-xray.guard", "2"), {"image": bright_picture()})
        with pytest.raises(InvalidTensorError, match=r"brings no input.*image UINT8"):
            runner.run(Wanted("chest-xray.guard", "1"), {})


def test_the_first_variant_for_this_machine_serves(pack: VerifiedPack) -> None:
    """Variants are tried in the manifest's order; those for other runtimes are passed over."""
    variants = (
        EncoderVariant("fp16", "encoder.onnx", ("tensorrt",)),
        EncoderVariant("int8", "encoder.onnx", ("onnxruntime-cpu",)),
        EncoderVariant("fp32", "encoder.onnx", ("onnxruntime-cpu",)),
    )
    several = dataclasses.replace(pack, manifest=dataclasses.replace(pack.manifest, variants=variants))
    with PackRunner((), 1) as runner:
        assert runner.add(several).precision == "int8"
        runner.remove("chest-xray")
        choices = runner.choices(several)
        assert [(each.precision, each.runtime) for each in choices] == [
            ("int8", "onnxruntime-cpu"),
            ("fp32", "onnxruntime-cpu"),
        ]
        assert runner.add(several, choices[1]).precision == "fp32"
        runner.remove("chest-xray")
        with pytest.raises(PackContentError, match="no encoder for onnxruntime-cpu"):
            runner.add(several, dataclasses.replace(choices[0], precision="fp16"))


def test_a_pack_holds_few_threads_beside_its_encoder(pack: VerifiedPack) -> None:
    """On a machine of sixteen CPUs the encoder computes on all of them; the heads wait with one thread more each."""
    tasks = Path("/proc/self/task")
    before = len(list(tasks.iterdir()))
    with PackRunner([pack], 16) as runner:
        held = len(list(tasks.iterdir())) - before
        assert runner.infer("chest-xray.lungs", bright_picture())
    encoder, heads, lane = 15, len(pack.manifest.tasks), 1
    assert encoder + lane <= held <= encoder + lane + heads


def test_a_file_changed_after_verification_is_not_loaded(pack: VerifiedPack, tmp_path: Path) -> None:
    """What was verified is what runs: each graph is hashed again as it is read."""
    copy = VerifiedPack(pack.manifest, tmp_path / "copy")
    shutil.copytree(pack.folder, copy.folder)
    head = copy.folder / "tasks" / "guard" / "head.onnx"
    head.write_bytes(head.read_bytes() + b"\0")
    with pytest.raises(PackContentError, match=r"tasks/guard/head\.onnx .* changed after it was verified"):
        PackRunner([copy], 1)
    head.unlink()
    with pytest.raises(PackContentError, match="can't be read"):
        PackRunner([copy], 1)


def test_a_graph_with_other_tensors_than_the_manifest_says_is_not_loaded(pack: VerifiedPack) -> None:
    """Names, datatypes and shapes are compared when a pack is loaded, not when a patient's image comes."""
    outputs = (pack.manifest.encoder_outputs[0], TensorSpec("features", "FP32", (-1, 4, 32, 32)))
    other = dataclasses.replace(pack, manifest=dataclasses.replace(pack.manifest, encoder_outputs=outputs))
    with pytest.raises(PackContentError, match=r"encoder\.onnx has the outputs"):
        PackRunner([other], 1)
    triage = dataclasses.replace(pack.manifest.tasks[1], inputs=("embedding", "features"))
    tasks = (triage, *pack.manifest.tasks[2:])
    other = dataclasses.replace(pack, manifest=dataclasses.replace(pack.manifest, tasks=tasks))
    with pytest.raises(PackContentError, match=r"head\.onnx has the inputs embedding"):
        PackRunner([other], 1)


def test_metadata_names_tensors_and_runtime(pack: VerifiedPack) -> None:
    """A description has what a client needs to make a request."""
    with PackRunner([pack], 0) as runner:
        described = runner.describe("chest-xray.lungs")
    assert described.inputs == (TensorSpec("image", "UINT8", (-1, 1, 512, 512)),)
    assert described.outputs == (TensorSpec("mask", "FP32", (-1, 1, 16, 16)),)
    assert described.runtime == "onnxruntime-cpu"


def test_a_fault_of_our_own_ends_a_batch_and_not_the_lane(pack: VerifiedPack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong while a batch is answered, each caller is told, and the next question is answered."""
    with PackRunner([pack], 1) as runner:
        with monkeypatch.context() as patched:
            patched.setattr(runner.statistics, "batch", lambda *_: 1 / 0)
            assert runner.infer("chest-xray.guard", bright_picture())
            patched.setattr("appliance.inference.loaded_pack.LoadedPack.answer", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                runner.infer("chest-xray.guard", bright_picture())
        assert runner.infer("chest-xray.guard", bright_picture())


def test_a_bad_image_fails_alone(pack: VerifiedPack) -> None:
    """Of several images in one batch only the one that can't be judged fails; the others' callers get their answers."""
    poison = bright_picture() - 1

    def spoil(title: str, outputs: Outputs) -> Outputs:
        if not title.startswith("encoder"):
            return outputs
        level = float(poison.mean() / 255)
        means = outputs["embedding"][:, :1]
        wrong = np.where(np.abs(means - level) < 1e-4, np.float32("nan"), outputs["embedding"]).astype(np.float32)
        return {**outputs, "embedding": wrong}

    with watched(pack, spoil) as runner, ThreadPoolExecutor(6) as pool:
        pictures = [poison, *(bright_picture() - level for level in range(20, 25))]
        asked = [pool.submit(runner.infer, "chest-xray.guard", picture) for picture in pictures]
        assert isinstance(asked[0].exception(20), InferenceError)
        assert [each.exception(20) for each in asked[1:]] == [None] * 5


def test_a_closed_runner_answers_nobody(pack: VerifiedPack) -> None:
    """After close a question is refused as unavailable, as long as anybody still asks."""
    runner = PackRunner([pack], 1)
    runner.infer("chest-xray.guard", bright_picture())
    runner._lanes.close()
    with pytest.raises(InferenceUnavailableError, match="is stopping"):
        runner.infer("chest-xray.guard", bright_picture())
    runner.close()


def test_a_pack_that_is_loading_is_asked_for_again_later(pack: VerifiedPack) -> None:
    """A caller that comes too early is told so, not that there is no such model; one that serves goes on serving."""
    with PackRunner((), 1) as runner, runner.loading("chest-xray"):
        with pytest.raises(InferenceUnavailableError, match="chest-xray is loading"):
            runner.infer("chest-xray.guard", bright_picture())
        with pytest.raises(UnknownModelError):
            runner.infer("other.guard", bright_picture())
        runner.add(pack)
        assert runner.infer("chest-xray.guard", bright_picture())


def test_a_shadow_is_compared_and_never_shown(pack: VerifiedPack, tmp_path: Path) -> None:
    """What a pack in shadow answers is counted with its distance; callers see the serving pack's answers only."""
    other = tiny_verified(tmp_path, release=2)

    def shift(title: str, outputs: Outputs) -> Outputs:
        return {name: array * 0.5 if name == "score" else array for name, array in outputs.items()}

    with PackRunner([pack], 1) as runner, PackRunner((), runtimes=[WatchedRuntime(shift)]) as trial:
        trial.add(other)
        runner.adopt_shadow(trial, "chest-xray")
        assert [each.release for each in runner.shadows()] == [2]
        answer = runner.infer("chest-xray.guard", bright_picture())
        assert answer.provenance.release == 1
        for _ in range(500):
            found = runner.differences.snapshot().get("chest-xray.guard")
            if found is not None and found.pairs:
                break
            threading.Event().wait(0.01)
        assert found is not None
        assert (found.pairs, found.failures) == (1, 0)
        score = float(answer.outputs["score"][0, 0])
        assert found.largest == pytest.approx(score / 2, rel=1e-3)
        runner.drop_shadow("chest-xray")
        runner.drop_shadow("chest-xray")
        assert runner.shadows() == ()
        assert "insite_shadow_pairs" in metrics_text(runner, None)


def test_a_shadow_never_takes_the_place_of_who_is_served(pack: VerifiedPack, tmp_path: Path) -> None:
    """With one place left in the queue the question that a caller waits for gets it, and its shadow goes without."""
    other = tiny_verified(tmp_path, release=2)
    running, go = threading.Event(), threading.Event()

    def hold(_: str, outputs: Outputs) -> Outputs:
        running.set()
        go.wait(20)
        return outputs

    limits = QueueLimits(images=2)
    with (
        PackRunner([pack], runtimes=[WatchedRuntime(hold)], limits=limits) as runner,
        PackRunner((), runtimes=[WatchedRuntime(lambda _, outputs: outputs)]) as trial,
        ThreadPoolExecutor(2) as pool,
    ):
        trial.add(other)
        runner.adopt_shadow(trial, "chest-xray")
        try:
            first = pool.submit(runner.infer, "chest-xray.guard", bright_picture())
            assert running.wait(20)
            for _ in range(2000):
                if runner.waiting_images == 1:  # the first one's shadow
                    break
                threading.Event().wait(0.01)
            second = pool.submit(runner.infer, "chest-xray.guard", bright_picture() - 1)
            while runner.waiting_images == 1 and not second.done():
                threading.Event().wait(0.01)
        finally:
            go.set()
        assert first.result(20).provenance.release == second.result(20).provenance.release == 1


def test_images_are_told_apart_by_every_pixel() -> None:
    """Equal images have one digest within this process, and one changed pixel makes another."""
    image = bright_picture()
    other = image.copy()
    other[0, 0, -1, -1] ^= 1
    first, second, third = content_digests(np.concatenate([image, other, image]))
    assert first == third
    assert first != second
