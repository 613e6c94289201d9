"""The demo's page: two starts side by side, what they find, and what pre-training learned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from selfdet.data.images import read_image
from selfdet.drawing.boxes import draw_boxes, grid
from selfdet.drawing.curves import plot_bars, plot_curves
from selfdet.drawing.report import Code, Picture, Section, Table, Text, write_report
from selfdet.training.health import words
from selfdet.training.log import duration
from selfdet.training.rundir import RunDir


def percent(scores: Mapping[str, Any]) -> str:
    """AP in percent with one decimal; a dash where nothing could be measured."""
    return "–" if scores["AP"] is None else f"{100 * scores['AP']:.1f}"


def write_demo_report(
    folder: Path,
    scores: Mapping[str, Mapping[str, Any]],
    starts: Mapping[str, str],
    *,
    unlabelled: int,
    labelled: int,
    seconds: float,
) -> Path:
    """Write `folder/report.html` and its pictures; returns the page.

    `scores`: start → what `evaluate` returned; `starts`: start → what it is in words; `unlabelled`, `labelled`: scenes
    used without and with labels; `seconds`: the whole demo's time.
    """
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    pre = RunDir(folder / "pretrain")
    options = pre.read_config()
    names = dict(zip(starts, ("scratch", "DenseCL")))
    plot_bars(
        {key: {shown: [_hundred(scores[name][key])] for name, shown in names.items()} for key in ("AP", "AP50")},
        pictures / "ap.png",
        title=f"FCOS with {labelled} labelled scenes",
        x_label="AP on held-out scenes, %",
    )
    curves = {
        shown: [(row["step"], _hundred(row["AP"])) for row in RunDir(folder / name).read_metrics() if "AP" in row]
        for name, shown in names.items()
    }
    plot_curves(
        curves,
        pictures / "ap_by_step.png",
        title="The same, as fine-tuning goes on",
        x_label="optimiser step",
        y_label="AP, %",
    )
    _detections(folder, names).save(pictures / "detections.png")
    rows = [
        [starts[name], *(_hundred(scores[name][key], 1) for key in ("AP", "AP50", "AP75", "APs", "APm", "APl"))]
        for name in starts
    ]
    sections = [
        Section(
            "Did it help?",
            [
                Table(["start", "AP", "AP50", "AP75", "small", "medium", "large"], rows, "COCO AP in %, one seed."),
                Picture(pictures / "ap.png", alt="Bars of AP and AP50 for both starts"),
                Picture(pictures / "ap_by_step.png", alt="AP against optimiser step for both starts"),
                Text(
                    "One seed on generated scenes shows that everything works; it is no evidence about your images. "
                    "Both runs differ in the backbone's first weights and in nothing else."
                ),
            ],
        ),
        Section(
            "Detections",
            [
                Picture(
                    pictures / "detections.png",
                    "Held-out scenes: the labels, then what each start finds with a score of 0.3 or more.",
                    "Rows of scenes with labelled and detected boxes",
                    photograph=True,
                )
            ],
        ),
        Section(
            "What the backbone learned without labels",
            [
                Text("\n\n".join(words(pre.read_metrics(), options["method_options"]["queue_length"]))),
                *(
                    Picture(pre.pictures / f"{name}.png", alt=name.replace("_", " "))
                    for name in ("loss", "match_accuracy", "similarity", "spread")
                    if (pre.pictures / f"{name}.png").is_file()
                ),
                Text("What it saw while learning:"),
                Picture(
                    pre.pictures / "first_views.jpg",
                    "Pairs of views; dots of one number mark the same point of the scene.",
                    "Pairs of augmented views",
                    photograph=True,
                ),
            ],
        ),
        Section(
            "Settings",
            [
                Code(
                    "".join(
                        f"# {name}\n{yaml.safe_dump(RunDir(folder / name).read_config(), sort_keys=False)}\n"
                        for name in ("pretrain", *starts)
                    )
                ),
                Code("".join((folder / "pretrain" / "log.txt").read_text().splitlines(keepends=True)[:6])),
            ],
        ),
    ]
    return write_report(
        folder / "report.html",
        title="selfdet demo",
        intro=f"{unlabelled} generated scenes without labels trained a ResNet-18 with DenseCL; "
        f"FCOS was then fine-tuned on {labelled} labelled scenes, once from that backbone and once from scratch.",
        facts={
            "AP from scratch": f"{percent(scores['scratch'])} %",
            "AP from DenseCL": f"{percent(scores['pretrained'])} %",
            "labelled scenes": labelled,
            "time": duration(seconds),
        },
        sections=sections,
    )


def _hundred(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(100 * value, digits)


def _detections(folder: Path, names: Mapping[str, str], rows: int = 4) -> Image.Image:
    """A sheet of held-out scenes: labels, then each start's detections."""
    labels = json.loads((folder / "scenes" / "val.json").read_text())
    numbers = {category["id"]: place for place, category in enumerate(labels["categories"])}
    classes = [category["name"] for category in labels["categories"]]
    found = {name: json.loads((folder / "detections" / name / "results.json").read_text()) for name in names}
    order = {
        name: {
            Path(image["file_name"]).name: image["id"]
            for image in json.loads((folder / "detections" / name / "images.json").read_text())["images"]
        }
        for name in names
    }
    count = {image["id"]: 0 for image in labels["images"]}
    for annotation in labels["annotations"]:
        count[annotation["image_id"]] += 1
    busy = sorted(labels["images"], key=lambda image: (abs(count[image["id"]] - 4), image["id"]))[:rows]
    cells, titles = [], []
    for image in busy:
        picture = read_image(folder / "scenes" / "images" / image["file_name"])
        marked = {"labels": [a for a in labels["annotations"] if a["image_id"] == image["id"]]}
        for name in names:
            number = order[name][image["file_name"]]
            marked[name] = [r for r in found[name] if r["image_id"] == number and r["score"] >= 0.3]
        for name, boxes in marked.items():
            corners = [[x, y, x + w, y + h] for x, y, w, h in (box["bbox"] for box in boxes)]
            cells.append(
                draw_boxes(
                    picture,
                    corners,
                    labels=[numbers[box["category_id"]] for box in boxes],
                    scores=None if name == "labels" else [box["score"] for box in boxes],
                    names=classes,
                    long_side=480,
                )
            )
            titles.append("labels" if name == "labels" else f"from {names[name]}")
    return grid(cells, columns=3, titles=titles)
