"""Contracts: what we use of torchvision beyond its documented interface is still as we know it."""

import inspect

import pytest
import torch
from tests.detectors.scenes import SMALL, sample, small_fcos, small_retinanet
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead

from selfdet.detectors._torchvision import (
    ExactAnchorGenerator,
    FCOSHead,
    UnroundedAnchorGenerator,
    anchors_of,
    assignment,
    box_losses,
    box_outputs,
    class_logits,
    decoded,
    head_outputs,
    net_detections,
)

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
    for kind in (FCOS, RetinaNet):
        names = list(inspect.signature(kind.postprocess_detections).parameters)
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
    found = net_detections(detector.net, tensor, [(128, 128)], levels, outputs)[0]
    reach = distance * 4
    assert found["boxes"][0].tolist() == [64 - reach, 64 - reach, 64 + reach, 64 + reach]


def test_losses_come_from_compute_loss_whose_head_is_told_the_assignment():
    """What `assignment` and `box_losses` rest on."""
    assert list(inspect.signature(RetinaNet.compute_loss).parameters) == ["self", "targets", "head_outputs", "anchors"]
    for head in (FCOSHead, RetinaNetHead):
        names = list(inspect.signature(head.compute_loss).parameters)
        assert names == ["self", "targets", "head_outputs", "anchors", "matched_idxs"]


@pytest.mark.parametrize("key", list(SMALL))
def test_the_assignment_is_what_the_head_is_told_in_training(key, monkeypatch):
    detector = SMALL[key]()
    batch = detector.prepare([sample(128, 128, [[8, 8, 56, 56], [40, 50, 120, 110]], [0, 1]), sample(128, 128)])
    told = []
    original = type(detector.net.head).compute_loss

    def listen(self, targets, head_outputs, anchors, matched_idxs):
        told.extend(matched_idxs)
        return original(self, targets, head_outputs, anchors, matched_idxs)

    monkeypatch.setattr(type(detector.net.head), "compute_loss", listen)
    detector.losses(batch)
    levels = list(detector.features(batch).values())
    anchors = anchors_of(detector.net, batch.tensor, batch.sizes, levels)
    found = assignment(detector.net, anchors, levels, batch.targets)
    assert found.equal(torch.stack(told))
    assert found.max() == 1
    assert (found[1] == -1).all()


@pytest.mark.parametrize("key", list(SMALL))
def test_box_losses_of_the_networks_own_assignment_are_its_losses_whatever_the_ids(key):
    detector = SMALL[key]()
    batch = detector.prepare([sample(128, 128, [[8, 8, 56, 56], [40, 50, 120, 110]], [0, 1])])
    levels = list(detector.features(batch).values())
    anchors = anchors_of(detector.net, batch.tensor, batch.sizes, levels)
    matched = assignment(detector.net, anchors, levels, batch.targets)
    expected = detector.losses(batch)
    expected.pop("classification")
    batch.targets[0]["ids"] += 1000  # beyond any class
    del batch.targets[0]["labels"]
    found = box_losses(detector.net, box_outputs(detector.net, levels), batch.targets, anchors, matched)
    assert set(found) == set(expected)
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[name])


@pytest.mark.parametrize("key", list(SMALL))
def test_the_heads_branches_can_be_run_apart(key):
    net = SMALL[key]().net
    levels = [torch.randn(2, 64, 8, 8), torch.randn(2, 64, 4, 4)]
    expected = head_outputs(net, levels)
    features = [net.head.classification_head.conv(level) for level in levels]
    assert class_logits(net, features).equal(expected.pop("cls_logits"))
    found = box_outputs(net, levels)
    assert list(found) == list(expected)
    assert all(found[name].equal(value) for name, value in expected.items())


@pytest.mark.parametrize("key", list(SMALL))
def test_boxes_are_decoded_as_in_detections(key):
    net = SMALL[key]().net
    anchors = torch.tensor([[8.0, 8, 24, 24], [0, 0, 32, 64]])
    boxes = decoded(net, torch.full((2, 4), 0.5), anchors)
    if key == "fcos":  # distances in anchor sides from the middle
        expected = torch.tensor([[8.0, 8, 24, 24], [0, 0, 32, 64]])
    else:  # the middle moves by half a side, the sides grow by √e
        middle, half = torch.tensor([[24.0, 24], [32, 64]]), torch.tensor([[8.0, 8], [16, 32]]) * 1.6487213
        expected = torch.cat([middle - half, middle + half], 1)
    torch.testing.assert_close(boxes, expected)


def test_retinanets_nine_anchors_of_a_cell_come_ratio_by_ratio():
    net = small_retinanet().net
    levels = [torch.zeros(1, 64, 2**power, 2**power) for power in (4, 3, 2, 1, 0)]
    found = anchors_of(net, torch.zeros(1, 3, 128, 128), [(128, 128)], levels)[0]
    assert len(found) == 9 * (256 + 64 + 16 + 4 + 1)
    sides = (found[:9, 2:] - found[:9, :2]).tolist()
    assert sides[:3] == [[22, 12], [28, 14], [36, 18]]  # half as high as wide
    assert sides[3:6] == [[16, 16], [20, 20], [24, 24]]  # 25, its half rounded
    assert found[9:18].equal(found[:9] + torch.tensor([8.0, 0, 8, 0]))


def test_anchors_that_are_not_rounded_keep_their_areas_and_strides():
    generator = UnroundedAnchorGenerator(((32,), (64,)), (0.5, 1.0, 2.0), [8, 16])
    maps = [torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 2, 2)]
    (found,) = generator(ImageList(torch.zeros(1, 3, 24, 32), [(24, 32)]), maps)
    sides = found[:, 2:] - found[:, :2]
    torch.testing.assert_close(sides.prod(1), torch.cat([torch.full((36,), 32.0**2), torch.full((12,), 64.0**2)]))
    torch.testing.assert_close(sides[:3, 1] / sides[:3, 0], torch.tensor([0.5, 1.0, 2.0]))
    # The second map is 2 cells high in an image of 24 px: the library would take 12 for its stride.
    centres = ((found[:, 2:] + found[:, :2]) / 2)[36::3]
    torch.testing.assert_close(centres, torch.tensor([[0.0, 0.0], [16.0, 0.0], [0.0, 16.0], [16.0, 16.0]]))
