"""A frozen network runs faster without its batch norms and says the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from selfdet.models.backbones import build_backbone
from selfdet.models.folding import Folding, folded


def used(net: nn.Module) -> None:
    """Give batch norms statistics and weights that do something."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -1, 1)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050"])
def test_the_maps_are_equal_and_no_batch_norm_is_left(name: str) -> None:
    backbone = build_backbone(name)
    used(backbone.net)
    backbone.train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    images = torch.randn(2, 3, 64, 96)
    faster = folded(backbone.maps, backbone.net, images[:1])
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in faster.modules())
    assert not any(parameter.requires_grad for parameter in faster.parameters())
    assert backbone.training
    assert all(value.equal(before[key]) for key, value in backbone.state_dict().items())
    backbone.eval()
    for wanted, given in zip(backbone(images).values(), backbone.maps(faster, images).values()):
        torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


def test_a_network_without_batch_norm_is_left_as_it_is() -> None:
    backbone = build_backbone("convnext_atto")
    assert folded(backbone.maps, backbone.net, torch.randn(1, 3, 64, 64)) is backbone.net


class Branching(nn.Module):
    """Its convolution's output is used twice, once without the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.conv(x)
        return {"0": y + self.norm(y)}


def test_what_would_not_be_equal_is_not_folded() -> None:
    net = Branching()
    used(net)
    assert folded(lambda net, x: net(x), net, torch.randn(1, 3, 8, 8)) is net


def test_the_copy_is_kept_until_the_weights_change_or_somebody_watches() -> None:
    backbone, images, folding = build_backbone("resnet18").eval(), torch.randn(1, 3, 64, 64), Folding()

    def faster() -> nn.Module:
        return folding.of(backbone.maps, backbone.net, images)

    first = faster()
    assert first is not backbone.net
    assert faster() is first
    with torch.no_grad():
        backbone.net.conv1.weight.mul_(2)
    second = faster()
    assert second is not first
    assert second.conv1.weight.equal(2 * first.conv1.weight)
    backbone.net.layer1.register_forward_hook(lambda *_: None)
    assert faster() is backbone.net
