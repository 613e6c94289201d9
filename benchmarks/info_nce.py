"""`info_nce` against the written-out formula: time and peak extra memory of forward + backward.

    python benchmarks/info_nce.py                       # N = 1,568, D = 128, K = 65,536
    python benchmarks/info_nce.py --queries 64 --negatives 1024 --repeats 2

Times alternate between the two in this process, medians. Memory is the rise of the resident set's peak in a child
process of its own for each, after a warm-up on small inputs; the inputs are not counted. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from selfdet.methods.contrast import info_nce

TEMPERATURE = 0.2
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(query: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    return info_nce(query, positive, negatives, TEMPERATURE)


def formula(query: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    """The usual two lines: all logits side by side, the positive first, into cross-entropy."""
    logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ negatives.T], 1) / TEMPERATURE
    return functional.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))


LOSSES: dict[str, Loss] = {"info_nce": ours, "formula": formula}


def inputs(queries: int, dim: int, negatives: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, positive, queue = (
        functional.normalize(torch.randn(count, dim, generator=generator), dim=1)
        for count in (queries, queries, negatives)
    )
    return query.requires_grad_(), positive, queue


def step(loss: Loss, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    tensors[0].grad = None
    loss(*tensors).backward()


def peak_resident() -> int:
    """The highest resident set since the last reset, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def measure_memory(name: str, shape: tuple[int, int, int], threads: int, answer: Connection) -> None:
    """In a child process: send by how many bytes one step raises the peak of the resident set."""
    torch.set_num_threads(threads)
    step(LOSSES[name], inputs(64, shape[1], 512))
    tensors = inputs(*shape)
    tensors[0].grad = torch.zeros_like(tensors[0])
    # Writing 5 lowers the recorded peak to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_resident()
    step(LOSSES[name], tensors)
    answer.send(peak_resident() - before)


def extra_memory(name: str, shape: tuple[int, int, int], threads: int) -> int:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure_memory, args=(name, shape, threads, sender))
    process.start()
    sender.close()
    extra = int(receiver.recv())
    process.join()
    return extra


def median_times(shape: tuple[int, int, int], repeats: int) -> dict[str, float]:
    tensors = inputs(*shape)
    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    for repeat in range(repeats + 1):
        for name, loss in LOSSES.items():
            start = time.perf_counter()
            step(loss, tensors)
            if repeat > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of info_nce against the written-out formula.")
    parser.add_argument("--queries", type=int, default=1568, help="N")
    parser.add_argument("--dim", type=int, default=128, help="D")
    parser.add_argument("--negatives", type=int, default=65536, help="K")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = (options.queries, options.dim, options.negatives)
    memory = {name: extra_memory(name, shape, options.threads) for name in LOSSES}
    seconds = median_times(shape, options.repeats)
    for name in LOSSES:
        print(f"{name:>9}: {seconds[name]:.3f} s, {memory[name] / 2**20:.1f} MiB above the inputs")
    time_ratio, memory_ratio = seconds["info_nce"] / seconds["formula"], memory["info_nce"] / memory["formula"]
    print(f"    ratio: time {time_ratio:.3f} (bar 1.1), memory {memory_ratio:.4f} (bar 0.2)")
    result = {
        "queries": shape[0],
        "dim": shape[1],
        "negatives": shape[2],
        "threads": options.threads,
        "seconds": seconds,
        "extra_bytes": memory,
        "time_ratio": time_ratio,
        "memory_ratio": memory_ratio,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
