"""The generated scenes as data sets for segmentation, in the layouts that people have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from selfdet.data.class_maps import write_class_map
from selfdet.data.mask_labels import load_mask_labels


def voc_layout(scenes: Path, out: Path) -> Path:
    """`train.json` and `val.json` of a folder of scenes as Pascal VOC has them; returns the data set's folder."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (out / name).mkdir(parents=True)
    for split in ("train", "val"):
        labels = load_mask_labels(scenes / f"{split}.json")
        for record in labels.records:
            shutil.copy(record.path, out / "JPEGImages")
            write_class_map(out / "SegmentationClass" / f"{record.path.stem}.png", labels.read(record).classes)
        names = "".join(f"{record.path.stem}\n" for record in labels.records)
        (out / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(names)
        (out / "classes.json").write_text(json.dumps(labels.classes))
    return out
