"""The published ImageNet weights fit our own module, key by key and value by value."""

import pytest
import torch

from appliance.domain.errors import InputError
from export.pretrained import encoder_state_from_published, load_published, published_weights
from export.student import ARCHITECTURES, Encoder


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
def test_every_published_key_has_its_place(name: str) -> None:
    """Each published tensor but the classifier's fills one of ours, and none of ours stays empty."""
    encoder = Encoder(ARCHITECTURES[name])
    load_published(encoder)
    published = torch.load(published_weights(name), map_location="cpu", weights_only=True)
    assert len(encoder.state_dict()) == len(published) - 2
    assert torch.equal(encoder.head.weight, published["_conv_head.weight"])


def test_the_folded_stem_equals_three_like_channels() -> None:
    """One grey channel through the folded stem gives what three equal channels give through the published one."""
    published = torch.load(published_weights("efficientnet_lite0"), map_location="cpu", weights_only=True)
    folded = encoder_state_from_published(published)["stem.weight"]
    grey = torch.randn(1, 1, 16, 16)
    three = torch.nn.functional.conv2d(grey.expand(-1, 3, -1, -1), published["_conv_stem.weight"], stride=2)
    assert torch.allclose(torch.nn.functional.conv2d(grey, folded, stride=2), three, atol=1e-5)


def test_an_unknown_key_is_refused() -> None:
    """Weights of another layout are not half loaded."""
    with pytest.raises(InputError, match="_surprise"):
        encoder_state_from_published({"_surprise.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="resnet"):
        published_weights("resnet")
