"""TensorFlow's "same" padding of timm's layers as numbers, for graphs whose sizes are open.

What such a layer pads goes by the size of its input, a maximum of terms that stands on the ones before: `torch.export`
simplifies them for hours. Where inputs are multiples of the network's stride each layer pads what its kernel says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn


@contextmanager
def fixed_padding(net: nn.Module) -> Iterator[None]:
    """Inside, layers of `net` that pad by the size of their input pad what inputs (…, H, W) with sides that are
    multiples of the layer's stride need; others would come out shifted. Weights and names stay."""
    layers = [module for module in net.modules() if isinstance(module, (Conv2dSame, MaxPool2dSame, AvgPool2dSame))]
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        vars(layer)["forward"] = MethodType(_forward, layer)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before):
            del vars(layer)["forward"]
            if forward is not None:
                vars(layer)["forward"] = forward


def _forward(layer: Any, x: Tensor) -> Tensor:
    kernel, stride, dilation = (_pair(getattr(layer, name, 1)) for name in ("kernel_size", "stride", "dilation"))
    sides: list[int] = []
    for side in (1, 0):  # the last dimension first
        total = max(dilation[side] * (kernel[side] - 1) + 1 - stride[side], 0)
        sides += [total // 2, total - total // 2]
    padded = F.pad(x, sides, value=-float("inf") if isinstance(layer, nn.MaxPool2d) else 0.0)
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(padded, layer.weight, layer.bias, stride, 0, dilation, layer.groups)
    if isinstance(layer, nn.MaxPool2d):
        return F.max_pool2d(padded, kernel, stride, 0, dilation, layer.ceil_mode)
    return F.avg_pool2d(padded, kernel, stride, 0, layer.ceil_mode, layer.count_include_pad)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
