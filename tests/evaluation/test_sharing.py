"""Several processes share an evaluation: what each returns is what one process returns, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.detectors.rcnn_scenes import small_mask
from tests.detectors.scenes import small_fcos
from tests.processes import in_processes

from selfdet.data.images import Quarantine
from selfdet.data.labels import Labels, load_labels
from selfdet.data.mask_labels import load_mask_labels
from selfdet.detectors.segmenter import fcn
from selfdet.errors import UserError
from selfdet.evaluation.inference import score
from selfdet.evaluation.segmenting import Sight, score_segmentation
from selfdet.models.atrous import build_atrous_backbone
from selfdet.training.runtime import Runtime

pytestmark = pytest.mark.slow


def with_unreadable(labels: Labels, count: int, folder: str) -> Labels:
    """The labels with the first images replaced by files that are no images."""
    broken = []
    for record in labels.records[:count]:
        file = Path(folder) / f"{record.image_id}.jpg"
        file.write_text("no image")
        broken.append(replace(record, path=file))
    return replace(labels, records=[*broken, *labels.records[count:]])


def work(runtime: Runtime, scenes: str, folder: str) -> dict[str, Any]:
    """Scores and results of a detector with boxes, one with masks, and a segmenter."""
    fabric = runtime.fabric
    labels = load_labels(Path(scenes) / "train.json")
    found: dict[str, Any] = {}
    networks = {"fcos": small_fcos(len(labels.classes)), "mask_rcnn": small_mask(len(labels.classes), detections=5)}
    for name, network in networks.items():
        network = runtime.place(network)
        if fabric.global_rank:  # as batch norm's running statistics are after training
            for buffer in network.buffers():
                buffer.add_(1)
        unreadable = Quarantine(len(labels))
        some = with_unreadable(labels, 1, folder)
        told: list[int] = []
        asked: dict[str, Any] = {"batch_size": 2, "quarantine": unreadable, "miss_rate": True, "seen": told.append}
        found[name] = score(network, some, 96, fabric, **asked)
        found[f"{name} unreadable"] = [Path(path).name for path in unreadable.paths]
        assert fabric.global_rank or told[-1] == len(labels)
    with pytest.raises(UserError, match="2 of 10 images cannot be read"):
        score(network, with_unreadable(labels, 2, folder), 96, fabric, batch_size=1)
    torch.manual_seed(0)
    masks = load_mask_labels(Path(scenes) / "train.json")
    segmenter = fcn(len(masks.classes), build_atrous_backbone("test_resnet"))
    found["segmenter"] = score_segmentation(segmenter, masks, Sight(64, 48, batch_size=3), fabric)
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_processes_score_what_one_process_scores(world: int, scenes: Path, tmp_path: Path) -> None:
    (alone,) = in_processes(1, tmp_path, work, str(scenes), str(tmp_path))
    assert alone["fcos"][1]
    assert alone["mask_rcnn"][1][0]["segmentation"]
    assert len(alone["fcos unreadable"]) == 1
    for each in in_processes(world, tmp_path, work, str(scenes), str(tmp_path)):
        assert each == alone
