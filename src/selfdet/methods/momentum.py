"""What the momentum methods share: the averaged key encoder, its batch norm, and the queue of keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Split batch norm: as many groups as eight processes would make, but never fewer images in one than this, because the
# statistics of two or three images are noise.
SPLIT_GROUPS = 8
SPLIT_IMAGES = 4

Encode = Callable[[Tensor], tuple[Tensor, ...]]


@torch.no_grad()
def update_average(online: nn.Module, average: nn.Module, momentum: float) -> None:
    """Move every parameter of `average` to momentum · average + (1 - momentum) · online; buffers stay its own.

    Parameters that both modules share (the same object) are left alone.
    """
    for new, old in zip(online.parameters(), average.parameters(), strict=True):
        if new is not old:
            old.lerp_(new.to(old.dtype), 1.0 - momentum)


class Draws(nn.Module):
    """Seeded random integers; the generator travels in the state dict, so that a resumed run draws on where it stopped.

    Drawn on the CPU: the same numbers on every device and, given equal shapes, in every process.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def permutation(self, count: int) -> Tensor:
        """Draw an order of 0 … count-1: (count,) int64 on the CPU."""
        return torch.randperm(count, generator=self.generator)

    def integers(self, high: int, shape: Sequence[int]) -> Tensor:
        """Draw integers in 0 … high-1: int64 of `shape` on the CPU."""
        return torch.randint(high, tuple(shape), generator=self.generator)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def gather(tensor: Tensor) -> tuple[Tensor, int]:
    """Concatenate the (n, …) tensors of all processes in rank order; n may differ.

    Returns:
        The (Σn, …) tensor without gradient, and the position in it of this process's first row.
    """
    world = world_size()
    if world == 1:
        return tensor.detach(), 0
    count = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.empty_like(count) for _ in range(world)]
    dist.all_gather(counts, count)
    lengths = [int(c) for c in counts]
    padded = tensor.new_zeros((max(lengths), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, lengths)]), sum(lengths[: dist.get_rank()])


def split_batch_norm(encode: Encode, images: Tensor, draws: Draws) -> tuple[Tensor, ...]:
    """Encode key images so that batch statistics do not give away which key belongs to which query.

    The images are permuted, encoded in groups (each with batch statistics of its own) and put back in order. On one
    process: 8 groups, but never fewer than 4 images in a group, so a batch of less than 8 is one group. With several
    processes: permuted over all of them, and each process's share is one group.

    Args:
        encode: maps (n, 3, H, W) images to tensors with n rows each.
        images: (B, 3, H, W).
        draws: the source of the permutation, in step in all processes.

    Returns:
        What `encode` returns for `images`, in their order.

    Source: the shuffled batch norm of MoCo, arXiv 1911.05722, section 3.3.
    """
    if world_size() == 1:
        order = draws.permutation(len(images)).to(images.device)
        groups = max(1, min(SPLIT_GROUPS, len(images) // SPLIT_IMAGES))
        outputs = [encode(group) for group in images[order].tensor_split(groups)]
        back = order.argsort()
        return tuple(torch.cat(parts)[back] for parts in zip(*outputs))
    everyone, start = gather(images)
    order = draws.permutation(len(everyone)).to(images.device)
    share = order.tensor_split(world_size())[dist.get_rank()]
    back = order.argsort()[start : start + len(images)]
    return tuple(gather(output)[0][back] for output in encode(everyone[share]))


def seeded_queue(length: int, dim: int, seed: int) -> Tensor:
    """The first content of a queue: (length, dim) random unit vectors, float32."""
    vectors = torch.randn(length, dim, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(vectors, dim=1)


@torch.no_grad()
def enqueue(queue: Tensor, entered: Tensor, keys: Tensor) -> None:
    """Write keys over the oldest entries of a queue, in place, first in first out.

    Args:
        queue: (K, D).
        entered: int64 scalar, how many keys have entered before: the next one is written at this modulo K. Counted on.
        keys: (n, D), n of any size: only the last K of them remain.
    """
    length, count = len(queue), len(keys)
    kept = keys[max(0, count - length) :]
    positions = (entered + count - len(kept) + torch.arange(len(kept), device=queue.device)) % length
    queue[positions] = kept.to(queue.dtype)
    entered += count
