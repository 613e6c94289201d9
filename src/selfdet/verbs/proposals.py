"""`selfdet proposals`: boxes around whatever may be an object, from images without labels."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from selfdet.data.coco import read_coco
from selfdet.data.images import read_image
from selfdet.data.labels import Labels, load_labels
from selfdet.data.listing import ListedImage, numbered_images
from selfdet.data.untrusted import expanded
from selfdet.drawing.boxes import draw_boxes, grid
from selfdet.errors import UserError, one_line
from selfdet.proposing.filters import Filters
from selfdet.proposing.finding import FAULTS, Found, Task
from selfdet.proposing.given import read_given
from selfdet.proposing.processes import find_all
from selfdet.proposing.recall import recall, recall_table
from selfdet.proposing.selective_search import Search, compile_search
from selfdet.proposing.store import listing_hash, read_found, read_info, write_proposals
from selfdet.proposing.unfinished import Unfinished, require_same
from selfdet.training.log import Reporter, plural
from selfdet.training.runtime import start_runtime
from selfdet.training.stop import Interrupted, Stop
from selfdet.verbs.detector_boxes import DetectorBoxes
from selfdet.verbs.proposal_clusters import add_clusters, backbone_of_clusters

PREVIEWS = 12  # images on the sheet
CELL = 480  # pixels, of each on the sheet
DRAWN = 20  # boxes on each: the first, which are the likelier ones


def proposals(
    *,
    images: str,
    out: str,
    boxes: str | None = None,
    init: str | None = None,
    data: str | None = None,
    side: int = Search.side,
    scales: Sequence[float] = Search.scales,
    min_side: float = Filters.min_side,
    max_aspect: float = Filters.max_aspect,
    max_size: float = Filters.max_size,
    iou: float = Filters.iou,
    top_k: int = Filters.top_k,
    clusters: int = 0,
    backbone: str | None = None,
    backbone_weights: str | None = None,
    seed: int = Search.seed,
    image_timeout: float = 60.0,
    workers: int | None = None,
    image_size: int | None = None,
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    threads: int = 0,
    preview: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Find boxes that may hold objects, without labels: by selective search or a detector, then filters.

    An image that no box is left of gets those that pass when the bounds are relaxed: any aspect, then a quarter of the
    shortest side, then any size, then the image itself as one box.

    Args:
        images: folder (nested or flat), glob, text list, COCO JSON or tar shards; no labels are read.
        out: COCO JSON to write, with one class `object`.
        boxes: file of boxes to filter, COCO JSON or a list of COCO results, instead of a search.
        init: run directory or detector file whose detections are filtered instead of a search; their classes are
            ignored.
        data: labels, of COCO, Pascal VOC or YOLO, to measure recall by; none is measured if not given.
        side: long side in pixels that images are shrunk to for the search; boxes are in the original's pixels.
        scales: scales k of the initial segmentation, each used in two colour spaces; larger ones give larger initial
            regions.
        min_side: smallest side of a box, as a share of the image's long side.
        max_aspect: largest ratio of a box's long side to its short side; 5 for pedestrians.
        max_size: largest square root of a box's share of the image's area.
        iou: a box that overlaps an earlier one by a larger IoU is left out; 1 keeps all.
        top_k: largest number of boxes per image; 0 for no limit.
        clusters: number of pseudo classes to sort the boxes into, for transformers such as detr; 0 for none. With
            --resume they are added to a finished file.
        backbone: network whose features are clustered; that of backbone_weights, else resnet50, if not given.
        backbone_weights: its weights, as for pretrain: `library`, a file or a run.
        seed: seed of the random part of the boxes' order, and of the clusters.
        image_timeout: seconds that the search may take per image; beyond that the image is left out and counted; 0 for
            no limit.
        workers: processes of a search; chosen from the cores and the number of images if not given.
        image_size: long side of the images that the detector of `init` sees, pixels; the run's own if not given.
        precision: precision of that detector; auto takes bf16 where the hardware multiplies it.
        threads: CPU threads of detector and backbone; 0 for torch's choice.
        preview: write a sheet of pictures with boxes beside `out`.
        resume: continue a run that was interrupted, or repeat what a finished one found.
    Raises: UserError when no image or no box is found, `out` exists, or boxes, labels or run do not fit; Interrupted
    after saving when stopped.

    Example:
        selfdet proposals --images photos/ --out boxes.json --preview
    """
    file, reporter = Path(out), Reporter()
    search = Search(side, tuple(map(float, scales)), seed)
    filters = Filters(min_side, max_aspect, max_size, iou, top_k)
    search.check()
    filters.check()
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}, expected 1 or more", "Leave it out for the default")
    if image_timeout < 0:
        raise UserError(f"--image-timeout is {image_timeout:g}, expected 0 (no limit) or more seconds")
    if file.is_dir():
        raise UserError(f"--out {out} is a folder", "Name a file, such as boxes.json, in it")
    if file.exists() and not resume:
        raise UserError(f"--out {out} exists already", "Name a new file")
    if boxes is not None and init is not None:
        raise UserError("--boxes and --init are both given", "Boxes come from a file or from a detector: leave one out")
    network = backbone_of_clusters(clusters, backbone, backbone_weights)
    listed = numbered_images(images)
    labels = None if data is None else load_labels(data, images)
    listing = listing_hash(listed)
    if labels is not None:
        listed = _told_sizes(listed, labels)
    given = None if boxes is None else read_given(boxes, listed)
    detector = None if init is None else DetectorBoxes(init, image_size, precision, threads)
    settings: dict[str, Any] = {"source": "selective search", **asdict(search)}
    if boxes is not None:
        content = expanded(boxes).read_bytes()
        settings = {"source": Path(boxes).name, "source_hash": hashlib.sha256(content).hexdigest()[:16]}
    if detector is not None:
        settings = detector.settings
    head = {"settings": {**settings, **asdict(filters)}, "listing": listing}

    if file.exists():
        coco = read_coco(file)
        info = read_info(file, coco)
        require_same(file, {name: info.get(name) for name in head}, head)
        Unfinished.discard(file)
        reporter.line(f"{out} is finished")
        found = read_found(coco)
    else:
        unfinished = Unfinished(file, head, resume=resume)
        # What had a fault before may have been mended, or be given more time now.
        done = {number for number, answer in unfinished.found.items() if not answer.fault}
        if detector is not None:
            done = detector.whole_batches(listed, done)
        left = [image for image in listed if image.image_id not in done]
        if done:
            reporter.line(f"{plural(len(done), 'image')} of {len(listed)} done before")

        def find(stopped: Callable[[], bool]) -> Iterator[Found]:
            if detector is not None:
                return detector.find(left, filters, stopped)
            if given is not None:
                tasks = [Task(image, filters, given=given[image.image_id], timeout=image_timeout) for image in left]
            else:
                compile_search()
                tasks = [Task(image, filters, search, timeout=image_timeout) for image in left]
            return find_all(tasks, workers, stopped)

        _find(find, left, unfinished, reporter)
        _say_faults(listed, unfinished.found, reporter)
        info = write_proposals(file, listed, unfinished.found, head)
        unfinished.close(remove=True)
        found = {number: answer for number, answer in unfinished.found.items() if not answer.fault}

    result: dict[str, Any] = {"out": out, **info["counts"]}
    _say_counts(result, reporter)
    if network is not None:
        runtime = start_runtime(devices=1, precision="fp32", threads=threads)
        add_clusters(file, images, runtime.place(network), count=clusters, seed=seed, reporter=reporter)
        result["clusters"] = clusters
    if labels is not None:
        result["recall"] = _recall(listed, found, labels)
        reporter.line(recall_table(result["recall"], title=f"recall of the objects in {data}"))
    if preview:
        sheet = file.with_name(f"{file.stem}_preview.jpg")
        _draw([image for image in listed if image.image_id in found], found).save(sheet, quality=90)
        reporter.line(f"preview: {sheet}")
        result["preview"] = str(sheet)
    return result


def _find(
    find: Callable[[Callable[[], bool]], Iterator[Found]],
    left: Sequence[ListedImage],
    unfinished: Unfinished,
    reporter: Reporter,
) -> None:
    """Keep the answer for each image that is left as it comes.

    Raises: Interrupted when stopped; UserError when no box is found in any image.
    """
    with Stop(0) as stop, reporter.counting(len(left), "images") as seen:
        for done, found in enumerate(find(lambda: bool(stop.asked)), start=1):
            unfinished.append(found)
            seen(done)
        if stop.asked:
            unfinished.close(remove=False)
            number = len(unfinished.found)
            raise Interrupted(f"stopped by {signal.Signals(stop.asked).name}", number, stop.asked, unit="image")
    answers = unfinished.found.values()
    if any(len(found.boxes) for found in answers):
        return
    unfinished.close(remove=True)
    faulty = [found for found in answers if found.fault]
    if len(faulty) < len(answers):
        raise UserError(
            f"no box is left in any of {plural(len(answers) - len(faulty), 'image')}",
            "Look at where the boxes come from, or relax the filters, for example with a smaller --min-side",
        )
    first = faulty[0]
    path = next(image.path for image in left if image.image_id == first.image_id)
    raise UserError(
        f"of {plural(len(answers), 'image')} none gave boxes; {path}: {_words(first.fault)} ({first.reason})",
        "Check the files" if first.fault != "timed_out" else "Raise --image-timeout or lower --side",
    )


def _told_sizes(listed: Sequence[ListedImage], labels: Labels) -> list[ListedImage]:
    """The images with the sizes that their labels go by, where those say one."""
    told = {os.path.abspath(record.path): (record.width, record.height) for record in labels.records}
    sizes = [told.get(os.path.abspath(image.path)) for image in listed]
    return [replace(image, size=size) if size and all(size) else image for image, size in zip(listed, sizes)]


def _recall(listed: Sequence[ListedImage], found: Mapping[int, Found], labels: Labels) -> dict[str, Any]:
    """Recall on the images that are labelled and that boxes were found for."""
    ids = {os.path.abspath(image.path): image.image_id for image in listed}
    answers = [found.get(ids.get(os.path.abspath(record.path), -1)) for record in labels.records]
    return recall((record.boxes, answer.boxes) for record, answer in zip(labels.records, answers) if answer)


def _say_counts(counts: Mapping[str, Any], reporter: Reporter) -> None:
    mean = counts["boxes"] / max(1, counts["images"])
    found = f"{plural(counts['boxes'], 'box', 'boxes')} in {plural(counts['images'], 'image')}, {mean:.1f} an image"
    reporter.line(f"{found}: {counts['out']}")
    relaxed = ", ".join(f"{step} {count}" for step, count in counts["fallback"].items() if count)
    if relaxed:
        reporter.line(f"images that no box was left of, by what was relaxed for them: {relaxed}")
    if counts["images_without_boxes"]:
        reporter.line(f"{plural(counts['images_without_boxes'], 'image')} without boxes")
    if counts["dropped"]:
        reporter.line(f"boxes left out as empty, not finite or outside their image: {counts['dropped']}")


def _say_faults(listed: Sequence[ListedImage], found: Mapping[int, Found], reporter: Reporter) -> None:
    for fault in FAULTS:
        faulty = [image for image in listed if found[image.image_id].fault == fault]
        for image in faulty[:5]:
            reporter.line(one_line(f"{_words(fault)}, left out: {image.path} ({found[image.image_id].reason})"))
        if len(faulty) > 5:
            reporter.line(f"{_words(fault)}, left out: {len(faulty)} images in all")


def _words(fault: str) -> str:
    return fault.replace("_", " ")


def _draw(searched: Sequence[ListedImage], found: Mapping[int, Found]) -> Image.Image:
    """A sheet of images from all over the list, each with its first boxes."""
    pictures, titles = [], []
    for position in sorted({round(i * (len(searched) - 1) / (PREVIEWS - 1)) for i in range(PREVIEWS)}):
        image = searched[position]
        boxes = found[image.image_id].boxes[:DRAWN]
        # Colours tell the boxes apart; tags would only hide them.
        picture = draw_boxes(
            read_image(image.path, image.size), boxes, labels=range(len(boxes)), names=[""] * DRAWN, long_side=CELL
        )
        pictures.append(picture)
        titles.append(f"{len(found[image.image_id].boxes)}: {image.name}")
    return grid(pictures, titles=titles, cell=CELL)
