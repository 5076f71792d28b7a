"""Pictures are looked at before a head is trained on them."""

from pathlib import Path

import numpy as np
import pytest

from appliance.domain.errors import InputError
from export.task_head.features import Pictures, refuse_twins
from export.task_head.labels import Case

LABELS = Path("labels.csv")


def pictures(*splits: str) -> Pictures:
    """Different pictures, each of a patient of its own, in these splits."""
    images = np.random.default_rng(0).integers(0, 256, (len(splits), 8, 8), np.uint8)
    cases = tuple(Case((f"{n}.png",), f"p{n}", split, n % 2, "") for n, split in enumerate(splits))
    return Pictures(cases, tuple((n,) for n in range(len(cases))), images, np.zeros((0, 1, 1), np.uint8))


@pytest.mark.parametrize("splits", [("train", "val"), ("tune", "val"), ("train", "tune")])
def test_one_picture_in_two_splits_is_refused(splits: tuple[str, str]) -> None:
    """Under another file name and another patient it is the same picture still; nobody is named."""
    leaking = pictures(*splits)
    refuse_twins(LABELS, leaking)
    leaking.images[1] = leaking.images[0]
    with pytest.raises(InputError, match=r"1 pictures are in more than one split.*: 0\.png = 1\.png\.") as caught:
        refuse_twins(LABELS, leaking)
    assert "p0" not in str(caught.value)


def test_copies_within_a_split_and_empty_pictures_do_not_leak() -> None:
    """A picture twice in one split tells nobody anything, nor does one of a single grey."""
    some = pictures("train", "train", "val", "train")
    some.images[1] = some.images[0]
    some.images[2:] = 7
    refuse_twins(LABELS, some)
