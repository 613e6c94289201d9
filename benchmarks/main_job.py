"""The main job on real photographs: DenseCL and MoCo v2 backbones, FCOS with 10 % of the labels, AP on held-out images.

    python benchmarks/main_job.py --data ../shared/data/coco-person-mini --runs runs/main-job

Every finished cell is one line of docs/results/main-job.jsonl and is never run again; an interrupted cell goes on where
it was saved. The same commands can be typed by hand: each line holds its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cells import SCORES, Cells, minutes, photographs, selfdet, spread

CELLS = Cells("main-job")
# Both methods get the same steps, batch and views, and the defaults for everything that is not said here.
PRETRAIN = "--backbone resnet18 --image-size 128 --batch-size 64 --seed 0 --threads 1"
FINETUNE = (
    "--detector fcos --backbone resnet18 --fraction 0.1 --steps 400 --batch-size 8 --image-size 256 "
    "--fpn-channels 96 --head-convs 2 --batch-norm train --lr 0.01 --threads 1"
)


def match_cell(photos: Path, start: str, backbone: str = "resnet18") -> dict[str, Any]:
    """Match accuracy at 224 px of a backbone, or of the untrained one, on one fixed set of view pairs."""
    import torch

    from selfdet.data.images import list_images
    from selfdet.interchange.starts import load_backbone
    from selfdet.training.health import MatchProbe

    torch.manual_seed(0)
    net, _ = load_backbone(backbone, None if start == "random" else start)
    return MatchProbe(list_images(photos), 224, seed=1, device="cpu", pairs=256)(net)


def pretrained(run: Path) -> dict[str, Any]:
    """The last figures of a pre-training run, and its time over all its sittings."""
    last: dict[str, Any] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        last |= json.loads(line)
    names = ("loss", "global", "dense", "effective_rank", "feature_std", "pos_similarity", "neg_similarity")
    kept = {name: round(last[name], 4) for name in names if name in last}
    return {"steps": last["step"], "epochs": last["epoch"] + 1, "minutes": minutes(run), **kept}


def tables() -> str:
    """The finished cells as the Markdown tables of docs/results.md."""
    cells = CELLS.found()
    lines = ["| start | seeds | AP | AP50 | AP of each seed |", "|---|---|---|---|---|"]
    for name, shown in (("scratch", "scratch"), ("moco", "MoCo v2 backbone"), ("densecl", "DenseCL backbone")):
        found = CELLS.found(cell="finetune", init=name)
        if found:
            each = ", ".join(f"{100 * cell['AP']:.2f}" for cell in found)
            ap, ap50 = (spread([100 * cell[key] for cell in found]) for key in ("AP", "AP50"))
            lines.append(f"| {shown} | {len(found)} | {ap} | {ap50} | {each} |")
    lines += ["", "| backbone | exact matches | median error | guessing |", "|---|---|---|---|"]
    for cell in cells:
        if cell["cell"] == "match":
            exact, guess = (f"{100 * cell[key]:.1f} %" for key in ("match_accuracy", "match_chance"))
            lines.append(f"| {cell['init']} | {exact} | {cell['match_error_px']:.0f} px | {guess} |")
    lines += [
        "",
        "| pre-training | steps | epochs | minutes | loss (global, dense) | effective rank of 64 |",
        "|---|---|---|---|---|---|",
    ]
    for cell in cells:
        if cell["cell"] == "pretrain":
            losses = ", ".join(f"{cell[key]:.2f}" for key in ("global", "dense") if key in cell)
            lines.append(
                f"| {cell['init']} | {cell['steps']} | {cell['epochs']} | {cell['minutes']} | {losses} | "
                f"{cell['effective_rank']:.1f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the cells that are not finished, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the finished cells as tables, run nothing")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data/coco-person-mini"), help="the coco-person-mini folder"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/main-job"))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    if options.table:
        print(tables())
        return
    photos = photographs(options.data, options.runs)
    finished = {(cell["cell"], cell["init"], cell.get("seed")) for cell in CELLS.found()}

    for method in ("densecl", "moco"):
        out = options.runs / method
        if ("pretrain", method, 0) not in finished:
            words = f"pretrain --images {photos} --method {method} {PRETRAIN} --epochs {options.epochs} --out {out}"
            if not (out / "backbone.safetensors").exists():
                selfdet(f"{words} --resume")
            CELLS.finish(
                {"cell": "pretrain", "init": method, "seed": 0, **pretrained(out), "command": f"selfdet {words}"}
            )

    starts = {"random": "random", "moco": f"{options.runs}/moco", "densecl": f"{options.runs}/densecl"}
    for name, start in starts.items():
        if ("match", name, 1) not in finished:
            CELLS.finish(
                {"cell": "match", "init": name, "seed": 1, "image_size": 224, "pairs": 256, **match_cell(photos, start)}
            )

    for seed in options.seeds:
        for name in ("scratch", "moco", "densecl"):
            if ("finetune", name, seed) in finished:
                continue
            out = options.runs / f"{name}-{seed}"
            start = "scratch" if name == "scratch" else str(options.runs / name)
            words = (
                f"finetune --init {start} --data {options.data}/train.json --images {options.data}/images "
                f"{FINETUNE} --seed {seed} --out {out} --resume"
            )
            answer = selfdet(words)
            scores = selfdet(f"evaluate --init {out} --data {options.data}/val.json --images {options.data}/images")
            kept = {key: scores[key] for key in SCORES}
            CELLS.finish(
                {"cell": "finetune", "init": name, "detector": "fcos", "fraction": 0.1, "seed": seed}
                | {"steps": answer["step"], **kept, "command": f"selfdet {words}"}
            )


if __name__ == "__main__":
    main()
