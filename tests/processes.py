"""Several processes for a test: started as torchrun starts them, each with the runtime that a verb would have."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

from selfdet.training.runtime import start_runtime

Work = Callable[..., Any]


def in_processes(world: int, folder: Path, work: Work, *arguments: Any) -> list[Any]:
    """What `work(runtime, *arguments)` returns in each of `world` processes, in rank order; of one in this process.

    It may return what `torch.load` reads with `weights_only`. `work` is a function of a module.
    """
    if world == 1:
        return [work(start_runtime(devices=1, precision="fp32", threads=1), *arguments)]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # Forked from a process that has done nothing but import: spawning would import torch in each.
    get_context("forkserver").set_forkserver_preload(["selfdet.training.stage", "selfdet.detectors.zoo"])
    multiprocessing.start_processes(
        _enter, (world, port, str(folder), work, arguments), nprocs=world, start_method="forkserver"
    )
    return [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]


def _enter(rank: int, world: int, port: int, folder: str, work: Work, arguments: tuple[Any, ...]) -> None:
    number = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(value) for name, value in {**number, **place}.items()})
    runtime = start_runtime(precision="fp32", threads=1)
    assert (runtime.fabric.world_size, runtime.fabric.global_rank) == (world, rank)
    torch.save(work(runtime, *arguments), f"{folder}/{world}-{rank}.pt")
    runtime.fabric.barrier()
    dist.destroy_process_group()


def difference(one: Any, other: Any) -> float:
    """The largest difference of two numbers or tensors, or dicts or lists of them, beside the largest of each, or 1."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((difference(value, other[key]) for key, value in one.items()), default=0.0)
    if isinstance(one, list):
        return max((difference(*pair) for pair in zip(one, other, strict=True)), default=0.0)
    first, second = (torch.as_tensor(value).double() for value in (one, other))
    if not first.numel():
        return 0.0
    return float((first - second).abs().max() / first.abs().max().clamp(min=1))
