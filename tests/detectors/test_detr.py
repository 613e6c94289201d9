"""DETR: transformers' own results on the same weights, matching by the paper's rule, gradients, odd images."""

from __future__ import annotations

import sys

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from tests.detectors.detr_scenes import BOXES, small_detr
from tests.detectors.scenes import sample
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou

from selfdet.detectors._transformers import decoder_states, shrunk
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError
from selfdet.models.backbones import build_backbone

DIM = 8


def regions_of(detector, samples, *, losses=False):
    batch = detector.prepare(samples)
    torch.manual_seed(0)
    projector = detector.projector(DIM).to(batch.tensor.dtype)
    maps = detector.neck(detector.body(batch.tensor))
    return detector.regions(maps, batch, projector, torch.Generator(), losses=losses), maps, batch


def pixel_mask(batch) -> Tensor:
    mask = torch.zeros(len(batch.sizes), *batch.tensor.shape[-2:], dtype=torch.int64)
    for row, (height, width) in zip(mask, batch.sizes):
        row[:height, :width] = 1
    return mask


@torch.no_grad()
def test_the_last_layer_is_transformers_own_and_so_are_the_detections() -> None:
    detector = small_detr().eval()
    batch = detector.prepare([sample(96, 128), sample(128, 70)])
    theirs = detector.net(pixel_values=batch.tensor, pixel_mask=pixel_mask(batch))
    features = detector.features(batch)["0"]
    states = decoder_states(detector.net, features, shrunk(pixel_mask(batch).bool(), features.shape[-2:]))
    assert states.shape == (2, 2, 60, 256)
    torch.testing.assert_close(states[-1], theirs.last_hidden_state, atol=1e-5, rtol=1e-5)
    for found, logits, boxes, (height, width) in zip(
        detector.detections(batch), theirs.logits, theirs.pred_boxes, batch.sizes
    ):
        scores, labels = logits.softmax(-1)[:, :-1].max(1)
        order = scores.argsort(descending=True)[: len(found["scores"])]
        torch.testing.assert_close(found["scores"], scores[order], atol=1e-5, rtol=1e-4)
        assert found["labels"].equal(labels[order])
        pixels = box_convert(boxes[order], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        pixels = pixels.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        torch.testing.assert_close(found["boxes"], pixels, atol=0.01, rtol=1e-4)


def test_losses_are_transformers_own_of_each_layer() -> None:
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    detector = small_detr().eval()
    samples = [sample(128, 96, BOXES[:1], [2]), sample(96, 128, BOXES, [0, 1]), sample(64, 64)]
    batch = detector.prepare(samples)
    _, logits, boxes = detector._queries(detector.features(batch), batch)
    targets = []
    for one, (height, width) in zip(samples, batch.sizes):
        shares = box_convert(one.boxes.as_subclass(Tensor), "xyxy", "cxcywh")
        targets.append(
            {"boxes": shares / torch.tensor([width, height, width, height]), "class_labels": one.labels}
            if len(one.boxes)
            else {"boxes": torch.zeros(0, 4), "class_labels": torch.zeros(0, dtype=torch.int64)}
        )
    expected = sum(
        ForObjectDetectionLoss(own, targets, own.device, shares, detector.net.config)[0]
        for own, shares in zip(logits, boxes)
    )
    losses = detector.losses(batch)
    assert set(losses) == {"loss_class", "loss_bbox", "loss_giou"}
    torch.testing.assert_close(sum(losses.values()), expected)


def test_each_layer_is_matched_by_itself_by_the_papers_cost() -> None:
    detector = small_detr(num_classes=1).eval()
    with torch.no_grad():
        stages, maps, batch = regions_of(detector, [sample(128, 128, BOXES), sample(96, 128, BOXES[1:])], losses=True)
        _, logits, boxes = detector._queries(maps, batch)
    assert len(stages) == 2
    for stage, own, shares in zip(stages, logits, boxes):
        expected = torch.full((2, 60), -1)
        for row, target, (height, width) in zip(range(2), batch.targets, batch.sizes):
            size = torch.tensor([width, height, width, height])
            goal = box_convert(target["boxes"], "xyxy", "cxcywh") / size
            cost = 5 * torch.cdist(shares[row], goal, p=1) - own[row].softmax(-1)[:, :1]
            corners = [box_convert(each, "cxcywh", "xyxy") for each in (shares[row], goal)]
            queries, objects = linear_sum_assignment((cost - 2 * generalized_box_iou(*corners)).numpy())
            expected[row, queries] = target["ids"][objects]
        assert stage.ids.equal(expected.flatten())
        assert stage.embeddings.shape == (120, DIM)
        assert not stage.boxes.requires_grad


def test_gradients_reach_every_trainable_parameter_and_no_frozen_one() -> None:
    detector = small_detr(batch_norm="frozen").train()
    batch = detector.prepare([sample(128, 128, BOXES, [0, 1]), sample(96, 96, BOXES[:1], [2])])
    sum(detector.losses(batch).values()).backward()
    for name, parameter in detector.net.named_parameters():
        if "bn" in name or "downsample.1" in name:
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None, name
            # Queries begin as zeros: the first layer's attention among them has the same value everywhere.
            among = name.removeprefix("model.decoder.layers.0.self_attn.")
            idle = among.startswith(("q_proj.", "k_proj.", "v_proj.weight"))
            assert idle or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("labels", [[[], []], [[1], []]], ids=["no boxes at all", "one image without"])
def test_images_without_boxes_give_finite_losses_with_gradients(labels: list[list[int]]) -> None:
    detector = small_detr().train()
    samples = [sample(64, 96, BOXES[: len(each)], each, seed=len(each)) for each in labels]
    sum(detector.losses(detector.prepare(samples)).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.net.parameters() if p.requires_grad)
    stages, _, _ = regions_of(detector, samples, losses=True)
    assert sum(sum(stage.losses.values()) + stage.embeddings.sum() for stage in stages).isfinite()
    assert (stages[0].ids >= 0).sum() == sum(map(len, labels))


def test_more_boxes_than_queries_train_as_many_as_there_are_queries() -> None:
    detector = small_detr()
    crowd = [[x, y, x + 9, y + 9] for x in range(0, 100, 10) for y in range(0, 100, 10)]
    stages, _, _ = regions_of(detector, [sample(128, 128, crowd)], losses=True)
    assert all((stage.ids >= 0).all() and stage.ids.unique().numel() == 60 for stage in stages)


def test_padding_changes_nothing_that_is_found() -> None:
    detector = small_detr().eval()
    one = sample(64, 96)
    with torch.no_grad():
        alone = detector.detections(detector.prepare([one]))[0]
        beside = detector.detections(detector.prepare([one, sample(128, 128)]))[0]
    torch.testing.assert_close(alone["scores"][:5], beside["scores"][:5], atol=0.05, rtol=0.2)
    found, again = (detector.predict(samples)[0] for samples in ([one], [one, sample(128, 128)]))
    assert found["boxes"].equal(again["boxes"])  # images of one padded size share a batch, others don't


def test_without_losses_nothing_is_dropped_out() -> None:
    detector, samples = small_detr().train(), [sample(128, 128, BOXES)]
    first, again = (regions_of(detector, samples)[0][-1].embeddings for _ in range(2))
    assert first.equal(again)
    dropped = [regions_of(detector, samples, losses=True)[0][-1].embeddings for _ in range(2)]
    assert detector.net.model.decoder.training
    assert not first.equal(dropped[0])


def test_losses_are_float32_under_bfloat16_and_double_for_a_double_network() -> None:
    detector = small_detr().eval()
    batch = detector.prepare([sample(128, 128, BOXES, [0, 1])])
    exact = detector.losses(batch)
    with torch.autocast("cpu", torch.bfloat16):
        for name, loss in detector.losses(batch).items():
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, exact[name], atol=0.1, rtol=0.1)
    double = small_detr().double()
    assert {
        loss.dtype for loss in double.losses(double.prepare([sample(64, 64, [[10, 10, 30, 30]], [0])])).values()
    } == {torch.float64}


@pytest.mark.parametrize("keep", [False, True])
def test_parts_hold_every_name_exactly_once(keep: bool) -> None:
    detector = small_detr()
    parts = detector.parts(keep_box_outputs=keep)
    for name in detector.net.state_dict():
        assert sum(part.holds(name) for part in parts.values()) == 1, name
    fresh = {name.rsplit(".", 1)[0] for name in detector.net.state_dict() if parts["last"].holds(name)}
    assert fresh == {"class_labels_classifier"} | (set() if keep else {"bbox_predictor.layers.2"})


def test_weights_have_transformers_names() -> None:
    names = {name.removeprefix("model.") for name in small_detr().net.state_dict()}
    for name in ("backbone.model.layer1.0.conv1.weight", "query_position_embeddings.weight", "input_projection.weight"):
        assert name in names
    assert {name for name in names if name.startswith("backbone.")} == {
        f"backbone.model.{name}" for name in build_backbone("resnet18").net.state_dict()
    }


def test_what_can_not_be_built_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_backbone("resnet18")
    with pytest.raises(UserError, match=r"queries 50\. Expected more than 50"):
        DETECTORS["detr"](2, backbone, queries=50)
    with pytest.raises(UserError, match="layers 0"):
        DETECTORS["detr"](2, backbone, layers=0)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"detr needs transformers, which is not installed\. Pip install"):
        DETECTORS["detr"](2, backbone)


def test_the_configuration_rebuilds_the_detector() -> None:
    detector = small_detr(image_size=96, score_threshold=0.2, detections=7)
    config = detector.config()
    twin = DETECTORS[config["detector"]](config["num_classes"], build_backbone(config["backbone"]), **config["options"])
    twin.net.load_state_dict(detector.net.state_dict(), strict=True)
    assert twin.config() == config
    found, again = (each.predict([sample(64, 96)])[0] for each in (detector, twin))
    assert found["boxes"].equal(again["boxes"])
    assert isinstance(detector.net.model.backbone.model, nn.Module)
