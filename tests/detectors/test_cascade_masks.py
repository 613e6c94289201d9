"""The mask branch of a cascade: whose boxes it sees, what the branches tell each other, and what is found."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tests.detectors.rcnn_scenes import BOXES, masked, random_maps, small_cascade
from tests.detectors.scenes import sample
from torch import Tensor, nn
from torch.nn import functional

from selfdet.detectors import cascade_rcnn as module
from selfdet.detectors.cascade_masks import mask_logits
from selfdet.detectors.cascade_rcnn import STAGES, WEIGHTS
from selfdet.detectors.optim import part_of
from selfdet.interchange.relatives import handed_over


def with_masks(**options):
    """A small cascade with masks, its branches spread."""
    detector = small_cascade(masks=True, **options)
    with torch.no_grad():
        for heads in detector.stages:
            heads.mask_predictor.mask_fcn_logits.weight.normal_(std=0.3)
    return detector


def slow_branch(heads, features: Tensor) -> Tensor:
    """The masks' logits of what the four convolutions have made of a region: from their weights alone."""
    up, out = heads.mask_predictor.conv5_mask, heads.mask_predictor.mask_fcn_logits
    return functional.conv2d(functional.conv_transpose2d(features, up.weight, up.bias, 2).relu(), out.weight, out.bias)


@torch.no_grad()
def test_each_branch_is_told_what_the_one_before_makes_of_the_same_region() -> None:
    detector = with_masks().eval()
    batch = detector.prepare([sample(96, 128)])
    maps, boxes = random_maps(batch), torch.tensor(BOXES).float()
    found = mask_logits(detector.stages, maps, [boxes], batch.sizes)
    for row, box in enumerate(boxes):
        region = detector.net.roi_heads.mask_roi_pool(maps, [box[None]], batch.sizes)
        told: Tensor | None = None
        for stage, heads in enumerate(detector.stages):
            y = region
            if told is not None:
                flow = heads.mask_flow
                y = y + torch.einsum("oc,bchw->bohw", flow.weight[:, :, 0, 0], told) + flow.bias[:, None, None]
            for layer in heads.mask_head:
                y = functional.conv2d(y, layer[0].weight, layer[0].bias, padding=1).relu()
            told = y
            torch.testing.assert_close(found[stage][row], slow_branch(heads, y)[0], atol=1e-4, rtol=1e-3)
    assert not hasattr(detector.stages[0], "mask_flow")


@torch.no_grad()
def test_what_is_found_is_the_mean_of_the_stages_at_the_final_boxes() -> None:
    detector = with_masks(num_classes=2, score_threshold=0.0, detections=30).eval()
    batch = detector.prepare([sample(96, 128)])
    found = detector.detections(batch)[0]
    assert found["masks"].shape == (30, 28, 28)
    stages = mask_logits(detector.stages, detector.features(batch), [found["boxes"]], batch.sizes)
    for row, label in enumerate(found["labels"].tolist()):
        mean = sum(logits[row, label + 1].sigmoid() for logits in stages) / 3
        torch.testing.assert_close(found["masks"][row], mean)
    plain = small_cascade(num_classes=2, score_threshold=0.0, detections=30).eval()
    plain.net.load_state_dict({name: v for name, v in detector.net.state_dict().items() if ".mask_" not in name})
    assert plain.detections(batch)[0]["boxes"].equal(found["boxes"])
    whole = detector.predict([sample(96, 128)])[0]
    assert whole["masks"].shape == (30, 96, 128)


def test_the_branch_of_a_stage_trains_on_boxes_that_the_stage_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list = []
    original = module.training_rois

    def listen(heads, boxes, targets, *more):
        seen.append((heads, [each.clone() for each in boxes]))
        return original(heads, boxes, targets, *more)

    monkeypatch.setattr(module, "training_rois", listen)
    detector = with_masks().train()
    detector.losses(detector.prepare([masked(sample(128, 128, BOXES, [0, 2]))]))
    own, later = detector.stages, detector.stages[1:]
    assert [heads for heads, _ in seen] == [own[0], own[0], own[1], own[1], own[2], own[2]]
    for stage in range(len(later)):  # a mask branch has the boxes that the next stage begins with
        assert seen[2 * stage + 1][1][0].equal(seen[2 * stage + 2][1][0])
        assert not seen[2 * stage][1][0][:5].equal(seen[2 * stage + 1][1][0][:5])


def test_mask_losses_are_a_sum_over_the_stages_by_their_weights() -> None:
    detector = with_masks(num_classes=1).train()
    batch = detector.prepare([masked(sample(128, 128, BOXES, [0, 0]))])

    def loss(silent: int | None) -> float:
        one = copy.deepcopy(detector)
        if silent is not None:
            for parameter in one.stages[silent].mask_predictor.mask_fcn_logits.parameters():
                nn.init.zeros_(parameter)
        torch.manual_seed(0)
        return float(one.losses(batch)["loss_mask"].detach())

    whole = loss(None)
    # A branch that knows nothing costs log 2 a cell.
    own = [weight * math.log(2) + whole - loss(stage) for stage, weight in enumerate(WEIGHTS)]
    assert sum(own) == pytest.approx(whole, rel=1e-4)
    assert WEIGHTS == (1.0, 0.5, 0.25)
    assert len(STAGES) == 3


@pytest.mark.parametrize("labels", [[], [1]], ids=["no boxes", "no masks"])
def test_without_masks_to_learn_from_boxes_train_and_the_branches_stay(labels: list[int]) -> None:
    detector = with_masks().train()
    samples = [sample(64, 96, BOXES[: len(labels)], labels)]
    losses = detector.losses(detector.prepare(samples))
    assert losses["loss_mask"] == 0
    sum(losses.values()).backward()
    for name, parameter in detector.net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert ".mask_" not in name or not parameter.grad.any()


def test_gradients_of_the_masks_reach_every_branch_and_what_they_tell_each_other() -> None:
    detector = with_masks().train()
    loss = detector.losses(detector.prepare([masked(sample(128, 128, BOXES, [0, 2]))]))["loss_mask"]
    loss.backward()
    branches = [p for name, p in detector.net.named_parameters() if ".mask_" in name]
    assert len(branches) == 3 * 12 + 2 * 2
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in branches)


def test_masks_are_a_part_of_their_own_that_only_labels_train() -> None:
    detector = with_masks()
    parts = {name: part_of(detector, name) for name in detector.net.state_dict() if ".mask_" in name}
    assert set(parts.values()) == {"mask", "last"}
    assert all((part == "last") == ("mask_predictor" in name) for name, part in parts.items())
    assert all(detector.labels_only.holds(name) for name in parts)
    plain = small_cascade()
    assert "mask" not in plain.parts()
    assert not plain.has_masks
    for note, fresh in (
        ({"options": {"masks": False}}, True),
        ({"options": {}}, True),
        ({"options": {"masks": True}}, False),
        ({"options": {"masks": True}, "method": "aligndet"}, True),
    ):
        assert (
            handed_over(detector, "cascade_rcnn", {"detector": "cascade_rcnn", **note}, False)["mask"].reinit is fresh
        )
