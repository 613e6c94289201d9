"""Segmenters score every pixel, name their weights as torchvision does and keep frozen batch norm frozen."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch.nn.modules.batchnorm import _BatchNorm

from selfdet.detectors.optim import parameter_groups, part_of
from selfdet.detectors.segmenter import Segmenter, fcn
from selfdet.errors import UserError
from selfdet.models.atrous import build_atrous_backbone


def tiny(**options: object) -> Segmenter:
    torch.manual_seed(0)
    return fcn(5, build_atrous_backbone("test_resnet"), **options)  # type: ignore[arg-type]


def test_there_is_a_score_of_each_class_for_every_pixel() -> None:
    net = tiny().eval()
    images = [torch.randint(0, 256, (3, 41, 50), dtype=torch.uint8), torch.randint(0, 256, (3, 24, 64))]
    prepared = net.prepare(images)
    assert prepared.shape == (2, 3, 48, 64)
    assert not prepared[0, :, 41:].any()
    assert not prepared[0, :, :, 50:].any()
    assert net(prepared).shape == (2, 5, 48, 64)


def test_with_one_convolution_the_weights_are_those_of_torchvisions_fcn() -> None:
    torch.manual_seed(0)
    net = fcn(5, build_atrous_backbone("resnet50"), head_convs=1).eval()
    theirs = torchvision.models.get_model("fcn_resnet50", weights=None, weights_backbone=None, num_classes=5).eval()
    theirs.load_state_dict(net.net.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net(images), theirs(images)["out"])


def test_parts_hold_every_weight_once_and_only_the_classifier_starts_afresh() -> None:
    net = tiny()
    names = list(net.net.state_dict())
    held = {part: [name for name in names if part_of(net, name) == part] for part in net.parts()}
    assert sum(map(len, held.values())) == len(names)
    assert held["last"] == ["classifier.7.weight", "classifier.7.bias"]
    assert [part for part, rules in net.parts().items() if rules.reinit] == ["last"]
    assert all(sum(rules.holds(name) for rules in net.parts().values()) == 1 for name in names)
    assert len(parameter_groups(net, {"last": 10.0}, 1e-4)) == 3


def test_frozen_batch_norm_keeps_its_statistics_in_the_backbone_and_learns_them_in_the_head() -> None:
    net = tiny(batch_norm="frozen").train()
    before = {name: value.clone() for name, value in net.net.state_dict().items()}
    net(torch.randn(2, 3, 32, 32))
    moved = {name for name, value in net.net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("classifier.") for name in moved)


def test_synchronised_batch_norm_changes_no_name_on_one_process() -> None:
    net = tiny(batch_norm="sync")
    assert net.net.state_dict().keys() == tiny().net.state_dict().keys()
    assert any(isinstance(module, _BatchNorm) for module in net.net.modules())


def test_a_head_without_convolutions_is_refused() -> None:
    with pytest.raises(UserError, match="--head-convs is 0"):
        tiny(head_convs=0)
