"""A network that is not trained, its batch norms folded into the convolutions before them: less time, equal maps."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_weights

from selfdet.models.backbones import Maps, evaluating

EQUAL = 1e-3  # largest difference of a map's values, as a share of its largest


class Folding:
    """Keeps the folded copy of a network for as long as it is one."""

    def __init__(self) -> None:
        self._state: list[tuple[int, int]] = []
        self._copy: nn.Module | None = None

    def of(self, maps: Maps, net: nn.Module, example: Tensor) -> nn.Module:
        """`folded(maps, net, example)`, made anew where the weights of `net` have changed; `net` itself while somebody
        watches it, as a copy would not call their hooks."""
        if any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()):
            return net
        state = [(value.data_ptr(), value._version) for value in (*net.parameters(), *net.buffers())]
        if self._copy is None or state != self._state:
            self._copy, self._state = folded(maps, net, example), state
        return self._copy


@torch.no_grad()
def folded(maps: Maps, net: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `net` for evaluation, its batch norms part of the convolutions before them; `maps(net, x)` runs it.

    `example`: images (B, 3, H, W), normalised, on which is seen what follows what, and checked that the copy's maps
    equal those of `net`. Where they don't, as after convolutions that make up their own weights, `net` is returned.
    """
    with evaluating(net), torch.autocast(example.device.type, enabled=False):
        wanted, pairs = _watched(maps, net, example)
        if not pairs:
            return net
        faster = copy.deepcopy(net).requires_grad_(False)
        for convolution, norm in pairs:
            _fold(faster, convolution, norm)
        given = maps(faster, example)
    equal = all((given[name] - value).abs().max() <= EQUAL * value.abs().max() for name, value in wanted.items())
    return faster if equal else net


def _watched(maps: Maps, net: nn.Module, example: Tensor) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """The maps of `example`, and the names of the convolutions whose output went into a batch norm, with the norm's."""
    made: dict[int, tuple[str, Tensor]] = {}  # the outputs are kept, so that no two have one id
    pairs: list[tuple[str, str]] = []
    hooks = []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda _, __, y, name=name: made.update({id(y): (name, y)})))
        elif isinstance(module, _BatchNorm) and module.running_mean is not None:

            def follow(_: nn.Module, given: tuple[Tensor, ...], __: Tensor, name: str = name) -> None:
                if id(given[0]) in made:
                    pairs.append((made[id(given[0])][0], name))

            hooks.append(module.register_forward_hook(follow))
    try:
        return dict(maps(net, example)), pairs
    finally:
        for hook in hooks:
            hook.remove()


def _fold(net: nn.Module, convolution: str, norm: str) -> None:
    conv: Any = net.get_submodule(convolution)
    bn: Any = net.get_submodule(norm)
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    conv.requires_grad_(False)
    # timm's norms end in an activation of their own.
    rest = [module for name in ("drop", "act") if isinstance(module := getattr(bn, name, None), nn.Module)]
    net.set_submodule(norm, nn.Sequential(*rest))
