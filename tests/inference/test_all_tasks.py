"""The model `all`: one question, one pass of the encoder, and the heads of the outputs that were asked for."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.domain.errors import InferenceError, InvalidTensorError, UnknownModelError
from appliance.domain.manifest import VerifiedPack
from appliance.domain.ports import Answer
from appliance.inference.asking import Wanted
from appliance.inference.loaded_pack import LoadedPack
from appliance.inference.question import Question, content_digests
from appliance.inference.runner import PackRunner
from appliance.inference.tensors import Array
from tests.fakes.tiny_pack import bright_picture, tiny_verified
from tests.fakes.watched_runtime import Outputs, Watch, WatchedRuntime

OUTPUTS = ("lungs.mask", "adult-triage.score", "paediatric-pneumonia.score", "guard.score", "guard.distance")
SINGLE = ("lungs", "adult-triage", "paediatric-pneumonia", "guard", "embedding")
PICTURES = [np.clip(bright_picture().astype(np.int16) - 40 * step, 0, 255).astype(np.uint8) for step in range(4)]

Asked = tuple[str, tuple[str, ...], list[int]]
"""A model, the outputs that are wanted of it, and the pictures that it is asked about."""

a_question = st.tuples(
    st.one_of(
        st.tuples(st.just("all"), st.lists(st.sampled_from(OUTPUTS), unique=True).map(tuple)),
        st.tuples(st.sampled_from(SINGLE), st.just(())),
    ),
    st.lists(st.integers(0, len(PICTURES) - 1), min_size=1, max_size=3),
).map(lambda drawn: (*drawn[0], drawn[1]))


def loaded(pack: VerifiedPack, watch: Watch) -> LoadedPack:
    """A pack whose engines a test can see into."""
    return LoadedPack(pack, (pack.manifest.variants[0], WatchedRuntime(watch)))


def untouched(_: str, outputs: Outputs) -> Outputs:
    """Nothing to see."""
    return outputs


def told(pack: LoadedPack, batch: Sequence[Asked]) -> list[Answer | BaseException]:
    """What each question of one batch is told."""
    told: dict[int, Answer | BaseException] = {}
    questions = []
    for number, (model, outputs, pictures) in enumerate(batch):
        images = np.concatenate([PICTURES[each] for each in pictures])

        def tell(answer: Answer | None, error: BaseException | None, number: int = number) -> None:
            assert number not in told
            told[number] = answer or error  # type: ignore[assignment]

        questions.append((Question(pack.sources(model, outputs), images, tell), content_digests(images)))
    pack.answer(questions)
    return [told[number] for number in range(len(batch))]


def answers(pack: LoadedPack, batch: Sequence[Asked]) -> list[Mapping[str, Array]]:
    """The outputs of each question of one batch, all of which are answered."""
    found = told(pack, batch)
    assert all(isinstance(each, Answer) for each in found)
    return [each.outputs for each in found if isinstance(each, Answer)]


@pytest.fixture(scope="module")
def alone(pack: VerifiedPack) -> Mapping[str, list[Array]]:
    """What each task says of each picture when it is asked alone: by `<task>.<output>`, [1, …] a picture."""
    reference = loaded(pack, untouched)
    found: dict[str, list[Array]] = {}
    for task in SINGLE:
        for number in range(len(PICTURES)):
            for name, array in answers(reference, [(task, (), [number])])[0].items():
                found.setdefault(f"{task}.{name}", []).append(array)
    reference.close()
    return found


@pytest.fixture
def fresh(pack: VerifiedPack) -> Iterator[LoadedPack]:
    """A pack that remembers no picture."""
    made = loaded(pack, untouched)
    yield made
    made.close()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(a_question, min_size=1, max_size=6))
def test_all_says_bit_for_bit_what_each_task_says_alone(
    fresh: LoadedPack, alone: Mapping[str, list[Array]], batch: list[Asked]
) -> None:
    """Whatever outputs are wanted, and whatever else is answered in the same batch."""
    for (model, wanted, pictures), outputs in zip(batch, answers(fresh, batch), strict=True):
        prefix = "" if model == "all" else f"{model}."
        assert tuple(outputs) == (wanted or tuple(spec.name for spec in fresh.outputs(model)))
        for name, array in outputs.items():
            expected = np.concatenate([alone[prefix + name][each] for each in pictures])
            assert (array.dtype, array.tobytes()) == (expected.dtype, expected.tobytes())


def runs_of(pack: VerifiedPack, batch: Sequence[Asked]) -> dict[str, list[int]]:
    """How many images each graph saw in each of its runs while a batch was answered."""
    runs: dict[str, list[int]] = {}

    def watch(title: str, outputs: Outputs) -> Outputs:
        name = title.split(maxsplit=1)[0].removeprefix("tasks/").removesuffix("/head.onnx").removesuffix(".onnx")
        runs.setdefault(name, []).append(len(next(iter(outputs.values()))))
        return outputs

    watched = loaded(pack, watch)
    answers(watched, batch)
    watched.close()
    return runs


def test_heads_whose_outputs_nobody_wants_do_not_run(pack: VerifiedPack) -> None:
    """The outputs that are asked for choose the heads; two of one head are one run of it."""
    assert runs_of(pack, [("all", ("guard.score",), [0])]) == {"encoder": [1], "guard": [1]}
    wanted = ("guard.distance", "lungs.mask", "guard.score")
    assert runs_of(pack, [("all", wanted, [0])]) == {"encoder": [1], "guard": [1], "lungs": [1]}
    assert runs_of(pack, [("all", (), [0])]) == {"encoder": [1], **{task: [1] for task in SINGLE[:-1]}}


def test_a_head_sees_all_its_images_of_a_batch_at_once(pack: VerifiedPack) -> None:
    """Whichever model asked: one run of the encoder, then one of each head."""
    batch: list[Asked] = [
        ("all", ("guard.score", "lungs.mask"), [0]),
        ("all", (), [1]),
        ("lungs", (), [2]),
        ("embedding", (), [3]),
    ]
    assert runs_of(pack, batch) == {
        "encoder": [4],
        "guard": [2],
        "lungs": [3],
        "adult-triage": [1],
        "paediatric-pneumonia": [1],
    }


@pytest.mark.parametrize("sentence", ["mask of chest-xray.lungs is not finite", "tasks/lungs/head.onnx"])
def test_one_tasks_fault_spoils_the_whole_answer_and_nobody_elses(pack: VerifiedPack, sentence: str) -> None:
    """A part of what was asked for would be a finding out of nothing: the error says which task it was.

    Whether the task's output can't be used or the whole batch fails with the image that it can't bear.
    """
    threshold = 0.5

    def spoil(title: str, outputs: Outputs) -> Outputs:
        if not title.startswith("tasks/lungs"):
            return outputs
        dark = outputs["mask"].max(axis=(1, 2, 3), keepdims=True) < threshold
        if dark.any() and "head" in sentence:
            raise InferenceError(f"{title} did not run.")
        return {"mask": np.where(dark, np.float32("nan"), outputs["mask"])}

    watched = loaded(pack, spoil)
    batch: list[Asked] = [
        ("all", (), [0]),
        ("all", (), [3]),
        ("all", ("guard.score", "adult-triage.score"), [3]),
        ("guard", (), [3]),
        ("lungs", (), [3]),
    ]
    whole, spoilt, without, guard, lungs = told(watched, batch)
    watched.close()
    assert isinstance(whole, Answer)
    assert tuple(whole.outputs) == OUTPUTS
    for error in (spoilt, lungs):
        assert isinstance(error, InferenceError)
        assert sentence in str(error)
    assert isinstance(without, Answer)
    assert isinstance(guard, Answer)


def test_after_one_tasks_fault_no_other_head_runs_for_the_question(pack: VerifiedPack) -> None:
    """Its answer is lost already, so the processor is left to others."""
    ran: list[str] = []

    def fail(title: str, outputs: Outputs) -> Outputs:
        ran.append(title.split(maxsplit=1)[0])
        if title.startswith("tasks/lungs"):
            raise InferenceError(f"{title} did not run.")
        return outputs

    watched = loaded(pack, fail)
    (error,) = told(watched, [("all", (), [0])])
    watched.close()
    assert isinstance(error, InferenceError)
    assert "tasks/lungs/head.onnx" in str(error)
    assert ran == ["encoder.onnx", "tasks/lungs/head.onnx"]


def test_a_pack_says_of_its_own_models_only_where_outputs_come_from(fresh: LoadedPack) -> None:
    """Whoever asks past the runner is told what there is."""
    with pytest.raises(UnknownModelError, match=r"no task spleen.*It has lungs, .*embedding, all"):
        fresh.sources("spleen")


def test_all_counts_as_one_request_for_each_image(pack: VerifiedPack) -> None:
    """Statistics and the memory of features know it as they know any other model."""
    with PackRunner([pack], 1) as runner:
        runner.infer("chest-xray.all", PICTURES[0])
        runner.infer("chest-xray.guard", PICTURES[0])
        runner.infer("chest-xray.all", PICTURES[0])
    counted = runner.statistics.snapshot()
    assert set(counted) == {"chest-xray.all", "chest-xray.guard"}
    found = counted["chest-xray.all"]
    assert (found.images, found.batches, found.success.count, found.fail.count) == (2, 2, 2, 0)
    assert (found.cache_miss.count, found.cache_hit.count) == (1, 1)
    assert counted["chest-xray.guard"].cache_hit.count == 1


@pytest.mark.parametrize("output", ["guard", "score", "guard.mask", "spleen.mask", "embedding.embedding", ""])
def test_an_output_that_no_task_has_is_refused(pack: VerifiedPack, output: str) -> None:
    """The refusal lists what there is; so it is for one task's own outputs."""
    with PackRunner([pack], 1) as runner:
        tensors = {"image": PICTURES[0]}
        with pytest.raises(InvalidTensorError, match=r"chest-xray\.all has no output .*lungs\.mask.*guard\.distance"):
            runner.run(Wanted("chest-xray.all", "", ("guard.score", output)), tensors)
        with pytest.raises(InvalidTensorError, match=r"chest-xray\.lungs has no output distance.*It has mask"):
            runner.run(Wanted("chest-xray.lungs", "", ("distance",)), tensors)


@pytest.mark.parametrize(
    ("served", "shadow", "failures"), [(slice(1, None), slice(None), 0), (slice(None), slice(1, None), 1)]
)
def test_a_shadow_answers_for_the_tasks_that_serve(
    pack: VerifiedPack, tmp_path: Path, served: slice, shadow: slice, failures: int
) -> None:
    """A task that the shadow adds makes no difference; one that it lacks is a question that it did not answer."""
    ours, other = (
        dataclasses.replace(each, manifest=dataclasses.replace(each.manifest, tasks=each.manifest.tasks[tasks]))
        for each, tasks in ((pack, served), (tiny_verified(tmp_path, release=2), shadow))
    )
    with PackRunner([ours], 1) as runner, PackRunner([other], 1) as trial:
        names = runner.describe("chest-xray.all").outputs
        runner.adopt_shadow(trial, "chest-xray")
        answer = runner.infer("chest-xray.all", PICTURES[0])
        assert tuple(answer.outputs) == tuple(spec.name for spec in names)
    found = runner.differences.snapshot()["chest-xray.all"]  # whoever waited was answered before the runner closed
    assert (found.pairs, found.failures, found.largest) == (1 - failures, failures, 0.0)
