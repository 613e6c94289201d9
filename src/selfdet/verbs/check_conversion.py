"""What `check --convert` writes, and what it says about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from selfdet.data.conversion import write_coco, write_voc, write_yolo
from selfdet.data.labels import Labels
from selfdet.training.log import plural

WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}


def convert_labels(form: str, splits: Mapping[str, Labels], out: Path) -> Iterator[str]:
    """Write the labels of each split (`train`, perhaps `val`) into the folder `out`; yields what to say."""
    out.mkdir(parents=True, exist_ok=True)
    lost = WRITERS[form](splits, out)
    number = sum(map(len, splits.values()))
    for reason, count in lost.items():
        if count:
            yield f"not written: {count:,} {reason}"
    if form == "coco":
        folder = _folder(splits["train"].records[0].path, str(splits["train"].coco["images"][0]["file_name"]))
        yield f"labels of {plural(number, 'image')}: --data {out / 'train.json'} --images {folder}"
        yield "the images were not copied: names are relative to that folder"
        return
    use = {"voc": out / "ImageSets/Main/train.txt", "yolo": f"{out / 'data.yaml'}:train"}[form]
    yield f"labels of {plural(number, 'image')}: --data {use}"
    where = out / {"voc": "JPEGImages", "yolo": "images"}[form]
    yield f"the images were linked, not copied, into {where}, where the format has them"


def _folder(path: Path, name: str) -> Path:
    """The folder that a file name is relative to."""
    return path.parents[len(Path(name).parts) - 1] if not Path(name).is_absolute() else Path("/")
