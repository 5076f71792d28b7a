"""What everybody who implements `Inference` must do, in process and over a socket alike.

A suite passes by subclassing `InferenceContract` with the fixtures `pack` (the tiny pack, verified) and `inference`.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from appliance.domain.errors import InvalidTensorError, UnknownModelError
from appliance.domain.findings import ModelProvenance
from appliance.domain.manifest import VerifiedPack
from appliance.domain.ports import Inference
from tests.fakes.tiny_pack import FEATURES, black_picture, bright_picture


class InferenceContract:
    """Asks for the tiny pack's models."""

    def test_every_task_and_the_embedding_are_served(self, inference: Inference, pack: VerifiedPack) -> None:
        """Models are named `<pack>.<task>`, sorted, with the outputs of the manifest."""
        assert {model.name: model.outputs for model in inference.served()} == {
            "chest-xray.adult-triage": ("score",),
            "chest-xray.all": (
                "lungs.mask",
                "adult-triage.score",
                "paediatric-pneumonia.score",
                "guard.score",
                "guard.distance",
            ),
            "chest-xray.embedding": ("embedding",),
            "chest-xray.guard": ("score", "distance"),
            "chest-xray.lungs": ("mask",),
            "chest-xray.paediatric-pneumonia": ("score",),
        }

    def test_every_answer_says_which_pack_computed_it(self, inference: Inference, pack: VerifiedPack) -> None:
        """Pack, release, digests and precision come with the listing and with each answer."""
        expected = ModelProvenance("chest-xray", 1, pack.manifest.digest, pack.manifest.base_digest, "fp32")
        assert {model.provenance for model in inference.served()} == {expected}
        assert inference.infer("chest-xray.guard", bright_picture()).provenance == expected

    def test_a_score_is_a_probability(self, inference: Inference) -> None:
        """A bright picture is positive, a black one is not."""
        bright = inference.infer("chest-xray.adult-triage", bright_picture()).outputs["score"]
        black = inference.infer("chest-xray.adult-triage", black_picture()).outputs["score"]
        assert (bright.shape, bright.dtype) == ((1, 1), np.float32)
        assert black[0, 0] < 0.5 < bright[0, 0]

    def test_a_mask_has_the_shape_of_the_manifest(self, inference: Inference) -> None:
        """A mask is a probability per cell, inside bright and outside dark."""
        mask = inference.infer("chest-xray.lungs", bright_picture()).outputs["mask"]
        assert (mask.shape, mask.dtype) == ((1, 1, *FEATURES[1:]), np.float32)
        assert mask[0, 0, 0, 0] < 0.5 < mask[0, 0, 8, 8]

    @pytest.mark.parametrize("model", ["chest-xray", "chest-xray.spleen", "other.lungs", "", "."])
    def test_an_unknown_model_is_refused_with_what_is_served(self, inference: Inference, model: str) -> None:
        """The refusal lists the models that there are."""
        with pytest.raises(UnknownModelError, match=r"Served: chest-xray\.adult-triage"):
            inference.infer(model, bright_picture())

    @pytest.mark.parametrize(
        "image",
        [
            bright_picture()[0],
            bright_picture()[:, :, :100],
            bright_picture().astype(np.float32),
            np.zeros((0, 1, 512, 512), np.uint8),
            np.zeros((9, 1, 512, 512), np.uint8),
        ],
        ids=["rank", "size", "datatype", "empty batch", "large batch"],
    )
    def test_another_image_than_the_model_takes_is_refused(self, inference: Inference, image: np.ndarray) -> None:
        """A wrong rank, size, datatype or batch is refused, and the next request is answered."""
        with pytest.raises(InvalidTensorError, match="image"):
            inference.infer("chest-xray.guard", image)
        assert inference.infer("chest-xray.guard", bright_picture())

    def test_several_tasks_may_be_asked_at_once(self, inference: Inference) -> None:
        """Concurrent questions about one image get the answers of single ones."""
        models = [model.name for model in inference.served()] * 4
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda model: inference.infer(model, bright_picture()), models))
        for model, answer in zip(models, answers, strict=True):
            for name, array in inference.infer(model, bright_picture()).outputs.items():
                np.testing.assert_array_equal(answer.outputs[name], array)
