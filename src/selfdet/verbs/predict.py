"""`selfdet predict`: boxes and masks, or classes of pixels, for images without labels, as files and as pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torchvision import tv_tensors

from selfdet.data.images import UnreadableImage, read_image
from selfdet.data.labelled import resize_sample
from selfdet.data.listing import numbered_images
from selfdet.data.sample import Sample, plain_sample
from selfdet.drawing.boxes import draw_boxes
from selfdet.errors import UserError
from selfdet.evaluation.detection import to_coco_results
from selfdet.evaluation.inference import above, detect
from selfdet.interchange.starts import open_detector, resolve_start
from selfdet.training.log import Reporter, plural
from selfdet.training.rundir import check_out_is_new, write_text
from selfdet.training.runtime import start_runtime
from selfdet.verbs.evaluate import check_batch_size
from selfdet.verbs.evaluate_segmentation import refuse
from selfdet.verbs.predict_segmentation import SHARP, predict_segmentation, say_unreadable

THRESHOLD = 0.3


def predict(
    *,
    init: str,
    images: str,
    out: str,
    threshold: float | None = None,
    pictures: int = 50,
    image_size: int | None = None,
    sliding: bool = False,
    batch_size: int = 8,
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    threads: int = 0,
) -> dict[str, Any]:
    """Detect objects in images: a COCO results file and pictures with boxes, and masks where the detector gives them.

    A segmenter gives a mask for each image instead, a PNG of class numbers, and pictures in colour.

    Args:
        init: run directory or weights file made by finetune.
        images: folder (nested or flat), glob, text list or COCO JSON.
        out: folder to make, for results.json, or masks/ of a segmenter, images.json (the id of every image) and
            pictures/.
        threshold: lowest score to draw, 0…1; 0.3 if not given; results.json keeps every detection.
        pictures: images to draw, from the first on.
        image_size: long side of the images, pixels; the run's own if not given.
        sliding: let a segmenter process images in windows of its training size, not as a whole.
        batch_size: images at a time; changes speed only.
        precision: auto takes bf16 where the hardware multiplies it.
        threads: CPU threads; 0 for torch's choice.

    Raises: UserError when the run holds nothing fine-tuned, no image is found or `out` is not empty.

    Example:
        selfdet predict --init runs/ft --images photos/ --out predictions/
    """
    folder = Path(out)
    check_out_is_new(folder)
    check_batch_size(batch_size)
    listed = numbered_images(images)
    start = resolve_start(init)
    if start.kind == "segmenter":
        refuse({"--threshold": threshold is not None}, init, "segmentation")
        runtime = start_runtime(devices=1, precision=precision, threads=threads)
        _make(folder / "pictures")
        look = {"image_size": image_size, "sliding": sliding, "batch_size": batch_size}
        return predict_segmentation(start, listed, folder, pictures, runtime, **look)
    refuse({"--sliding": sliding}, init, "detection")
    detector, note = open_detector(start, init)
    size = note["image_size"] if image_size is None else image_size
    detector.backbone.check_image_size(size, any_shape=True)
    runtime = start_runtime(devices=1, precision=precision, threads=threads)
    _make(folder / "pictures")
    reporter = Reporter()
    originals: dict[int, tv_tensors.Image] = {}
    unreadable: list[str] = []

    def samples() -> Iterator[Sample]:
        for entry in listed:
            try:
                image = read_image(entry.path, entry.size)
            except UnreadableImage:
                unreadable.append(str(entry.path))
                continue
            originals[entry.image_id] = image
            yield resize_sample(replace(plain_sample(image, str(entry.path)), image_id=entry.image_id), size)

    results: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    with reporter.counting(len(listed), "images") as seen:
        for sample, found in detect(runtime.place(detector), samples(), runtime.fabric, batch_size, seen):
            image = originals.pop(sample.image_id)
            height, width = image.shape[-2:]
            entries.append({"id": sample.image_id, "file_name": sample.path, "width": width, "height": height})
            results += to_coco_results(sample.image_id, found, note["category_ids"])
            if len(entries) <= pictures:
                # A small image is enlarged first, so that its tags can be read.
                shown = {"names": note["classes"], "long_side": max(SHARP, height, width)}
                picture = draw_boxes(image, **above(found, THRESHOLD if threshold is None else threshold), **shown)
                picture.save(folder / "pictures" / f"{sample.image_id:05d}_{Path(sample.path).stem}.jpg", quality=90)
    categories = [{"id": number, "name": name} for number, name in zip(note["category_ids"], note["classes"])]
    write_text(folder / "results.json", json.dumps(results))
    write_text(folder / "images.json", json.dumps({"images": entries, "categories": categories}))
    say_unreadable(reporter, unreadable)
    found_in = f"{plural(len(results), 'detection')} in {plural(len(entries), 'image')}"
    reporter.line(f"{found_in}: {folder / 'results.json'}")
    return {"out": out, "images": len(entries), "detections": len(results), "unreadable": unreadable}


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder.parent} cannot be written: {error.strerror}", "Name another folder") from None
