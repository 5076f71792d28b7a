"""What `verify` refuses before it looks at how good a model is."""

import dataclasses

import numpy as np
import pytest

from appliance.domain.manifest import Validation
from export.gate import FAIL, PASS, Rule
from export.predictions import Predictions
from export.verify import Measured, _integrity_rules, _report

IMAGES = 4
OUTPUTS = ("adult", "paediatric", "guard_score", "guard_distance")


def finite() -> Predictions:
    """Predictions of a few images without a drawn mask."""
    unknown = (np.full(IMAGES, np.nan) for _ in range(3))
    return Predictions(np.arange(IMAGES), *(np.full(IMAGES, 0.5) for _ in OUTPUTS), *unknown)


def rules_of(fp16: Predictions) -> list[Rule]:
    """The rules of three precisions, of which one said this."""
    wrong = (np.zeros(0), np.zeros(0))
    said = {"int8": finite(), "fp32": finite(), "fp16": fp16}
    return _integrity_rules({name: Measured(each, {}, wrong) for name, each in said.items()})


def test_images_without_a_mask_are_no_fault() -> None:
    """Dice and distances are not known where nothing was drawn: that is no output that is not finite."""
    assert all(rule.passed for rule in rules_of(finite()))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite_refuses_the_pack(output: str, value: float) -> None:
    """One output of one image at one precision is enough, whatever the pack claims, and the precision is named."""
    values = getattr(finite(), output).copy()
    values[1] = value
    rules = rules_of(dataclasses.replace(finite(), **{output: values}))
    report = _report(Validation.UNTRAINED, rules, {}, ["int8", "fp32"])
    assert report["verdict"] == FAIL
    assert [row for row in report["rules"] if row[3] == "no"] == [
        ["share of finite outputs, fp16", "≥ 1", "0.9375", "no"]
    ]
    assert _report(Validation.UNTRAINED, rules_of(finite()), {}, ["fp32"])["verdict"] == PASS
