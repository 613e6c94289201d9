"""COCO AP of 5,000 images with 100 detections each: `evaluate_detections` against pycocotools, time and figures.

    python benchmarks/evaluation.py

Random labels as dense as COCO's val2017 (7 objects an image of 640 × 480 px, 80 classes) and detections of which a half
are near an object. Both get the same dictionaries in memory and make their own index; one run of each, in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from selfdet.evaluation.detection import evaluate_detections

CLASSES, OBJECTS = 80, 7
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # in pycocotools' order


def made(images: int, detections: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A label file's content and COCO results."""
    rng = np.random.default_rng(0)
    coco: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)]
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        coco["images"].append({"id": image, "width": 640, "height": 480, "file_name": f"{image}.jpg"})
        count = rng.poisson(OBJECTS)
        sides = np.exp(rng.normal(4.2, 0.9, (count, 2))).clip(4, 400)
        boxes = np.concatenate([rng.uniform(0, 1, (count, 2)) * (np.array([640, 480]) - sides).clip(1), sides], axis=1)
        kinds = rng.integers(1, CLASSES + 1, count)
        for box, kind in zip(boxes.round(2).tolist(), kinds.tolist()):
            about = {"id": len(coco["annotations"]) + 1, "image_id": image, "category_id": kind, "iscrowd": 0}
            coco["annotations"].append({**about, "bbox": box, "area": box[2] * box[3]})
        for number in range(detections):
            if count and number % 2:
                row = int(rng.integers(count))
                box = boxes[row] + rng.normal(0, 0.12, 4) * np.tile(sides[row], 2)
                box[2:] = box[2:].clip(1)
                kind = kinds[row] if rng.random() < 0.8 else rng.integers(1, CLASSES + 1)
            else:
                box, kind = rng.uniform([0, 0, 8, 8], [560, 400, 200, 200]), rng.integers(1, CLASSES + 1)
            found = {"image_id": image, "category_id": int(kind), "bbox": box.round(3).tolist()}
            results.append({**found, "score": float(rng.random())})
    return coco, results


def by_pycocotools(coco: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """The six figures."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(FIGURES, judge.stats.tolist()))


def main() -> None:
    """Print both times, their ratio and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100)
    options = parser.parse_args()
    coco, results = made(options.images, options.detections)
    begun = time.perf_counter()
    ours = evaluate_detections(coco, results)
    between = time.perf_counter()
    theirs = by_pycocotools(json.loads(json.dumps(coco)), json.loads(json.dumps(results)))
    seconds = between - begun, time.perf_counter() - between
    difference = max(abs(ours[key] - theirs[key]) for key in FIGURES)
    print(
        f"selfdet {seconds[0]:.1f} s, pycocotools {seconds[1]:.1f} s: ratio {seconds[0] / seconds[1]:.3f} (bar 0.333)"
    )
    print(f"AP {100 * ours['AP']:.2f} %, largest difference of six figures {difference:.1e} (bar 1e-6)")


if __name__ == "__main__":
    main()
