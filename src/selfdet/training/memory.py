"""Memory that training will take, estimated before it and measured after it."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from selfdet.methods.base import Method

SIDES = (128, 192)  # px of the small images that stand for larger ones


def kept_bytes(network: nn.Module, side: int, mixed: bool = False) -> float | None:
    """Bytes that a pass with gradient keeps of one RGB image of `side` × `side` px; half in mixed precision.

    The pass is made without numbers: only the shapes of what autograd would keep are counted, each piece of memory
    once. The weights themselves don't count. None of a network that can't be passed without numbers.
    """
    weights = {name: value.detach().to("meta") for name, value in network.state_dict(keep_vars=True).items()}
    for name, parameter in network.named_parameters():
        weights[name].requires_grad_(parameter.requires_grad)
    # Two images, as batch norm wants more than one value a channel.
    try:
        with _counting(weights.values()) as kept:
            functional_call(network, weights, (torch.empty(2, 3, side, side, device="meta"),))
    except RuntimeError:
        return None
    return _sum(kept) / (4 if mixed else 2)


def kept_of_two(method: Method, two: Callable[[int], Any], area: float, mixed: bool = False) -> float | None:
    """Bytes that a pass of `method` (on the CPU) with gradient keeps of one image of `area` px in all.

    `two(side)` is a batch of two square images, which are really passed, through a copy. Large images are not: their
    bytes lie on the line through those of two small sizes, as maps grow with the area, and what an R-CNN makes of its
    regions does not. None where the pass fails.
    """
    sides = [round(area**0.5)] if area <= SIDES[0] ** 2 else SIDES
    found: list[float] = []
    try:
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            for side in sides:
                trial = copy.deepcopy(method)
                with _counting(trial.state_dict(keep_vars=True).values()) as kept:
                    trial(two(side))
                found.append(_sum(kept) / 2)
    except (RuntimeError, ValueError):
        return None
    growth = (found[-1] - found[0]) / (SIDES[1] ** 2 - SIDES[0] ** 2)
    return found[0] + max(0.0, growth) * (area - sides[0] ** 2)


def batch_area(sizes: Iterable[tuple[float, float]], long_side: float) -> float:
    """Pixels of each image in the largest batch of images of these widths and heights, resized to `long_side` px.

    A batch is as wide as its widest image and as high as its highest. Square where no size is known.
    """
    scaled = [(width / max(width, height), height / max(width, height)) for width, height in sizes if width and height]
    shares = [max(column) for column in zip(*scaled)] or [1.0, 1.0]
    return shares[0] * shares[1] * long_side**2


@contextmanager
def _counting(weights: Iterable[Any]) -> Iterator[dict[int, Any]]:
    """The pieces of memory that autograd keeps in the block, but for `weights`."""
    own = {value.untyped_storage()._cdata for value in weights if isinstance(value, Tensor)}
    kept: dict[int, Any] = {}  # holds on to each storage, so that no other gets its place

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return value

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        yield kept


def _sum(kept: dict[int, Any]) -> int:
    return sum(storage.nbytes() for storage in kept.values())


def estimate(network: nn.Module, kept: float, device: torch.device) -> float | None:
    """Peak memory (bytes) of a process about to train `network` in passes that keep `kept` bytes.

    What it holds now, gradient and momentum of each trained weight, and what is kept. On a GPU its memory, else that of
    the process; loader processes come on top. None where the system doesn't tell what a process holds.
    """
    trained = sum(value.numel() * 4 for value in network.parameters() if value.requires_grad)
    now = float(torch.cuda.memory_allocated(device)) if device.type == "cuda" else _resident()
    return None if now is None else now + 2 * trained + kept


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
