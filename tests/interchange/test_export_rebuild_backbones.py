"""rebuild.py gives detectors over backbones that are no single network of a library with stages."""

import pytest
import torch
from tests.interchange.rebuilding import assert_same, noise, rebuilt, seen
from torch import nn

from selfdet.detectors.zoo import DETECTORS
from selfdet.models.backbones import build_backbone


def over(name, key="fcos", **options):
    """A small detector over a backbone, its scores spread."""
    torch.manual_seed(0)
    options = {"fpn_channels": 64, "image_size": 128, **({"head_convs": 1} if key == "fcos" else {}), **options}
    detector = DETECTORS[key](3, build_backbone(name), **options)
    with torch.no_grad():
        if key == "fcos":
            detector.net.head.classification_head.cls_logits.weight.normal_(std=0.3)
            detector.net.head.regression_head.bbox_reg.bias.fill_(2.0)
    return detector


@pytest.mark.parametrize("name", ["resnet18", pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow)])
def test_a_composite_backbone_is_composed_again(tmp_path, name):
    detector = over(f"cb-{name}")
    with torch.no_grad():
        for parameter in detector.backbone.net.assistant.parameters():
            parameter.mul_(1.1)
        for module in detector.backbone.net.connections.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.normal_()
    assert_same(rebuilt(seen(detector), tmp_path), detector, noise(150, 100), 128)


@pytest.mark.parametrize("key", ["fcos", pytest.param("faster_rcnn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_a_plain_transformer_has_its_pyramid_again(tmp_path, name, key):
    detector = over(name, key)
    net = rebuilt(seen(detector), tmp_path)
    for size in ((150, 100), (40, 128)):
        assert_same(net, detector, noise(*size), 128)
