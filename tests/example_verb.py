"""A verb with an argument of every kind, for the tests of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Stage = Literal["proposals", "backbone", "detector"]


@dataclass(frozen=True)
class StageSettings:
    """Settings of one stage alone.

    Args:
        epochs: Passes over the images in this stage.
        batch_size: Images a step in this stage.
        flip: Mirror half of the images in this stage.
    """

    epochs: int | None = None
    batch_size: int = 8
    flip: bool = True


LONGER = StageSettings(epochs=100)


def bake(
    *,
    images: str,
    out: Path,
    init: list[str] | None = None,
    fractions: list[float] | None = None,
    sizes: list[int] | None = None,
    stages: list[Stage] | None = None,
    scale: tuple[float, float] = (0.2, 1.0),
    epochs: int = 10,
    batch_size: int | None = None,
    lr: float | None = None,
    limit: int | str = "auto",
    matching: Literal["max-similarity", "geometric", "random"] = "max-similarity",
    resume: bool = False,
    flip: bool = True,
    backbone_stage: StageSettings = LONGER,
    detector_stage: StageSettings | None = None,
) -> dict[str, Any]:
    """Bake images.

    Args:
        images: Folder, glob, text list or COCO JSON.
        out: Directory for the run.
        batch_size: Images a step; default from the number of images.
        lr: Learning rate per 256 images.
        epochs: Passes over the images.
        flip: Mirror half of the images.
        backbone_stage: Only for the backbone.

    Examples:
        selfdet bake --images photos --out runs/one

    Raises:
        UserError: for missing images.
    """
    print("baking", epochs)
    return {"images": images, "epochs": epochs}
