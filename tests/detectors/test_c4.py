"""Faster R-CNN on C4: the backbone in two halves, torchvision's own results on the same weights."""

from collections import OrderedDict

import pytest
import torch
from tests.detectors.rcnn_scenes import small_c4
from tests.detectors.scenes import sample
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from selfdet.detectors.faster_rcnn import faster_rcnn
from selfdet.detectors.optim import freeze
from selfdet.errors import UserError
from selfdet.methods.aligndet import AlignDet
from selfdet.models.backbones import build_backbone


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(OrderedDict(list(resnet18().named_children())[:-3]))
        self.out_channels = 256

    def forward(self, x):
        return self.body(x)


class Res5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer4 = resnet18().layer4

    def forward(self, x):
        return self.layer4(x).mean((2, 3))


def stock(detector):
    """torchvision's network, put together as its documentation says, with the detector's weights."""
    config = detector.config()
    net = FasterRCNN(
        Body(),
        min_size=96,
        max_size=96,
        size_divisible=config["size_divisible"],
        rpn_anchor_generator=AnchorGenerator(tuple(map(tuple, config["anchor_sizes"])), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_train=config["rpn_boxes"][0],
        rpn_pre_nms_top_n_test=config["rpn_boxes"][1],
        box_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        box_head=Res5(),
        box_predictor=FastRCNNPredictor(512, config["num_classes"] + 1),
        box_score_thresh=config["options"]["score_threshold"],
    )
    net.load_state_dict(detector.net.state_dict(), strict=True)
    return net


def test_detections_and_losses_equal_stock_torchvisions_on_the_same_weights():
    detector = small_c4()
    library = stock(detector)
    one = sample(96, 96, [[10, 12, 40, 60], [50, 20, 90, 90]], [0, 2])
    batch = detector.prepare([one])
    library.transform.normalize = lambda image: image
    with torch.no_grad():
        expected = library.eval()([batch.tensor[0]])[0]
    found = detector.predict([one])[0]
    torch.testing.assert_close(found["boxes"], expected["boxes"], atol=0.01, rtol=1e-4)
    torch.testing.assert_close(found["scores"], expected["scores"])
    library.transform._skip_resize = True  # draws a size, though there is one
    torch.manual_seed(0)
    targets = [{"boxes": one.boxes.as_subclass(torch.Tensor), "labels": one.labels + 1}]
    expected = library.train()([batch.tensor[0]], targets)
    torch.manual_seed(0)
    found = detector.train().losses(batch)
    assert set(found) == set(expected)
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[name], atol=1e-5, rtol=1e-4)


def test_a_backbones_weights_fill_both_halves():
    backbone = build_backbone("resnet18")
    names = {id(parameter): name for name, parameter in backbone.net.named_parameters()}
    detector = faster_rcnn(3, backbone, neck="c4", image_size=128)
    held = {names[id(p)]: name for name, p in detector.net.named_parameters() if id(p) in names}
    assert set(held) == set(names.values())
    assert all(
        name == (f"roi_heads.box_head.{own}" if own.startswith("layer4.") else f"backbone.body.{own}")
        for own, name in held.items()
    )
    assert all(detector.parts()["backbone"].holds(name) for name in held.values())


@pytest.mark.parametrize("keep", [False, True])
def test_parts_hold_every_name_exactly_once_and_none_is_empty(keep):
    detector = small_c4()
    parts = detector.parts(keep_box_outputs=keep)
    assert list(parts) == (["backbone", "rpn", "head", "last"] if keep else ["backbone", "rpn", "last"])
    names = list(detector.net.state_dict())
    assert all(sum(part.holds(name) for part in parts.values()) == 1 for name in names)
    assert all(any(part.holds(name) for name in names) for part in parts.values())


def test_batch_norm_of_the_box_head_trains_where_the_rest_is_frozen():
    detector = small_c4(batch_norm="frozen").train()
    before = {name: value.clone() for name, value in detector.net.state_dict().items()}
    optimizer = torch.optim.SGD(detector.parameters(), 1e-3)
    sum(detector.losses(detector.prepare([sample(48, 64, [[8, 8, 30, 30]], [0])])).values()).backward()
    optimizer.step()
    after = detector.net.state_dict()
    moved = {name for name, value in after.items() if not value.equal(before[name])}
    assert not any(name.startswith("backbone.") and "bn" in name for name in moved)
    for name in ("running_mean", "weight"):
        assert f"roi_heads.box_head.layer4.1.bn2.{name}" in moved
    assert {name for name, p in detector.net.named_parameters() if p.requires_grad} <= moved


def test_the_whole_backbone_can_be_frozen():
    detector = small_c4()
    freeze(detector, ["backbone"])
    detector.train()
    assert not any(p.requires_grad for p in detector.backbone.net.parameters())
    assert not any(m.training for m in detector.backbone.net.modules() if isinstance(m, nn.BatchNorm2d))


def test_an_odd_image_without_boxes_trains():
    detector = small_c4(batch_norm="frozen").train()
    losses = detector.losses(detector.prepare([sample(33, 50)]))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters() if p.requires_grad)


def test_the_configuration_rebuilds_the_detector():
    detector = small_c4(detections=7)
    config = detector.config()
    assert config["anchor_sizes"] == [[16, 32, 64, 128, 256]]
    assert config["strides"] == [16]
    twin = faster_rcnn(config["num_classes"], build_backbone(config["backbone"]), **config["options"])
    twin.net.load_state_dict(detector.net.state_dict(), strict=True)
    assert twin.config() == config


def test_it_is_not_for_box_domain_pre_training_which_says_so():
    with pytest.raises(UserError, match="no neck or head to pre-train"):
        AlignDet(small_c4())


@pytest.mark.parametrize("options", [{"neck_norm": "bn"}, {"fpn_channels": 128}, {"box_head": "4conv1fc"}], ids=str)
def test_options_of_the_pyramid_are_refused(options):
    with pytest.raises(UserError, match="with neck c4"):
        small_c4(**options)


def test_only_torchvisions_resnets_have_a_c4():
    with pytest.raises(UserError, match="neck c4 on backbone timm/resnet18"):
        faster_rcnn(3, build_backbone("timm/resnet18"), neck="c4")
    with pytest.raises(UserError, match="neck 'c5'"):
        faster_rcnn(3, build_backbone("resnet18"), neck="c5")
