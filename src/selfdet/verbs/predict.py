"""`selfdet predict`: boxes for images without labels, as COCO results and as pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from selfdet.data.images import UnreadableImage, list_images, read_image
from selfdet.data.labelled import resize_sample
from selfdet.data.sample import Sample, plain_sample
from selfdet.drawing.boxes import draw_boxes
from selfdet.errors import UserError
from selfdet.evaluation.detection import to_coco_results
from selfdet.evaluation.inference import detect
from selfdet.interchange.starts import load_detector
from selfdet.training.log import Reporter
from selfdet.training.rundir import write_text
from selfdet.training.runtime import start_runtime


def predict(
    *,
    init: str,
    images: str,
    out: str,
    threshold: float = 0.3,
    pictures: int = 50,
    image_size: int | None = None,
    batch_size: int = 8,
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    threads: int = 0,
) -> dict[str, Any]:
    """Detect objects in images: a COCO results file and pictures with boxes.

    Args:
        init: run directory or detector file made by finetune.
        images: folder (nested or flat), glob, text list or COCO JSON.
        out: folder to make, for results.json, images.json (the id of every image) and pictures/.
        threshold: lowest score that is drawn, 0…1; results.json keeps every detection.
        pictures: images to draw, from the first on.
        image_size: long side of the images, pixels; the run's own if not given.
        batch_size: images at a time; changes speed only.
        precision: auto takes bf16 where the hardware multiplies it.
        threads: CPU threads; 0 for torch's choice.

    Raises: UserError when the run holds no detector, no image is found or `out` is not empty.

    Example:
        selfdet predict --init runs/ft --images photos/ --out predictions/
    """
    folder = Path(out)
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"--out {out} is not empty", "Name a new folder")
    paths = list_images(images)
    detector, note = load_detector(init)
    runtime = start_runtime(devices=1, precision=precision, threads=threads)
    detector = detector.to(runtime.fabric.device)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    reporter = Reporter()
    size = image_size or note["image_size"]
    unreadable: list[str] = []

    def samples() -> Iterator[Sample]:
        for number, path in enumerate(paths, start=1):
            try:
                sample = replace(plain_sample(read_image(path), str(path)), image_id=number)
            except UnreadableImage:
                unreadable.append(str(path))
                continue
            originals[number] = sample.image
            yield resize_sample(sample, size)

    originals: dict[int, Any] = {}
    results: list[dict[str, Any]] = []
    listed: list[dict[str, Any]] = []
    with reporter.counting(len(paths), "images") as seen:
        for sample, found in detect(detector, samples(), runtime.fabric, batch_size, seen):
            image = originals.pop(sample.image_id)
            height, width = image.shape[-2:]
            listed.append({"id": sample.image_id, "file_name": sample.path, "width": width, "height": height})
            results += to_coco_results(sample.image_id, found, note["category_ids"])
            if len(listed) <= pictures:
                shown = found["scores"] >= threshold
                picture = draw_boxes(
                    image,
                    found["boxes"][shown],
                    labels=found["labels"][shown],
                    scores=found["scores"][shown],
                    names=note["classes"],
                )
                picture.save(folder / "pictures" / f"{sample.image_id:05d}_{Path(sample.path).stem}.jpg", quality=90)
    categories = [{"id": number, "name": name} for number, name in zip(note["category_ids"], note["classes"])]
    write_text(folder / "results.json", json.dumps(results))
    write_text(folder / "images.json", json.dumps({"images": listed, "categories": categories}))
    for path in unreadable[:5]:
        reporter.line(f"unreadable, left out: {path}")
    reporter.line(f"{len(results)} detections in {len(listed)} images: {folder / 'results.json'}")
    return {"out": out, "images": len(listed), "detections": len(results), "unreadable": unreadable}
