"""Cascade R-CNN: three stages as the paper has them, against a slow version; gradients; odd images."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tests.detectors.rcnn_scenes import BOXES, masked, random_maps, small_cascade, zero_maps
from tests.detectors.scenes import sample
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from selfdet.detectors._torchvision_rcnn import rpn_boxes
from selfdet.detectors.cascade_rcnn import STAGES
from selfdet.detectors.zoo import DETECTORS
from selfdet.models.backbones import build_backbone

DIM = 8


def moved(box: list[float], code: list[float], factors: tuple[float, ...]) -> list[float]:
    """A box xyxy moved by its regression, written down from the formula."""
    width, height = box[2] - box[0], box[3] - box[1]
    dx, dy, dw, dh = (value / factor for value, factor in zip(code, factors))
    x, y = box[0] + width / 2 + dx * width, box[1] + height / 2 + dy * height
    width, height = (side * math.exp(min(d, math.log(1000 / 16))) for side, d in ((width, dw), (height, dh)))
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def regions_of(detector, samples, *, losses=False, most=None, seed=0, maps=random_maps):
    batch = detector.prepare(samples)
    torch.manual_seed(0)
    projector = detector.projector(DIM).to(batch.tensor.dtype)
    return detector.regions(
        maps(batch), batch, projector, torch.Generator().manual_seed(seed), losses=losses, samples=most
    )


@torch.no_grad()
def test_detections_are_the_mean_of_three_looks_at_boxes_moved_three_times() -> None:
    detector = small_cascade(num_classes=2, score_threshold=0.0, detections=1000).eval()
    one = sample(96, 128)
    batch = detector.prepare([one])
    maps = detector.features(batch)
    (boxes,), _ = rpn_boxes(detector.net, batch.tensor, batch.sizes, maps)
    total = torch.zeros(len(boxes), 3)
    for heads, (_, factors, _) in zip(detector.stages, STAGES):
        logits, regression = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, [boxes], batch.sizes)))
        assert all(regression[:, 4 * k : 4 * k + 4].equal(regression[:, :4]) for k in range(3))
        total += logits.softmax(1)
        codes = regression[:, :4].tolist()
        boxes = torch.tensor([moved(box, code, factors) for box, code in zip(boxes.tolist(), codes)])
        boxes = clip_boxes_to_image(boxes, one.size)
    scores = total[:, 1:] / 3
    of_class = torch.arange(2).repeat(len(boxes))
    kept = batched_nms(boxes.repeat_interleave(2, 0), scores.flatten(), of_class, detector.net.roi_heads.nms_thresh)
    found = detector.predict([one])[0]
    assert 20 < len(found["scores"]) <= len(kept)
    best = scores.flatten()[kept][: len(found["scores"])]
    torch.testing.assert_close(found["scores"], best, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found["boxes"][:5], boxes.repeat_interleave(2, 0)[kept][:5], atol=0.05, rtol=1e-3)


def test_each_stage_trains_with_its_overlap_on_boxes_that_the_one_before_has_moved() -> None:
    stages = regions_of(small_cascade(), [sample(128, 128, BOXES)], maps=zero_maps)
    assert [stage.weight for stage in stages] == [1.0, 0.5, 0.25]
    for stage, (overlap, *_) in zip(stages, STAGES):
        assert len(stage.ids) == len(stage.boxes) == len(stage.embeddings)
        # Whose each region is, from the boxes alone: those of the targets themselves come in anew at every stage.
        iou = box_iou(torch.tensor(BOXES).float(), stage.boxes)
        assert stage.ids.equal(torch.where(iou.amax(0) >= overlap, iou.argmax(0), -1))
        assert [int((iou[row] == 1).sum()) for row in (0, 1)] == [1, 1]
        assert (stage.ids == -1).any()
    first, second = (stage.boxes[stage.ids == -1] for stage in stages[:2])
    assert not any(box.equal(other) for box in second[:20] for other in first)


def test_no_stage_has_more_regions_or_objects_than_it_may() -> None:
    detector = small_cascade()
    with torch.no_grad():
        detector.net.rpn.head.bbox_pred.weight.zero_()
    samples = [sample(128, 128, [[8, 8, 120, 120], *BOXES])]
    for most, objects in ((None, 128), (8, 8)):
        for stage in regions_of(detector, samples, most=most, maps=zero_maps):
            assert len(stage.ids) <= (most or 512)
            assert 1 <= int((stage.ids >= 0).sum()) <= objects
    again, other = (regions_of(detector, samples, most=8, seed=seed, maps=zero_maps)[0] for seed in (0, 1))
    assert again.boxes.equal(regions_of(detector, samples, most=8, maps=zero_maps)[0].boxes)
    assert not again.boxes.equal(other.boxes)


def test_losses_are_sums_over_the_stages_by_their_weights() -> None:
    detector = small_cascade().train()
    batch = detector.prepare([sample(128, 128, BOXES, [0, 2])])

    def losses(silent: int | None) -> dict[str, Tensor]:
        one = copy.deepcopy(detector)
        if silent is not None:
            torch.nn.init.zeros_(one.stages[silent].box_predictor.cls_score.weight)
            torch.nn.init.zeros_(one.stages[silent].box_predictor.cls_score.bias)
        torch.manual_seed(0)
        return {name: float(value.detach()) for name, value in one.losses(batch).items()}

    whole = losses(None)
    assert set(whole) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    # A classifier that knows nothing costs the logarithm of the number of classes.
    known = [whole["loss_classifier"] - losses(stage)["loss_classifier"] for stage in range(3)]
    own = [math.log(4) * weight + each for (*_, weight), each in zip(STAGES, known)]
    assert sum(own) == pytest.approx(whole["loss_classifier"], rel=1e-5)


def test_gradients_reach_every_trainable_parameter_and_no_frozen_one() -> None:
    detector = small_cascade(batch_norm="frozen", neck_norm="gn").train()
    one = sample(128, 128, [[4, 4, 124, 124], *BOXES, [4, 100, 14, 110]], [0, 1, 2, 0])
    sum(detector.losses(detector.prepare([masked(one)])).values()).backward()
    for name, parameter in detector.net.named_parameters():
        if "bn" in name or "downsample.1" in name:  # of the backbone
            assert not parameter.requires_grad
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("labels", [[[], []], [[1], []]], ids=["no boxes at all", "one image without"])
@pytest.mark.parametrize(
    "norm",
    [{}, pytest.param({"box_head": "4conv1fc", "neck_norm": "bn"}, marks=pytest.mark.slow)],
    ids=["2fc", "4conv1fc"],
)
def test_images_without_boxes_give_finite_losses_with_gradients(labels: list[list[int]], norm: dict[str, str]) -> None:
    detector = small_cascade(**norm).train()
    samples = [sample(64, 96, BOXES[: len(each)], each, seed=len(each)) for each in labels]
    sum(detector.losses(detector.prepare(samples)).values()).backward()
    for name, parameter in detector.net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    stages = regions_of(detector, samples, losses=True)
    total = sum(sum(stage.losses.values()) + stage.embeddings.sum() for stage in stages)
    total.backward()
    assert total.isfinite()


def test_in_the_box_domain_each_stage_has_losses_and_classifiers_learn_alone() -> None:
    detector = small_cascade(num_classes=1)
    stages = regions_of(detector, [sample(128, 128, BOXES)], losses=True)
    own = {"loss_box_reg", "loss_classifier"}
    assert [set(stage.losses) for stage in stages] == [{*own, "loss_objectness", "loss_rpn_box_reg"}, own, own]
    assert "rpn_recall" in stages[-1].figures
    sum(stage.losses["loss_classifier"] for stage in stages).backward()
    reached = {name for name, p in detector.net.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {
        f"{heads}.box_predictor.cls_score.{kind}"
        for heads in ("roi_heads", "refine.0", "refine.1")
        for kind in ("weight", "bias")
    }


def test_a_teacher_may_take_the_proposals_alone() -> None:
    detector = small_cascade(teacher_rois="proposals")
    for stage in regions_of(detector, [sample(128, 128, BOXES), sample(128, 128)]):
        assert stage.boxes.tolist() == BOXES
        assert stage.ids.tolist() == [0, 1]


@pytest.mark.parametrize("keep", [False, True])
def test_parts_hold_every_name_exactly_once_and_boxes_are_kept_whatever_the_classes(keep: bool) -> None:
    detector = small_cascade(neck_norm="bn", box_head="4conv1fc")
    parts = detector.parts(keep_box_outputs=keep)
    for name in detector.net.state_dict():
        assert sum(part.holds(name) for part in parts.values()) == 1, name
    fresh = {name for name in detector.net.state_dict() if parts["last"].holds(name)}
    layers = ("cls_score",) if keep else ("cls_score", "bbox_pred")
    assert {name.rsplit(".", 2)[1] for name in fresh} == set(layers)
    assert len(fresh) == 3 * 2 * len(layers)
    one, many = small_cascade(num_classes=1).net.state_dict(), small_cascade(num_classes=5).net.state_dict()
    assert all(value.shape == many[name].shape for name, value in one.items() if not parts["last"].holds(name))


def test_losses_are_float32_under_bfloat16_and_double_for_a_double_network() -> None:
    detector = small_cascade().train()
    batch = detector.prepare([sample(128, 128, BOXES, [0, 1])])
    with torch.autocast("cpu", torch.bfloat16):
        assert {loss.dtype for loss in detector.losses(batch).values()} == {torch.float32}
        assert detector.predict([sample(64, 64)])[0]["boxes"].dtype == torch.float32
    double = small_cascade().double()
    assert {
        loss.dtype for loss in double.losses(double.prepare([sample(64, 64, [[10, 10, 30, 30]], [0])])).values()
    } == {torch.float64}


def test_the_configuration_rebuilds_the_detector() -> None:
    detector = small_cascade(image_size=96, score_threshold=0.2, detections=7, box_head="4conv1fc", neck_norm="gn")
    config = detector.config()
    twin = DETECTORS[config["detector"]](config["num_classes"], build_backbone(config["backbone"]), **config["options"])
    twin.net.load_state_dict(detector.net.state_dict(), strict=True)
    assert twin.config() == config
    found, again = (each.predict([sample(64, 96)])[0] for each in (detector, twin))
    assert found["boxes"].equal(again["boxes"])
