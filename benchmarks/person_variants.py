"""What AlignDet's gain depends on: one setting of the pre-training changed at a time, 10 % of the labels, one seed.

    python benchmarks/person_variants.py --data ../shared/data/coco-person-mini --runs runs/person

Goes on from benchmarks/person.py (same folder, same data, same fine-tuning) and scores on its tuning images, never on
val. Pre-trainings are half as long as there, so that there can be more of them. Every finished cell is a line of
docs/results/person-variants.jsonl.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import person
from cells import SCORES, Cells, selfdet, until_finished

CELLS = Cells("person-variants")
LR = 0.01
# Name: (what it is, boxes, flags of pre-training that replace the base's).
BASE = {"epochs": "4", "lr": "0.02"}
VARIANTS: dict[str, tuple[str, str, dict[str, str]]] = {
    "base": ("4 epochs, 200 boxes an image from 2.5 % of the long side, τ 0.5, lr 0.02", "small", {}),
    "few-boxes": ("the first 50 boxes", "small", {"detector-stage.boxes-per-image": "50"}),
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
    shape = f"{person.SHAPE} {person.EQUAL} --stages detector --precision bf16 --detector fcos"
    flags = " ".join(f"--{flag} {value}" for flag, value in {**BASE, **changes}.items())
    words = (
        f"pretrain --images {bench.photos} --boxes {boxes(bench, kind)} --backbone-weights {bench.weights} "
        f"{shape} {flags} --out {out}"
    )
    return out, {**until_finished(words, minutes=14), "words": words}


def cell(bench: person.Bench, name: str, keep: bool) -> None:
    """Pre-train a variant and fine-tune from it, with kept box outputs or fresh ones."""
    named = {"variant": name, "keep_box_outputs": keep}
    if CELLS.found(**named):
        return
    start, figures = pretrain(bench, name)
    out = bench.runs / f"variant-{name}-{'kept' if keep else 'fresh'}"
    kept = ("contrast", "bbox_regression", "box_iou", "proposals_per_image")
    tuned = f"{person.FINETUNE}" if keep else person.FINETUNE.replace(" --keep-box-outputs", "")
    words = (
        f"finetune --init {start} --data {bench.data}/train.json --images {bench.data}/images --detector fcos {tuned} "
        f"--fraction 0.1 --steps {person.STEPS[0.1]} --lr {LR} --seed 0 --out {out}"
    )
    selfdet(f"{words} --resume")
    scores = selfdet(f"evaluate --init {out} --data {bench.tune} --images {bench.data}/images --threads 1")
    CELLS.finish(
        {**named, "detector": "fcos", "fraction": 0.1, "seed": 0, "lr": LR}
        | {key: scores[key] for key in SCORES}
        | {key: round(figures[key], 4) for key in kept}
        | {"pretrain": f"selfdet {figures['words']}", "command": f"selfdet {words}"}
    )


def table() -> str:
    """The finished cells as the Markdown table of docs/results.md."""
    lines = ["| pre-training | box outputs | AP | AP50 | contrast | box loss |", "|---|---|---|---|---|---|"]
    for found in CELLS.found():
        what = VARIANTS[found["variant"]][0]
        ap, ap50 = (f"{100 * found[key]:.1f}" for key in ("AP", "AP50"))
        outputs = "kept" if found["keep_box_outputs"] else "fresh"
        lines.append(
            f"| {what} | {outputs} | {ap} | {ap50} | {found['contrast']:.2f} | {found['bbox_regression']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the cells that are not finished, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of the finished cells only")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/coco-person-mini"))
    parser.add_argument("--runs", type=Path, default=Path("runs/person"))
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    options = parser.parse_args()
    if not options.table:
        bench = person.Bench(options.data, options.runs)
        bench.prepare()
        bench.proposals()
        for name in options.only:
            for keep in (True, False) if name in ("base", "long") else (True,):
                cell(bench, name, keep)
    print(table())


if __name__ == "__main__":
    main()
