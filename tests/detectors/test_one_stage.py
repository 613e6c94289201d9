"""FCOS: torchvision's own results on the same weights, gradients where they belong, background-only batches."""

import pytest
import torch
from tests.detectors.scenes import sample, small_fcos
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from selfdet.detectors._torchvision import fcos_losses, fcos_outputs
from selfdet.detectors.one_stage import anchor_sizes, fcos
from selfdet.errors import UserError
from selfdet.models.backbones import build_backbone

BOXES = [[10, 12, 40, 60], [50, 20, 120, 90]]


def stock_fcos(detector):
    """torchvision's FCOS, built from the exported configuration alone, with the detector's weights."""
    config = detector.config()
    body = BackboneWithFPN(
        resnet18(), {"layer2": "0", "layer3": "1", "layer4": "2"}, [128, 256, 512], 64, LastLevelP6P7(64, 64)
    )
    stock = FCOS(
        body,
        config["num_classes"],
        min_size=config["options"]["image_size"],
        max_size=config["options"]["image_size"],
        image_mean=config["mean"],
        image_std=config["std"],
        anchor_generator=AnchorGenerator(tuple((s,) for s in config["anchor_sizes"]), ((1.0,),) * 5),
        center_sampling_radius=config["center_sampling_radius"],
        score_thresh=config["options"]["score_threshold"],
        nms_thresh=config["nms_threshold"],
        detections_per_img=config["options"]["detections"],
        size_divisible=config["size_divisible"],
    )
    stock.load_state_dict(detector.net.state_dict(), strict=True)
    return stock


@pytest.mark.parametrize("size", [(128, 128), (96, 128), (128, 72), (85, 128)])
def test_detections_equal_stock_torchvisions_on_the_same_weights(size):
    detector = small_fcos(head_convs=4)
    stock = stock_fcos(detector).eval()
    one = sample(*size, original=(size[0] * 2, size[1] * 2))
    with torch.no_grad():
        expected = stock([one.image.as_subclass(torch.Tensor) / 255])[0]
    found = detector.predict([one])[0]
    assert len(found["boxes"]) == len(expected["boxes"]) > 10
    torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["boxes"], expected["boxes"] * 2, atol=1e-2, rtol=1e-3)
    assert torch.equal(found["labels"], expected["labels"])


def test_losses_equal_stock_torchvisions_on_the_same_weights():
    detector = small_fcos(head_convs=4).train()
    stock = stock_fcos(detector).train()
    samples = [sample(128, 96, BOXES[:1], [2]), sample(96, 128, BOXES, [0, 1], seed=1)]
    images = [one.image.as_subclass(torch.Tensor) / 255 for one in samples]
    targets = [{"boxes": one.boxes.as_subclass(torch.Tensor), "labels": one.labels} for one in samples]
    expected, found = stock(images, targets), detector.losses(detector.prepare(samples))
    assert set(found) == set(expected)
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[name], atol=1e-5, rtol=1e-4)


def test_gradients_reach_every_trainable_parameter_and_no_frozen_one():
    detector = small_fcos(batch_norm="frozen", neck_norm="gn").train()
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


def test_every_level_learns_from_boxes_of_its_size():
    detector = small_fcos(image_size=256)
    assert detector.config()["anchor_sizes"] == [4, 8, 16, 32, 64]
    boxes = [[20, 20, 40, 40], [60, 60, 150, 150], [20, 200, 200, 380], [60, 60, 470, 470], [1, 1, 511, 511]]
    batch = detector.prepare([sample(512, 512, boxes, [0, 1, 2, 0, 1])])
    maps = [features.detach().requires_grad_() for features in detector.features(batch).values()]
    outputs = fcos_outputs(detector.net, maps)
    losses = fcos_losses(detector.net, batch.tensor, batch.sizes, maps, outputs, batch.targets)
    (losses["bbox_regression"] + losses["bbox_ctrness"]).backward()
    assert all(level.grad.abs().sum() > 0 for level in maps)


@pytest.mark.parametrize("labels", [[[], []], [[1], []]], ids=["no boxes at all", "one image without"])
def test_images_without_boxes_give_finite_losses_with_gradients(labels):
    detector = small_fcos().train()
    samples = [sample(64, 96, BOXES[: len(each)], each, seed=len(each)) for each in labels]
    losses = detector.losses(detector.prepare(samples))
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    for name, parameter in detector.net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_boxes_without_an_area_do_not_spoil_the_losses():
    detector = small_fcos()
    losses = detector.losses(detector.prepare([sample(64, 64, [[10, 10, 10, 30], [20, 20, 20, 20]], [0, 1])]))
    assert all(loss.isfinite() for loss in losses.values())


def test_losses_are_float32_under_bfloat16_autocast():
    detector = small_fcos().train()
    batch = detector.prepare([sample(128, 128, BOXES, [0, 1])])
    exact = detector.losses(batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.losses(batch)
        found = detector.predict([sample(128, 128)])[0]
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    for name, loss in losses.items():
        torch.testing.assert_close(loss, exact[name], atol=0.02, rtol=0.05)


def test_a_double_network_gives_double_losses():
    detector = small_fcos().double()
    losses = detector.losses(detector.prepare([sample(64, 64, [[10, 10, 30, 30]], [0])]))
    assert {loss.dtype for loss in losses.values()} == {torch.float64}


def test_a_few_steps_of_training_lower_the_loss():
    detector = small_fcos(batch_norm="frozen")
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


def test_classes_start_at_a_probability_of_one_in_a_hundred():
    detector = fcos(4, build_backbone("resnet18"), fpn_channels=64, image_size=128)
    bias = detector.net.head.classification_head.cls_logits.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full((4,), 0.01))


def test_parts_hold_every_name_exactly_once():
    detector = small_fcos(neck_norm="bn")
    for name in detector.net.state_dict():
        assert sum(part.holds(name) for part in detector.parts().values()) == 1, name
    assert [part for part, spec in detector.parts().items() if spec.reinit] == ["last"]


def test_last_layers_are_those_that_depend_on_the_classes_and_their_neighbours():
    detector = small_fcos()
    last = {name for name in detector.net.state_dict() if detector.parts()["last"].holds(name)}
    layers = ("classification_head.cls_logits", "regression_head.bbox_reg", "regression_head.bbox_ctrness")
    assert last == {f"head.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_frozen_batch_norm_changes_no_name_and_stays_frozen_in_training():
    trained, frozen = small_fcos(neck_norm="bn"), small_fcos(neck_norm="bn", batch_norm="frozen")
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


def test_batch_norm_is_synchronised_only_where_processes_are_joined():
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in small_fcos(batch_norm="sync").modules())
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        joined = small_fcos(batch_norm="sync")
    finally:
        torch.distributed.destroy_process_group()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in joined.modules())
    assert joined.backbone.net is joined.net.backbone.body
    assert list(joined.net.state_dict()) == list(small_fcos().net.state_dict())


@pytest.mark.parametrize(
    ("image_size", "finest"), [(64, 4), (128, 4), (256, 4), (320, 4), (512, 6), (800, 8), (1333, 8), (4000, 8)]
)
def test_anchor_sizes_follow_the_working_size(image_size, finest):
    assert anchor_sizes(image_size, [8, 16, 32, 64, 128]) == [finest * 2**level for level in range(5)]


def test_centre_sampling_keeps_its_radius_in_strides():
    for image_size in (256, 512, 1024):
        config = small_fcos(image_size=image_size).config()
        assert config["center_sampling_radius"] * config["anchor_sizes"][0] == 1.5 * config["strides"][0]


def test_the_configuration_rebuilds_the_detector():
    detector = small_fcos(image_size=256, score_threshold=0.2, detections=7, neck_norm="gn")
    config = detector.config()
    twin = fcos(config["num_classes"], build_backbone(config["backbone"]), **config["options"])
    twin.net.load_state_dict(detector.net.state_dict(), strict=True)
    assert twin.config() == config
    torch.testing.assert_close(
        twin.predict([sample(64, 64)])[0]["boxes"], detector.predict([sample(64, 64)])[0]["boxes"]
    )


def test_score_threshold_and_number_of_detections_bound_the_result():
    few = small_fcos(detections=7).predict([sample(128, 128)])[0]
    assert len(few["boxes"]) == 7
    high = small_fcos(score_threshold=0.3).predict([sample(128, 128)])[0]
    assert (high["scores"] > 0.3).all()


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
def test_values_out_of_range_are_refused(options):
    with pytest.raises(UserError):
        fcos(3, build_backbone("resnet18"), **options)


def test_a_label_file_without_classes_is_refused():
    with pytest.raises(UserError, match="0 classes"):
        fcos(0, build_backbone("resnet18"))


def test_every_cell_starts_with_a_box_whose_distances_the_gradient_reaches():
    detector = small_fcos()
    maps = list(detector.features(detector.prepare([sample(128, 128)])).values())
    distances = fcos_outputs(detector.net, maps)["bbox_regression"]
    assert (distances > 0).float().mean() > 0.99
