"""Small students of each family out of timm, as if they had learned something, for the tests that export them."""

import torch
from torch import nn

from export.efficientvit import EfficientVitDesign
from export.encoder import Design
from export.repvit import RepVitDesign
from export.student import MultiTaskNet

SMALL: dict[str, Design] = {
    "repvit": RepVitDesign("small", (16, 24, 32, 48), (1, 1, 2, 1), shrink=4),
    "efficientvit": EfficientVitDesign("small", 8, (16, 16, 32, 32), (1, 2, 1, 1), 48, 40, shrink=4),
}


def seasoned(design: Design) -> MultiTaskNet:
    """A net in evaluation mode whose normalisations do something: fresh ones hide what is wrong behind them."""
    torch.manual_seed(0)
    net = MultiTaskNet(design)
    for module in net.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.1)
    return net.eval()
