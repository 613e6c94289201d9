"""Two views of a photograph, from the file, against lightly's `DenseCLTransform`: images a second of one core.

    pip install -e '.[benchmarks]'
    python benchmarks/two_views.py --images ../shared/data/coco-tiny/val2017     # 640-px JPEGs, views of 224 px

Both decode with PIL, take turns on each image, and run on one thread; CPU time is compared, so that other work on the
machine shifts both alike. lightly's views end normalised in float32; selfdet's end as uint8 with the affines of both
views, and are normalised on the device, whose time on this CPU is counted here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightly.transforms import DenseCLTransform
from PIL import Image

from selfdet.data.images import list_images, read_image
from selfdet.data.pixels import normalise
from selfdet.data.views import TwoViews, ViewDataset

BAR = 2.0


def programs(paths: list[Path], size: int) -> dict[str, Callable[[int], Any]]:
    """What is timed, each called with the position of an image."""
    dataset = ViewDataset(paths, TwoViews(size, seed=0))
    transform = DenseCLTransform(input_size=size)

    def selfdet(index: int) -> Any:
        pair = dataset.load(index, epoch=0)
        return normalise(torch.stack([pair.query, pair.key]))

    def lightly(index: int) -> Any:
        with Image.open(paths[index]) as file:
            return transform(file.convert("RGB"))

    def pillow(index: int) -> Any:
        with Image.open(paths[index]) as file:
            return file.convert("RGB")

    return {
        "selfdet": selfdet,
        "lightly": lightly,
        "selfdet decodes": lambda index: read_image(paths[index]),
        "PIL decodes": pillow,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Two views of a photograph against lightly's DenseCLTransform.")
    parser.add_argument("--images", required=True, help="folder, glob, text list or COCO JSON")
    parser.add_argument("--size", type=int, default=224, help="side of a view, pixels")
    parser.add_argument("--limit", type=int, default=80, help="images")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    paths = list_images(options.images)[: options.limit]
    timed = programs(paths, options.size)
    rounds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(options.rounds + 1):
        spent = dict.fromkeys(timed, 0.0)
        for index in range(len(paths)):
            for name, program in timed.items():
                begun = time.process_time()
                program(index)
                spent[name] += time.process_time() - begun
        if number:  # the first round warms up
            for name, seconds in spent.items():
                rounds[name].append(len(paths) / seconds)
    for name, rates in rounds.items():
        print(f"{name}: {statistics.median(rates):.1f} images a second ({min(rates):.1f} to {max(rates):.1f})")
    ratio = statistics.median(own / other for own, other in zip(rounds["selfdet"], rounds["lightly"]))
    print(f"selfdet / lightly: {ratio:.2f} (bar {BAR})")
    print(json.dumps({**vars(options), "images_found": len(paths), "rates": rounds, "ratio": ratio}))


if __name__ == "__main__":
    main()
