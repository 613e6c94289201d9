"""`selfdet demo`: the whole way on generated scenes, from unlabelled images to two APs side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from selfdet.data.images import read_image
from selfdet.data.synthetic import make_scenes
from selfdet.drawing.boxes import draw_boxes, grid
from selfdet.drawing.curves import plot_bars, plot_curves
from selfdet.drawing.report import Code, Picture, Section, Table, Text, write_report
from selfdet.errors import UserError
from selfdet.training.health import words
from selfdet.training.log import Reporter, duration
from selfdet.training.rundir import RunDir, write_text
from selfdet.verbs.evaluate import evaluate
from selfdet.verbs.finetune import finetune
from selfdet.verbs.predict import predict
from selfdet.verbs.pretrain import pretrain

STARTS = {"scratch": "random weights", "pretrained": "DenseCL backbone"}


@dataclass(frozen=True)
class Scale:
    """How large a demo is: scenes, their side (px), the views' side, passes of pre-training, fine-tuning steps."""

    unlabelled: int
    labelled: int
    held_out: int
    side: int
    view: int
    epochs: int
    fraction: float
    steps: int
    channels: int = 96


SCALES = {
    "standard": Scale(600, 400, 80, 160, 128, epochs=9, fraction=0.1, steps=200),
    "tiny": Scale(16, 20, 6, 96, 64, epochs=1, fraction=0.4, steps=4, channels=64),
}


def demo(
    *,
    out: str = "selfdet-demo",
    size: Literal["standard", "tiny"] = "standard",
    seed: int = 0,
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    threads: int = 0,
    resume: bool = False,
) -> dict[str, Any]:
    """Show the whole way on generated scenes: pre-train, fine-tune with 10 % of the labels, compare with scratch.

    Args:
        out: folder to make, for scenes, runs, pictures and report.html; refused when not empty, unless resuming.
        size: standard takes about five minutes on two cores, tiny less than one and learns nothing.
        seed: of scenes, weights, views and the labelled fraction.
        precision: auto takes bf16 where the hardware multiplies it.
        threads: CPU threads; 0 for torch's choice.
        resume: continue a demo that was interrupted, or say where a finished one is.

    Raises: UserError when `out` is not empty.

    Example:
        selfdet demo --out runs/demo
    """
    begun = time.monotonic()
    folder, scale, reporter = Path(out), SCALES[size], Reporter()
    if folder.exists() and (folder.is_file() or any(folder.iterdir())) and not resume:
        raise UserError(f"--out {out} is not empty", "Name a new folder, or add --resume")
    finished = folder / "result.json"
    if finished.is_file():
        reporter.line(f"the demo in {folder} is finished; its report: {folder / 'report.html'}")
        return json.loads(finished.read_text())
    scenes = folder / "scenes"
    _scenes(scenes, scale, seed, reporter)
    shared: dict[str, Any] = {"seed": seed, "precision": precision, "threads": threads, "resume": True}

    reporter.line("\n— 1/3: DenseCL on all scenes, without labels")
    pretrain(
        images=str(scenes / "images" / "[tu]*.jpg"),
        out=str(folder / "pretrain"),
        backbone="resnet18",
        image_size=scale.view,
        epochs=scale.epochs,
        batch_size=min(64, scale.labelled),
        # A run of a few hundred steps ends before 0.999 has moved the key encoder from its random start.
        momentum=0.99,
        **shared,
    )
    scores: dict[str, dict[str, Any]] = {}
    for number, (name, words_) in enumerate(STARTS.items(), start=2):
        reporter.line(f"\n— {number}/3: FCOS with {scale.fraction:.0%} of the labels, from {words_}")
        finetune(
            init="scratch" if name == "scratch" else str(folder / "pretrain"),
            data=str(scenes / "train.json"),
            val_data=str(scenes / "val.json"),
            out=str(folder / name),
            backbone="resnet18",
            fraction=scale.fraction,
            steps=scale.steps,
            evaluate_every=max(1, scale.steps // 4),
            image_size=scale.side,
            fpn_channels=scale.channels,
            head_convs=2,
            lr=0.01,
            **shared,
        )
        scores[name] = evaluate(init=str(folder / name), data=str(scenes / "val.json"), precision=precision)
    found = folder / "detections"
    if not found.exists():
        for name in STARTS:
            predict(
                init=str(folder / name),
                images=str(scenes / "images" / "val*.jpg"),
                out=str(found / name),
                pictures=0,
                precision=precision,
            )
    _report(folder, scale, scores, time.monotonic() - begun)
    gain = 100 * ((scores["pretrained"]["AP"] or 0.0) - (scores["scratch"]["AP"] or 0.0))
    reporter.line(
        f"\nAP on {scale.held_out} held-out scenes: {_percent(scores['scratch'])} from scratch, "
        f"{_percent(scores['pretrained'])} from the DenseCL backbone ({gain:+.1f}; one seed)\n"
        f"report: {folder / 'report.html'}"
    )
    result = {"out": out, "report": str(folder / "report.html"), "scratch": scores["scratch"]}
    result |= {"pretrained": scores["pretrained"], "finished": True}
    write_text(finished, json.dumps(result))
    return result


def _scenes(folder: Path, scale: Scale, seed: int, reporter: Reporter) -> None:
    splits = {"train": scale.labelled, "unlabelled": scale.unlabelled, "val": scale.held_out}
    reporter.line(f"{sum(splits.values())} scenes of {scale.side} px: {folder}")
    for split, count in splits.items():
        if not (folder / f"{split}.json").is_file():
            make_scenes(folder, count=count, size=scale.side, seed=seed, split=split)


def _percent(scores: Mapping[str, Any]) -> str:
    return "–" if scores["AP"] is None else f"{100 * scores['AP']:.1f}"


def _report(folder: Path, scale: Scale, scores: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    pre = RunDir(folder / "pretrain")
    options = pre.read_config()
    names = dict(zip(STARTS, ("scratch", "DenseCL")))
    plot_bars(
        {key: {shown: [_hundred(scores[name][key])] for name, shown in names.items()} for key in ("AP", "AP50")},
        pictures / "ap.png",
        title=f"FCOS with {scale.fraction:.0%} of the labels",
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
        [STARTS[name], *(_hundred(scores[name][key], 1) for key in ("AP", "AP50", "AP75", "APs", "APm", "APl"))]
        for name in STARTS
    ]
    labelled = round(scale.fraction * scale.labelled)
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
                        for name in ("pretrain", *STARTS)
                    )
                ),
                Code("".join((folder / "pretrain" / "log.txt").read_text().splitlines(keepends=True)[:6])),
            ],
        ),
    ]
    write_report(
        folder / "report.html",
        title="selfdet demo",
        intro=f"{scale.unlabelled + scale.labelled} generated scenes without labels trained a ResNet-18 with DenseCL; "
        f"FCOS was then fine-tuned on {labelled} labelled scenes, once from that backbone and once from scratch.",
        facts={
            "AP from scratch": f"{_percent(scores['scratch'])} %",
            "AP from DenseCL": f"{_percent(scores['pretrained'])} %",
            "labelled scenes": labelled,
            "time": duration(seconds),
        },
        sections=sections,
    )


def _hundred(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(100 * value, digits)


def _detections(folder: Path, names: Mapping[str, str], rows: int = 4) -> Any:
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
