"""Cascade R-CNN on a composite backbone (CBNet v2) over real photographs: pre-trained, fine-tuned, judged, exported.

    python benchmarks/cascade_cbnet.py --data ../shared/data/coco-person-mini

Two ResNet-18 start from the one that `main_job.py` has trained with DenseCL, the boxes are those that `person.py` has
found; both benchmarks come first. It shows that the whole way works, in 150 and 40 steps, a quarter of an hour of a
core of its own, not what such a detector can reach. A pair of Swin-T goes the same way in a few steps. Every finished
cell is one line of docs/results/cascade-cbnet.jsonl and is never run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cells import SCORES, Cells, minutes, selfdet, until_finished

CELLS = Cells("cascade-cbnet")
EQUAL = "--threads 1 --workers 1 --seed 0"
LABELS = 0.1
# Of each pair: whether it is evaluated, the long side of its images, its steps, and what more its runs are told.
PAIRS: dict[str, dict[str, Any]] = {
    "cb-resnet18": {
        "judged": True,
        "size": 160,
        "steps": {"pretrain": 150, "finetune": 40},
        "pretrain": "--batch-size 2 --lr 0.005",
        "finetune": "--batch-size 2 --log-every 4 --lr 0.005",
    },
    "cb-swin_tiny_patch4_window7_224": {
        "judged": False,
        "size": 96,
        "steps": {"pretrain": 4, "finetune": 4},
        "pretrain": "--batch-size 2 --log-every 1 --detector-stage.optimizer adamw",
        "finetune": "--batch-size 2 --optimizer adamw --log-every 1",
    },
}
CURVES = {
    "pretrain": ("contrast", "loss_box_reg", "loss_rpn_box_reg", "rpn_recall", "box_iou"),
    "finetune": ("loss", "loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=Path("../shared/data/coco-person-mini"))
    arguments.add_argument("--runs", type=Path, default=Path("runs/cascade-cbnet"))
    arguments.add_argument("--photographs", type=Path, default=Path("runs/person-bench/photographs.txt"))
    arguments.add_argument("--boxes", type=Path, default=Path("runs/person-bench/boxes.json"))
    arguments.add_argument("--resnet18", type=Path, default=Path("runs/main-job/densecl"))
    given = arguments.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    for backbone, pair in PAIRS.items():
        weights = f"--backbone-weights {given.resnet18} " if backbone == "cb-resnet18" else ""
        whole(given, backbone, pair, weights)


def whole(given: argparse.Namespace, backbone: str, pair: dict[str, Any], weights: str) -> None:
    """All stages of one pair."""
    shape = f"--backbone {backbone} --detector cascade_rcnn --image-size {pair['size']} --fpn-channels 64"
    pretrained, tuned, exported = (given.runs / f"{stage}-{backbone}" for stage in ("pretrain", "finetune", "export"))
    labels = f"--images {given.data}/images"
    train(
        "pretrain",
        backbone,
        pair["steps"]["pretrain"],
        f"pretrain --images {given.photographs} --boxes {given.boxes} {weights}{shape} --stages detector {EQUAL} "
        f"--steps {pair['steps']['pretrain']} {pair['pretrain']} --detector-stage.boxes-per-image 50 "
        f"--out {pretrained}",
        pretrained,
    )
    train(
        "finetune",
        backbone,
        pair["steps"]["finetune"],
        f"finetune --init {pretrained} --data {given.data}/train.json {labels} {EQUAL} --fraction {LABELS} "
        f"--image-size {pair['size']} --batch-norm frozen --keep-box-outputs --steps {pair['steps']['finetune']} "
        f"{pair['finetune']} --out {tuned}",
        tuned,
    )
    if pair["judged"] and not CELLS.found(cell="evaluate", backbone=backbone):
        words = f"evaluate --init {tuned} --data {given.data}/val.json {labels} --threads 1"
        answer = selfdet(words)
        scores = {name: answer[name] for name in (*SCORES, "images", "detections")}
        finish("evaluate", backbone, {"fraction": LABELS, **scores, "command": f"selfdet {words}"})
    if not CELLS.found(cell="export", backbone=backbone):
        words = f"export --init {tuned} --to torchvision --out {exported}"
        finish("export", backbone, {**selfdet(words)["check"], "command": f"selfdet {words}"})


def train(stage: str, backbone: str, steps: int, words: str, out: Path) -> None:
    """Run a training, unless it has been, and keep its curves: of a figure [step, value], eleven times."""
    if CELLS.found(cell=stage, backbone=backbone):
        return
    until_finished(words, minutes=60)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    shown = [row for row in rows if "loss" in row or "contrast" in row]
    last = len(shown) - 1
    shown = [row for number, row in enumerate(shown) if number % max(1, len(shown) // 10) == 0 or number == last]
    curves = {
        name: [[row["step"], round(row[name], 4)] for row in shown if row.get(name) is not None]
        for name in CURVES[stage]
    }
    finish(stage, backbone, {"curves": curves, "steps": steps, "minutes": minutes(out), "command": f"selfdet {words}"})


def finish(stage: str, backbone: str, figures: dict[str, Any]) -> None:
    """Keep a finished cell."""
    named = {"cell": stage, "init": "aligndet", "detector": "cascade_rcnn", "backbone": backbone, "seed": 0}
    CELLS.finish({**named, **figures})


if __name__ == "__main__":
    main()
