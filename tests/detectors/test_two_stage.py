"""Faster and Mask R-CNN: torchvision's own results on the same weights, gradients where they belong, odd images."""

import pytest
import torch
from tests.detectors.rcnn_scenes import BOXES, TWO_STAGE, masked, small_faster, stock
from tests.detectors.scenes import sample
from torch import nn

from selfdet.detectors.anchors import working_scale
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError
from selfdet.models.backbones import build_backbone


@pytest.fixture(params=list(TWO_STAGE))
def small(request):
    return TWO_STAGE[request.param]


@pytest.mark.parametrize("size", [(96, 128), (85, 128)])
def test_detections_equal_stock_torchvisions_on_the_same_weights(size, small):
    detector = small(detections=200)
    library = stock(detector).eval()
    one = sample(*size, original=(size[0] * 2, size[1] * 2))
    with torch.no_grad():
        expected = library([one.image.as_subclass(torch.Tensor) / 255])[0]
    found = detector.predict([one])[0]
    assert len(found["boxes"]) == len(expected["boxes"]) > 10
    torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-4, rtol=1e-4)
    # Rounding may change the order of scores that are nearly equal, and with it which of two boxes suppresses another.
    ours, theirs = (
        torch.cat([each["boxes"], 1e4 * each["scores"][:, None], 1e4 * each["labels"][:, None]], 1)
        for each in (found, {**expected, "boxes": expected["boxes"] * 2, "labels": expected["labels"] - 1})
    )
    difference = torch.cdist(ours, theirs, p=torch.inf)
    for nearest in (difference.amin(0), difference.amin(1)):
        assert (nearest < 0.1).double().mean() > 0.98


def test_losses_equal_stock_torchvisions_on_the_same_weights_and_draws(small):
    detector = small().train()
    library = stock(detector).train()
    samples = [masked(sample(128, 96, BOXES[:1], [2])), masked(sample(96, 128, BOXES, [0, 1], seed=1))]
    batch = detector.prepare(samples)
    # The last bit of a pixel may decide which boxes are suppressed, and then other RoIs are drawn.
    images = [image[:, :height, :width] for image, (height, width) in zip(batch.tensor, batch.sizes)]
    library.transform.normalize = lambda image: image
    library.transform._skip_resize = True  # draws a size, though there is one
    targets = [
        {"boxes": one.boxes.as_subclass(torch.Tensor), "labels": one.labels + 1, "masks": one.masks.to(torch.uint8)}
        for one in samples
    ]
    torch.manual_seed(5)
    expected = library(images, targets)
    torch.manual_seed(5)
    found = detector.losses(batch)
    assert set(found) == set(expected)
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[name], atol=1e-5, rtol=1e-4)


def test_nothing_depends_on_training_mode():
    detector = small_faster(batch_norm="frozen")
    batch = detector.prepare([sample(96, 96, BOXES[:1], [1])])
    torch.manual_seed(0)
    trained = detector.train().losses(batch)
    torch.manual_seed(0)
    evaluated = detector.eval().losses(batch)
    assert {name: float(loss.detach()) for name, loss in trained.items()} == {
        name: float(loss.detach()) for name, loss in evaluated.items()
    }
    assert not detector.net.rpn.training
    first = detector.train().detections(batch)[0]["boxes"]
    assert first.equal(detector.eval().detections(batch)[0]["boxes"])


def test_gradients_reach_every_trainable_parameter_and_no_frozen_one(small):
    detector = small(batch_norm="frozen", neck_norm="gn").train()
    one = sample(128, 128, [[4, 4, 124, 124], *BOXES, [4, 100, 14, 110]], [0, 1, 2, 0])
    batch = detector.prepare([masked(one)])
    sum(detector.losses(batch).values()).backward()
    for name, parameter in detector.net.named_parameters():
        if "bn" in name or "downsample.1" in name:  # of the backbone
            assert not parameter.requires_grad
            assert parameter.grad is None
        else:
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("labels", [[[], []], [[1], []]], ids=["no boxes at all", "one image without"])
def test_images_without_boxes_give_finite_losses_with_gradients(labels, small):
    detector = small().train()
    samples = [sample(64, 96, BOXES[: len(each)], each, seed=len(each)) for each in labels]
    losses = detector.losses(detector.prepare(samples))
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    for name, parameter in detector.net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("box", [[2, 2, 6, 6], [1, 1, 255, 255]], ids=["finest", "coarsest"])
def test_an_image_whose_boxes_are_all_of_one_level_trains(box):
    detector = small_faster().train()
    total = sum(detector.losses(detector.prepare([sample(256, 256, [box] * 3, [0, 1, 2])])).values())
    total.backward()
    assert torch.isfinite(total)


@pytest.mark.parametrize("size", [(33, 33), (37, 128), (1, 1), (64, 65)])
def test_odd_sizes_train_and_predict(size):
    detector = small_faster(batch_norm="frozen").train()
    one = sample(*size, [[0, 0, size[1], size[0]]], [0])
    total = sum(detector.losses(detector.prepare([one])).values())
    total.backward()
    assert torch.isfinite(total)
    found = detector.predict([one])[0]
    assert set(found) >= {"boxes", "scores", "labels"}


def test_what_was_seen_first_does_not_change_where_regions_are_pooled():
    """torchvision's pooling keeps the scales that it guesses from the first batch."""
    fresh, used = small_faster().eval(), small_faster().eval()
    used.predict([sample(33, 33)])
    one = sample(128, 128)
    assert fresh.predict([one])[0]["scores"].equal(used.predict([one])[0]["scores"])


@pytest.mark.parametrize(
    "boxes", [[[10, 10, 10, 30]], [[70, 10, 90, 30]], [[float("nan"), 1, 9, 9]]], ids=["flat", "outside", "no number"]
)
def test_boxes_that_cover_nothing_count_as_no_boxes(boxes):
    detector = small_faster()
    given, none = (detector.prepare([sample(64, 64, each, [0] * len(each))]) for each in (boxes, []))
    torch.manual_seed(0)
    expected = detector.losses(none)
    torch.manual_seed(0)
    for name, loss in detector.losses(given).items():
        assert loss.isfinite()
        assert loss == expected[name]


def test_losses_are_float32_under_bfloat16_autocast(small):
    detector = small().train()
    batch = detector.prepare([sample(128, 128, BOXES, [0, 1])])
    torch.manual_seed(0)
    exact = detector.losses(batch)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        losses = detector.losses(batch)
        found = detector.predict([sample(128, 128)])[0]
    sum(losses.values()).backward()
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    for name, loss in losses.items():
        torch.testing.assert_close(loss, exact[name], atol=0.05, rtol=0.1)


def test_a_double_network_gives_double_losses(small):
    detector = small().double()
    batch = detector.prepare([sample(64, 64, [[10, 10, 30, 30]], [0]), sample(64, 64)])
    assert {loss.dtype for loss in detector.losses(batch).values()} == {torch.float64}
    assert detector.predict([sample(64, 64)])[0]["boxes"].dtype == torch.float64


def test_a_few_steps_of_training_lower_the_loss():
    detector = small_faster(batch_norm="frozen").train()
    nn.init.normal_(detector.net.roi_heads.box_predictor.cls_score.weight, std=0.01)
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], 0.01)
    batch = detector.prepare([sample(128, 128, BOXES, [0, 1])])
    seen = []
    for step in range(8):
        torch.manual_seed(step)
        loss = sum(detector.losses(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.8 * seen[0]


@pytest.mark.parametrize("keep", [False, True])
def test_parts_hold_every_name_exactly_once(keep, small):
    detector = small(neck_norm="bn", box_head="4conv1fc")
    parts = detector.parts(keep_box_outputs=keep)
    for name in detector.net.state_dict():
        assert sum(part.holds(name) for part in parts.values()) == 1, name
    assert not parts["rpn"].reinit


def test_the_whole_rpn_is_kept_though_its_layers_are_called_like_last_layers(small):
    detector = small()
    parts = detector.parts()
    fresh = {name for name in detector.net.state_dict() if any(p.reinit and p.holds(name) for p in parts.values())}
    assert {name for name in fresh if "mask" not in name} == {
        f"roi_heads.box_predictor.{layer}.{kind}" for layer in ("cls_score", "bbox_pred") for kind in ("weight", "bias")
    }
    assert all(parts["rpn"].holds(name) == name.startswith("rpn.") for name in detector.net.state_dict())


def test_kept_box_outputs_are_the_layer_that_gives_boxes(small):
    detector = small()
    kept = {name for name in detector.net.state_dict() if detector.parts(True)["head"].holds(name)}
    kept -= {name for name in kept if detector.parts()["head"].holds(name)}
    assert kept == {"roi_heads.box_predictor.bbox_pred.weight", "roi_heads.box_predictor.bbox_pred.bias"}


def test_frozen_batch_norm_changes_no_name_and_stays_frozen_in_training():
    trained, frozen = small_faster(neck_norm="bn"), small_faster(neck_norm="bn", batch_norm="frozen")
    assert list(frozen.net.state_dict()) == list(trained.net.state_dict())
    frozen.train()
    before = {name: value.clone() for name, value in frozen.net.state_dict().items()}
    optimizer = torch.optim.SGD(frozen.parameters(), lr=0.1, weight_decay=0.1)
    sum(frozen.losses(frozen.prepare([sample(128, 128, BOXES, [0, 1])])).values()).backward()
    optimizer.step()
    for name, module in frozen.net.named_modules():
        if isinstance(module, nn.BatchNorm2d) and name.startswith("backbone.body"):
            assert all(torch.equal(value, before[f"{name}.{key}"]) for key, value in module.state_dict().items())
    assert not torch.equal(frozen.net.backbone.fpn.inner_blocks[0][1].running_mean, torch.zeros(64))
    assert not torch.equal(frozen.net.backbone.body.conv1.weight, before["backbone.body.conv1.weight"])


@pytest.mark.parametrize(
    ("image_size", "scale"), [(64, 0.5), (320, 0.5), (512, 0.75), (640, 0.75), (800, 1), (1333, 1), (4000, 1)]
)
def test_anchors_and_levels_follow_the_working_size(image_size, scale):
    assert working_scale(image_size) == scale
    config = DETECTORS["faster_rcnn"](1, build_backbone("resnet18"), image_size=image_size, fpn_channels=64).config()
    assert config["anchor_sizes"] == [[32 * scale * 2**level] for level in range(5)]
    assert config["canonical_scale"] == 224 * scale


def test_the_configuration_rebuilds_the_detector(small):
    detector = small(score_threshold=0.2, detections=7, neck_norm="gn", box_head="4conv1fc")
    config = detector.config()
    twin = DETECTORS[config["detector"]](config["num_classes"], build_backbone(config["backbone"]), **config["options"])
    twin.net.load_state_dict(detector.net.state_dict(), strict=True)
    assert twin.config() == config
    torch.testing.assert_close(
        twin.predict([sample(64, 64)])[0]["boxes"], detector.predict([sample(64, 64)])[0]["boxes"]
    )


def test_score_threshold_and_number_of_detections_bound_the_result():
    few = small_faster(detections=7).predict([sample(128, 128)])[0]
    assert len(few["boxes"]) == 7
    high = small_faster(score_threshold=0.4).predict([sample(128, 128)])[0]
    assert (high["scores"] > 0.4).all()


@pytest.mark.parametrize("key", list(TWO_STAGE))
@pytest.mark.parametrize(
    "options",
    [{"fpn_channels": 80}, {"batch_norm": "group"}, {"image_size": 16}, {"box_head": "3fc"}, {"teacher_rois": "none"}],
    ids=str,
)
def test_values_out_of_range_are_refused(options, key):
    with pytest.raises(UserError):
        DETECTORS[key](3, build_backbone("resnet18"), **options)


def test_a_backbone_without_four_maps_is_refused():
    backbone = build_backbone("resnet18")
    backbone.channels, backbone.strides = backbone.channels[1:], backbone.strides[1:]
    with pytest.raises(UserError, match="a pyramid needs 4"):
        DETECTORS["faster_rcnn"](3, backbone)


def test_a_convolutional_box_head_takes_the_necks_norm():
    def norms(**options):
        head = small_faster(box_head="4conv1fc", **options).net.roi_heads.box_head
        return [type(layer) for layer in head.modules() if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm))]

    assert norms() == []
    assert norms(neck_norm="bn") == [nn.BatchNorm2d] * 4
    assert norms(neck_norm="gn") == [nn.GroupNorm] * 4
