"""Persons as pedestrians: the log-average miss rate beside AP, and proposals up to 3 : 1 against 5 : 1.

    python benchmarks/pedestrians.py --data ../shared/data/coco-person-mini --runs runs/person

Goes on from benchmarks/person.py (same folder), whose proposals allow boxes up to 5 : 1: its runs of FCOS are scored
again with `--miss-rate`, at no training cost. Then the same once more from proposals up to 3 : 1, everything else
equal: search, AlignDet, fine-tuning with 10 and 100 labels. `--scores` does the first alone. Every finished cell is a
line of docs/results/pedestrians.jsonl and is never run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import person
from cells import SCORES, Cells, minutes, selfdet, spread, until_finished

CELLS = Cells("pedestrians")
RATE, SEEDS = 0.015, {0.1: (0, 1, 2), 0.01: (0, 1, 2), 1.0: (0,)}
# Start: (its words, folder of its pre-training, its name in that of a fine-tuning).
STARTS = {
    "backbone": ("backbone only", "", "backbone"),
    "aspect-3": ("AlignDet, boxes up to 3 : 1", "pretrain-fcos-aspect-3", "aspect-3"),
    "aspect-5": ("AlignDet, boxes up to 5 : 1", "pretrain-fcos", "aligndet"),
}


def boxes(bench: person.Bench, aspect: int) -> Path:
    """Proposals up to this aspect, and how many of the labelled training persons they hold."""
    file = bench.boxes if aspect == 5 else bench.runs / f"boxes-aspect-{aspect}.json"
    if not CELLS.found(cell="proposals", aspect=aspect):
        bounds = person.PROPOSALS.replace("--max-aspect 5", f"--max-aspect {aspect}")
        words = f"proposals --images {bench.photos} --out {file} {bounds} --data {bench.data}/train.json --resume"
        answer = selfdet(words)
        kept = {name: answer[name] for name in ("images", "boxes", "images_without_boxes", "recall") if name in answer}
        CELLS.finish({"cell": "proposals", "aspect": aspect, **kept, "command": f"selfdet {words}"})
    return file


def pretrain(bench: person.Bench) -> None:
    """AlignDet over FCOS as in person.py, but for the proposals."""
    if CELLS.found(cell="pretrain", aspect=3):
        return
    out = bench.runs / STARTS["aspect-3"][1]
    words = (
        f"pretrain --images {bench.photos} --boxes {boxes(bench, 3)} --backbone-weights {bench.weights} "
        f"--detector fcos {person.shape('fcos')} {person.PRETRAIN} {person.OWN['fcos']} --out {out}"
    )
    answer = until_finished(words, minutes=14)
    kept = {name: round(answer[name], 4) for name in ("contrast", "bbox_regression")}
    about = {"cell": "pretrain", "aspect": 3, "steps": answer["step"], **kept, "minutes": minutes(out)}
    CELLS.finish({**about, "command": f"selfdet {words}"})


def run_of(bench: person.Bench, start: str, fraction: float, seed: int) -> Path:
    """The folder of a fine-tuning, which person.py has made of two of the starts."""
    return bench.run_of(STARTS[start][2], "fcos", fraction, seed, RATE)


def finetune(bench: person.Bench, fraction: float, seed: int) -> None:
    """From the 3 : 1 start, as person.py does from the others."""
    out = run_of(bench, "aspect-3", fraction, seed)
    if CELLS.found(cell="score", start="aspect-3", fraction=fraction, seed=seed) or (out / "report.html").exists():
        return
    other = run_of(bench, "aspect-5", fraction, seed)
    words = bench.words("aligndet", "fcos", fraction, seed, RATE).replace(str(other), str(out))
    until_finished(words.replace("/pretrain-fcos ", f"/{STARTS['aspect-3'][1]} "), minutes=14)
    person.difference(out / "config.yaml", other / "config.yaml")


def score(bench: person.Bench, start: str, fraction: float, seed: int) -> None:
    """A fine-tuned run on the held-out images, once, with the miss rate; left out where there is no such run."""
    out = run_of(bench, start, fraction, seed)
    named = {"cell": "score", "start": start, "fraction": fraction, "seed": seed}
    if CELLS.found(**named) or not (out / "detector.safetensors").exists():
        return
    words = f"evaluate --init {out} --data {bench.data}/val.json --images {bench.data}/images --threads 1 --miss-rate"
    scores = selfdet(words)
    kept: dict[str, Any] = {key: scores[key] for key in SCORES} | {"MR": scores["miss_rate"]["all"]}
    CELLS.finish({**named, **kept, "command": f"selfdet {words}"})


def table() -> str:
    """The finished cells as the Markdown table of docs/results.md."""
    lines = ["| labels | start | seeds | MR⁻² | AP | AP50 | MR⁻² of each seed |", "|---|---|---|---|---|---|---|"]
    for fraction in sorted(SEEDS):
        for start, (shown, *_) in STARTS.items():
            cells = sorted(
                CELLS.found(cell="score", start=start, fraction=fraction), key=lambda cell: int(cell["seed"])
            )
            if cells:
                mr, ap, ap50 = (spread([100 * cell[key] for cell in cells]) for key in ("MR", "AP", "AP50"))
                each = ", ".join(f"{100 * cell['MR']:.2f}" for cell in cells)
                lines.append(f"| {fraction:.0%} | {shown} | {len(cells)} | {mr} | {ap} | {ap50} | {each} |")
    return "\n".join(lines)


def main() -> None:
    """Run the cells that are not finished, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of the finished cells only")
    parser.add_argument("--scores", action="store_true", help="only score the fine-tuned runs that exist")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/coco-person-mini"))
    parser.add_argument("--runs", type=Path, default=Path("runs/person"))
    options = parser.parse_args()
    if not options.table:
        bench = person.Bench(options.data, options.runs)
        cells = [(fraction, seed) for fraction, seeds in SEEDS.items() for seed in seeds]
        if not options.scores:
            bench.prepare()
            for aspect in (5, 3):
                boxes(bench, aspect)
            pretrain(bench)
        for fraction, seed in cells:
            if not options.scores and fraction < 1:
                finetune(bench, fraction, seed)
            for start in STARTS:
                score(bench, start, fraction, seed)
    print(table())


if __name__ == "__main__":
    main()
