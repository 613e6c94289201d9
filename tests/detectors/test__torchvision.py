"""Contracts: what we use of torchvision beyond its documented interface is still as we know it."""

import inspect

import pytest
import torch
from tests.detectors.scenes import sample, small_fcos
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from selfdet.detectors._torchvision import ExactAnchorGenerator, FCOSHead, fcos_detections

SIZES, RATIOS = ((4,), (8,)), ((1.0,), (1.0,))


def maps(dtype, size=512):
    return [torch.zeros(1, 1, size // stride, size // stride, dtype=dtype) for stride in (8, 16)]


def anchors(kind, dtype):
    return kind(SIZES, RATIOS)(ImageList(torch.zeros(1, 3, 512, 512), [(512, 512)]), maps(dtype))[0]


def test_anchor_generator_takes_its_type_from_the_maps_and_ours_stays_exact():
    expected = anchors(AnchorGenerator, torch.float32)
    assert torch.equal(anchors(ExactAnchorGenerator, torch.float32), expected)
    ours, theirs = (anchors(kind, torch.bfloat16) for kind in (ExactAnchorGenerator, AnchorGenerator))
    assert torch.equal(ours, expected)
    assert ours.dtype == torch.float32
    assert theirs.dtype == torch.bfloat16  # once this fails, ExactAnchorGenerator can go
    assert anchors(ExactAnchorGenerator, torch.float64).dtype == torch.float64


def test_anchors_are_ordered_by_level_then_row_then_column_and_centred_on_multiples_of_the_stride():
    first, second, below = anchors(ExactAnchorGenerator, torch.float32)[[0, 1, 64]]
    assert first.tolist() == [-2, -2, 2, 2]
    assert second.tolist() == [6, -2, 10, 2]
    assert below.tolist() == [-2, 6, 2, 10]
    assert anchors(ExactAnchorGenerator, torch.float32)[64 * 64].tolist() == [-4, -4, 4, 4]


def test_compute_loss_and_postprocess_take_what_we_give_them():
    names = list(inspect.signature(FCOS.compute_loss).parameters)
    assert names == ["self", "targets", "head_outputs", "anchors", "num_anchors_per_level"]
    names = list(inspect.signature(FCOS.postprocess_detections).parameters)
    assert names == ["self", "head_outputs", "anchors", "image_shapes"]


def test_the_head_gives_three_outputs_a_cell():
    outputs = FCOSHead(32, 1, 5, num_convs=2)([torch.zeros(2, 32, 4, 3), torch.zeros(2, 32, 2, 2)])
    shapes = {name: tuple(value.shape) for name, value in outputs.items()}
    assert shapes == {"cls_logits": (2, 16, 5), "bbox_regression": (2, 16, 4), "bbox_ctrness": (2, 16, 1)}


def test_settings_are_kept_under_the_names_we_read():
    net = small_fcos().net
    assert net.transform.size_divisible == 64
    assert list(net.transform.image_mean) == [0.485, 0.456, 0.406]
    assert list(net.transform.image_std) == [0.229, 0.224, 0.225]
    assert net.anchor_generator.sizes == ((4,), (8,), (16,), (32,), (64,))
    assert (net.center_sampling_radius, net.nms_thresh) == (3.0, 0.6)


def test_the_first_class_is_label_zero():
    detector = small_fcos(num_classes=2)
    head = detector.net.head.classification_head
    with torch.no_grad():
        head.cls_logits.weight.zero_()
        head.cls_logits.bias.copy_(torch.tensor([4.0, -20.0]))
    batch = detector.prepare([sample(64, 64, [[8, 8, 56, 56]], [0])])
    right = detector.losses(batch)["classification"]
    batch.targets[0]["labels"] += 1
    wrong = detector.losses(batch)["classification"]
    assert right < wrong
    assert (detector.predict([sample(64, 64)])[0]["labels"] == 0).all()


@pytest.mark.parametrize("distance", [1.0, 3.0])
def test_distances_are_decoded_in_anchor_sides(distance):
    detector = small_fcos(num_classes=1)
    tensor = torch.zeros(1, 3, 128, 128)
    cells = [16 * 16, 8 * 8, 4 * 4, 2 * 2, 1]
    levels = [torch.zeros(1, 1, int(count**0.5), int(count**0.5)) for count in cells]
    outputs = {
        "cls_logits": torch.full((1, sum(cells), 1), -9.0),
        "bbox_regression": torch.full((1, sum(cells), 4), distance),
        "bbox_ctrness": torch.full((1, sum(cells), 1), 9.0),
    }
    outputs["cls_logits"][0, 8 * 16 + 8] = 9.0  # finest level: row 8, column 8, so its centre is (64, 64)
    found = fcos_detections(detector.net, tensor, [(128, 128)], levels, outputs)[0]
    reach = distance * 4
    assert found["boxes"][0].tolist() == [64 - reach, 64 - reach, 64 + reach, 64 + reach]
