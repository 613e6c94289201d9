"""Depthwise convolutions learn in float32 under bfloat16 on a CPU, and are otherwise the library's."""

import copy

import torch
from torch import nn

from selfdet.models.backbones import build_backbone

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def depthwise(net: nn.Module) -> list[nn.Conv2d]:
    return [module for module in net.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]


def types_seen(net: nn.Module, module: nn.Conv2d, gradient: bool, autocast: bool) -> tuple[torch.dtype, torch.dtype]:
    """The types that the module's own convolution gives, and that it hands on."""
    inside: list[torch.dtype] = []
    outside: list[torch.dtype] = []

    def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y = nn.Conv2d._conv_forward(module, x, weight, bias)
        inside.append(y.dtype)
        return y

    vars(module)["_conv_forward"] = convolve
    handle = module.register_forward_hook(lambda _, __, y: outside.append(y.dtype))
    with torch.set_grad_enabled(gradient), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        net(IMAGES)
    handle.remove()
    del vars(module)["_conv_forward"]
    return inside[0], outside[0]


def test_they_compute_in_float32_where_gradients_are_recorded_under_autocast() -> None:
    net = build_backbone("mobilenetv2_050").net
    module = depthwise(net)[3]
    assert types_seen(net, module, True, True) == (torch.float32, torch.bfloat16)
    assert types_seen(net, module, False, True) == (torch.bfloat16, torch.bfloat16)
    assert types_seen(net, module, True, False) == (torch.float32, torch.float32)


def test_values_in_float32_are_the_librarys_to_the_bit() -> None:
    backbone = build_backbone("mobilenetv2_050").eval()
    told = backbone(IMAGES)
    for module in depthwise(backbone.net):
        vars(module).pop("forward")
    assert all(torch.equal(value, told[name]) for name, value in backbone(IMAGES).items())


def test_a_copy_computes_with_its_own_weights() -> None:
    backbone = build_backbone("mobilenetv2_050").eval()
    twin = copy.deepcopy(backbone)
    before = {name: value.clone() for name, value in twin(IMAGES).items()}
    with torch.no_grad():
        for module in depthwise(backbone.net):
            module.weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in twin(IMAGES).items())
    assert not torch.equal(backbone(IMAGES)["3"], before["3"])
