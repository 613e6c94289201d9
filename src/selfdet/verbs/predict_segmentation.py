"""`selfdet predict` of a segmenter."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdet.data.class_maps import MaskedImage, write_class_map
from selfdet.data.images import UnreadableImage, read_image
from selfdet.data.listing import ListedImage
from selfdet.drawing.class_maps import draw_classes
from selfdet.errors import one_line
from selfdet.evaluation.segmenting import segment
from selfdet.interchange.segmenters import load_segmenter
from selfdet.interchange.starts import Start
from selfdet.training.log import Reporter, plural
from selfdet.training.rundir import write_text
from selfdet.training.runtime import Runtime
from selfdet.verbs.evaluate_segmentation import sight_of

SHARP = 640  # long side, pixels, below which text on a picture is hard to read


def predict_segmentation(
    start: Start, listed: Sequence[ListedImage], folder: Path, pictures: int, runtime: Runtime, **sight: Any
) -> dict[str, Any]:
    """Write a class map of every image to `folder`/masks, and the first ones in colour over their images to
    `folder`/pictures; `sight` as `sight_of` takes it."""
    segmenter, note = load_segmenter(start)
    look = sight_of(note, **sight)
    (folder / "masks").mkdir()
    reporter = Reporter()
    unreadable: list[str] = []

    def images() -> Iterator[MaskedImage]:
        for entry in listed:
            try:
                image = read_image(entry.path, entry.size).as_subclass(Tensor)
            except UnreadableImage:
                unreadable.append(str(entry.path))
                continue
            yield MaskedImage(image, torch.empty(image.shape[-2:], dtype=torch.uint8), str(entry.path), entry.image_id)

    entries: list[dict[str, Any]] = []
    with reporter.counting(len(listed), "images") as seen:
        for item, found in segment(runtime.place(segmenter), images(), look, runtime.fabric, seen):
            name = f"{item.image_id:05d}_{Path(item.path).stem}"
            height, width = item.size
            write_class_map(folder / "masks" / f"{name}.png", found)
            about = {"id": item.image_id, "file_name": item.path, "width": width, "height": height}
            entries.append({**about, "mask": f"masks/{name}.png"})
            if len(entries) <= pictures:
                picture = draw_classes(item.image, found, note["classes"], max(SHARP, *item.size))
                picture.save(folder / "pictures" / f"{name}.jpg", quality=90)
    write_text(folder / "images.json", json.dumps({"images": entries, "classes": note["classes"]}))
    say_unreadable(reporter, unreadable)
    reporter.line(f"{plural(len(entries), 'mask')}: {folder / 'masks'}")
    return {"out": str(folder), "images": len(entries), "masks": len(entries), "unreadable": unreadable}


def say_unreadable(reporter: Reporter, unreadable: Sequence[str]) -> None:
    """Name the first images that were left out, and how many there are."""
    for path in unreadable[:5]:
        reporter.line(one_line(f"unreadable, left out: {path}"))
    if len(unreadable) > 5:
        reporter.line(f"unreadable, left out: {len(unreadable)} images in all")
