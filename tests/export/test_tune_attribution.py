"""What decisions hang on is measured on the labelled images of `tune`."""

from pathlib import Path

import numpy as np
import pytest

from appliance.domain.errors import InputError
from export.data import Sample
from export.images import ImageSet
from export.recipe import recipe_from_toml
from export.tasks import ADULT, PAEDIATRIC
from export.tune_attribution import attribution_on_tune


@pytest.mark.parametrize(("task", "said"), [(ADULT, "adult_min_age_years = 18"), (PAEDIATRIC, "tune_percent")])
def test_a_task_without_a_labelled_image_is_named(task: str, said: str, tiny_recipe: Path) -> None:
    """A labelled image of somebody under age is none of an adult, and none of the paediatric task."""
    sample = Sample("a.png", "", "nih", "tune", "1", "F", 17.0, "PA", adult=1, paediatric=None)
    data = ImageSet((sample,), np.zeros((1, 512, 512), np.uint8), np.zeros((0, 64, 64), np.uint8), (-1,))
    with pytest.raises(InputError, match=rf"task {task} has no labelled image among the patients of `tune`") as refused:
        attribution_on_tune(recipe_from_toml(tiny_recipe), data, {}, [task])
    assert said in refused.value.way_forward
