"""DETR, Deformable DETR and RT-DETR on real photographs, through every verb once: proposals, pseudo classes, detector
stage, fine-tuning, evaluation, export; and fine-tuning from the backbone alone beside it.

    python benchmarks/detr_family.py --data ../shared/data/coco-person-mini --runs runs/detr-family

240 COCO photographs without labels, a tenth of 1,000 labelled ones, 128 px, EfficientNet-Lite0 with real ImageNet
weights (the extra `benchmarks`), two stages of 300 steps of 2 images (DETR, whose steps are cheap and which learns
slowest: 1,000), 60 of the held-out images: far too few and too short for detectors of this kind, and meant to show that
each stage does what it says, not how good they are. Every finished cell is one line of docs/results/detr-family.jsonl
and is never run again; trainings stop every few minutes and go on. Each line holds its command.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cells import SCORES, Cells, coco, minutes, photographs, selfdet, until_finished
from person import write_weights

CELLS = Cells("detr-family")
BACKBONE = "tf_efficientnet_lite0"
DETECTORS = ("detr", "deformable_detr", "rtdetr")
PHOTOGRAPHS, CLUSTERS, HELD_OUT = 240, 32, 60
STEPS = {"detr": 1000, "deformable_detr": 300, "rtdetr": 300}
PROPOSALS = "--max-aspect 5 --min-side 0.025 --top-k 50"
HERE = "--threads 1 --workers 1 --precision fp32"
EQUAL = f"--backbone {BACKBONE} --image-size 128 --batch-size 2 --lr 1e-4 {HERE}"
# Of both stages: what a detector loses, and in the first what is compared.
LOSSES = ("loss", "contrast", "contrast_chance", "contrast_floor", "loss_class", "loss_bbox", "loss_giou", "box_iou")
STARTS = ("aligndet", "backbone")  # pre-trained whole, or its backbone alone
TARGETS = ("transformers", "onnx", "torch-export")


class Bench:
    """Where data, runs and results are; a cell is a dict whose first entries name it."""

    def __init__(self, data: Path, runs: Path) -> None:
        self.data, self.runs = data, runs
        runs.mkdir(parents=True, exist_ok=True)
        self.held_out = runs / "val.json"
        self.photos, self.boxes, self.weights = (runs / name for name in ("few.txt", "boxes.json", "lite0.safetensors"))

    def prepare(self) -> None:
        """The list of photographs, the weights, and proposals with their pseudo classes."""
        if not self.photos.exists():
            lines = photographs(self.data, self.runs).read_text().splitlines()
            self.photos.write_text("".join(f"{line}\n" for line in lines[-PHOTOGRAPHS:]))
        if not self.weights.exists():
            write_weights(self.weights)
        if not self.held_out.exists():
            labels = coco(self.data, "val")
            labels["images"] = labels["images"][:HELD_OUT]
            known = {image["id"] for image in labels["images"]}
            labels["annotations"] = [each for each in labels["annotations"] if each["image_id"] in known]
            self.held_out.write_text(json.dumps(labels))
        if not CELLS.found(cell="proposals"):
            clusters = f"--clusters {CLUSTERS} --backbone {BACKBONE} --backbone-weights {self.weights} --threads 1"
            words = f"proposals --images {self.photos} --out {self.boxes} {PROPOSALS} {clusters} --resume"
            answer = selfdet(words)
            kept = {name: answer[name] for name in ("images", "boxes", "clusters")}
            CELLS.finish({"cell": "proposals", **kept, "command": f"selfdet {words}"})

    def pretrain(self, detector: str) -> None:
        """AlignDet over a detector, with pseudo classes."""
        out = self.runs / f"pretrain-{detector}"
        words = (
            f"pretrain --images {self.photos} --boxes {self.boxes} --stages detector --detector {detector} {EQUAL} "
            f"--steps {STEPS[detector]} --backbone-weights {self.weights} --out {out}"
        )
        self._train("pretrain", detector, words, out)

    def finetune(self, detector: str, start: str) -> None:
        """On a tenth of the labels, from the run before or from the backbone alone."""
        out = self.run_of(detector, start)
        init = self.runs / f"pretrain-{detector}" if start == "aligndet" else self.weights
        words = (
            f"finetune --init {init} --detector {detector} --data {self.data}/train.json --images {self.data}/images "
            f"--fraction 0.1 {EQUAL} --steps {STEPS[detector]} --batch-norm frozen --out {out}"
        )
        self._train("finetune", detector, words, out, start=start)

    def run_of(self, detector: str, start: str) -> Path:
        """The folder of a fine-tuning."""
        return self.runs / f"finetune-{detector}{'' if start == 'aligndet' else '-backbone'}"

    def _train(self, cell: str, detector: str, words: str, out: Path, **named: str) -> None:
        if CELLS.found(cell=cell, detector=detector, **named):
            return
        until_finished(words, minutes=10)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        curves: dict[str, Any] = {}
        for name in LOSSES:
            values = [round(row[name], 4) for row in rows if name in row]
            if values:
                curves[name] = [values[0], values[-1]]
        about = {"cell": cell, "detector": detector, **named, "steps": STEPS[detector], "first_and_last": curves}
        CELLS.finish(about | {"minutes": minutes(out), "command": f"selfdet {words}"})

    def evaluate(self, detector: str, start: str) -> None:
        """On some of the held-out images."""
        if CELLS.found(cell="evaluate", detector=detector, start=start):
            return
        init = self.run_of(detector, start)
        words = f"evaluate --init {init} --data {self.held_out} --images {self.data}/images --threads 1"
        answer = selfdet(words)
        scores = {name: answer[name] for name in SCORES}
        CELLS.finish(
            {"cell": "evaluate", "detector": detector, "start": start, **scores, "command": f"selfdet {words}"}
        )

    def export(self, detector: str, to: str) -> None:
        """Out, and back in the peer's own code, which the verb does before it says done."""
        if CELLS.found(cell="export", detector=detector, to=to):
            return
        out = self.runs / f"export-{to}-{detector}"
        words = f"export --init {self.run_of(detector, 'aligndet')} --to {to} --out {out}"
        answer = selfdet(words)
        check = {name: float(f"{value:.3g}") for name, value in answer["check"].items()}
        CELLS.finish({"cell": "export", "detector": detector, "to": to, "check": check, "command": f"selfdet {words}"})


def table() -> None:
    """Print what is finished, as in docs/results.md."""
    print("| | contrast | chance | L1 | IoU |\n|---|---|---|---|---|")
    for detector in DETECTORS:
        for cell in CELLS.found(cell="pretrain", detector=detector):
            print(f"| {detector} | {_words(cell, 'contrast', 'contrast_chance', 'loss_bbox', 'box_iou')} |")
    print("\n| | start | loss | L1 | GIoU | AP | AP50 |\n|---|---|---|---|---|---|---|")
    for detector in DETECTORS:
        for start in STARTS:
            tuned = CELLS.found(cell="finetune", detector=detector, start=start)
            for cell, scored in zip(tuned, CELLS.found(cell="evaluate", detector=detector, start=start)):
                scores = " | ".join(f"{100 * scored[name]:.2f}" for name in ("AP", "AP50"))
                print(f"| {detector} | {start} | {_words(cell, 'loss', 'loss_bbox', 'loss_giou')} | {scores} |")


def _words(cell: dict[str, Any], *names: str) -> str:
    curves = (cell["first_and_last"][name] for name in names)
    return " | ".join(" → ".join(dict.fromkeys(f"{value:.2f}" for value in own)) for own in curves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="coco-person-mini, with train.json and val.json")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--detectors", nargs="+", default=DETECTORS, choices=DETECTORS)
    parser.add_argument("--targets", nargs="*", default=TARGETS, choices=TARGETS, help="what is exported to")
    parser.add_argument("--table", action="store_true", help="print what is finished, and nothing else")
    given = parser.parse_args()
    if given.table:
        table()
        return
    bench = Bench(given.data, given.runs)
    bench.prepare()
    for detector in given.detectors:
        bench.pretrain(detector)
        for start in STARTS:
            bench.finetune(detector, start)
            bench.evaluate(detector, start)
        for target in given.targets:
            bench.export(detector, target)


if __name__ == "__main__":
    main()
