"""Composite backbones: what goes from the assistant into the lead, and which networks there can be two of."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from selfdet.errors import UserError
from selfdet.models.backbones import build_backbone
from selfdet.models.composite import Composite

SWIN = "swin_tiny_patch4_window7_224"


def woken(net: Composite) -> Composite:
    """The network with connections that say something, and with two copies that differ."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in net.connections.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.normal_()
                module.bias.normal_()
        for parameter in net.assistant.parameters():
            parameter.mul_(1.1)
    return net


@pytest.mark.parametrize("name", ["resnet18", SWIN])
@torch.no_grad()
def test_at_first_the_lead_gives_the_maps_of_the_plain_network(name):
    torch.manual_seed(0)
    plain = build_backbone(name).eval()
    torch.manual_seed(0)
    both = build_backbone(f"cb-{name}").eval()
    assert (both.channels, both.strides, both.mean) == (plain.channels, plain.strides, plain.mean)
    x = torch.randn(1, 3, 64, 96)
    expected = plain(x)
    for maps in (both(x), *both.net.both(x)):
        assert list(maps) == list(expected)
        assert all(torch.equal(features, expected[level]) for level, features in maps.items())
    own = set(plain.net.state_dict())
    for copied in (both.net.assistant, both.net.lead):
        assert set(copied.state_dict()) == own


@pytest.mark.parametrize("name", ["resnet18", SWIN])
@torch.no_grad()
def test_each_stage_of_the_lead_gets_the_assistants_maps_of_that_stage_and_later_ones(name):
    net = woken(build_backbone(f"cb-{name}").eval().net)
    x = torch.randn(1, 3, 64, 96)
    lead, assistant = net.both(x)
    higher = list(assistant.values())
    if name == "resnet18":
        y = net.lead["maxpool"](net.lead["relu"](net.lead["bn1"](net.lead["conv1"](x))))
        stages = [net.lead[f"layer{stage}"] for stage in (1, 2, 3, 4)]
    else:
        y, stages = net.lead.patch_embed(x).permute(0, 3, 1, 2), list(net.lead.layers)
    for stage, run in enumerate(stages):
        assert len(net.connections[stage]) == 4 - stage
        for later in range(stage, 4):
            conv, norm = net.connections[stage][later - stage]
            added = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], higher[later])
            added = added / (1 + norm.eps) ** 0.5 * norm.weight[:, None, None] + norm.bias[:, None, None]
            y = y + functional.interpolate(added, size=y.shape[-2:], mode="nearest")
        y = run(y) if name == "resnet18" else run(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(lead[str(stage)], y, atol=1e-4, rtol=1e-4)


def test_gradients_reach_both_copies_through_the_leads_maps():
    net = woken(build_backbone("cb-resnet18").net)
    sum(features.sum() for features in net(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


@torch.no_grad()
def test_images_of_odd_sizes_have_the_plain_networks_maps():
    both, plain = build_backbone("cb-resnet18").eval(), build_backbone("resnet18").eval()
    x = torch.randn(1, 3, 75, 101)
    assert [each.shape for each in both(x).values()] == [each.shape for each in plain(x).values()]


@pytest.mark.parametrize("name", ["convnext_atto", "timm/resnet18", "vit_tiny_patch16_224", "cb-resnet18"])
def test_two_of_another_network_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"backbone cb-{name}: two of {name} cannot be composed") as refused:
        build_backbone(f"cb-{name}")
    assert "cb-resnet50" in refused.value.hint


def test_two_of_an_unknown_network_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="unknown backbone 'resnet5O'"):
        build_backbone("cb-resnet5O")
