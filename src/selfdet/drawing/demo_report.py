"""The demo's page: three starts side by side, what they find, and what each stage of pre-training learned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from selfdet.data.images import read_image
from selfdet.drawing.boxes import draw_boxes, grid
from selfdet.drawing.curves import plot_bars, plot_curves
from selfdet.drawing.report import Code, Picture, Points, Section, Table, Text, write_report
from selfdet.training.box_health import box_words
from selfdet.training.health import words
from selfdet.training.log import duration
from selfdet.training.rundir import RunDir

# What the three fine-tuning runs start from: folder and key → words.
STARTS = {"scratch": "from scratch", "backbone": "backbone only", "whole": "whole detector"}
SCORE = 0.3  # of a detection that is drawn, at least

Scores = Mapping[str, Mapping[str, Any]]


def percent(scores: Mapping[str, Any]) -> str:
    """AP in percent with one decimal; a dash where nothing could be measured."""
    return "–" if scores["AP"] is None else f"{100 * scores['AP']:.1f}"


def write_demo_report(
    folder: Path,
    scores: Scores,
    recall: Mapping[str, Any],
    *,
    unlabelled: int,
    labelled: int,
    seconds: float | None,
) -> Path:
    """Write `folder/report.html` and its pictures; returns the page.

    `scores`: start → what `evaluate` returned; `recall`: of the proposals, as `proposals` returned it; `unlabelled`,
    `labelled`: scenes used without and with labels; `seconds`: the whole demo's time, None where it is not known.
    """
    (folder / "pictures").mkdir(exist_ok=True)
    facts = {f"AP, {shown}": f"{percent(scores[name])} %" for name, shown in STARTS.items()}
    return write_report(
        folder / "report.html",
        title="selfdet demo",
        intro=f"{unlabelled:,} generated scenes without labels went through the three stages of selfdet pretrain: "
        "boxes that may hold objects were found, then a backbone learned what scenes look like, then the rest of the "
        f"detector, neck and head, learned from the boxes. After that {labelled} labelled scenes trained the same "
        "detector (FCOS on a ResNet-18) three times: with nothing pre-trained, with the pre-trained backbone, and with "
        "the whole pre-trained detector.",
        facts={
            **facts,
            "labelled scenes": labelled,
            **({} if seconds is None else {"time": duration(seconds)}),
        },
        sections=[
            _comparison(folder, scores, labelled),
            Section(
                "What they find",
                [
                    Text(
                        "Scenes that no run has seen: their labels, and what each detector finds with a score of "
                        f"{SCORE} or more."
                    ),
                    Picture(detections(folder), alt="Rows of scenes with boxes", photograph=True, wide=True),
                ],
            ),
            *_stages(RunDir(folder / "pretrain"), recall),
            _settings(folder),
        ],
    )


def _comparison(folder: Path, scores: Scores, labelled: int) -> Section:
    """The three APs, and how they came about."""
    pictures = folder / "pictures"
    plot_bars(
        {key: {shown: [_hundred(scores[name][key])] for name, shown in STARTS.items()} for key in ("AP", "AP50")},
        pictures / "ap.png",
        title=f"FCOS with {labelled} labelled scenes",
        x_label="AP on held-out scenes, %",
    )
    plot_curves(
        {
            shown: [(row["step"], _hundred(row["AP"])) for row in RunDir(folder / name).read_metrics() if "AP" in row]
            for name, shown in STARTS.items()
        },
        pictures / "ap_by_step.png",
        title="The same, as fine-tuning goes on",
        x_label="optimiser step",
        y_label="AP, %",
    )
    columns = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "small", "APm": "medium", "APl": "large"}
    measured = [key for key in columns if any(each[key] is not None for each in scores.values())]
    rows = [[shown, *(_hundred(scores[name][key], 1) for key in measured)] for name, shown in STARTS.items()]
    return Section(
        "Did it help?",
        [
            Text(
                f"{_verdict(scores)} AP is 100 % when every object is found, named and boxed exactly, without false "
                "alarms; AP50 asks for boxes that fit by half only."
            ),
            Table(["start", *(columns[key] for key in measured)], rows, "COCO AP in %, one seed."),
            Picture(pictures / "ap.png", alt="Bars of AP and AP50 for the three starts"),
            Picture(pictures / "ap_by_step.png", alt="AP against optimiser step for the three starts"),
            Text(
                "The three runs differ in their first weights and in nothing else. One seed and a few minutes on "
                "generated scenes show that everything works; they are no evidence about your images."
            ),
        ],
    )


def _verdict(scores: Scores) -> str:
    """What each pre-trained start changed, in words."""
    base, *others = (scores[name]["AP"] for name in STARTS)
    if base is None or None in others:
        return ""
    gains = [round(100 * (value - base), 1) for value in others]
    backbone, whole = (f"{gain:+.1f}".replace("-", "−") if gain else "0.0" for gain in gains)
    return (
        f"Compared with starting from scratch, the pre-trained backbone changed AP by {backbone} points, the whole "
        f"pre-trained detector by {whole}."
    )


def _stages(run: RunDir, recall: Mapping[str, Any]) -> Iterator[Section]:
    """What each stage of pre-training worked with and learned."""
    every = recall["all"]
    backbone, detector = (RunDir(run.path / "stages" / stage, whole=run.path) for stage in ("backbone", "detector"))
    queue = backbone.read_config()["method_options"]["queue_length"]
    yield Section(
        "Stage 1: boxes without labels",
        [
            Text(
                "Selective search merges neighbouring regions that look alike; the boxes around them are proposals. "
                f"{every['recall'] or 0:.0%} of the labelled objects are met (overlap of half or more) by one of "
                f"{every['boxes']:.0f} boxes a scene. The search saw no labels; they serve to count this."
            ),
            Picture(
                run.proposals.with_name(f"{run.proposals.stem}_preview.jpg"),
                "The first 20 boxes of some scenes, and how many there are. They should hold objects, among much else.",
                "Scenes with proposed boxes",
                photograph=True,
                wide=True,
            ),
        ],
    )
    yield Section(
        "Stage 2: the backbone",
        [
            Text(
                "DenseCL shows the network two views of each scene, cropped and coloured differently. It learns to "
                "tell the other view of the same scene from those of others, as a whole and place by place."
            ),
            Picture(
                backbone.pictures / "first_views.jpg",
                "Pairs of views; dots of one number mark the same point of the scene.",
                "Pairs of augmented views",
                photograph=True,
                wide=True,
            ),
            Points(words(backbone.read_metrics(), queue)),
            *_charts(backbone, ("loss", "match_accuracy", "similarity", "spread")),
        ],
    )
    yield Section(
        "Stage 3: neck and head",
        [
            Text(
                "AlignDet leaves the backbone as it is. Neck and head see two views of each scene with its proposals. "
                "They learn to recognise each proposed object in the other view, and to draw its box."
            ),
            Picture(
                detector.pictures / "first_views.jpg",
                "Pairs of views; one colour and number is one object in both.",
                "Pairs of views with proposed boxes",
                photograph=True,
                wide=True,
            ),
            Points(box_words(detector.read_metrics())),
            *_charts(detector, ("contrast", "box_iou", "loss", "places")),
        ],
    )


def _charts(run: RunDir, names: Sequence[str]) -> Iterator[Picture]:
    for name in names:
        if (path := run.pictures / f"{name}.png").is_file():
            yield Picture(path, alt=name.replace("_", " "))


def _settings(folder: Path) -> Section:
    """What each fine-tuning run said before its first step, such as what it reused, and all settings."""
    runs = {f"fine-tuning, {shown}": RunDir(folder / name) for name, shown in STARTS.items()}
    stages = {
        f"pre-training, {stage}": RunDir(folder / "pretrain" / "stages" / stage) for stage in ("backbone", "detector")
    }
    said = "\n\n".join(f"# {name}\n{_beginning(run.log_file)}" for name, run in runs.items())
    settings = "\n".join(
        f"# {name}\n{yaml.safe_dump(run.read_config(), sort_keys=False)}" for name, run in (stages | runs).items()
    )
    return Section("What each run started from, and all settings", [Code(said), Code(settings)])


def _beginning(log: Path) -> str:
    lines = log.read_text(encoding="utf-8").splitlines()
    return "\n".join(takewhile(lambda line: not line.startswith(("about ", "step ")), lines))


def _hundred(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(100 * value, digits)


def detections(folder: Path, rows: int = 4) -> Image.Image:
    """A sheet of held-out scenes, one a row: its labels, then the detections from each start."""
    labels = json.loads((folder / "scenes" / "val.json").read_text())
    numbers = {category["id"]: place for place, category in enumerate(labels["categories"])}
    classes = [category["name"] for category in labels["categories"]]
    found = [json.loads((folder / "detections" / f"{name}.json").read_text()) for name in STARTS]
    count = {image["id"]: 0 for image in labels["images"]}
    for annotation in labels["annotations"]:
        count[annotation["image_id"]] += 1
    busy = sorted(labels["images"], key=lambda image: (abs(count[image["id"]] - 4), image["id"]))[:rows]
    cells = []
    for image in busy:
        picture = read_image(folder / "scenes" / "images" / image["file_name"])
        for boxes in (labels["annotations"], *found):
            drawn = [box for box in boxes if box["image_id"] == image["id"] and box.get("score", 1.0) >= SCORE]
            cells.append(
                draw_boxes(
                    picture,
                    [[x, y, x + w, y + h] for x, y, w, h in (box["bbox"] for box in drawn)],
                    labels=[numbers[box["category_id"]] for box in drawn],
                    scores=None if boxes is labels["annotations"] else [box["score"] for box in drawn],
                    names=classes,
                    long_side=480,
                )
            )
    return grid(cells, columns=1 + len(found), titles=["labels", *STARTS.values()] * len(busy))
