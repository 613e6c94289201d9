"""Runs small enough for a test: a third of a million weights, a handful of images and steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfdet.verbs.finetune import finetune
from selfdet.verbs.pretrain import pretrain
from selfdet.verbs.proposals import proposals

BACKBONE = "test_resnet"
COMMON: dict[str, Any] = {
    "backbone": BACKBONE,
    "batch_size": 4,
    "workers": 0,
    "precision": "fp32",
    "threads": 1,
    "log_every": 2,
    "save_every": 3,
}
PRETRAIN: dict[str, Any] = {**COMMON, "stages": ["backbone"], "image_size": 64, "queue_length": 64, "steps": 5}
WIDTHS: dict[str, Any] = {"fpn_channels": 64, "head_convs": 1}
FINETUNE: dict[str, Any] = {
    **COMMON,
    "init": "scratch",
    "image_size": 96,
    **WIDTHS,
    "steps": 5,
}
COMPARE: dict[str, Any] = {
    "backbone": BACKBONE,
    **WIDTHS,
    "image_size": 96,
    "batch_size": 4,
    "steps": 2,
    "fractions": [0.4],
    "seeds": 2,
    "lr_grid": [1.0, 0.5],
    "tune_fraction": 0.3,
    "curve_points": 1,
    "outside_images": 4,
    "workers": 0,
    "threads": 1,
    "precision": "fp32",
}


def tiny_pretrain(scenes: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Pre-train on the scenes' images."""
    return pretrain(**{"images": str(scenes / "images"), "out": str(out), **PRETRAIN, **changes})


def tiny_boxes(scenes: Path) -> Path:
    """Proposals for the scenes' images, found once."""
    file = scenes / "boxes.json"
    if not file.is_file():
        proposals(images=str(scenes / "images"), out=str(file), workers=1, side=96)
    return file


def tiny_aligndet(scenes: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Pre-train neck and head of a detector on the scenes' proposals, over a random backbone."""
    alone = {"stages": ["detector"], "boxes": str(tiny_boxes(scenes)), "image_size": 96, **WIDTHS}
    return tiny_pretrain(scenes, out, **{**alone, **changes})


def tiny_finetune(scenes: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Fine-tune on the scenes' train split."""
    return finetune(**{"data": str(scenes / "train.json"), "out": str(out), **FINETUNE, **changes})


def flags(settings: dict[str, Any]) -> list[str]:
    """Arguments of a verb as words of a command line."""
    words = {name: ",".join(value) if isinstance(value, list) else str(value) for name, value in settings.items()}
    return [word for name, value in words.items() for word in (f"--{name.replace('_', '-')}", value)]
