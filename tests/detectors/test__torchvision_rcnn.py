"""Contracts: what we use of torchvision's R-CNNs beyond their documented interface is still as we know it."""

import inspect

import pytest
import torch
from tests.detectors.rcnn_scenes import BOXES, random_maps, small_faster, small_mask
from tests.detectors.scenes import sample
from torchvision.models.detection import roi_heads
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign

from selfdet.detectors._torchvision_rcnn import (
    AlignedRoIAlign,
    ExactScaleRoIAlign,
    FastRCNNConvFCHead,
    TwoMLPHead,
    _tuned,
    box_features,
    box_regression_loss,
    class_losses,
    decoded_boxes,
    mask_loss,
    mask_probabilities,
    paste,
    roi_detections,
    roi_outputs,
    rpn_boxes,
    training_rois,
)
from selfdet.detectors.sampling import ObjectsFirst

SIZES = [(128, 128)]


def given(samples=None):
    detector = small_faster(num_classes=2)
    batch = detector.prepare([sample(128, 128, BOXES, [0, 1])] if samples is None else samples)
    return detector.net, batch, random_maps(batch)


def test_pooling_guesses_its_scales_once_from_the_first_batch_and_ours_is_told_them():
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    maps = {str(level): torch.randn(1, 1, 16 >> level, 16 >> level) for level in range(4)}
    theirs(maps, [torch.tensor([[1.0, 1, 20, 20]])], [(33, 33)])  # 33 px in a batch of 64 px
    assert theirs.scales[0] == 0.5  # once this fails, ExactScaleRoIAlign can go
    ours = ExactScaleRoIAlign([4, 8, 16, 32], 7)
    pooled = ours(maps, [torch.tensor([[1.0, 1, 20, 20]])], [(33, 33)])
    right = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    assert pooled.equal(right(maps, [torch.tensor([[1.0, 1, 20, 20]])], [(64, 64)]))
    assert ours.scales == right.scales == [0.25, 0.125, 0.0625, 0.03125]


@pytest.mark.parametrize(("side", "level"), [(55, 0), (57, 1), (113, 2), (225, 3), (400, 3)])
def test_regions_go_to_the_level_of_their_size_beside_the_canonical_scale(side, level):
    maps = {str(index): torch.full((1, 1, 128 >> index, 128 >> index), float(index)) for index in range(4)}
    pooled = ExactScaleRoIAlign([4, 8, 16, 32], 1, 112)(maps, [torch.tensor([[0.0, 0, side, side]])], [(512, 512)])
    assert pooled.item() == level


def test_a_tuned_module_has_other_settings_and_the_same_weights():
    rpn = small_faster().net.rpn
    twin = _tuned(rpn, training=False, head=len, fg_bg_sampler=None)
    assert (twin.training, twin.head, twin.fg_bg_sampler) == (False, len, None)
    assert rpn.training
    assert rpn.fg_bg_sampler is not None
    assert rpn.head is not len
    assert twin.anchor_generator is rpn.anchor_generator
    layers = ("conv.0.0", "cls_logits", "bbox_pred")
    assert list(rpn.state_dict()) == [f"head.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


def test_the_rpn_keeps_its_settings_where_we_replace_them():
    rpn = small_faster().net.rpn
    assert rpn._pre_nms_top_n == {"training": 2000, "testing": 1000}
    assert rpn._post_nms_top_n == {"training": 2000, "testing": 1000}
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction) == (256, 0.5)
    assert list(inspect.signature(RegionProposalNetwork.forward).parameters) == [
        "self",
        "images",
        "features",
        "targets",
    ]
    names = list(inspect.signature(RegionProposalNetwork.assign_targets_to_anchors).parameters)
    assert names == ["self", "anchors", "targets"]


def test_settings_and_layers_are_kept_under_the_names_we_read():
    net = small_mask(num_classes=2).net
    assert net.transform.size_divisible == 32
    assert list(net.transform.image_mean) == [0.485, 0.456, 0.406]
    assert list(net.transform.image_std) == [0.229, 0.224, 0.225]
    assert net.rpn.anchor_generator.sizes == ((16,), (32,), (64,), (128,), (256,))
    assert net.rpn.anchor_generator.aspect_ratios[0] == (0.5, 1.0, 2.0)
    assert (net.roi_heads.nms_thresh, net.roi_heads.score_thresh, net.roi_heads.detections_per_img) == (0.5, 0.01, 100)
    assert net.roi_heads.box_roi_pool.canonical_scale == net.roi_heads.mask_roi_pool.canonical_scale == 112
    predictor = net.roi_heads.box_predictor
    assert (predictor.cls_score.in_features, predictor.cls_score.out_features) == (1024, 3)
    assert predictor.bbox_pred.out_features == 12
    names = list(inspect.signature(RoIHeads.postprocess_detections).parameters)
    assert names == ["self", "class_logits", "box_regression", "proposals", "image_shapes"]


def test_a_convolutional_box_head_takes_a_size_widths_and_a_norm():
    head = FastRCNNConvFCHead((8, 7, 7), [8, 8], [16], torch.nn.BatchNorm2d)
    assert head(torch.zeros(2, 8, 7, 7)).shape == (2, 16)
    kinds = [type(layer) for layer in head.modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.BatchNorm2d))]
    assert kinds == [torch.nn.Conv2d, torch.nn.BatchNorm2d] * 2
    assert TwoMLPHead(8 * 7**2, 16)(torch.zeros(2, 8, 7, 7)).shape == (2, 16)


def test_the_rpn_proposes_as_many_boxes_as_counted():
    net, batch, maps = given()
    usual, losses = rpn_boxes(net, batch.tensor, batch.sizes, maps)
    assert losses == {}
    few, _ = rpn_boxes(net, batch.tensor, batch.sizes, maps, counts=(50, 7))
    assert len(few[0]) == 7 < len(usual[0]) <= 1000
    assert not few[0].requires_grad


def test_the_rpn_trains_the_anchors_that_our_sampler_takes():
    net, batch, maps = given()
    seen = []

    def sampler(labels):
        seen.append(labels)
        return ObjectsFirst(torch.Generator(), 4096)(labels)

    found = rpn_boxes(net, batch.tensor, batch.sizes, maps, batch.targets, sampler=sampler)[1]
    assert set(found) == {"loss_objectness", "loss_rpn_box_reg"}
    labels = seen[0][0]
    assert set(labels.tolist()) == {-1.0, 0.0, 1.0}
    logits = torch.cat([level.permute(0, 2, 3, 1).flatten() for level in net.rpn.head(list(maps.values()))[0]])
    taken = labels >= 0  # fewer than 4,096
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[taken], labels[taken])
    torch.testing.assert_close(found["loss_objectness"], expected)


def test_training_rois_are_the_boxes_and_the_targets_own_with_their_labels():
    net = small_faster().net
    names = list(inspect.signature(RoIHeads.select_training_samples).parameters)
    assert names == ["self", "proposals", "targets"]
    targets = [{"boxes": torch.tensor(BOXES, dtype=torch.float32), "labels": torch.tensor([7, 900])}]
    boxes = [torch.tensor([[10.0, 12, 40, 58], [0, 0, 5, 5], [50, 20, 90, 90], [50, 20, 60, 90]])]
    rois = training_rois(net.roi_heads, boxes, targets, ObjectsFirst(torch.Generator(), 100))
    assert rois.boxes[0].equal(torch.cat([boxes[0], targets[0]["boxes"]]))
    assert rois.labels[0].tolist() == [7, 0, 900, 0, 7, 900]
    assert [row for row, label in zip(rois.rows[0].tolist(), rois.labels[0]) if label] == [0, 1, 0, 1]
    assert rois.deltas[0][-1].tolist() == [0, 0, 0, 0]
    assert len(boxes[0]) == 4
    sampler = net.roi_heads.fg_bg_sampler
    assert (sampler.batch_size_per_image, sampler.positive_fraction) == (512, 0.25)


def test_rois_to_train_with_are_chosen_without_masks_also_where_there_is_a_branch_for_them():
    targets = [{"boxes": torch.tensor(BOXES, dtype=torch.float32), "labels": torch.tensor([1, 2])}]
    boxes = [torch.tensor([[10.0, 12, 40, 58]])]
    with pytest.raises((KeyError, ValueError)):  # once this fails, `training_rois` need not hide the branch
        small_mask().net.roi_heads.select_training_samples(boxes, targets)
    assert sorted(training_rois(small_mask().net.roi_heads, boxes, targets).labels[0].tolist()) == [1, 1, 2]


def test_without_rois_the_box_head_is_on_the_graph():
    net, batch, maps = given()
    features = box_features(net.roi_heads, maps, [torch.zeros(0, 4)], batch.sizes)
    assert features.shape == (0, 1024)
    sum(class_losses(*roi_outputs(net.roi_heads, features), None).values()).backward()
    for part in (net.roi_heads.box_head, net.roi_heads.box_predictor):
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in part.parameters())


def test_the_box_loss_of_objects_is_that_of_the_first_class_whatever_the_logits():
    regression = torch.randn(3, 12, requires_grad=True)
    deltas = torch.randn(3, 4)
    loss = box_regression_loss(regression, deltas)
    expected = torch.nn.functional.smooth_l1_loss(regression[:, 4:8], deltas, beta=1 / 9, reduction="sum") / 3
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert not regression.grad[:, :4].any()
    assert not regression.grad[:, 8:].any()
    assert box_regression_loss(regression[:0], deltas[:0]) == 0
    names = list(inspect.signature(roi_heads.fastrcnn_loss).parameters)
    assert names == ["class_logits", "box_regression", "labels", "regression_targets"]


def test_boxes_of_the_first_class_are_decoded_in_tenths_and_fifths_of_the_region():
    net = small_faster(num_classes=2).net
    regression = torch.zeros(1, 12)
    regression[0, 4:8] = torch.tensor([10.0, 0, 0, 5])
    box = decoded_boxes(net.roi_heads, regression, torch.tensor([[10.0, 10, 30, 30]]))
    torch.testing.assert_close(box, torch.tensor([[30, 20 - 10 * 2.7182818, 50, 20 + 10 * 2.7182818]]))


def test_the_librarys_background_is_its_class_zero_and_not_ours():
    net = small_faster(num_classes=2).net
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 8]])
    boxes = [torch.tensor([[10.0, 10, 30, 30], [40, 40, 60, 60], [70, 70, 90, 90]])]
    found = roi_detections(net.roi_heads, logits, torch.zeros(3, 12), boxes, SIZES)[0]
    sure = found["scores"] > 0.5
    assert found["labels"][sure].tolist() == [0, 1]
    assert found["boxes"][sure].equal(boxes[0][1:])


def test_the_mask_loss_takes_boxes_masks_labels_and_rows():
    names = list(inspect.signature(roi_heads.maskrcnn_loss).parameters)
    assert names == ["mask_logits", "proposals", "gt_masks", "gt_labels", "mask_matched_idxs"]
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[1, 4:28, 4:44] = True
    boxes, rows, labels = [torch.tensor([[8.0, 8, 40, 24]])], [torch.tensor([1])], [torch.tensor([1, 2])]
    right = torch.full((1, 3, 28, 28), -9.0)
    right[:, 2] = 9.0  # the second class, counted from the background
    assert mask_loss(right, boxes, [masks], labels, rows) < 0.01 < mask_loss(-right, boxes, [masks], labels, rows)
    assert mask_loss(right[:0], [boxes[0][:0]], [masks], labels, [rows[0][:0]]) == 0


def test_mask_probabilities_are_those_of_the_found_class():
    logits = torch.zeros(3, 3, 28, 28)
    logits[0, 1], logits[1, 2], logits[2, 1] = 9, 9, -9
    first, second = mask_probabilities(logits, [torch.tensor([0, 1]), torch.tensor([0])])
    assert first.shape == (2, 28, 28)
    assert first.min() > 0.9
    assert second.max() < 0.1


def test_masks_are_pasted_into_their_boxes():
    masks = torch.zeros(2, 28, 28)
    masks[:, :, :14] = 1
    pasted = paste(masks, torch.tensor([[8.0, 8, 36, 36], [-10, 0, 30, 20]]), (40, 48))
    assert pasted.shape == (2, 40, 48)
    assert pasted[0, 10:34, 9:21].all()
    assert not pasted[0, :, 24:].any()
    assert not pasted[0, :6].any()
    assert pasted[1, 2:18, :8].all()
    assert paste(masks[:0], torch.zeros(0, 4), (40, 48)).shape == (0, 40, 48)


def test_aligned_pooling_samples_the_plane_where_it_is():
    # A map whose value is the column's centre: the mean of a region is its middle, half a pixel before torchvision's.
    pool = AlignedRoIAlign([4, 8], 7)
    maps = {str(level): (torch.arange(32 // 2**level) + 0.5).expand(1, 1, 8, -1) for level in (0, 1)}
    boxes = [torch.tensor([[20.0, 4.0, 60.0, 28.0], [21.0, 5.0, 22.0, 6.0]])]
    pooled = pool(maps, boxes, [(32, 128)])
    torch.testing.assert_close(pooled.mean((1, 2, 3)), torch.tensor([40.0 / 4, 21.5 / 4]))
    old = ExactScaleRoIAlign([4, 8], 7)(maps, boxes, [(32, 128)])
    torch.testing.assert_close(old[0].mean(), torch.tensor(40.0 / 4 + 0.5))
    assert pool(maps, [torch.zeros(0, 4)], [(32, 128)]).shape == (0, 1, 7, 7)
