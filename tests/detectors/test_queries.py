"""What is true of all DETRs: transformers' own results on the same weights, matching, gradients, odd images."""

from __future__ import annotations

import sys

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from tests.detectors.detr_scenes import BOXES, KEYS, small
from tests.detectors.scenes import sample
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from selfdet.detectors._transformers import shrunk
from selfdet.detectors.queries import pixel_mask
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError
from selfdet.models.backbones import build_backbone

DIM = 8

pytestmark = pytest.mark.parametrize("key", KEYS)


def regions_of(detector, samples, *, losses=False):
    batch = detector.prepare(samples)
    torch.manual_seed(0)
    projector = detector.projector(DIM).to(batch.tensor.dtype)
    maps = detector.neck(detector.body(batch.tensor))
    return detector.regions(maps, batch, projector, torch.Generator(), losses=losses), maps, batch


def in_pixels(shares: Tensor, frame: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Boxes as `detections` gives them, by the definition."""
    corners = box_convert(shares, "cxcywh", "xyxy") * torch.tensor([frame[1], frame[0], frame[1], frame[0]])
    return corners.clamp(min=0).minimum(torch.tensor([size[1], size[0], size[1], size[0]]))


@torch.no_grad()
def test_what_is_found_is_what_the_librarys_own_network_finds(key: str) -> None:
    detector = small(key).eval()
    batch = detector.prepare([sample(96, 128), sample(128, 70)])
    theirs = detector.net(pixel_values=batch.tensor, pixel_mask=pixel_mask(batch).long())
    ours = detector.queries(detector.features(batch), pixel_mask(batch))
    assert ours.states.shape == (2, 2, 60, 256)
    torch.testing.assert_close(ours.states[-1], theirs.last_hidden_state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.boxes[-1], theirs.pred_boxes, atol=1e-5, rtol=1e-4)
    rows = zip(detector.detections(batch), theirs.logits, theirs.pred_boxes, detector.frames(batch), batch.sizes)
    for found, logits, boxes, frame, size in rows:
        if key == "detr":
            scores, labels = logits.softmax(-1)[:, :-1].max(1)
            queries = torch.arange(60)
        else:
            scores = logits.sigmoid().flatten()
            queries, labels = torch.arange(180) // 3, torch.arange(180) % 3
        order = scores.argsort(descending=True)[: len(found["scores"])]
        assert len(order) == min(100, int((scores > 0.01).sum()))
        torch.testing.assert_close(found["scores"], scores[order], atol=1e-5, rtol=1e-4)
        assert (found["labels"] == labels[order]).float().mean() > 0.95
        expected = in_pixels(boxes[queries[order]], frame, size)
        assert ((found["boxes"] - expected).abs().amax(1) < 0.01).float().mean() > 0.95


def test_losses_are_the_librarys_own_with_all_layers(key: str) -> None:
    detector = small(key, **({"denoising": 0} if key == "rtdetr" else {})).eval()
    samples = [sample(128, 96, BOXES[:1], [2]), sample(96, 128, BOXES, [0, 1]), sample(64, 64)]
    batch = detector.prepare(samples)
    frames = detector.frames(batch)
    targets = []
    for one, (height, width) in zip(samples, frames):
        shares = box_convert(one.boxes.as_subclass(Tensor), "xyxy", "cxcywh") / torch.tensor([width, height] * 2)
        labels = torch.zeros(0, dtype=torch.int64) if one.labels is None else one.labels
        targets.append({"boxes": shares, "class_labels": labels})
    losses = detector.losses(batch)
    assert set(losses) == {"loss_class", "loss_bbox", "loss_giou"}
    if key == "detr":  # its own way to all layers normalises twice
        from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

        found = detector.queries(detector.features(batch), pixel_mask(batch))
        layers = zip(found.logits, found.boxes)
        expected = sum(
            ForObjectDetectionLoss(own, targets, own.device, boxes, detector.net.config)[0] for own, boxes in layers
        )
    else:
        detector.net.config.auxiliary_loss = True
        asked = {"pixel_values": batch.tensor, "pixel_mask": pixel_mask(batch).long(), "labels": targets}
        expected = detector.net(**asked).loss
    torch.testing.assert_close(sum(losses.values()), expected, atol=1e-3, rtol=1e-4)


def test_each_layer_is_matched_by_itself_by_the_librarys_cost(key: str) -> None:
    detector = small(key, num_classes=1).eval()
    with torch.no_grad():
        stages, maps, batch = regions_of(detector, [sample(128, 128, BOXES), sample(96, 128, BOXES[1:])], losses=True)
        found = detector.queries(maps, pixel_mask(batch))
    assert len(stages) == 2
    for stage, own, shares in zip(stages, found.logits, found.boxes):
        expected = torch.full((2, 60), -1)
        for row, target, (height, width) in zip(range(2), batch.targets, detector.frames(batch)):
            goal = box_convert(target["boxes"], "xyxy", "cxcywh") / torch.tensor([width, height, width, height])
            cost = 5 * torch.cdist(shares[row], goal, p=1)
            if key == "detr":
                cost = cost - own[row].softmax(-1)[:, :1]
            else:
                p = own[row].sigmoid()
                focal = 0.75 * p**2 * (1 - p + 1e-8).log() - 0.25 * (1 - p) ** 2 * (p + 1e-8).log()
                cost = cost + (2 if key == "rtdetr" else 1) * focal
            corners = [box_convert(each, "cxcywh", "xyxy") for each in (shares[row], goal)]
            queries, objects = linear_sum_assignment((cost - 2 * generalized_box_iou(*corners)).numpy())
            expected[row, queries] = target["ids"][objects]
        assert stage.ids.equal(expected.flatten())
        assert stage.embeddings.shape == (120, DIM)
        assert not stage.boxes.requires_grad


def test_pre_training_classifies_into_the_pseudo_classes_and_never_into_ids(key: str) -> None:
    detector = small(key, num_classes=7).eval()
    right, wrong = (
        [sample(128, 128, BOXES, labels), sample(128, 128, BOXES[:1], labels[:1])] for labels in ([6, 2], [1, 4])
    )
    with torch.no_grad():  # every query is nearly sure of its class, 6 or 2
        for name, value in detector.net.named_parameters():
            if ("class" in name or "score" in name) and name.endswith("bias"):
                value[[6, 2]] += 20
    for one in (*right, *wrong):
        one.ids = one.ids + 1_000_000  # as a class they would be out of range
    own, other = [
        sum(stage.losses["loss_class"] for stage in regions_of(detector, s, losses=True)[0]) for s in (right, wrong)
    ]
    assert own < other
    with torch.no_grad():
        batch = detector.prepare(right)
        classes = [target["class_labels"].tolist() for target in detector.targets(batch, batch.tensor)]
    assert classes == [[6, 2], [6]]
    unlabelled = [sample(128, 128, BOXES)]
    found = detector.targets(detector.prepare(unlabelled), batch.tensor)
    assert found[0]["class_labels"].tolist() == [0, 0]


def test_gradients_reach_every_trainable_parameter_and_no_frozen_one(key: str) -> None:
    detector = small(key, batch_norm="frozen").train()
    batch = detector.prepare([sample(128, 128, BOXES, [0, 1]), sample(96, 96, BOXES[:1], [2])])
    sum(detector.losses(batch).values()).backward()
    for name, parameter in detector.net.named_parameters():
        if name.rpartition(".")[0] in detector.frozen_norms:
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None, name
            # DETR's queries begin as zeros: the first layer's attention among them has the same value everywhere.
            among = name.removeprefix("model.decoder.layers.0.self_attn.")
            idle = key == "detr" and among.startswith(("q_proj.", "k_proj.", "v_proj.weight"))
            idle |= ".layer" in name and "backbone" in name  # its blocks' last norms begin as zeros
            assert idle or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("labels", [[[], []], [[1], []]], ids=["no boxes at all", "one image without"])
def test_images_without_boxes_give_finite_losses_with_gradients(key: str, labels: list[list[int]]) -> None:
    detector = small(key, layers=1).train()
    samples = [sample(64, 96, BOXES[: len(each)], each, seed=len(each)) for each in labels]
    sum(detector.losses(detector.prepare(samples)).values()).backward()
    for name, parameter in detector.net.named_parameters():
        unseen = "denoising" in name and not any(labels)
        assert not parameter.requires_grad or unseen or parameter.grad.isfinite().all(), name
    stages, _, _ = regions_of(detector, samples, losses=True)
    assert sum(sum(stage.losses.values()) + stage.embeddings.sum() for stage in stages).isfinite()
    assert (stages[0].ids >= 0).sum() == sum(map(len, labels))


def test_more_boxes_than_queries_train_as_many_as_there_are_queries(key: str) -> None:
    detector = small(key, layers=1)
    crowd = [[x, y, x + 9, y + 9] for x in range(0, 100, 10) for y in range(0, 100, 10)]
    stages, _, _ = regions_of(detector, [sample(128, 128, crowd)], losses=True)
    assert all((stage.ids >= 0).all() and stage.ids.unique().numel() == 60 for stage in stages)


@torch.no_grad()
def test_others_in_the_batch_change_nothing_that_is_found(key: str) -> None:
    detector = small(key, layers=1).eval()
    one, same, larger = sample(64, 96), sample(70, 90, seed=1), sample(128, 128)
    alone, beside = (detector.predict(samples)[0] for samples in ([one], [one, same, larger]))
    torch.testing.assert_close(alone["scores"], beside["scores"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone["boxes"], beside["boxes"], atol=0.01, rtol=0)


@torch.no_grad()
def test_what_stands_in_the_padding_is_not_looked_at_but_by_rtdetr(key: str) -> None:
    detector = small(key, layers=1).eval()
    batch = detector.prepare([sample(64, 96), sample(128, 128)])
    maps, mask = detector.features(batch), pixel_mask(batch)
    changed = {name: torch.where(shrunk(mask, each.shape[-2:])[:, None], each, each + 9) for name, each in maps.items()}
    one, other = (detector.queries(each, mask) for each in (maps, changed))
    assert one.logits[:, 0].allclose(other.logits[:, 0], atol=1e-4) is (key != "rtdetr")
    assert one.boxes[:, 0].allclose(other.boxes[:, 0], atol=1e-5) is (key != "rtdetr")
    for found, (height, width) in zip(detector.detections(batch), batch.sizes):
        assert (found["boxes"] <= torch.tensor([width, height] * 2)).all()


def test_losses_are_float32_under_bfloat16_and_double_for_a_double_network(key: str) -> None:
    detector = small(key, layers=1).eval()
    batch = detector.prepare([sample(128, 128, BOXES, [0, 1])])
    exact = detector.losses(batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert detector.queries(detector.features(batch), pixel_mask(batch)).boxes.dtype == torch.float32
        for name, loss in detector.losses(batch).items():
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, exact[name], atol=0.1, rtol=0.15)
    double = detector.double().train()
    batch = double.prepare([sample(64, 64, [[10, 10, 30, 30]], [0])])
    assert {loss.dtype for loss in double.losses(batch).values()} == {torch.float64}


def test_a_network_that_has_diverged_gives_losses_that_say_so(key: str) -> None:
    detector = small(key, layers=1)
    with torch.no_grad():
        next(iter(detector.net.model.decoder.layers[0].parameters())).fill_(torch.nan)
    losses = detector.losses(detector.prepare([sample(64, 64, [[10, 10, 30, 30]], [0])]))
    assert all(loss.isnan() for loss in losses.values())


@pytest.mark.parametrize("keep", [False, True])
def test_parts_hold_every_name_exactly_once(key: str, keep: bool) -> None:
    detector = small(key, layers=1)
    parts = detector.parts(keep_box_outputs=keep)
    for name in detector.net.state_dict():
        assert sum(part.holds(name) for part in parts.values()) == 1, name
    fresh = {name.rsplit(".", 1)[0] for name in detector.net.state_dict() if parts["last"].holds(name)}
    classes, boxes = {
        "detr": ({"class_labels_classifier"}, {"bbox_predictor.layers.2"}),
        "deformable_detr": (
            {"class_embed.0"},
            {"bbox_embed.0.layers.2", "model.decoder.bbox_embed.0.layers.2"},
        ),
        "rtdetr": (
            {"model.enc_score_head", "model.decoder.class_embed.0", "model.denoising_class_embed"},
            {"model.enc_bbox_head.layers.2", "model.decoder.bbox_embed.0.layers.2"},
        ),
    }[key]
    assert fresh == (classes if keep else classes | boxes)


def test_the_backbones_weights_have_their_own_names_in_the_network(key: str) -> None:
    names = [name for name in small(key, layers=1).net.state_dict() if "backbone" in name]
    assert set(names) == {f"model.backbone.model.{name}" for name in build_backbone("test_resnet").net.state_dict()}


def test_what_can_not_be_built_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_backbone("resnet18")
    with pytest.raises(UserError, match=r"queries 50\. Expected more than 50"):
        DETECTORS[key](2, backbone, queries=50)
    with pytest.raises(UserError, match="layers 0"):
        DETECTORS[key](2, backbone, layers=0)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=rf"{key} needs transformers, which is not installed\. Pip install"):
        DETECTORS[key](2, backbone)


def test_the_configuration_rebuilds_the_detector(key: str) -> None:
    detector = small(key, image_size=96, score_threshold=0.02, detections=7, layers=1)
    config = detector.config()
    twin = DETECTORS[config["detector"]](config["num_classes"], build_backbone(config["backbone"]), **config["options"])
    twin.net.load_state_dict(detector.net.state_dict(), strict=True)
    assert twin.config() == config
    found, again = (each.predict([sample(64, 96)])[0] for each in (detector, twin))
    assert len(found["boxes"]) == 7
    assert all(found[name].equal(again[name]) for name in ("boxes", "scores", "labels"))
