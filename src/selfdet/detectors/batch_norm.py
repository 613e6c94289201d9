"""What the batch norm of a network's backbone does while it is fine-tuned."""

from __future__ import annotations

import torch
from timm.layers import convert_sync_batchnorm
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
            if isinstance(module, _BatchNorm) and name.startswith("backbone.") and backbone.holds(f"{name}."):
                module.requires_grad_(False)
                network.frozen_norms.add(name)
        network.train(network.training)
