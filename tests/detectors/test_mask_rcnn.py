"""What only Mask R-CNN has: masks that are learned where there are any, and found in the pixels of the image."""

from dataclasses import replace

import pytest
import torch
from tests.detectors.rcnn_scenes import BOXES, masked, small_faster, small_mask, stock
from tests.detectors.scenes import sample, view_batch
from torch import nn
from torchvision import tv_tensors

from selfdet.data.masks import encode_masks
from selfdet.detectors._torchvision_rcnn import paste
from selfdet.methods.aligndet import AlignDet


def losses_of(detector, samples, seed=0):
    torch.manual_seed(seed)
    return detector.losses(detector.prepare(samples))


@pytest.mark.parametrize("factor", [1, 2])
def test_masks_equal_stock_torchvisions_on_the_same_weights(factor):
    detector = small_mask(detections=20)
    library = stock(detector).eval()
    one = sample(96, 128, original=(96 * factor, 128 * factor))
    with torch.no_grad():
        pixels = one.image.as_subclass(torch.Tensor) / 255
        expected = library([pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)])[0]
        found = detector.predict([one])[0]
    assert found["masks"].shape == (20, 96 * factor, 128 * factor)
    assert found["masks"].dtype == torch.bool
    if factor == 1:
        agree = (found["masks"] == (expected["masks"][:, 0] > 0.5)).float().mean((1, 2))
        assert (agree > 0.99).float().mean() > 0.9
    left, top, right, bottom = found["boxes"].T.long()
    for mask, x1, y1, x2, y2 in zip(found["masks"], left, top, right, bottom):  # but for half a cell at the border
        outside = mask.clone()
        outside[max(0, y1 - 9) : y2 + 10, max(0, x1 - 9) : x2 + 10] = False
        assert not outside.any()


def test_found_masks_are_those_predicted_as_run_lengths_however_few_are_unpacked_at_a_time(monkeypatch):
    detector = small_mask(detections=6)
    samples = [sample(96, 128, original=(40, 2000)), sample(64, 64)]
    predicted = detector.predict(samples)
    for pixels in (2**25, 2 * 40 * 2000, 1):
        monkeypatch.setattr("selfdet.detectors.base.UNPACKED", pixels)
        for found, expected in zip(detector.find(samples), predicted):
            assert found["masks"] == encode_masks(expected["masks"])
            assert found["boxes"].equal(expected["boxes"])
    assert predicted[0]["masks"].shape == (6, 40, 2000)
    assert found["masks"][0]["size"] == [64, 64]


def test_never_more_masks_are_unpacked_than_memory_is_meant_for(monkeypatch):
    unpacked = []

    def watched(masks, boxes, size):
        unpacked.append(len(masks) * size[0] * size[1])
        return paste(masks, boxes, size)

    monkeypatch.setattr("selfdet.detectors.base.UNPACKED", 3_000_000)
    monkeypatch.setattr("selfdet.detectors.base.paste", watched)
    detector = small_mask(detections=7)
    (found,) = detector.find([sample(96, 128, original=(900, 1200))])
    assert len(found["masks"]) == 7
    assert len(unpacked) == 4
    assert max(unpacked) == 2 * 900 * 1200


def test_targets_keep_the_masks_of_the_boxes_they_keep():
    one = masked(sample(64, 64, [[8, 8, 24, 24], [30, 30, 60, 60]], [0, 1]))
    boxes = one.boxes.clone()
    boxes[0] = torch.tensor([70.0, 70, 90, 90])
    target = small_mask().prepare([replace(one, boxes=tv_tensors.wrap(boxes, like=one.boxes))]).targets[0]
    assert target["boxes"].tolist() == [[30, 30, 60, 60]]
    assert type(target["masks"]) is torch.Tensor
    assert target["masks"].equal(one.masks.as_subclass(torch.Tensor)[1:])
    assert "masks" not in small_mask().prepare([sample(64, 64, [[8, 8, 24, 24]], [0])]).targets[0]


def test_without_masks_boxes_train_as_in_faster_rcnn_and_the_masks_loss_is_zero():
    samples = [sample(128, 128, BOXES, [0, 1]), sample(128, 128)]
    detector, plain = small_mask(), small_faster()
    plain.net.load_state_dict({n: v for n, v in detector.net.state_dict().items() if "mask" not in n})
    found, expected = losses_of(detector, samples), losses_of(plain, samples)
    assert found.pop("loss_mask") == 0
    assert found == expected


@pytest.mark.parametrize(
    "samples", [[sample(128, 128, BOXES, [0, 1])], [masked(sample(128, 128))]], ids=["no", "empty"]
)
def test_without_masks_the_mask_branch_stays_on_the_graph(samples):
    detector = small_mask()
    losses = losses_of(detector, samples)
    assert losses["loss_mask"] == 0
    losses["loss_mask"].backward()
    for name, parameter in detector.net.named_parameters():
        if "mask" in name:
            assert parameter.grad is not None, name
            assert not parameter.grad.any()


def test_objects_and_images_without_a_mask_count_for_boxes_alone():
    with_mask, without = masked(sample(128, 128, BOXES, [0, 1])), sample(128, 128, BOXES[:1], [2], seed=1)
    detector = small_mask(batch_norm="frozen")
    both, alone = losses_of(detector, [with_mask, without]), losses_of(detector, [with_mask])
    torch.testing.assert_close(both["loss_mask"], alone["loss_mask"])
    assert both["loss_box_reg"] != alone["loss_box_reg"]
    masks = with_mask.masks.clone()
    masks[1] = False  # nothing is known of it
    half = losses_of(detector, [replace(with_mask, masks=tv_tensors.Mask(masks))])
    assert half["loss_mask"] != alone["loss_mask"]
    assert half["loss_box_reg"] == alone["loss_box_reg"]
    first = masked(sample(128, 128, BOXES[:1], [0]))
    learned = losses_of(detector, [replace(with_mask, masks=tv_tensors.Mask(masks * 0))])
    assert learned["loss_mask"] == 0
    assert first.masks.any()


def test_masks_train_only_their_branch_and_what_lies_before_it():
    detector = small_mask()
    losses_of(detector, [masked(sample(128, 128, BOXES, [0, 1]))])["loss_mask"].backward()
    reached = {name for name, p in detector.net.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.split(".")[1] for name in reached if name.startswith("roi_heads")} == {"mask_head", "mask_predictor"}
    assert any(name.startswith("backbone.body") for name in reached)
    assert not any(name.startswith("rpn") for name in reached)


def test_training_the_branch_lowers_its_loss():
    detector = small_mask(num_classes=1, batch_norm="frozen").requires_grad_(False)
    batch = detector.prepare([masked(sample(96, 96, [[20, 10, 80, 90]], [0]))])
    branch = [p.requires_grad_() for name, p in detector.net.named_parameters() if "mask" in name]
    optimizer = torch.optim.SGD(branch, 0.02, momentum=0.9)
    seen = []
    for step in range(8):
        torch.manual_seed(step)
        loss = detector.losses(batch)["loss_mask"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(branch, 1)
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.8 * seen[0]


def test_pre_training_leaves_the_mask_branch_alone():
    method = AlignDet(small_mask(num_classes=1), embedding_dim=8)
    names = [name for name, p in method.detector.net.named_parameters() if p.requires_grad]
    assert not any("mask" in name for name in names)
    assert any(name.startswith("roi_heads.box_head") for name in names)
    method(view_batch(BOXES))["loss"].backward()
    assert all(p.grad is not None for p in method.detector.parameters() if p.requires_grad)


def test_the_mask_branchs_convolutions_are_handed_over_and_its_outputs_start_afresh():
    detector = small_mask()
    for keep in (False, True):
        parts = detector.parts(keep)
        assert list(parts) == ["backbone", "neck", "rpn", "head", "mask", "last"]
        fresh = {name.split(".")[1] for name in detector.net.state_dict() if parts["last"].holds(name)}
        assert fresh == {"box_predictor", "mask_predictor"}
        kept = {name.split(".")[1] for name in detector.net.state_dict() if parts["mask"].holds(name)}
        assert kept == {"mask_head"}
