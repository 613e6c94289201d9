"""`instance_contrast` against the per-id form of tests/reference.py: time and peak extra memory of forward + backward.

    python benchmarks/instance_contrast.py    # R = R' = 2,048, 100 ids, D = 256; memory also at 4,096 and 8,192
    python benchmarks/instance_contrast.py --count 128 --ids 10 --dim 32 --repeats 1

Times alternate between the two in this process, medians. Memory is the rise of the resident set's peak in a child
process of its own for each, after a warm-up on small inputs; the inputs are not counted. Above the first size only ours
is measured, with twice the ids: written out, the per-id form would take more than 23 GB there. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from info_nce import peak_resident
from selfdet.methods.contrast import instance_contrast

TEMPERATURE = 0.5
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


class Shape(NamedTuple):
    """R = R' embeddings of D numbers each, shared evenly among background and the ids."""

    count: int
    ids: int
    dim: int


def ours(inputs: Inputs) -> Tensor:
    return instance_contrast(*inputs, TEMPERATURE)


def per_id(inputs: Inputs) -> Tensor:
    root = str(Path(__file__).resolve().parents[1])
    if root not in sys.path:
        sys.path.append(root)
    from tests import reference

    return reference.instance_contrast(*inputs, TEMPERATURE)


LOSSES: dict[str, Callable[[Inputs], Tensor]] = {"instance_contrast": ours, "per_id": per_id}


def make_inputs(shape: Shape) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    online, teacher = (torch.randn(shape.count, shape.dim, generator=generator) for _ in range(2))
    ids = torch.arange(shape.count) % (shape.ids + 1) - 1
    order, other = (torch.randperm(shape.count, generator=generator) for _ in range(2))
    return online.requires_grad_(), teacher, ids[order], ids[other]


def step(name: str, inputs: Inputs) -> None:
    inputs[0].grad = None
    LOSSES[name](inputs).backward()


def measure_memory(name: str, shape: Shape, threads: int, answer: Connection) -> None:
    """In a child process: send by how many bytes one step raises the peak of the resident set."""
    torch.set_num_threads(threads)
    step(name, make_inputs(Shape(64, 4, shape.dim)))
    inputs = make_inputs(shape)
    # Writing 5 lowers the recorded peak to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_resident()
    step(name, inputs)
    answer.send(peak_resident() - before)


def extra_memory(name: str, shape: Shape, threads: int) -> int:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure_memory, args=(name, shape, threads, sender))
    process.start()
    sender.close()
    extra = int(receiver.recv())
    process.join()
    return extra


def median_times(shape: Shape, repeats: int) -> dict[str, float]:
    inputs = make_inputs(shape)
    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    for repeat in range(repeats + 1):
        for name in LOSSES:
            start = time.perf_counter()
            step(name, inputs)
            if repeat > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of instance_contrast against its per-id form.")
    parser.add_argument("--count", type=int, default=2048, help="R = R'")
    parser.add_argument("--ids", type=int, default=100)
    parser.add_argument("--dim", type=int, default=256, help="D")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = Shape(options.count, options.ids, options.dim)
    larger = [Shape(factor * options.count, 2 * options.ids, options.dim) for factor in (2, 4)]
    memory = {name: extra_memory(name, shape, options.threads) for name in LOSSES}
    growth = [extra_memory("instance_contrast", size, options.threads) for size in larger]
    seconds = median_times(shape, options.repeats)
    for name in LOSSES:
        print(f"{name:>17}: {seconds[name]:.3f} s, {memory[name] / 2**20:.1f} MiB above the inputs")
    faster = seconds["per_id"] / seconds["instance_contrast"]
    memory_ratio = memory["instance_contrast"] / memory["per_id"]
    print(f"            ratio: {faster:.1f} × faster (bar 25), memory {memory_ratio:.4f} (bar 0.1)")
    print(f"{larger[0].count:>17}: {growth[0] / 1e6:.1f} MB above the inputs (bar 400)")
    print(f"{larger[1].count:>17}: {growth[1] / 1e6:.1f} MB, {growth[1] / growth[0]:.2f} × that (bar 2.2)")
    result = {
        **shape._asdict(),
        "threads": options.threads,
        "seconds": seconds,
        "extra_bytes": memory,
        "times_faster": faster,
        "memory_ratio": memory_ratio,
        "extra_bytes_larger": {str(size.count): extra for size, extra in zip(larger, growth)},
        "growth": growth[1] / growth[0],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
