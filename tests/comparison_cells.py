"""A comparison as selfdet compare leaves it: plain cells, whose gains and noise are known."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from selfdet.evaluation.comparison import Comparison

STARTS = {"scratch": "scratch", "imagenet": "ImageNet backbone", "aligndet": "ImageNet + AlignDet"}
GAINS = {"scratch": 0.0, "imagenet": 0.06, "aligndet": 0.10}
SPEED = {"scratch": 1.0, "imagenet": 1.6, "aligndet": 2.5}
RATES = {"scratch": 0.02, "imagenet": 0.01, "aligndet": 0.01}
IMAGES = {0.01: 20, 0.05: 102, 0.1: 204, 0.2: 409, 1.0: 2045}
LEVEL = {0.01: 0.05, 0.05: 0.12, 0.1: 0.16, 0.2: 0.21, 1.0: 0.33}


def cell(
    start: str,
    seed: int,
    ap: float | None,
    *,
    fraction: float | None = 0.01,
    shots: int | None = None,
    labels: int | None = None,
    classes: Sequence[str] = ("person",),
    mask: bool = False,
    curve: Sequence[Sequence[float | None]] | None = None,
    lr: float = 0.01,
    **more: Any,
) -> dict[str, Any]:
    """A finished, fine-tuned cell; every class has about its AP."""
    chance = random.Random(f"{start} {seed} {fraction} {shots} {ap}")

    def scored(share: float) -> float | None:
        return None if ap is None else round(ap * share, 4)

    scores = {
        key: scored(share) for key, share in {"AP": 1.0, "AP50": 1.9, "AP75": 0.9, "APm": 1.1, "APl": 1.5}.items()
    }
    scores |= {"APs": None, "per_class": {name: scored(chance.uniform(0.8, 1.2)) for name in classes}}  # type: ignore[dict-item]
    amount = {"fraction": fraction} if shots is None else {"shots": shots}
    images = labels if labels is not None else IMAGES.get(fraction or 0.0, 3 * (shots or 1))
    return {
        "experiment": "compare",
        "kind": "finetune",
        "init": f"weights/{start}.safetensors",
        "start": start,
        "detector": "fcos",
        **amount,
        "labels": images,
        "boxes": 4 * images,
        "seed": seed,
        "lr": lr,
        "steps": 400,
        "curve": [list(point) for point in curve or ()],
        **scores,
        **(
            {"mask": {key: value and value * 0.8 for key, value in scores.items() if key != "per_class"}}
            if mask
            else {}
        ),
        "images": 500,
        "seconds": 200.0 + seed,
        "command": f"selfdet finetune --init weights/{start}.safetensors --seed {seed} --lr {lr}",
        **more,
    }


def rate(start: str, lr: float, ap: float | None, usual: float = 0.02) -> dict[str, Any]:
    """A finished cell that tried a learning rate."""
    tried = {"fraction": 0.1, "labels": 204, "seed": 0, "lr": lr, "multiple": lr / usual, "AP": ap}
    return {"experiment": "compare", "kind": "rate", "start": start, **tried}


def realistic(
    *,
    seeds: int = 5,
    starts: Mapping[str, str] = STARTS,
    amounts: Sequence[float] = (0.01, 0.1, 1.0),
    classes: Sequence[str] = ("person", "bicycle", "dog"),
    noise: float = 0.006,
    missing: Sequence[tuple[str, float, int]] = (),
    mask: bool = False,
    shots: Sequence[int] = (),
) -> Comparison:
    """Three starts whose gains shrink as labels grow, with curves, rates of their own and cells left out."""
    chance = random.Random(0)
    cells: list[dict[str, Any]] = []
    for place, name in enumerate(starts):
        known = list(STARTS)[min(place, 2)]
        gain, best = GAINS[known] + 0.01 * max(0, place - 2), RATES[known]
        cells += [rate(name, best * times, 0.1 - 0.03 * abs(times - 1)) for times in (0.5, 1.0, 2.0)]
        for value in amounts or shots:
            level = LEVEL[value] if amounts else 0.03 + 0.05 * value**0.3
            for seed in range(seeds):
                ap = level + gain * (1.1 - level * 3) + chance.gauss(0.0, noise) + 0.01 * (seed % 3)
                if (name, value, seed) in missing:
                    continue
                curve = [
                    [step, round(ap * (1 - 2.0 ** (-step * SPEED[known] / 100)) / (1 - 2.0 ** (-4 * SPEED[known])), 4)]
                    for step in range(0, 401, 50)
                ]
                own = (
                    {"fraction": value}
                    if amounts
                    else {"shots": value, "fraction": None, "labels": 3 * int(value) + seed % 2}
                )
                cells.append(
                    cell(
                        name,
                        seed,
                        round(ap, 4),
                        classes=classes,
                        mask=mask,
                        curve=curve if value < 1 else (),
                        lr=best,
                        **own,
                    )
                )
    return Comparison(
        starts=starts,
        cells=cells,
        planned=len(starts) * len(amounts or shots) * seeds,
        settings={"detector": "fcos", "backbone": "resnet18", "image_size": 256, "steps": 400, "tune_fraction": 0.1},
        words={"data": "labels/train.json", "val data": "labels/val.json"},
    )
