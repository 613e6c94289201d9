"""`selfdet demo`: the whole way on generated scenes, from unlabelled images to three APs side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfdet.data.synthetic import make_scenes
from selfdet.drawing.demo_report import STARTS, percent, write_demo_report
from selfdet.errors import UserError
from selfdet.training.log import Reporter
from selfdet.training.rundir import RunDir, write_text
from selfdet.verbs.evaluate import evaluate
from selfdet.verbs.finetune import finetune
from selfdet.verbs.pretrain import pretrain
from selfdet.verbs.pretrain_detector import DetectorStageSettings
from selfdet.verbs.proposals import proposals
from selfdet.verbs.stages import StageSettings


@dataclass(frozen=True)
class Scale:
    """How large a demo is: numbers of scenes, sides of a scene and of the backbone's view (px), images and passes of
    the backbone stage, steps of the detector stage, share of labels, steps of fine-tuning, channels of the pyramid,
    loader processes."""

    unlabelled: int
    labelled: int
    held_out: int
    side: int
    view: int
    batch: int
    epochs: int
    detector_steps: int
    fraction: float
    steps: int
    channels: int = 96
    workers: int | None = None


SCALES = {
    "standard": Scale(600, 400, 60, 160, view=96, batch=32, epochs=9, detector_steps=300, fraction=0.1, steps=200),
    # Starting loader processes would take longer than all its steps.
    "tiny": Scale(
        16, 20, 6, 96, view=64, batch=8, epochs=1, detector_steps=4, fraction=0.4, steps=4, channels=64, workers=0
    ),
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
    """Show the whole way on generated scenes: pre-train, fine-tune with 10 % of the labels, compare three starts.

    One FCOS starts from random weights, one from the pre-trained backbone, one from the whole pre-trained detector.

    Args:
        out: folder to make, for scenes, runs, pictures and report.html; refused when not empty, unless resuming.
        size: standard takes less than eight minutes on two cores; tiny takes less than one, and learns nothing.
        seed: seed of scenes, weights, views and the labelled fraction.
        precision: auto takes bf16 where the hardware multiplies it.
        threads: CPU threads; 0 for torch's choice.
        resume: continue a demo that was interrupted, or say where a finished one is.

    Raises: UserError when `out` is not empty.

    Example:
        selfdet demo --out runs/demo
    """
    begun = time.monotonic()
    folder, scale, reporter = Path(out), SCALES[size], Reporter()
    new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not new and not resume:
        raise UserError(f"--out {out} is not empty", "Name a new folder, or add --resume")
    finished = folder / "result.json"
    if finished.is_file():
        reporter.line(f"the demo in {folder} is finished; its report: {folder / 'report.html'}")
        return json.loads(finished.read_text())
    _make_scenes(folder / "scenes", scale, seed, reporter)
    shared: dict[str, Any] = {"seed": seed, "precision": precision, "threads": threads, "workers": scale.workers}
    recall = _pretrain(folder, scale, shared, reporter)
    scores = _finetune(folder, scale, shared, reporter)
    write_demo_report(
        folder,
        scores,
        recall,
        unlabelled=scale.unlabelled + scale.labelled,
        labelled=round(scale.fraction * scale.labelled),
        seconds=time.monotonic() - begun if new else None,
    )
    compared = ", ".join(f"{percent(scores[name])} % {words}" for name, words in STARTS.items())
    reporter.line(f"\nAP on {scale.held_out} held-out scenes: {compared} (one seed)\nreport: {folder / 'report.html'}")
    result: dict[str, Any] = {"out": out, "report": str(folder / "report.html"), **scores, "finished": True}
    write_text(finished, json.dumps(result))
    return result


def _make_scenes(scenes: Path, scale: Scale, seed: int, reporter: Reporter) -> None:
    splits = {"train": scale.labelled, "unlabelled": scale.unlabelled, "val": scale.held_out}
    reporter.line(f"{sum(splits.values())} scenes of {scale.side} px: {scenes}")
    for split, count in splits.items():
        if not (scenes / f"{split}.json").is_file():
            make_scenes(scenes, count=count, size=scale.side, seed=seed, split=split)


def _pretrain(folder: Path, scale: Scale, shared: Mapping[str, Any], reporter: Reporter) -> Mapping[str, Any]:
    """Run all three stages on the scenes that are not held out; returns the recall of the proposals."""
    reporter.line("\n— 1/4: all three stages of pre-training, without labels")
    scenes, run = folder / "scenes", RunDir(folder / "pretrain")
    images = str(scenes / "images" / "[tu]*.jpg")
    pretrain(
        images=images,
        out=str(run.path),
        detector="fcos",
        backbone="resnet18",
        backbone_stage=StageSettings(epochs=scale.epochs, batch_size=scale.batch, image_size=scale.view),
        # Of square images a view has 60 to 75 % of this: 80 to 100 % of a scene's side, as in fine-tuning.
        detector_stage=DetectorStageSettings(steps=scale.detector_steps, image_size=round(scale.side / 0.75), lr=0.01),
        fpn_channels=scale.channels,
        head_convs=2,
        resume=True,
        **shared,
    )
    # The boxes were found without labels; that these exist here serves to say how good the boxes are.
    asked: dict[str, Any] = {"seed": shared["seed"], "data": str(scenes / "train.json"), "preview": True}
    return proposals(images=images, out=str(run.proposals), resume=True, **asked)["recall"]


def _finetune(folder: Path, scale: Scale, shared: Mapping[str, Any], reporter: Reporter) -> dict[str, dict[str, Any]]:
    """Fine-tune from each start with equal settings; returns each one's scores on the held-out scenes."""
    scenes, run = folder / "scenes", RunDir(folder / "pretrain")
    starts = {"scratch": "scratch", "backbone": str(run.backbone), "whole": str(run.path)}
    (folder / "detections").mkdir(exist_ok=True)
    scores: dict[str, dict[str, Any]] = {}
    for number, (name, start) in enumerate(starts.items(), start=2):
        reporter.line(f"\n— {number}/4: FCOS with {scale.fraction:.0%} of the labels, {STARTS[name]}")
        finetune(
            init=start,
            out=str(folder / name),
            data=str(scenes / "train.json"),
            val_data=str(scenes / "val.json"),
            detector="fcos",
            backbone="resnet18",
            fraction=scale.fraction,
            steps=scale.steps,
            evaluate_every=scale.steps // 2,
            image_size=scale.side,
            fpn_channels=scale.channels,
            head_convs=2,
            lr=0.01,
            batch_norm="train",  # said, not chosen by the start: nothing but the first weights may differ
            resume=True,
            **shared,
        )
        found = folder / "detections" / f"{name}.json"
        found.unlink(missing_ok=True)  # of a demo that was interrupted
        asked = {"data": str(scenes / "val.json"), "out": str(found), "precision": shared["precision"]}
        scores[name] = evaluate(init=str(folder / name), **asked)
    return scores
