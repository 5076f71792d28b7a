"""An input held against what the model takes."""

import numpy as np
import pytest

from appliance.domain.errors import InvalidTensorError
from appliance.domain.manifest import TensorSpec
from appliance.inference.tensors import check_input

REAL = TensorSpec("x", "FP32", (-1, 2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_input_of_no_number_is_refused(value: float) -> None:
    """One NaN or infinity among good numbers, in the datatype and shape that the model takes."""
    with pytest.raises(InvalidTensorError, match=r"x holds NaN or infinity. Expected is x FP32 \[-1, 2\]"):
        check_input(REAL, np.array([[0, value]], np.float32))


def test_a_large_number_is_a_number() -> None:
    """What overflows when it is multiplied is no infinity."""
    check_input(REAL, np.full((1, 2), 3e38, np.float32))
