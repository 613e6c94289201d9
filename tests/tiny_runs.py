"""Runs small enough for a test: a third of a million weights, a handful of images and steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfdet.verbs.finetune import finetune
from selfdet.verbs.pretrain import pretrain

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
PRETRAIN: dict[str, Any] = {**COMMON, "image_size": 64, "queue_length": 64, "steps": 5}
FINETUNE: dict[str, Any] = {
    **COMMON,
    "init": "scratch",
    "image_size": 96,
    "fpn_channels": 64,
    "head_convs": 1,
    "steps": 5,
}


def tiny_pretrain(scenes: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Pre-train on the scenes' images."""
    return pretrain(**{"images": str(scenes / "images"), "out": str(out), **PRETRAIN, **changes})


def tiny_finetune(scenes: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Fine-tune on the scenes' train split."""
    return finetune(**{"data": str(scenes / "train.json"), "out": str(out), **FINETUNE, **changes})


def flags(settings: dict[str, Any]) -> list[str]:
    """Arguments of a verb as words of a command line."""
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
