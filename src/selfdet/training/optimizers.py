"""The optimisers that a stage can be trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

OptimizerName = Literal["sgd", "adamw"]


def build_optimizer(
    name: OptimizerName, groups: Sequence[dict[str, Any]], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, or AdamW with its usual betas, over parameter groups, which may have decays of their own.

    Source: DenseCL and AlignDet train with the first, AlignDet with Swin backbones with the second.
    """
    if name == "adamw":
        return torch.optim.AdamW(list(groups), lr=lr, weight_decay=weight_decay)
    return torch.optim.SGD(list(groups), lr=lr, momentum=0.9, weight_decay=weight_decay)
