"""What the batch norm of a network's backbone does while it is fine-tuned."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selfdet.detectors.network import Network
from selfdet.errors import UserError

BATCH_NORMS = ("train", "frozen", "sync")


def apply_batch_norm(network: Network, policy: str) -> None:
    """Set the policy; no name in the state dict changes under any of them.

    "train": statistics of each process's batch. "frozen": the backbone's stored statistics and affine values are used
    and neither changes, whatever `train()` is told; those of a stage that has become a box head train. "sync":
    statistics over all processes, "train" where there is one.
    Raises: UserError for another policy.
    """
    if policy not in BATCH_NORMS:
        raise UserError(f"batch_norm {policy!r}", f"expected one of {', '.join(BATCH_NORMS)}")
    if policy == "sync" and torch.distributed.is_available() and torch.distributed.is_initialized():
        network.net = convert_sync_batchnorm(network.net)
    if policy == "frozen":
        backbone = network.parts()["backbone"]
        for name, module in network.net.named_modules():
            if isinstance(module, _BatchNorm) and not name.startswith("roi_heads.") and backbone.holds(f"{name}."):
                module.requires_grad_(False)
                network.frozen_norms.add(name)
                scale_and_shift(module)
        network.train(network.training)


def scale_and_shift(norm: nn.Module) -> None:
    """Let a batch norm, where it is one of images, multiply and add in evaluation mode: the same values, in less time
    where it has nothing to learn, and for any number of images, none too, in a graph."""
    if type(norm) in (nn.BatchNorm2d, BatchNormAct2d) and norm.affine and norm.track_running_stats:
        vars(norm)["forward"] = MethodType(_scaled, norm)


def _scaled(norm: Any, x: Tensor) -> Tensor:
    """The forward of a norm that stays in evaluation mode.

    Stored statistics are a scale and a shift of each channel. Told so, a step of fine-tuning in float32 on a CPU takes
    a fifth less time: the backward of torch's batch norm does not use that a frozen norm has nothing to learn.
    """
    if norm.training or x.device.type != "cpu" or x.dtype != torch.float32:
        return type(norm).forward(norm, x)
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    y = torch.addcmul(shift[:, None, None], x, scale[:, None, None])
    # timm's norms end in an activation of their own.
    return norm.act(norm.drop(y)) if isinstance(norm, BatchNormAct2d) else y
