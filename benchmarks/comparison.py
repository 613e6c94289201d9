"""Which start is best for persons, by `selfdet compare`: five starts of FCOS, three of Faster R-CNN, five seeds.

    python benchmarks/comparison.py --data ../shared/data/coco-person-mini --runs runs/person

Goes on from benchmarks/person.py (same folder, its photographs, boxes, weights and pre-trained detectors). DenseCL goes
on from ImageNet's weights, and AlignDet from DenseCL's. Every cell takes under 4 minutes of one core; a second process
of the same command takes the cells that the first is not at. What is finished is a line of
docs/results/comparison.jsonl, the answers of `compare` are in RUNS/compare-DETECTOR. --table prints the tables of
docs/results.md from these lines, and draws docs/pictures/compare-DETECTOR.png and compare-DETECTOR-steps.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import person
from cells import Cells, minutes, spread, until_finished
from selfdet.drawing.comparison_figures import plot_gains, plot_steps
from selfdet.evaluation.comparison import Comparison, amounts, cells_of, difference, scores, table
from selfdet.evaluation.differences import verdict

CELLS = Cells("comparison")
# 12 epochs from weights that know much: a quarter of the rate for a start from nothing.
DENSECL = "--image-size 160 --backbone-stage.batch-size 64 --backbone-stage.epochs 12 --backbone-stage.lr 0.02"
# As in person.py, so that both runs of AlignDet differ in their backbone alone.
ALIGNDET = (
    "--detector-stage.image-size 256 --detector-stage.batch-size 8 --detector-stage.epochs 8 --detector-stage.lr 0.02"
)
SHARED = "--fractions 0.01,0.1 --seeds 5 --threads 1 --workers 1 --precision bf16 --keep-box-outputs --image-size 224"
# Steps so that a cell stays under 4 minutes; of the usual learning rate person.py found 1 and 1.5 times good.
OWN = {
    "fcos": "--steps 200 --batch-size 8 --lr-grid 1,2 --curve-points 4 --outside-images 60",
    "faster_rcnn": "--steps 110 --batch-size 4 --lr-grid 1,2 --curve-points 2 --outside-images 60",
}
COMMON = ("AP", "AP50", "AP75", "APs", "APm", "APl")
PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
# What is asked: is the second better than the first?
ASKED = (
    ("scratch", "ImageNet"),
    ("ImageNet", "ImageNet + AlignDet"),
    ("ImageNet", "DenseCL"),
    ("DenseCL", "DenseCL + AlignDet"),
    ("ImageNet", "DenseCL + AlignDet"),
)


def densecl(bench: person.Bench) -> Path:
    """DenseCL from ImageNet's weights, then AlignDet over it, in one run."""
    out = bench.runs / "pretrain-densecl-fcos"
    if not CELLS.found(cell="pretrain", init="densecl"):
        words = (
            f"pretrain --images {bench.photos} --boxes {bench.boxes} --backbone-weights {bench.weights} "
            f"--stages backbone detector --method densecl --detector fcos --backbone {person.BACKBONE} "
            f"--fpn-channels 96 --head-convs 2 {DENSECL} {ALIGNDET} --threads 1 --workers 1 "
            f"--precision bf16 --out {out}"
        )
        until_finished(words, minutes=14)
        spent = {stage: minutes(out / "stages" / stage) for stage in ("backbone", "detector")}
        CELLS.finish({"cell": "pretrain", "init": "densecl", "minutes": spent, "command": f"selfdet {words}"})
    return out


def starts(bench: person.Bench, detector: str) -> dict[str, str]:
    """What each start is called here, and what `--init` is told; first the one that users have already."""
    own = {
        "ImageNet": str(bench.weights),
        "scratch": "scratch",
        "ImageNet + AlignDet": str(bench.runs / f"pretrain-{detector}"),
    }
    if detector != "fcos":
        return own
    both = bench.runs / "pretrain-densecl-fcos"
    return {**own, "DenseCL": str(both / "backbone.safetensors"), "DenseCL + AlignDet": str(both)}


def compare(bench: person.Bench, detector: str) -> None:
    """All cells of a detector that nobody has done yet."""
    named = starts(bench, detector)
    out = bench.runs / f"compare-{detector}"
    words = (
        f"compare {' '.join(f'--init {each}' for each in named.values())} --data {bench.data}/train.json "
        f"--val-data {bench.data}/val.json --images {bench.data}/images --detector {detector} "
        f"--backbone {person.BACKBONE} --fpn-channels 96{person.TOWERS[detector]} {SHARED} {OWN[detector]} --out {out}"
    )
    try:
        until_finished(words, minutes=14)
    finally:
        keep(detector, out, named, words)


def keep(detector: str, out: Path, named: dict[str, str], words: str) -> None:
    """A line for each cell that is finished and has none."""
    names = {told: name for name, told in named.items()}
    for file in sorted((out / "cells").glob("*/cell.json"), key=lambda each: each.stat().st_mtime):
        cell: dict[str, Any] = json.loads(file.read_text())
        about = {key: cell[key] for key in ("kind", "fraction", "seed", "lr")} | {
            "init": names[cell["init"]],
            "detector": detector,
        }
        if CELLS.found(**about):
            continue
        figures = {key: cell[key] for key in ("labels", "boxes", "steps", "seconds", "curve")}
        scores = {key: cell.get(key) for key in COMMON}
        CELLS.finish({**about, **figures, **scores, "comparison": f"selfdet {words}", "command": cell["command"]})


def finished(detector: str) -> Comparison:
    """The cells of a detector so far."""
    cells = [{**cell, "start": cell["init"]} for cell in CELLS.found(detector=detector)]
    used = {cell["start"] for cell in cells}
    names = [name for name in ("ImageNet", "scratch", *(other for _, other in ASKED[1:])) if name in used]
    planned = len(names) * 2 * 5
    return Comparison({name: name for name in names}, cells, planned, {}, {})


def tables(detector: str) -> str:
    """The cells of a detector as the Markdown tables of docs/results.md."""
    found = finished(detector)
    lines = ["| labels | start | seeds | AP | AP50 | AP of each seed | learning rate |", "|---|" + "---|" * 6]
    for row in table(found):
        each = scores(found, row.start, row.amount)
        ap50 = scores(found, row.start, row.amount, "AP50")
        cells = cells_of(found, row.start, row.amount).values()
        rate = ", ".join(sorted({f"{cell['lr']:g}" for cell in cells}))
        aps = f"{spread([100 * one for one in each.values()])} | {spread([100 * one for one in ap50.values()])}"
        seeds = ", ".join(f"{100 * one:.2f}" for one in each.values())
        lines.append(f"| {row.amount.images} | {row.start} | {row.n} | {aps} | {seeds} | {rate} |")
    lines += ["", "| question | labels | answer |", "|---|---|---|"]
    for base, other in ASKED:
        for amount in amounts(found):
            gain = difference(found, other, amount, base=base)
            if gain is not None:
                lines.append(f"| {other} rather than {base} | {amount.images} | {verdict(gain, amount.words)} |")
    return "\n".join(lines)


def draw(detector: str) -> None:
    """Bars of all starts, and their curves with the most labels."""
    found = finished(detector)
    PICTURES.mkdir(exist_ok=True)
    plot_gains(found, found.starts, PICTURES / f"compare-{detector}.png")
    plot_steps(found, found.starts, amounts(found)[-1], PICTURES / f"compare-{detector}-steps.png")


def main() -> None:
    """Run what is not finished, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/coco-person-mini"))
    parser.add_argument("--runs", type=Path, default=Path("runs/person"))
    parser.add_argument("--only", choices=list(OWN), help="cells of one detector")
    parser.add_argument("--pretrain", action="store_true", help="the pre-training only")
    parser.add_argument("--table", action="store_true", help="print the tables of the finished cells, and draw them")
    options = parser.parse_args()
    if options.table:
        for detector in OWN:
            if CELLS.found(detector=detector, kind="finetune"):
                print(f"\n{detector}\n\n{tables(detector)}")
                draw(detector)
        return
    bench = person.Bench(options.data, options.runs)
    bench.prepare()
    bench.proposals()
    for detector in OWN:
        if options.only in (None, detector):
            bench.pretrain(detector)
            if detector == "fcos":
                densecl(bench)
            if not options.pretrain:
                compare(bench, detector)


if __name__ == "__main__":
    main()
