"""The dictionary of detectors: each entry builds, trains and predicts over any backbone with stages."""

import pytest
import torch
from tests.detectors.scenes import sample

from selfdet.detectors.zoo import DETECTORS
from selfdet.models.backbones import build_backbone


@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0", "convnext_atto"])
@pytest.mark.parametrize("key", list(DETECTORS))
def test_a_detector_trains_and_predicts_over_the_backbone(key, backbone):
    detector = DETECTORS[key](2, build_backbone(backbone), fpn_channels=64, head_convs=1, image_size=64)
    assert detector.config()["detector"] == key
    samples = [sample(64, 64, [[8, 8, 50, 50]], [1]), sample(48, 64)]
    total = sum(detector.losses(detector.prepare(samples)).values())
    total.backward()
    assert torch.isfinite(total)
    assert [set(found) for found in detector.predict(samples)] == [{"boxes", "scores", "labels"}] * 2
