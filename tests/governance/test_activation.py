"""Activation: golden cases that come out as measured, and every way in which they do not."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from appliance.domain.errors import GateError, UnknownModelError
from appliance.domain.manifest import VerifiedPack
from appliance.governance.activation import activate, dice_of
from appliance.governance.serving import serve_best
from appliance.inference.runner import PackRunner
from appliance.packs.open import open_pack
from tests.fakes.tiny_pack import TinyPack, bright_picture, rewritten, tiny_pack
from tests.fakes.two_precisions import two_precisions
from tests.fakes.watched_runtime import Outputs, WatchedRuntime


@pytest.fixture
def pack(tmp_path: Path) -> TinyPack:
    """A good pack."""
    return tiny_pack(tmp_path)


def opened(pack: TinyPack) -> VerifiedPack:
    """Open with the pack's own key."""
    return open_pack(pack.folder, [pack.keys.public], allow_unvalidated=True)


def with_array(pack: TinyPack, name: str, array: NDArray[Any] | None) -> VerifiedPack:
    """The pack with one golden array replaced, or left out."""
    file = pack.folder / "golden" / "cases.safetensors"
    arrays = {key: value for key, value in load_file(file).items() if key != name}
    save_file(arrays if array is None else arrays | {name: array}, file)
    return opened(rewritten(pack))


def test_a_good_pack_is_active_and_says_how_close_it_came(pack: TinyPack) -> None:
    """Scores and masks of every task are compared; the report has the worst of each."""
    verified = opened(pack)
    with PackRunner([verified], 1) as runner:
        report = activate(verified, runner)
    assert (report.cases, report.worst_mask_dice) == (1, 1.0)
    assert report.worst_score_difference < 1e-5
    assert report.provenance.pack_digest == pack.manifest.digest


@pytest.mark.parametrize(
    ("name", "array", "sentence"),
    [
        (
            "fp32/adult-triage/score",
            np.array([[0.9]], np.float32),
            r"adult-triage at fp32 .*'bright centre'.*by 0\.100",
        ),
        ("fp32/adult-triage/score", np.array([[np.nan]], np.float32), "differs by nan"),
        ("fp32/guard/distance", np.array([[5]], np.float32), r"distance is 9\.22, recorded was 5"),
        ("fp32/lungs/mask", np.zeros((1, 1, 16, 16), np.uint8), r"Dice 0\.000, needed is 0\.98"),
        ("fp32/lungs/mask", np.zeros((1, 1, 8, 8), np.uint8), r"shape \[1, 16, 16\], recorded was \[1, 8, 8\]"),
        ("fp32/lungs/mask", np.zeros((2, 1, 16, 16), np.uint8), "has no fp32/lungs/mask for its 1 cases"),
        ("fp32/guard/score", None, "has no fp32/guard/score"),
        ("inputs", None, "can't be read"),
        ("inputs", np.zeros((1, 1, 8, 8), np.uint8), r"not uint8 \[1, 1, 512, 512\]"),
        ("inputs", np.zeros((1, 1, 512, 512), np.float32), "are float32"),
    ],
)
def test_a_pack_that_does_not_reproduce_is_refused(
    pack: TinyPack, name: str, array: NDArray[Any] | None, sentence: str
) -> None:
    """The error names the task, the precision, the case, and by how much it is off."""
    verified = with_array(pack, name, array)
    with PackRunner([verified], 1) as runner, pytest.raises(GateError, match=sentence):
        activate(verified, runner)


def test_a_small_difference_is_tolerated(pack: TinyPack) -> None:
    """Another processor may round differently, within what the pack allows."""
    verified = with_array(pack, "fp32/adult-triage/score", np.array([[0.97]], np.float32))
    with PackRunner([verified], 1) as runner:
        assert 0.02 < activate(verified, runner).worst_score_difference < 0.05


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"cases": [], "tolerance": {"score_abs": 1, "mask_dice": 0}}'])
def test_golden_cases_that_cannot_be_read_refuse(pack: TinyPack, content: str) -> None:
    """A pack without usable golden cases can't show that it works here."""
    (pack.folder / "golden" / "cases.json").write_text(content)
    verified = opened(rewritten(pack))
    with PackRunner([verified], 1) as runner, pytest.raises(GateError, match="chest-xray"):
        activate(verified, runner)


def test_missing_golden_cases_refuse(pack: TinyPack) -> None:
    """No golden cases, no activation."""
    (pack.folder / "golden" / "cases.safetensors").unlink()
    verified = opened(rewritten(pack))
    with PackRunner([verified], 1) as runner, pytest.raises(GateError, match="can't be read"):
        activate(verified, runner)


def test_a_runner_that_does_not_serve_the_pack_refuses(pack: TinyPack, tmp_path: Path) -> None:
    """A golden case that can't be asked, or that another pack answers, is no proof."""
    verified = opened(pack)
    with PackRunner((), 1) as runner, pytest.raises(GateError, match="can't be replayed"):
        activate(verified, runner)
    other = opened(tiny_pack(tmp_path / "other", release=2))
    with PackRunner([other], 1) as runner, pytest.raises(GateError, match="was answered by the pack"):
        activate(verified, runner)
    without = dataclasses.replace(verified, manifest=dataclasses.replace(verified.manifest, tasks=()))
    with PackRunner((), 1) as runner, pytest.raises(GateError, match="has no task"):
        activate(without, runner)


def test_dice_counts_common_pixels_twice() -> None:
    """Equal masks have 1, disjoint ones 0, two empty ones agree."""
    left, right = np.array([True, True, False, False]), np.array([False, True, True, False])
    assert [dice_of(left, left), dice_of(left, right), dice_of(left, ~left)] == [1.0, 0.5, 0.0]
    assert dice_of(left & False, right & False) == 1.0


def test_the_preferred_precision_serves_where_it_is_right(pack: TinyPack) -> None:
    """Nothing is rejected on a machine that computes INT8 as it was measured."""
    verified = opened(two_precisions(pack))
    with PackRunner((), 1) as runner:
        serving = serve_best(verified, runner)
    assert (serving.report.provenance.precision, serving.rejected) == ("int8", ())


def test_a_precision_that_is_wrong_here_gives_way_to_the_next(pack: TinyPack) -> None:
    """A processor that saturates INT8 serves FP32, and the reason is kept."""

    def saturate(title: str, outputs: Outputs) -> Outputs:
        return {name: array * 0 for name, array in outputs.items()} if "int8" in title else outputs

    verified = opened(two_precisions(pack))
    with PackRunner((), runtimes=[WatchedRuntime(saturate)]) as runner:
        serving = serve_best(verified, runner)
        assert runner.infer("chest-xray.guard", bright_picture()).provenance.precision == "fp32"
    assert serving.report.provenance.precision == "fp32"
    assert [rejection.precision for rejection in serving.rejected] == ["int8"]
    assert "at int8" in serving.rejected[0].reason


def test_a_pack_that_is_wrong_in_every_precision_does_not_stay_loaded(pack: TinyPack) -> None:
    """After the last rejection nothing of the pack answers."""
    verified = opened(two_precisions(pack))

    def wrong(_: str, outputs: Outputs) -> Outputs:
        return {name: array * 0 for name, array in outputs.items()}

    with PackRunner((), runtimes=[WatchedRuntime(wrong)]) as runner:
        with pytest.raises(GateError, match="at fp32"):
            serve_best(verified, runner)
        with pytest.raises(UnknownModelError):
            runner.infer("chest-xray.guard", bright_picture())
