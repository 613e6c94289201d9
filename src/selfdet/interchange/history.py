"""What was done to weights, first to last: their files say it, and cards repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdet.interchange.starts import Start, resolve_start

HISTORY = "history"  # in a file's note: a list of what was done, each by name with its figures
IMPORTED = ("file", "format", "pixels", "sha256")


def history_of(start: Start) -> list[dict[str, Any]]:
    """What was done to the weights of a start before; nothing to those of scratch."""
    if start.kind == "library":
        return [{"done": "a library's weights", "network": start.note["backbone"]}]
    if start.kind != "scratch" and not start.note:
        return [{"done": "a file's weights", "file": last_part(start.source)}]
    told = list(start.note.get(HISTORY, []))
    imported = start.note.get("imported")
    if isinstance(imported, Mapping):
        told.insert(0, {"done": "import-weights", **{each: imported[each] for each in IMPORTED if each in imported}})
    return told


def history_from(weights: str | None, backbone: str) -> list[dict[str, Any]]:
    """`history_of` of what `--backbone-weights` names for this backbone. Raises: UserError."""
    if weights in (None, "random", "scratch"):
        return []
    if weights == "library":
        return history_of(Start("library", "library", note={"backbone": backbone}))
    return history_of(resolve_start(str(weights), "--backbone-weights"))


def pretrained(method: str, about: Mapping[str, Any], steps: int, seed: int) -> dict[str, Any]:
    """A stage of `pretrain` on what its settings say `about` images."""
    images = {"images": about["images_found"], "of": last_part(about["images"]), "images_hash": about["images_hash"]}
    return {"done": f"pretrain with {method}", **images, "steps": steps, "seed": seed}


def last_part(path: str) -> str:
    """A path without the folders it is in, which are nobody else's business."""
    return Path(path).name or path
