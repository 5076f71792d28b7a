"""Teachers that answer together."""

import torch

from export.ensemble import Ensemble
from export.student import ARCHITECTURES, MultiTaskNet


def test_teachers_of_several_resolutions_answer_in_the_coarsest() -> None:
    """Logits are means, embeddings lie side by side, and finer lungs are averaged down."""
    torch.manual_seed(1)
    coarse, fine = (MultiTaskNet(ARCHITECTURES[name]).eval() for name in ("narrow", "efficientnet_lite0"))
    both = Ensemble([coarse, fine]).eval()
    with torch.no_grad():
        image = torch.randint(0, 256, (1, 1, 512, 512), dtype=torch.uint8)
        one, other, said = coarse(image), fine(image), both(image)
    assert other.lungs.shape[-1] == 4 * one.lungs.shape[-1]
    torch.testing.assert_close(said.lungs, (one.lungs + torch.nn.functional.avg_pool2d(other.lungs, 4)) / 2)
    torch.testing.assert_close(said.adult, (one.adult + other.adult) / 2)
    torch.testing.assert_close(said.paediatric, (one.paediatric + other.paediatric) / 2)
    assert said.embedding.shape == (1, both.width)
