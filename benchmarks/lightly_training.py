"""DenseCL training against LightlySSL's published example, from files to weights: images a second on a CPU.

    pip install -e '.[benchmarks]'
    python benchmarks/lightly_training.py --images ../shared/data/coco-person-mini/images

ResNet-18, views of 128 px, batches of 64, 4,096 negatives, the same photographs, as many loader processes. Sides:

* `selfdet`: `selfdet pretrain` with what it chooses on this machine; `selfdet fp32`: the same with `--precision fp32`;
* `lightly`: the network, losses and steps of lightly's documented DenseCL example, of lightly's own parts. That example
  encodes the keys with the trained network, with gradient, and leaves the averaged one unused;
* `lightly, averaged`: the same with the keys from the averaged network, without gradient, as the paper has it.

Each side runs in a process of its own, in turns; rates are wall-clock, of every five steps after the first five, with
waiting for data and without selfdet's evaluations of matches. Memory is the training process's peak.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

SIDES = ("selfdet", "selfdet fp32", "lightly", "lightly, averaged")
BARS = (("equal precision", "selfdet fp32", 1.2), ("defaults", "selfdet", 2.0))
INTERVAL = 5
DIM = 128


def selfdet_side(options: argparse.Namespace) -> dict[str, list[float]]:
    """Rates and shares of waiting, as the run's own timing.jsonl has them."""
    from selfdet import pretrain

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        pretrain(
            images=options.images,
            out=str(run),
            stages=["backbone"],
            backbone="resnet18",
            image_size=options.size,
            batch_size=options.batch,
            queue_length=options.queue,
            steps=options.steps + INTERVAL,
            workers=options.workers,
            precision="fp32" if options.side == "selfdet fp32" else "auto",
            log_every=INTERVAL,
        )
        rows = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()][1:]
    return {"rates": [row["images_per_second"] for row in rows], "waits": [row["data_wait"] for row in rows]}


def lightly_side(options: argparse.Namespace) -> dict[str, list[float]]:
    """Rates and shares of waiting of the example's loop."""
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import DenseCLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, select_most_similar, update_momentum
    from lightly.transforms import DenseCLTransform
    from torch import nn
    from torchvision.models import resnet18

    torch.manual_seed(0)
    net = resnet18()
    online = nn.ModuleDict(
        {
            "body": nn.Sequential(*list(net.children())[:-2]),
            "whole": DenseCLProjectionHead(net.fc.in_features, net.fc.in_features, DIM),
            "cells": DenseCLProjectionHead(net.fc.in_features, net.fc.in_features, DIM),
        }
    )
    average = copy.deepcopy(online)
    deactivate_requires_grad(average)
    averaged = options.side == "lightly, averaged"

    def encode(modules: nn.ModuleDict, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = modules["body"](images)
        features = maps.flatten(2).transpose(1, 2)
        return features, modules["whole"](maps.mean((2, 3))), modules["cells"](features)

    losses = [NTXentLoss(memory_bank_size=(options.queue, DIM)) for _ in range(2)]
    optimizer = torch.optim.SGD(online.parameters(), lr=0.06)
    loader = torch.utils.data.DataLoader(
        LightlyDataset(options.images, transform=DenseCLTransform(input_size=options.size)),
        batch_size=options.batch,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
    )
    rates: list[float] = []
    waits: list[float] = []
    batches, waited = iter(loader), 0.0
    begun = time.perf_counter()
    for step in range(1, options.steps + INTERVAL + 1):
        asked = time.perf_counter()
        (query, key), *_ = next(batches)
        waited += time.perf_counter() - asked
        for name in online:
            update_momentum(online[name], average[name], m=0.996)
        q_features, q_whole, q_cells = encode(online, query)
        with torch.set_grad_enabled(not averaged):
            k_features, k_whole, k_cells = encode(average if averaged else online, key)
        matched = select_most_similar(q_features, k_features, k_cells)
        loss = 0.5 * (losses[0](q_whole, k_whole) + losses[1](q_cells.flatten(0, 1), matched.flatten(0, 1)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % INTERVAL == 0:
            span = time.perf_counter() - begun
            rates.append(INTERVAL * options.batch / span)
            waits.append(waited / span)
            begun, waited = time.perf_counter(), 0.0
    return {"rates": rates[1:], "waits": waits[1:]}


def measured(side: str, words: list[str]) -> dict[str, Any]:
    """One side in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *words, "--side", side], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{side}: {', '.join(f'{rate:.1f}' for rate in found['rates'])} images a second", file=sys.stderr)
    return found


def report(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Print the table; the ratios are medians over rounds, whose sides met the same machine."""
    print("| side | images a second | waiting for data | MiB |\n|---|---|---|---|")
    for side in SIDES:
        rate = statistics.median(rate for found in rounds for rate in found[side]["rates"])
        wait = statistics.median(wait for found in rounds for wait in found[side]["waits"])
        memory = statistics.median(found[side]["mib"] for found in rounds)
        print(f"| {side} | {rate:.1f} | {wait:.1%} | {memory:,.0f} |")
    ratios: dict[str, dict[str, float]] = {}
    for name, own, bar in BARS:
        for other in SIDES[2:]:
            each = [statistics.median(f[own]["rates"]) / statistics.median(f[other]["rates"]) for f in rounds]
            ratios.setdefault(name, {})[other] = statistics.median(each)
            print(f"{name}, {own} / {other}: {ratios[name][other]:.2f} (bar against the example: {bar})")
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description="DenseCL training against LightlySSL's example.")
    parser.add_argument("--images", required=True, help="folder of photographs")
    parser.add_argument("--size", type=int, default=128, help="side of a view, pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--queue", type=int, default=4096, help="negatives K")
    parser.add_argument("--workers", type=int, default=1, help="loader processes of each side")
    parser.add_argument("--steps", type=int, default=15, help="timed steps of a side in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="this side alone; what the processes are started with")
    options = parser.parse_args()
    if options.side is not None:
        found: dict[str, Any] = (selfdet_side if options.side.startswith("selfdet") else lightly_side)(options)
        found["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found))
        return
    words = sys.argv[1:]
    rounds = [{side: measured(side, words) for side in SIDES} for _ in range(options.rounds)]
    print(json.dumps({**vars(options), "rounds": rounds, "ratios": report(rounds)}))


if __name__ == "__main__":
    main()
