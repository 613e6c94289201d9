"""What the batch norm of a detector's backbone does while it is fine-tuned."""

from __future__ import annotations

import torch
from timm.layers import convert_sync_batchnorm
from torch.nn.modules.batchnorm import _BatchNorm

from selfdet.detectors.base import Detector
from selfdet.errors import UserError

BATCH_NORMS = ("train", "frozen", "sync")


def apply_batch_norm(detector: Detector, policy: str) -> None:
    """Set the policy; no name in the state dict changes under any of them.

    "train": statistics of each process's batch. "frozen": the backbone's stored statistics and affine values are used
    and neither changes, whatever `train()` is told; those of a stage that has become a box head train. "sync":
    statistics over all processes, "train" where there is one.
    Raises: UserError for another policy.
    """
    if policy not in BATCH_NORMS:
        raise UserError(f"batch_norm {policy!r}", f"expected one of {', '.join(BATCH_NORMS)}")
    if policy == "sync" and torch.distributed.is_available() and torch.distributed.is_initialized():
        detector.net = convert_sync_batchnorm(detector.net)
    if policy == "frozen":
        backbone = detector.parts()["backbone"]
        for name, module in detector.net.named_modules():
            if isinstance(module, _BatchNorm) and name.startswith("backbone.") and backbone.holds(f"{name}."):
                module.requires_grad_(False)
                detector.frozen_norms.add(name)
        detector.train(detector.training)
