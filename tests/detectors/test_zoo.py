"""The dictionary of detectors: each entry builds, trains and predicts over any backbone with stages."""

from typing import get_args

import pytest
import torch
from tests.detectors.scenes import SMALL, sample

from selfdet.detectors.zoo import DETECTORS, DetectorKey
from selfdet.models.backbones import build_backbone

NARROW = {"head_convs": 1}  # of the one-stage detectors


@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0", "convnext_atto"])
@pytest.mark.parametrize("key", list(DETECTORS))
def test_a_detector_trains_and_predicts_over_the_backbone(key, backbone):
    options = {"layers": 1} if key.endswith("detr") else {"fpn_channels": 64, **(NARROW if key in SMALL else {})}
    detector = DETECTORS[key](2, build_backbone(backbone), image_size=64, **options)
    assert detector.config()["detector"] == key
    samples = [sample(64, 64, [[8, 8, 50, 50]], [1]), sample(48, 64)]
    total = sum(detector.losses(detector.prepare(samples)).values())
    total.backward()
    assert torch.isfinite(total)
    kinds = {"boxes", "scores", "labels"} | ({"masks"} if key == "mask_rcnn" else set())
    assert [set(found) for found in detector.predict(samples)] == [kinds] * 2


def test_the_command_line_knows_all_of_them():
    assert list(get_args(DetectorKey)) == list(DETECTORS)
