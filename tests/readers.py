"""Every reader of files as a function of bytes, for random tests and for fuzzing: only our own errors may come out.

A file stands in `folder`, where an image `a.png` (40 × 30) is as well; what a reader needs beside it is written once.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save

from selfdet.cli_flags import flags_of, read_yaml
from selfdet.data.findings import Checked, Split, gather_findings
from selfdet.data.images import UnreadableImage, list_images, read_image
from selfdet.data.inspection import Inspection
from selfdet.data.labels import load_labels, read_sample
from selfdet.data.listing import ListedImage
from selfdet.data.masks import decode_mask, segmentation_rle
from selfdet.data.shard_index import ShardIndex
from selfdet.data.tars import read_heads
from selfdet.errors import UserError
from selfdet.evaluation.detection import evaluate_detections
from selfdet.interchange.starts import resolve_start
from selfdet.proposing.given import read_given
from selfdet.proposing.store import read_proposals
from selfdet.proposing.unfinished import Unfinished
from selfdet.training.checkpoint import load_checkpoint
from selfdet.training.leases import Leases
from selfdet.verbs.pretrain import pretrain

Reader = Callable[[Path, bytes], object]
OWN = (UserError, UnreadableImage)


def prepare(folder: Path) -> Path:
    """The files that readers need beside the one they are given."""
    for place in (folder, folder / "images"):
        place.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(place / "a.png")
    for place in ("labels", "voc/Annotations", "voc/JPEGImages", "leases", "shards"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "shards" / "a.tar").write_bytes(shard((folder / "a.png").read_bytes()).getvalue())
    Image.new("RGB", (40, 30)).save(folder / "voc" / "JPEGImages" / "a.jpg")
    (folder / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    return folder


def shard(picture: bytes) -> io.BytesIO:
    """A tar with one image."""
    file, entry = io.BytesIO(), tarfile.TarInfo("a.png")
    entry.size = len(picture)
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(entry, io.BytesIO(picture))
    return file


def put(folder: Path, name: str, content: bytes) -> Path:
    """A file in the folder."""
    (folder / name).write_bytes(content)
    return folder / name


def coco(folder: Path, content: bytes) -> None:
    labels = load_labels(put(folder, "labels.json", content), folder)
    for record in labels.records:
        read_sample(record, with_masks=True)
    evaluate_detections(labels.coco, [], masks=False)


def coco_checked(folder: Path, content: bytes) -> None:
    split = Split.read(str(put(folder, "labels.json", content)), str(folder))
    checked = Checked.gather(None, split, None)
    gather_findings(checked, [task.run() for task in checked.inspections()], split, None).to_dict()


def voc(folder: Path, content: bytes) -> None:
    put(folder, "voc/Annotations/a.xml", content)
    load_labels(folder / "voc")


def yolo(folder: Path, content: bytes) -> None:
    load_labels(put(folder, "other.yaml", content))


def yolo_rows(folder: Path, content: bytes) -> None:
    put(folder, "labels/a.txt", content)
    load_labels(folder / "data.yaml")


def image(folder: Path, content: bytes) -> None:
    file = put(folder, "x.png", content)
    Inspection(1, file, None).run()
    read_image(file)


def tar(folder: Path, content: bytes) -> None:
    for path in list_images(put(folder, "x.tar", content)):
        Inspection(1, path, None).run()


def shard_index(folder: Path, content: bytes) -> None:
    put(folder, "shards/index.safetensors", content)
    for path in list_images(folder / "shards"):
        Inspection(1, path, None).run()


def text_list(folder: Path, content: bytes) -> None:
    list_images(put(folder, "list.txt", content))


def given(folder: Path, content: bytes) -> None:
    read_given(put(folder, "given.json", content), [ListedImage(1, folder / "a.png", "a.png", (40, 30))])


def proposals(folder: Path, content: bytes) -> None:
    read_proposals(put(folder, "boxes.json", content), folder / "images")


def unfinished(folder: Path, content: bytes) -> None:
    put(folder, "boxes.json.unfinished.jsonl", content)
    Unfinished(folder / "boxes.json", {"settings": {}}, resume=True).close(remove=False)


def weights(folder: Path, content: bytes) -> None:
    resolve_start(str(put(folder, "weights.safetensors", content)))


def torch_weights(folder: Path, content: bytes) -> None:
    resolve_start(str(put(folder, "weights.pth", content)))


def checkpoint(folder: Path, content: bytes) -> None:
    load_checkpoint(put(folder, "last.pt", content))


def lease(folder: Path, content: bytes) -> None:
    put(folder, "leases/a.1.json", content)
    (folder / "leases" / "a.2.json").unlink(missing_ok=True)
    held = Leases(folder / "leases", stale_after=60).claim("a")
    if held is not None:
        held.release()


def config(folder: Path, content: bytes) -> None:
    read_yaml(put(folder, "config.yaml", content), flags_of(pretrain))


def mask(folder: Path, content: bytes) -> None:
    try:
        value: Any = json.loads(content)
    except (ValueError, RecursionError):
        value = {"size": [30, 40], "counts": content.decode("latin-1")}
    try:
        decode_mask(segmentation_rle(value, (30, 40)))
    except ValueError:
        return


READERS: dict[str, Reader] = {
    each.__name__: each
    for each in (
        *(coco, coco_checked, voc, yolo, yolo_rows, image, tar, shard_index, text_list, given, proposals, unfinished),
        *(weights, torch_weights, checkpoint, lease, config, mask),
    )
}


def seeds() -> dict[str, bytes]:
    """A sound file for each reader, to change."""
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9], "area": 81, "iscrowd": 0}
    labels: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [{**entry, "segmentation": [[1, 2, 10, 2, 10, 11]]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    from selfdet.proposing.store import fingerprint

    info = {"fingerprint": fingerprint([("a.png", 40, 30)]), "skipped": {"unreadable": []}}
    info["counts"] = {"images": 1, "boxes": 1, "images_without_boxes": 0, "dropped": 0, "fallback": {}}
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    picture, state = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, "PNG")
    torch.save({"format": 1, "a": torch.zeros(4)}, state)
    torch.save({"a": torch.zeros(4)}, plain_state := io.BytesIO())
    plain = json.dumps(labels).encode()
    shards = shard(picture.getvalue())
    indexed = ShardIndex.of({"a.tar": (len(shards.getvalue()), read_heads(shards, len(shards.getvalue()), "a.tar"))})
    found = json.dumps({"image_id": 1, "width": 40, "height": 30, "boxes": [[1, 2, 9, 9]]})
    return {
        "coco": plain,
        "coco_checked": plain,
        "voc": f"<annotation><size><width>4</width></size><object><name>a</name>{box}</object></annotation>".encode(),
        "yolo": b"train: images\nnames: {0: cat, 1: dog}\n",
        "yolo_rows": b"0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.9 0.1 0.5 0.9\n",
        "image": picture.getvalue(),
        "tar": shards.getvalue(),
        "shard_index": indexed.to_bytes(),
        "text_list": b"# some\na.png\n",
        "given": json.dumps([{"image_id": 1, "bbox": [1, 2, 9, 9], "score": 0.5}]).encode(),
        "proposals": json.dumps({"info": info, **labels}).encode(),
        "unfinished": f'{{"settings": {{}}}}\n{found}\n'.encode(),
        "weights": save({"a": torch.zeros(4)}, {"selfdet": '{"kind": "backbone", "backbone": "resnet18"}'}),
        "torch_weights": plain_state.getvalue(),
        "checkpoint": state.getvalue(),
        "lease": b'{"host": "a", "space": 1, "pid": 1, "token": "x", "started": 1.0}',
        "config": b"steps: 3\nbackbone-stage:\n  epochs: 2\nstages: [backbone]\n",
        "mask": b'{"size": [30, 40], "counts": [600, 600]}',
    }
