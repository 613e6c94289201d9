"""Memory that training will take, estimated before it and measured after it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def kept_bytes(network: nn.Module, side: int) -> int | None:
    """Bytes in float32 that a pass with gradient keeps of one RGB image of `side` × `side` px.

    The pass is made without numbers: only the shapes of what autograd would keep are counted, each piece of memory
    once. The weights themselves don't count. None of a network that can't be passed without numbers.
    """
    weights = {name: value.detach().to("meta") for name, value in network.state_dict(keep_vars=True).items()}
    for name, parameter in network.named_parameters():
        weights[name].requires_grad_(parameter.requires_grad)
    own = {value.untyped_storage()._cdata for value in weights.values()}
    kept: dict[int, Any] = {}  # holds on to each storage, so that no other gets its place

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return value

    # Two images, as batch norm wants more than one value a channel.
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            functional_call(network, weights, (torch.empty(2, 3, side, side, device="meta"),))
    except (RuntimeError, NotImplementedError):
        return None
    return sum(storage.nbytes() for storage in kept.values()) // 2


def estimate(network: nn.Module, per_image: int, images: int, device: torch.device, mixed: bool) -> float | None:
    """Peak memory (bytes) of a process about to train `network` with `images` images in a pass.

    What it holds now, gradient and momentum of each trained weight, and `per_image` bytes (float32) of each image,
    half as much in mixed precision. On a GPU its memory, else that of the process; loader processes come on top. None
    where the system doesn't tell what a process holds.
    """
    trained = sum(value.numel() * 4 for value in network.parameters() if value.requires_grad)
    now = float(torch.cuda.memory_allocated(device)) if device.type == "cuda" else _resident()
    return None if now is None else now + 2 * trained + per_image * images * (0.5 if mixed else 1.0)


def peak(device: torch.device) -> float | None:
    """The most memory (bytes) that this process has taken so far, of the GPU or of its own; None where nobody knows."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)


def _resident() -> float | None:
    """Memory that this process has now, or has had at most where the system doesn't tell."""
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, AttributeError):
        return peak(torch.device("cpu"))
