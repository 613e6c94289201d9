"""mmdet's ways in torchvision's classes: each rests on an inside of the library that is held here."""

import copy
import inspect
import math

import torch
from tests.detectors.scenes import small_fcos, small_retinanet
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection._utils import BoxCoder

from selfdet.detectors._torchvision import anchors_of, decoded, head_outputs
from selfdet.detectors._torchvision_mmdet import MMDetFCOS, MMDetRetinaNet


def test_the_library_hands_outputs_by_level_to_what_is_replaced():
    for kind in (RetinaNet, FCOS):
        names = list(inspect.signature(kind.postprocess_detections).parameters)
        assert names == ["self", "head_outputs", "anchors", "image_shapes"]
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    assert list(inspect.signature(coder.decode_single).parameters) == ["rel_codes", "boxes"]
    assert math.isclose(coder.bbox_xform_clip, -math.log(16 / 1000))


def test_boxes_are_no_more_smaller_than_larger_than_their_anchors():
    net = small_retinanet(mmdet={}).net
    assert isinstance(net, MMDetRetinaNet)
    boxes = decoded(net, torch.tensor([[0.0, 0, -9, 9], [0, 0, -1, 1]]), torch.tensor([[0.0, 0, 16, 16]] * 2))
    sides = boxes[:, 2:] - boxes[:, :2]
    expected = torch.tensor([[0.256, 1000.0], [16 / math.e, 16 * math.e]])
    torch.testing.assert_close(sides, expected, rtol=1e-3, atol=1e-3)


def test_boxes_without_area_are_left_out_and_the_best_come_first():
    net = small_retinanet(num_classes=2, mmdet={}).net
    logits = torch.tensor([[[2.0, -9], [1, -9], [-9, 3]]])
    # The second stands outside of the image.
    anchors = torch.tensor([[0.0, 0, 8, 8], [40, 0, 48, 8], [0, 0, 8, 8]])
    outputs = {"cls_logits": [logits], "bbox_regression": [torch.zeros(1, 3, 4)]}
    (found,) = net.postprocess_detections(outputs, [[anchors]], [(32, 32)])
    assert found["labels"].tolist() == [1, 0]
    assert found["boxes"].tolist() == [[0, 0, 8, 8]] * 2
    torch.testing.assert_close(found["scores"], torch.tensor([3.0, 2.0]).sigmoid())


def test_fcos_learns_from_the_centres_of_cells_and_begins_with_boxes_of_three_strides():
    for form in ({}, {"norm_on_bbox": True}):
        net = small_fcos(mmdet=form, seed=1).net
        assert isinstance(net, MMDetFCOS)
        nn.init.constant_(net.head.regression_head.bbox_reg.bias, 3.0 if form else math.log(24))
        nn.init.zeros_(net.head.regression_head.bbox_reg.weight)
        levels = [torch.randn(2, 64, 16 >> level, 16 >> level) for level in range(5)]
        anchors = anchors_of(net, torch.zeros(2, 3, 128, 128), [(128, 128)] * 2, levels)[0]
        assert anchors[:2].tolist() == [[0, 0, 8, 8], [8, 0, 16, 8]]
        found = head_outputs(net, levels)["bbox_regression"]
        torch.testing.assert_close(found, torch.full_like(found, 3.0))


def test_a_copy_has_its_own_tower_and_what_stands_on_it():
    head = small_fcos(mmdet={}).net.head
    copied = copy.deepcopy(head)
    assert copied.regression_head.tower is copied.classification_head.conv
    assert copied.regression_head.tower is not head.classification_head.conv
    levels = [torch.randn(1, 64, 4, 4)]
    assert torch.equal(head.regression_head(levels)[1], head(levels)["bbox_ctrness"])
