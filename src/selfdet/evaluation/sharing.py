"""Evaluation shared among processes: each looks at some of the images, and all of them know all answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import nn

from selfdet.data.images import Quarantine
from selfdet.methods.momentum import gather

Record = TypeVar("Record")


def own_chunks(records: Sequence[Record], size: int, fabric: Fabric) -> Iterator[tuple[int, Sequence[Record]]]:
    """Yield number and records of each chunk of `size` that this process looks at: one out of as many as there are.

    A chunk is what one process would look at together, so that not even the last bits of what is found differ.
    """
    for number in range(fabric.global_rank, -(-len(records) // size), fabric.world_size):
        yield number, records[number * size : (number + 1) * size]


def of_all(rows: Sequence[Any], fabric: Fabric) -> list[Any]:
    """The rows of all processes, those of the first process first; of values that JSON keeps as they are."""
    if fabric.world_size == 1:
        return list(rows)
    # As text, which nothing executes: torch's own way of sending objects does.
    text = torch.frombuffer(bytearray(json.dumps(rows).encode() + b"\n"), dtype=torch.uint8)
    lines = gather(text.to(fabric.device))[0].cpu().numpy().tobytes().splitlines()
    return [row for line in lines for row in json.loads(line)]


def as_in_the_first(network: nn.Module, fabric: Fabric) -> None:
    """Give `network` the buffers that it has in the first process, which is the one that is saved.

    Parameters are the same in all; batch norm's running statistics are of each process's own images.
    """
    if fabric.world_size > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


class SharedQuarantine:
    """The unreadable images that each process met, entered in `quarantine` by all of them together.

    One process alone enters them at once, and stops as soon as there are too many.
    """

    def __init__(self, quarantine: Quarantine, fabric: Fabric) -> None:
        self.whole, self.fabric = quarantine, fabric
        alone = fabric.world_size == 1
        self.own = quarantine if alone else Quarantine(quarantine.total, minimum=quarantine.total)

    def close(self) -> None:
        """Enter what all have met. Raises: UserError when that is too many."""
        if self.own is not self.whole:
            for path, reason in of_all(list(self.own.reasons.items()), self.fabric):
                self.whole.add(path, reason)
            self.whole.check()
