"""What AlignDet's gain depends on: one setting of the pre-training changed at a time, 10 % of the labels, two seeds.

    python benchmarks/person_variants.py --data ../shared/data/coco-person-mini --runs runs/person

Goes on from benchmarks/person.py (same folder, same data, same fine-tuning) and scores on its tuning images, never on
val. Pre-trainings are half as long as there, so that there can be more of them. Every finished cell is a line of
docs/results/person-variants.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import person
from cells import SCORES, Cells, minutes, selfdet, spread, until_finished

CELLS = Cells("person-variants")
LR, SEEDS = 0.015, (0, 1)  # of fine-tuning, as chosen there
# Name: (what it is, boxes, flags of pre-training that replace the base's).
BASE = {"epochs": "4", "lr": "0.02"}
VARIANTS: dict[str, tuple[str, str, dict[str, str]]] = {
    "base": ("4 epochs, 200 boxes an image from 2.5 % of the long side, τ 0.5, lr 0.02", "small", {}),
    "few-boxes": ("the first 50 boxes", "small", {"detector-stage.boxes-per-image": "50"}),
    "many-places": ("8,192 places a batch and view", "small", {"detector-stage.samples": "8192"}),
    "medium-boxes": ("150 boxes from 5 % of the long side", "medium", {}),
    "large-boxes": ("boxes from 9 % of the long side (0.8 % of the area)", "large", {}),
    "cold": ("τ 0.2", "small", {"detector-stage.temperature": "0.2"}),
    "slow": ("lr 0.005, as published for this batch", "small", {"lr": "0.005"}),
    "long": ("8 epochs", "small", {"epochs": "8"}),
}
FILTERS = {"medium": "--max-aspect 5 --top-k 150", "large": "--max-aspect 5 --min-side 0.09 --top-k 150"}


def boxes(bench: person.Bench, kind: str) -> Path:
    """The file of proposals of a kind, made where it is not there."""
    if kind == "small":
        return bench.boxes
    file = bench.runs / f"boxes-{kind}.json"
    selfdet(f"proposals --images {bench.photos} --out {file} {FILTERS[kind]} --resume")
    return file


def pretrain(bench: person.Bench, name: str) -> tuple[Path, dict[str, Any]]:
    """The pre-training of a variant; returns its folder and its last figures."""
    _, kind, changes = VARIANTS[name]
    # The benchmark's own run is this variant already.
    out = bench.runs / ("pretrain-fcos" if name == "long" else f"variant-{name}")
    shape = f"--detector fcos {person.shape('fcos')} {person.PRETRAIN}"
    flags = " ".join(f"--{flag} {value}" for flag, value in {**BASE, **changes}.items())
    words = (
        f"pretrain --images {bench.photos} --boxes {boxes(bench, kind)} --backbone-weights {bench.weights} "
        f"{shape} {flags} --out {out}"
    )
    return out, {**until_finished(words, minutes=14), "words": words}


def cell(bench: person.Bench, name: str, keep: bool, seed: int) -> None:
    """Pre-train a variant and fine-tune from it, with kept box outputs or fresh ones."""
    named = {"variant": name, "keep_box_outputs": keep, "seed": seed}
    if CELLS.found(**named):
        return
    start, figures = pretrain(bench, name)
    out = bench.runs / f"variant-{name}-{'kept' if keep else 'fresh'}-{seed}"
    kept = (
        "contrast",
        "contrast_chance",
        "contrast_floor",
        "bbox_regression",
        "box_iou",
        "ids_per_image",
        "ids_in_both",
    )
    tuned = f"{person.FINETUNE}" if keep else person.FINETUNE.replace(" --keep-box-outputs", "")
    words = (
        f"finetune --init {start} --data {bench.data}/train.json --images {bench.data}/images --detector fcos "
        f"{person.shape('fcos')} --batch-size 8 {tuned} "
        f"--fraction 0.1 --steps {person.STEPS[0.1]} --lr {LR} --seed {seed} --out {out}"
    )
    selfdet(f"{words} --resume")
    scores = selfdet(f"evaluate --init {out} --data {bench.tune} --images {bench.data}/images --threads 1")
    CELLS.finish(
        {**named, "detector": "fcos", "fraction": 0.1, "lr": LR}
        | {key: scores[key] for key in SCORES}
        | {key: round(figures[key], 4) for key in kept}
        | {"pretrain": f"selfdet {figures['words']}", "command": f"selfdet {words}"}
    )


def rate(bench: person.Bench, init: str, lr: float, seed: int) -> dict[str, Any]:
    """A fine-tuning from the benchmark's own pre-training, or from the backbone alone, at one learning rate."""
    named = {"init": init, "detector": "fcos", "fraction": 0.1, "seed": seed, "lr": lr}
    for cells in (CELLS, person.CELLS):
        known = [each for each in cells.found(**named) if "variant" not in each]
        if known:
            return known[0]
    found = {"study": "rate", **bench.finetune(init, "fcos", 0.1, seed, lr)}
    CELLS.finish(found)
    return found


def rates(bench: person.Bench) -> str:
    """AP on the tuning images on the way, for both starts at each learning rate, as a Markdown table."""
    lines = ["| learning rate | start | AP after 100 steps | 200 | 300 | 400 | of each seed |", "|---|" + "---|" * 6]
    for lr in person.RATES["fcos"]:
        for init, shown in person.INITS.items():
            curves = [rate(bench, init, lr, seed)["curve"] for seed in (0, 1, 2)]
            means = " | ".join(f"{statistics.mean(curve[look][1] for curve in curves):.1f}" for look in (1, 2, 3, 4))
            each = ", ".join(f"{curve[-1][1]:.1f}" for curve in curves)
            lines.append(f"| {lr:g} | {shown} | {means} | {each} |")
    return "\n".join(lines)


def teacher(bench: person.Bench) -> str:
    """Faster R-CNN whose teacher compares the proposals alone, beside the benchmark's own; the AP on tuning images."""
    own = person.CELLS.found(cell="finetune", init="aligndet", detector="faster_rcnn", fraction=0.1)
    out, lr = bench.runs / "variant-teacher", own[0]["lr"]
    words = (
        f"pretrain --images {bench.photos} --boxes {bench.boxes} --backbone-weights {bench.weights} "
        f"--detector faster_rcnn {person.shape('faster_rcnn')} {person.PRETRAIN} {person.OWN['faster_rcnn']} "
        f"--detector-stage.teacher-rois proposals --out {out}"
    )
    for seed in SEEDS:
        if CELLS.found(study="teacher", seed=seed):
            continue
        until_finished(words, minutes=14)
        tuned = bench.words("aligndet", "faster_rcnn", 0.1, seed, lr)
        tuned = tuned.replace(str(bench.runs / "pretrain-faster_rcnn"), str(out))
        tuned = tuned.replace(str(bench.run_of("aligndet", "faster_rcnn", 0.1, seed, lr)), f"{out}-{seed}")
        until_finished(tuned, minutes=14)
        rows = [json.loads(line) for line in (bench.runs / f"{out.name}-{seed}" / "metrics.jsonl").open()]
        curve = [[row["step"], round(100 * (row["AP"] or 0.0), 2)] for row in rows if "AP" in row]
        named = {"study": "teacher", "teacher_rois": "proposals", "detector": "faster_rcnn", "fraction": 0.1}
        figures = {"seed": seed, "lr": lr, "curve": curve, "minutes": minutes(out)}
        CELLS.finish({**named, **figures, "pretrain": f"selfdet {words}", "command": f"selfdet {tuned}"})
    lines = ["| regions of the teacher | AP | AP of each seed | minutes of pre-training |", "|---|---|---|---|"]
    spent = {"rpn": person.CELLS.found(cell="pretrain", detector="faster_rcnn")[0]["minutes"]}
    found = CELLS.found(study="teacher")
    spent["proposals"] = found[0]["minutes"]
    for name, cells in (("rpn", own), ("proposals", found)):
        each = [cell["curve"][-1][1] for cell in cells]
        lines.append(f"| {name} | {spread(each)} | {', '.join(f'{one:.1f}' for one in each)} | {spent[name]} |")
    return "\n".join(lines)


def table() -> str:
    """The finished cells as the Markdown table of docs/results.md: a line for each variant, means over its seeds."""
    lines = ["| pre-training | box outputs | AP | AP50 | AP of each seed | contrast | box loss |", "|---|" + "---|" * 6]
    for name, (what, *_) in VARIANTS.items():
        for keep in (True, False):
            cells = CELLS.found(variant=name, keep_box_outputs=keep)
            if cells:
                ap, ap50 = (spread([100 * cell[key] for cell in cells]) for key in ("AP", "AP50"))
                each = ", ".join(f"{100 * cell['AP']:.1f}" for cell in cells)
                learned = f"{cells[0]['contrast']:.2f} | {cells[0]['bbox_regression']:.3f}"
                lines.append(f"| {what} | {'kept' if keep else 'fresh'} | {ap} | {ap50} | {each} | {learned} |")
    return "\n".join(lines)


def main() -> None:
    """Run the cells that are not finished, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of the finished cells only")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/coco-person-mini"))
    parser.add_argument("--runs", type=Path, default=Path("runs/person"))
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--rates", action="store_true", help="both starts at both learning rates, three seeds, too")
    parser.add_argument("--teacher", action="store_true", help="only: what the teacher of Faster R-CNN compares")
    options = parser.parse_args()
    if options.teacher:
        print(teacher(person.Bench(options.data, options.runs)))
        return
    if not options.table:
        bench = person.Bench(options.data, options.runs)
        bench.prepare()
        bench.proposals()
        for name in options.only:
            for keep in (True, False) if name == "base" else (True,):
                for seed in SEEDS:
                    cell(bench, name, keep, seed)
        if options.rates:
            print(rates(bench))
    print(table())


if __name__ == "__main__":
    main()
