"""Selective search against OpenCV contrib's fast mode: CPU seconds an image, average recall at the same boxes.

    pip install -e '.[benchmarks]'
    python benchmarks/selective_search.py --data annotations/instances_val2017.json --images val2017/
    python benchmarks/selective_search.py --data … --images … --limit 3 --processes 0

Both run on one thread and take turns on each image, already decoded; CPU time is compared, so that other work on the
machine shifts both alike. Of each image both lists are cut to the shorter one's length before recall is measured: the
last row, `all`, and every budget compare equal numbers of boxes. The efficiency of several processes is their rate,
workers started, over that of one; it is a wall-clock figure and needs an idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

from selfdet.data.images import read_image
from selfdet.data.labels import ImageRecord, load_labels
from selfdet.data.listing import ListedImage
from selfdet.proposing.filters import Filters
from selfdet.proposing.finding import Task
from selfdet.proposing.processes import find_all
from selfdet.proposing.recall import recall, recall_table
from selfdet.proposing.selective_search import Search, compile_search, selective_search

BUDGETS = (50, 100, 500, 1000, 2000, None)


def opencv_fast(image: Tensor) -> np.ndarray:
    """(N, 4) float32 xyxy boxes of OpenCV contrib's fast mode, in its own order."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image.permute(1, 2, 0).numpy()[..., ::-1]))
    search.switchToSelectiveSearchFast()
    boxes = search.process().astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def compare(
    records: Sequence[ImageRecord], search: Search
) -> tuple[dict[str, list[float]], dict[str, list[np.ndarray]]]:
    """CPU seconds and boxes of each image, by program."""
    programs = {"selfdet": lambda image: selective_search(image, search), "OpenCV": opencv_fast}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    boxes: dict[str, list[np.ndarray]] = {name: [] for name in programs}
    for record in records:
        image = read_image(record.path)
        for name, program in programs.items():
            cv2.setRNGSeed(0)
            begun = time.process_time()
            found = program(image)
            seconds[name].append(time.process_time() - begun)
            boxes[name].append(found)
    return seconds, boxes


def efficiency(records: Sequence[ImageRecord], search: Search, processes: int, rounds: int = 5) -> float:
    """Images a second of several processes over that many times those of one; median of rounds, in turns."""
    tasks = [
        Task(ListedImage(number, record.path, record.path.name), Filters(), search)
        for number, record in enumerate(records)
    ]
    list(find_all(tasks[: 4 * processes], processes, lambda: False))  # starts them
    shares = []
    for _ in range(rounds):
        seconds = {}
        for count in (1, processes):
            begun = time.perf_counter()
            list(find_all(tasks, count, lambda: False))
            seconds[count] = time.perf_counter() - begun
        shares.append(seconds[1] / (processes * seconds[processes]))
    return statistics.median(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description="Selective search against OpenCV contrib's fast mode.")
    parser.add_argument("--data", required=True, help="labels, COCO JSON")
    parser.add_argument("--images", required=True, help="folder of their images")
    parser.add_argument("--limit", type=int, default=0, help="images; 0 for all")
    parser.add_argument("--side", type=int, default=Search.side)
    parser.add_argument("--processes", type=int, default=2, help="0 leaves the efficiency out")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    records = load_labels(options.data, options.images).records
    records = records[: options.limit or len(records)]
    search = Search(side=options.side)
    compile_search()
    seconds, boxes = compare(records, search)
    sizes = [min(map(len, pair)) for pair in zip(*boxes.values())]
    result: dict[str, object] = {"images": len(records), "side": options.side}
    for name, found in boxes.items():
        figures = recall([(record.boxes, own[:size]) for record, own, size in zip(records, found, sizes)], BUDGETS)
        print(recall_table(figures, title=f"{name}: {1000 * statistics.median(seconds[name]):.0f} ms an image"))
        result[name] = {
            "seconds": statistics.median(seconds[name]),
            "AR": {budget: row["AR"] for budget, row in figures.items() if budget != "objects"},
        }
    ratios = [theirs / ours for ours, theirs in zip(seconds["selfdet"], seconds["OpenCV"])]
    result["speed_ratio"] = statistics.median(ratios)
    print(f"{result['speed_ratio']:.1f} times as fast, median of the images' ratios")
    if options.processes > 1:
        result["efficiency"] = efficiency(records, search, options.processes)
        print(f"{options.processes} processes: {result['efficiency']:.0%} efficient")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
