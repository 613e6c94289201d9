"""`selfdet demo`: the whole way on generated scenes, from unlabelled images to two APs side by side."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfdet.data.synthetic import make_scenes
from selfdet.drawing.demo_report import percent, write_demo_report
from selfdet.errors import UserError
from selfdet.training.log import Reporter
from selfdet.training.rundir import write_text
from selfdet.verbs.evaluate import evaluate
from selfdet.verbs.finetune import finetune
from selfdet.verbs.predict import predict
from selfdet.verbs.pretrain import pretrain

STARTS = {"scratch": "random weights", "pretrained": "DenseCL backbone"}


@dataclass(frozen=True)
class Scale:
    """How large a demo is: numbers of scenes, sides of scene and view (px), batch and passes of pre-training, share of
    labels, steps of fine-tuning, channels of the pyramid."""

    unlabelled: int
    labelled: int
    held_out: int
    side: int
    view: int
    batch: int
    epochs: int
    fraction: float
    steps: int
    channels: int = 96


SCALES = {
    "standard": Scale(600, 400, 60, side=160, view=96, batch=32, epochs=11, fraction=0.1, steps=240),
    "tiny": Scale(16, 20, 6, side=96, view=64, batch=8, epochs=1, fraction=0.4, steps=4, channels=64),
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
        stages=["backbone"],
        image_size=scale.view,
        epochs=scale.epochs,
        batch_size=scale.batch,
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
            evaluate_every=max(1, scale.steps // 3),
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
    write_demo_report(
        folder,
        scores,
        STARTS,
        unlabelled=scale.unlabelled + scale.labelled,
        labelled=round(scale.fraction * scale.labelled),
        seconds=time.monotonic() - begun,
    )
    gain = 100 * ((scores["pretrained"]["AP"] or 0.0) - (scores["scratch"]["AP"] or 0.0))
    reporter.line(
        f"\nAP on {scale.held_out} held-out scenes: {percent(scores['scratch'])} from scratch, "
        f"{percent(scores['pretrained'])} from the DenseCL backbone ({gain:+.1f}; one seed)\n"
        f"report: {folder / 'report.html'}"
    )
    result: dict[str, Any] = {"out": out, "report": str(folder / "report.html"), **scores, "finished": True}
    write_text(finished, json.dumps(result))
    return result


def _scenes(folder: Path, scale: Scale, seed: int, reporter: Reporter) -> None:
    splits = {"train": scale.labelled, "unlabelled": scale.unlabelled, "val": scale.held_out}
    reporter.line(f"{sum(splits.values())} scenes of {scale.side} px: {folder}")
    for split, count in splits.items():
        if not (folder / f"{split}.json").is_file():
            make_scenes(folder, count=count, size=scale.side, seed=seed, split=split)
