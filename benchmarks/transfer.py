"""Neck and head that learned from photographs of persons, for other images: blood cells, and COCO's 80 classes.

    python benchmarks/transfer.py --runs runs/person

Goes on from benchmarks/person.py (same folder): its AlignDet over FCOS against the backbone that this started from,
fine-tuned on a tenth of BCCD's training images (20) and on the 80 of coco-tiny, scored once on BCCD's test images and
on coco-tiny's val2017. Nothing was chosen on these data: the settings are those of person.py. Then Mask R-CNN on
coco-tiny, a smoke figure of boxes and masks. Every finished cell is a line of docs/results/transfer.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import person
from cells import SCORES, Cells, selfdet, spread, until_finished

CELLS = Cells("transfer")
SEEDS, STEPS, RATE = (0, 1), {"fcos": 400, "mask_rcnn": 200}, {"fcos": 0.015, "mask_rcnn": 0.005}
# Data: (share of the training images, its words).
DATA = {"bccd": (0.1, "BCCD, 20 images, 3 classes"), "coco-tiny": (1.0, "coco-tiny, 80 images, 80 classes")}


def label_files(shared: Path, runs: Path, name: str) -> tuple[Path, Path, Path, Path]:
    """Labels to train on and to score on, each with its folder of images."""
    if name == "coco-tiny":
        folder = shared / name
        labels = [folder / "annotations" / f"instances_{part}2017.json" for part in ("train", "val")]
        return labels[0], folder / "train2017", labels[1], folder / "val2017"
    images = shared / name / "JPEGImages"
    parts = [runs / f"bccd-{part}.json" for part in ("train", "test")]
    for part, file in zip(("train", "test"), parts):
        if not file.exists():
            file.write_text(json.dumps(coco_of_voc(shared / name, part)))
    return parts[0], images, parts[1], images


def coco_of_voc(folder: Path, part: str) -> dict[str, Any]:
    """The labels of one part of a Pascal VOC data set: corners count from 1 and belong to the box."""
    names = (folder / "ImageSets" / "Main" / f"{part}.txt").read_text().split()
    trees = [ElementTree.parse(folder / "Annotations" / f"{name}.xml").getroot() for name in names]
    classes = sorted({str(each.findtext("name")) for tree in trees for each in tree.iter("object")})
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number, (name, tree) in enumerate(zip(names, trees), start=1):
        width, height = (int(str(tree.findtext(f"size/{side}"))) for side in ("width", "height"))
        images.append({"id": number, "file_name": f"{name}.jpg", "width": width, "height": height})
        for each in tree.iter("object"):
            x1, y1, x2, y2 = (float(str(each.findtext(f"bndbox/{k}"))) for k in ("xmin", "ymin", "xmax", "ymax"))
            box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
            about = {
                "id": len(boxes) + 1,
                "image_id": number,
                "category_id": 1 + classes.index(str(each.findtext("name"))),
            }
            boxes.append({**about, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": place, "name": name} for place, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": boxes, "categories": categories}


def cell(bench: person.Bench, shared: Path, detector: str, data: str, init: str, seed: int) -> None:
    """Fine-tune from one start and score it once."""
    named = {"data": data, "detector": detector, "init": init, "seed": seed}
    if CELLS.found(**named):
        return
    train, images, test, test_images = label_files(shared, bench.runs, data)
    pretrained = bench.runs / ("pretrain-fcos" if detector == "fcos" else "pretrain-faster_rcnn")
    start = bench.weights if init == "backbone" else pretrained
    out = bench.runs / f"{data}-{detector}-{init}-{seed}"
    like = "fcos" if detector == "fcos" else "faster_rcnn"
    shape = f"{person.shape(like)} --batch-size {person.BATCHES[like]}"
    words = (
        f"finetune --init {start} --data {train} --images {images} --detector {detector} {shape} {person.FINETUNE} "
        f"--fraction {DATA[data][0]:g} --steps {STEPS[detector]} --lr {RATE[detector]:g} --seed {seed} --out {out}"
    )
    until_finished(words, minutes=14)
    scores = selfdet(f"evaluate --init {out} --data {test} --images {test_images} --threads 1")
    masks = {f"mask_{key}": scores["mask"][key] for key in SCORES} if "mask" in scores else {}
    kept = {key: scores[key] for key in SCORES} | masks
    about = {"fraction": DATA[data][0], "steps": STEPS[detector], "lr": RATE[detector]}
    CELLS.finish({**named, **about, **kept, "command": f"selfdet {words}"})


def table() -> str:
    """The finished cells as the Markdown table of docs/results.md."""
    lines = ["| labels | detector | start | seeds | AP | AP50 | AP of each seed |", "|---|---|---|---|---|---|---|"]
    for data, (_, words) in DATA.items():
        for detector in RATE:
            for init, shown in person.INITS.items():
                cells = CELLS.found(data=data, detector=detector, init=init)
                for kind in ("", "mask_") if cells else ():
                    if kind + "AP" not in cells[0]:
                        continue
                    ap, ap50 = (spread([100 * each[kind + key] for each in cells]) for key in ("AP", "AP50"))
                    each = ", ".join(f"{100 * one[kind + 'AP']:.2f}" for one in cells)
                    name = f"{detector}, {'masks' if kind else 'boxes'}" if detector == "mask_rcnn" else detector
                    lines.append(f"| {words} | {name} | {shown} | {len(cells)} | {ap} | {ap50} | {each} |")
    return "\n".join(lines)


def main() -> None:
    """Run the cells that are not finished, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of the finished cells only")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--runs", type=Path, default=Path("runs/person"))
    options = parser.parse_args()
    if not options.table:
        bench = person.Bench(options.shared / "coco-person-mini", options.runs)
        bench.prepare()
        bench.proposals()
        bench.pretrain("fcos")
        for data in DATA:
            for seed in SEEDS:
                for init in person.INITS:
                    cell(bench, options.shared, "fcos", data, init, seed)
        bench.pretrain("faster_rcnn")
        for init in person.INITS:
            cell(bench, options.shared, "mask_rcnn", "coco-tiny", init, 0)
    print(table())


if __name__ == "__main__":
    main()
