"""FCOS and RetinaNet: torchvision's own results on the same weights, gradients where they belong, no boxes at all."""

import pytest
import torch
from tests.detectors.scenes import EVERY_LEVEL, SMALL, sample
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from selfdet.detectors._torchvision import head_outputs, net_losses
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError
from selfdet.models.backbones import build_backbone

BOXES = [[10, 12, 40, 60], [50, 20, 120, 90]]


@pytest.fixture(params=list(SMALL))
def small(request):
    return SMALL[request.param]


def stock(detector):
    """torchvision's network, built from the exported configuration alone, with the detector's weights."""
    config = detector.config()
    body = BackboneWithFPN(
        resnet18(), {"layer2": "0", "layer3": "1", "layer4": "2"}, [128, 256, 512], 64, LastLevelP6P7(64, 64)
    )
    shared = {
        "min_size": config["options"]["image_size"],
        "max_size": config["options"]["image_size"],
        "image_mean": config["mean"],
        "image_std": config["std"],
        "score_thresh": config["options"]["score_threshold"],
        "nms_thresh": config["nms_threshold"],
        "detections_per_img": config["options"]["detections"],
        "size_divisible": config["size_divisible"],
    }
    sizes = tuple(map(tuple, config["anchor_sizes"]))
    anchors = AnchorGenerator(sizes, (tuple(config["aspect_ratios"]),) * 5)
    if config["detector"] == "fcos":
        radius = config["center_sampling_radius"]
        net = FCOS(body, config["num_classes"], anchor_generator=anchors, center_sampling_radius=radius, **shared)
    else:
        net = RetinaNet(body, config["num_classes"], anchor_generator=anchors, **shared)
    net.load_state_dict(detector.net.state_dict(), strict=True)
    return net


@pytest.mark.parametrize("size", [(128, 128), (96, 128), (128, 72), (85, 128)])
def test_detections_equal_stock_torchvisions_on_the_same_weights(size, small):
    detector = small(head_convs=4, detections=1000)
    library = stock(detector).eval()
    one = sample(*size, original=(size[0] * 2, size[1] * 2))
    with torch.no_grad():
        expected = library([one.image.as_subclass(torch.Tensor) / 255])[0]
    found = detector.predict([one])[0]
    assert len(found["boxes"]) == len(expected["boxes"]) > 10
    torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-5, rtol=1e-4)
    # Rounding may change the order of scores that are nearly equal, and with it which of two boxes suppresses another;
    # anchors in the padding all look alike and have no area in the image.
    ours, theirs = (
        torch.cat([each["boxes"], 1e4 * each["scores"][:, None], 1e4 * each["labels"][:, None]], 1)[
            (each["boxes"][:, 2:] - each["boxes"][:, :2] > 1).all(1)
        ]
        for each in (found, {**expected, "boxes": expected["boxes"] * 2})
    )
    difference = torch.cdist(ours, theirs, p=torch.inf)
    for nearest in (difference.amin(0), difference.amin(1)):
        assert len(nearest) > 10
        assert (nearest < 0.1).double().mean() > 0.98


def test_losses_equal_stock_torchvisions_on_the_same_weights(small):
    detector = small(head_convs=4).train()
    library = stock(detector).train()
    samples = [sample(128, 96, BOXES[:1], [2]), sample(96, 128, BOXES, [0, 1], seed=1)]
    images = [one.image.as_subclass(torch.Tensor) / 255 for one in samples]
    targets = [{"boxes": one.boxes.as_subclass(torch.Tensor), "labels": one.labels} for one in samples]
    expected, found = library(images, targets), detector.losses(detector.prepare(samples))
    assert set(found) == set(expected)
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[name], atol=1e-5, rtol=1e-4)


def test_gradients_reach_every_trainable_parameter_and_no_frozen_one(small):
    detector = small(batch_norm="frozen", neck_norm="gn").train()
    # All five levels at 128 px: positives on some of them suffice, the classifier sees every cell.
    losses = detector.losses(detector.prepare([sample(128, 128, [[4, 4, 124, 124], *BOXES], [0, 1, 2])]))
    sum(losses.values()).backward()
    for name, parameter in detector.net.named_parameters():
        if "bn" in name or "downsample.1" in name:
            assert not parameter.requires_grad
            assert parameter.grad is None
        else:
            assert parameter.requires_grad
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0, name


def test_every_level_learns_from_boxes_of_its_size(small):
    detector = small(image_size=256)
    batch = detector.prepare([sample(512, 512, EVERY_LEVEL, [0, 1, 2, 0, 1, 2])])
    maps = [features.detach().requires_grad_() for features in detector.features(batch).values()]
    outputs = head_outputs(detector.net, maps)
    losses = net_losses(detector.net, batch.tensor, batch.sizes, maps, outputs, batch.targets)
    sum(loss for name, loss in losses.items() if name != "classification").backward()
    assert all(level.grad.abs().sum() > 0 for level in maps)


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


@pytest.mark.parametrize(
    "boxes",
    [[[10, 10, 10, 30], [20, 20, 20, 20]], [[70, 10, 90, 30]], [[-30, -30, -5, -5]], [[float("nan"), 1, 9, 9]]],
    ids=["without an area", "right of the image", "above the image", "no number"],
)
def test_boxes_that_cover_nothing_count_as_no_boxes(boxes, small):
    detector = small()
    given, none = (detector.prepare([sample(64, 64, each, [0] * len(each))]) for each in (boxes, []))
    assert given.targets[0]["labels"].shape == (0,)
    expected = detector.losses(none)
    for name, loss in detector.losses(given).items():
        assert loss.isfinite()
        assert loss == expected[name]


def test_losses_are_float32_under_bfloat16_autocast(small):
    detector = small().train()
    batch = detector.prepare([sample(128, 128, BOXES, [0, 1])])
    exact = detector.losses(batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.losses(batch)
        found = detector.predict([sample(128, 128)])[0]
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    for name, loss in losses.items():
        torch.testing.assert_close(loss, exact[name], atol=0.02, rtol=0.05)


def test_a_double_network_gives_double_losses(small):
    detector = small().double()
    losses = detector.losses(detector.prepare([sample(64, 64, [[10, 10, 30, 30]], [0])]))
    assert {loss.dtype for loss in losses.values()} == {torch.float64}


def test_a_few_steps_of_training_lower_the_loss(small):
    detector = small(batch_norm="frozen")
    detector.train()
    optimizer = torch.optim.Adam([p for p in detector.parameters() if p.requires_grad], 1e-3)
    batch = detector.prepare([sample(128, 128, BOXES, [0, 1])])
    seen = []
    for _ in range(8):
        loss = sum(detector.losses(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.8 * seen[0]


@pytest.mark.parametrize("key", list(SMALL))
def test_classes_start_at_a_probability_of_one_in_a_hundred(key):
    detector = DETECTORS[key](4, build_backbone("resnet18"), fpn_channels=64, image_size=128)
    bias = detector.net.head.classification_head.cls_logits.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, 0.01))


@pytest.mark.parametrize("keep", [False, True])
def test_parts_hold_every_name_exactly_once(keep, small):
    detector = small(neck_norm="bn")
    parts = detector.parts(keep_box_outputs=keep)
    for name in detector.net.state_dict():
        assert sum(part.holds(name) for part in parts.values()) == 1, name
    assert list(parts) == ["backbone", "neck", "head", "last"]
    assert [part for part, spec in parts.items() if spec.reinit] == ["last"]


@pytest.mark.parametrize("keep", [False, True])
def test_last_layers_are_the_classifier_and_unless_kept_the_layers_that_give_boxes(keep, small):
    detector = small()
    last = {name for name in detector.net.state_dict() if detector.parts(keep)["last"].holds(name)}
    boxes = {"bbox_reg", "bbox_ctrness"} if detector.key == "fcos" else {"bbox_reg"}
    layers = {"classification_head.cls_logits"} | (set() if keep else {f"regression_head.{each}" for each in boxes})
    assert last == {f"head.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_frozen_batch_norm_changes_no_name_and_stays_frozen_in_training(small):
    trained, frozen = small(neck_norm="bn"), small(neck_norm="bn", batch_norm="frozen")
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


def test_batch_norm_is_synchronised_only_where_processes_are_joined(small):
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in small(batch_norm="sync").modules())
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        joined = small(batch_norm="sync")
    finally:
        torch.distributed.destroy_process_group()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in joined.modules())
    assert joined.backbone.net is joined.net.backbone.body
    assert list(joined.net.state_dict()) == list(small().net.state_dict())


def test_the_configuration_rebuilds_the_detector(small):
    detector = small(image_size=256, score_threshold=0.2, detections=7, neck_norm="gn")
    config = detector.config()
    twin = DETECTORS[config["detector"]](config["num_classes"], build_backbone(config["backbone"]), **config["options"])
    twin.net.load_state_dict(detector.net.state_dict(), strict=True)
    assert twin.config() == config
    torch.testing.assert_close(
        twin.predict([sample(64, 64)])[0]["boxes"], detector.predict([sample(64, 64)])[0]["boxes"]
    )


def test_score_threshold_and_number_of_detections_bound_the_result(small):
    few = small(detections=7).predict([sample(128, 128)])[0]
    assert len(few["boxes"]) == 7
    high = small(score_threshold=0.3).predict([sample(128, 128)])[0]
    assert (high["scores"] > 0.3).all()


@pytest.mark.parametrize("key", list(SMALL))
@pytest.mark.parametrize(
    "options",
    [
        {"fpn_channels": 80},
        {"fpn_channels": 32},
        {"fpn_channels": 0},
        {"head_convs": 0},
        {"batch_norm": "group"},
        {"image_size": 16},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(options, key):
    with pytest.raises(UserError):
        DETECTORS[key](3, build_backbone("resnet18"), **options)


@pytest.mark.parametrize("key", list(SMALL))
def test_a_label_file_without_classes_is_refused(key):
    with pytest.raises(UserError, match="0 classes"):
        DETECTORS[key](0, build_backbone("resnet18"))
