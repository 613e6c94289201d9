"""A DenseCL training step against a MoCo v2 step: time of forward, backward, optimiser and key encoder.

    python benchmarks/densecl_step.py                   # ResNet-50, 224 px, batch 32, K = 4,096 and 65,536
    python benchmarks/densecl_step.py --backbone resnet18 --size 64 --batch 4 --queues 256 --repeats 1

The two methods take turns step by step in one process, so that whatever else the machine does hits both; medians.
Images are random, and loading them is not part of a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch

from selfdet.data.views import ViewBatch
from selfdet.methods.base import Method
from selfdet.methods.densecl import DenseCL
from selfdet.methods.moco import MoCo
from selfdet.models.backbones import build_backbone

BARS = {4096: 1.08, 65536: 1.15}


def random_views(batch: int, size: int) -> ViewBatch:
    generator = torch.Generator().manual_seed(0)
    query, key = (
        torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator) for _ in range(2)
    )
    affine = torch.eye(2, 3).repeat(batch, 1, 1)
    return ViewBatch(query, key, affine, affine.clone(), [""] * batch)


class Stepper:
    """A method with its optimiser, as the training loop drives them."""

    def __init__(self, method: Method, bf16: bool) -> None:
        self.method, self.bf16, self.steps = method.to(memory_format=torch.channels_last), bf16, 0
        trained = [p for p in method.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, 1e-3, momentum=0.9, weight_decay=1e-4)

    def step(self, views: ViewBatch) -> float:
        """Take one step; returns its seconds."""
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.method(views)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(self.steps)
        self.steps += 1
        return time.perf_counter() - start


def measure(options: argparse.Namespace, queue_length: int) -> dict[str, Any]:
    views = random_views(options.batch, options.size)
    steppers = {
        name: Stepper(method(build_backbone(options.backbone), queue_length=queue_length), options.bf16)
        for name, method in (("moco", MoCo), ("densecl", DenseCL))
    }
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for repeat in range(options.repeats + 1):
        for name, stepper in steppers.items():
            elapsed = stepper.step(views)
            if repeat > 0:  # the first round warms up
                seconds[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    # Neighbouring steps met the same machine, so the median of their ratios is steadier than the ratio of medians.
    ratio = statistics.median(d / m for d, m in zip(seconds["densecl"], seconds["moco"]))
    return {"queue_length": queue_length, "seconds": medians, "all_seconds": seconds, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of a DenseCL step against a MoCo v2 step.")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=224, help="side of a view, pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--queues", type=int, nargs="+", default=list(BARS), help="queue lengths K")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for queue_length in options.queues:
        result = measure(options, queue_length)
        results.append(result)
        bar = f" (bar {BARS[queue_length]})" if queue_length in BARS else ""
        moco, densecl = result["seconds"]["moco"], result["seconds"]["densecl"]
        print(f"K = {queue_length}: MoCo v2 {moco:.3f} s, DenseCL {densecl:.3f} s, ratio {result['ratio']:.3f}{bar}")
    print(json.dumps({**vars(options), "results": results}))


if __name__ == "__main__":
    main()
