"""What DenseCL's own choices are worth: λ from 0 to 1, the matching, pooled against dense negatives.

    python benchmarks/ablations.py --data ../shared/data/coco-person-mini --runs runs/person

Goes on from benchmarks/person.py (same folder, its photographs and weights). One setting of the pre-training is changed
at a time: DenseCL goes on from ImageNet's EfficientNet-Lite0, on 2,045 COCO photographs, some minutes of one core
each (from nothing, so short a training leaves detectors near 1 AP, where no choice can be told from another). Every
backbone, and the one that all of them started from, is then measured in the same ways: FCOS fine-tuned on 10 % of the
labels and scored on held-out images; exact matches between two views; probes of the frozen features, of persons
against background and of the objects of coco-tiny. Every finished cell is one line of docs/results/ablations.jsonl and
is never run again; what was interrupted goes on where it was saved. --table draws docs/pictures/dense-weight.png too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import person
from cells import SCORES, Cells, selfdet, spread, until_finished
from main_job import match_cell, pretrained

CELLS = Cells("ablations")
PRETRAIN = (
    f"--stages backbone --method densecl --backbone {person.BACKBONE} --image-size 128 --batch-size 64 --epochs 6 "
    "--lr 0.02 --precision bf16 --threads 1 --workers 1"
)
FINETUNE = (
    f"--detector fcos --backbone {person.BACKBONE} --fraction 0.1 --steps 320 --batch-size 8 --image-size 224 "
    "--fpn-channels 96 --head-convs 2 --batch-norm frozen --precision bf16 --lr 0.015 --threads 1 --workers 1"
)
BASE = "lambda-0.5"  # DenseCL as it was published: part of every study
WEIGHTS = {f"lambda-{weight:g}": weight for weight in (0, 0.3, 0.5, 0.7, 1)}
VARIANTS: dict[str, str] = {
    **{name: f"--dense-weight {weight:g}" for name, weight in WEIGHTS.items()},
    "geometric": "--dense-weight 0.5 --matching geometric",
    "random": "--dense-weight 0.5 --matching random",
    "dense-negatives": "--dense-weight 0.5 --negatives dense",
}
# Each study: its variants, as the tables name them.
STUDIES: dict[str, dict[str, str]] = {
    "dense-weight": {name: f"λ = {weight:g}" for name, weight in WEIGHTS.items()},
    "matching": {BASE: "most similar cell", "geometric": "true cell", "random": "any cell"},
    "negatives": {BASE: "pooled, one vector an image", "dense-negatives": "one cell an image"},
}
START = "imagenet"
PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "dense-weight.png"
# What is probed: the cell's key → (task, its words). Persons are to be detected, coco-tiny's objects to be classified.
PROBES = {
    "person": ("boxes", "persons and background, boxes in their images"),
    "objects": ("crops", "80 classes of objects, cut out"),
}
PROBE = f"--backbone {person.BACKBONE} --image-size 224 --threads 1"


class Bench:
    """Where data, runs and results are."""

    def __init__(self, data: Path, runs: Path) -> None:
        self.data, self.runs = data, runs
        bench = person.Bench(data, runs)
        bench.prepare()
        self.photos, self.weights = bench.photos, bench.weights

    def start(self, variant: str, number: int) -> str:
        """What `--init` says of a backbone: ImageNet's, or the folder of its pre-training with this seed."""
        return str(self.weights if variant == START else self.runs / f"ablation-{variant}-{number}")

    def pretrain(self, variant: str, number: int) -> None:
        """Train a backbone, and count its exact matches."""
        named = {"variant": variant, "pretrain_seed": number}
        out = self.start(variant, number)
        if variant != START and not CELLS.found(cell="pretrain", **named):
            words = (
                f"pretrain --images {self.photos} --backbone-weights {self.weights} {PRETRAIN} {VARIANTS[variant]} "
                f"--seed {number} --out {out}"
            )
            until_finished(words, minutes=14)
            CELLS.finish({"cell": "pretrain", **named, **pretrained(Path(out)), "command": f"selfdet {words}"})
        if not CELLS.found(cell="match", **named):
            figures = match_cell(self.photos, out, person.BACKBONE)
            CELLS.finish({"cell": "match", **named, "image_size": 224, "pairs": 256, **figures})

    def probe(self, variant: str, number: int) -> None:
        """Measure what the frozen features tell apart."""
        named = {"variant": variant, "pretrain_seed": number}
        tiny = self.data.parent / "coco-tiny"
        words = {
            "person": f"--data {self.data}/train.json --images {self.data}/images",
            "objects": f"--data {tiny}/annotations/instances_train2017.json --images {tiny}/train2017 --no-background "
            "--min-side 24 --limit 2000",
        }
        for name, (task, _) in PROBES.items():
            if not CELLS.found(cell="probe", of=name, **named):
                command = f"probe --init {self.start(variant, number)} {words[name]} {PROBE}"
                scores = selfdet(command)["models"][-1]["scores"][task]
                kept = {kind: [round(v, 5) for v in scores[kind]["balanced_accuracy"]["values"]] for kind in scores}
                CELLS.finish({"cell": "probe", "of": name, **named, **kept, "command": f"selfdet {command}"})

    def finetune(self, variant: str, number: int, seed: int) -> None:
        """Fine-tune a detector from a backbone and score it once."""
        named = {"variant": variant, "pretrain_seed": number, "seed": seed}
        if CELLS.found(cell="finetune", **named):
            return
        images = f"--images {self.data}/images"
        out = self.runs / f"ablation-finetuned-{variant}-{number}-{seed}"
        words = (
            f"finetune --init {self.start(variant, number)} --data {self.data}/train.json {images} {FINETUNE} "
            f"--seed {seed} --out {out}"
        )
        until_finished(words, minutes=14)
        scores = selfdet(f"evaluate --init {out} --data {self.data}/val.json {images} --threads 1")
        kept = {key: scores[key] for key in SCORES}
        CELLS.finish({"cell": "finetune", **named, "fraction": 0.1, **kept, "command": f"selfdet {words}"})


def table(study: str) -> str:
    """The finished cells of a study as a Markdown table of docs/results.md."""
    lines = [
        "| pre-training | exact matches | persons told from background | objects told apart | seeds | AP | AP50 "
        "| AP of each seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant, shown in {START: "none: ImageNet's weights", **STUDIES[study]}.items():
        cells = CELLS.found(cell="finetune", variant=variant)
        if cells:
            ap, ap50 = (spread([100 * cell[key] for cell in cells]) for key in ("AP", "AP50"))
            each = ", ".join(f"{100 * cell['AP']:.2f}" for cell in cells)
            exact = mean(CELLS.found(cell="match", variant=variant), "match_accuracy")
            probes = " | ".join(probed(variant, name) for name in PROBES)
            lines.append(f"| {shown} | {exact} | {probes} | {len(cells)} | {ap} | {ap50} | {each} |")
    return "\n".join(lines)


def mean(cells: list[dict[str, Any]], name: str) -> str:
    """A share in percent, over the pre-training seeds."""
    return f"{spread([100 * cell[name] for cell in cells])} %" if cells else "–"


def probed(variant: str, name: str) -> str:
    """Linear balanced accuracy in percent, over the splits."""
    values = [100 * value for cell in CELLS.found(cell="probe", of=name, variant=variant) for value in cell["linear"]]
    return f"{spread(values)} %" if values else "–"


def draw() -> None:
    """Detection and probes over λ, beside the backbone that all started from."""
    from selfdet.drawing.trade import plot_trade

    def detection(variant: str) -> list[float]:
        return [100 * cell["AP"] for cell in CELLS.found(cell="finetune", variant=variant)]

    def linear(variant: str, name: str) -> list[float]:
        cells = CELLS.found(cell="probe", of=name, variant=variant)
        return [100 * value for cell in cells for value in cell["linear"]]

    panels = {"AP with 10 % of the labels": {"FCOS": {weight: detection(name) for name, weight in WEIGHTS.items()}}}
    levels = {"AP with 10 % of the labels": {"ImageNet": detection(START)}}
    for name, (_, words) in PROBES.items():
        label = f"probe, %: {name}"
        panels[label] = {words: {weight: linear(variant, name) for variant, weight in WEIGHTS.items()}}
        levels[label] = {"ImageNet": linear(START, name)}
    plot_trade(panels, PICTURE, title="Detection and what features tell apart", x_label="λ", levels=levels)


def main() -> None:
    """Run the cells that are not finished, the cheapest answer first: a study with one seed before the next seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the tables of the finished cells only")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/coco-person-mini"))
    parser.add_argument("--runs", type=Path, default=Path("runs/person"))
    parser.add_argument("--only", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--pretrain-seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of fine-tuning")
    options = parser.parse_args()
    if not options.table:
        bench = Bench(options.data, options.runs)
        for number in options.pretrain_seeds:
            for seed in options.seeds:
                for study in options.only:
                    for variant in (START, *STUDIES[study]):
                        bench.pretrain(variant, number)
                        bench.probe(variant, number)
                        bench.finetune(variant, number, seed)
    if CELLS.found():
        draw()
    for study in options.only:
        print(f"\n{study}\n\n{table(study)}")


if __name__ == "__main__":
    main()
