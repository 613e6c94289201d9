"""Segmentation from scratch, MoCo v2 and DenseCL: generated scenes in Pascal VOC's layout, and coco-tiny's masks.

    python benchmarks/segmentation.py --starts runs/main-job --runs runs/segmentation

Starts are the ResNet-18 backbones of benchmarks/main_job.py, pre-trained on photographs at 128 px. Nothing is tuned;
each cell is evaluated once, on held-out images, whole and sliding. Every finished cell is a line of
docs/results/segmentation.jsonl and is never run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from cells import Cells, selfdet, spread, until_finished

CELLS = Cells("segmentation")
SEEDS = (0,)
# Data: (words, settings). So short and small that a cell takes minutes on one thread.
DATA = {
    "scenes": ("generated scenes in VOC's layout, 80 images, 5 classes", "--steps 150 --image-size 96 --crop-size 96"),
    "coco-tiny": ("coco-tiny, 80 images, 81 classes", "--steps 150 --image-size 128 --crop-size 96"),
}
FINETUNE = "--task segmentation --backbone resnet18 --batch-size 8 --batch-norm train --lr 0.01 --workers 0 --threads 1"
INITS = {"scratch": "scratch", "moco": "MoCo v2 backbone", "densecl": "DenseCL backbone"}


def voc_scenes(folder: Path) -> None:
    """80 scenes to learn from and 40 to score on, as Pascal VOC keeps them."""
    from selfdet.data.class_maps import write_class_map
    from selfdet.data.mask_labels import load_mask_labels
    from selfdet.data.synthetic import make_scenes

    if (folder / "classes.json").exists():
        return
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 80), ("val", 40)):
        labels = load_mask_labels(make_scenes(folder / "coco", count=count, size=96, split=split))
        for record in labels.records:
            shutil.copy(record.path, folder / "JPEGImages")
            write_class_map(folder / "SegmentationClass" / f"{record.path.stem}.png", labels.read(record).classes)
        names = "".join(f"{record.path.stem}\n" for record in labels.records)
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(names)
    (folder / "classes.json").write_text(json.dumps(labels.classes))


def label_words(shared: Path, runs: Path, data: str) -> tuple[str, str]:
    """The flags of labels and images to train on, and to score on."""
    if data == "scenes":
        lists = runs / "voc" / "ImageSets" / "Segmentation"
        return f"--data {lists / 'train.txt'}", f"--data {lists / 'val.txt'}"
    folder = shared / "coco-tiny"
    train, val = (
        f"--data {folder}/annotations/instances_{part}2017.json --images {folder}/{part}2017"
        for part in ("train", "val")
    )
    return train, val


def cell(shared: Path, starts: Path, runs: Path, data: str, init: str, seed: int) -> None:
    """Fine-tune from one start and score it once."""
    named = {"data": data, "init": init, "seed": seed}
    if CELLS.found(**named):
        return
    start = "scratch" if init == "scratch" else str(starts / init)
    train, val = label_words(shared, runs, data)
    out = runs / f"{data}-{init}-{seed}"
    words = f"finetune --init {start} {train} {FINETUNE} {DATA[data][1]} --seed {seed} --out {out}"
    until_finished(words, minutes=14)
    whole, sliding = (selfdet(f"evaluate --init {out} {val} --threads 1{way}") for way in ("", " --sliding"))
    kept = {"mIoU": whole["mIoU"], "pixel_accuracy": whole["pixel_accuracy"], "sliding_mIoU": sliding["mIoU"]}
    CELLS.finish({**named, **kept, "per_class": whole["per_class"], "command": f"selfdet {words}"})


def table() -> str:
    """The finished cells as the Markdown table of docs/results.md."""
    lines = ["| labels | start | seeds | mIoU | sliding | pixel accuracy |", "|---|---|---|---|---|---|"]
    for data, (words, _) in DATA.items():
        for init, shown in INITS.items():
            if found := CELLS.found(data=data, init=init):
                keys = ("mIoU", "sliding_mIoU", "pixel_accuracy")
                figures = " | ".join(spread([100 * each[key] for each in found]) for key in keys)
                lines.append(f"| {words} | {shown} | {len(found)} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Run the cells that are not finished, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of the finished cells only")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--starts", type=Path, default=Path("runs/main-job"), help="folder of main_job.py's runs")
    parser.add_argument("--runs", type=Path, default=Path("runs/segmentation"))
    options = parser.parse_args()
    if not options.table:
        voc_scenes(options.runs / "voc")
        for seed in SEEDS:
            for data in DATA:
                for init in INITS:
                    cell(options.shared, options.starts, options.runs, data, init, seed)
    print(table())


if __name__ == "__main__":
    main()
