"""What only RetinaNet has: anchors in torchvision's shapes, towers of any length under its names."""

import pytest
import torch
from tests.detectors.scenes import small_retinanet
from torchvision.models.detection.retinanet import RetinaNetHead, _default_anchorgen

from selfdet.detectors.retinanet import anchor_sides

STRIDES = [8, 16, 32, 64, 128]


def test_anchors_are_torchvisions_at_its_usual_sizes_and_half_as_large_for_small_images():
    assert anchor_sides(800, STRIDES) == anchor_sides(1333, STRIDES) == _default_anchorgen().sizes
    halves = [sides[0] for sides in anchor_sides(320, STRIDES)]
    assert halves == [16, 32, 64, 128, 256]
    assert tuple(small_retinanet().config()["aspect_ratios"]) == _default_anchorgen().aspect_ratios[0]


def test_a_tower_of_four_has_the_names_and_start_of_torchvisions():
    ours, theirs = small_retinanet(head_convs=4).net.head, RetinaNetHead(64, 9, 3)
    assert {name: v.shape for name, v in ours.state_dict().items()} == {
        name: v.shape for name, v in theirs.state_dict().items()
    }


@pytest.mark.parametrize("convs", [1, 2, 6])
def test_towers_have_the_length_asked_for(convs):
    torch.manual_seed(0)
    head = small_retinanet(head_convs=convs).net.head
    for branch in (head.classification_head, head.regression_head):
        assert len([name for name in branch.state_dict() if name.startswith("conv.") and "weight" in name]) == convs
        assert len(list(branch.conv)) == convs
