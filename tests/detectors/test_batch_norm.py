"""Frozen batch norm is told to the CPU in another way, and gives the same values and gradients."""

import pytest
import torch
from tests.detectors.scenes import sample
from torch.nn.modules.batchnorm import _BatchNorm

from selfdet.detectors.zoo import DETECTORS
from selfdet.models.backbones import build_backbone

BOXES = [[8, 8, 60, 90], [30, 20, 120, 100]]


def losses_and_gradients(backbone: str, native: bool, half: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    detector = DETECTORS["fcos"](
        2, build_backbone(backbone), fpn_channels=64, image_size=128, head_convs=1, batch_norm="frozen"
    )
    for module in detector.net.modules():
        if isinstance(module, _BatchNorm):
            for value in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(value, 0.5, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            if native:
                vars(module).pop("forward", None)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        losses = detector.losses(detector.prepare([sample(128, 128, BOXES, [0, 1])]))
    sum(losses.values()).backward()
    gradients = {name: value.grad for name, value in detector.net.named_parameters() if value.grad is not None}
    return {**{name: value.detach() for name, value in losses.items()}, **gradients}


@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_frozen_batch_norm_gives_the_values_and_gradients_of_torchs_own(backbone: str, half: bool) -> None:
    ours, torchs = (losses_and_gradients(backbone, native, half) for native in (False, True))
    assert ours.keys() == torchs.keys()
    assert len(ours) > 50
    for name, value in torchs.items():
        scale = max(float(value.abs().max()), 1e-6)
        assert float((ours[name] - value).abs().max()) <= (0.0 if half else 1e-4) * scale, name
