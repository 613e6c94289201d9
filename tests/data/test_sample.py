"""A sample's objects stay together: box, id, label and mask of one row."""

from __future__ import annotations

import torch
from torchvision import tv_tensors

from selfdet.data.sample import Sample, boxes_xyxy, plain_sample


def test_selecting_objects_keeps_boxes_ids_labels_and_masks_together() -> None:
    sample = Sample(
        image=tv_tensors.Image(torch.zeros(3, 4, 6, dtype=torch.uint8)),
        boxes=boxes_xyxy(torch.arange(12.0).reshape(3, 4), (4, 6)),
        ids=torch.tensor([7, 8, 9]),
        labels=torch.tensor([0, 1, 2]),
        masks=tv_tensors.Mask(torch.eye(3).reshape(3, 1, 3).bool()),
        path="a.jpg",
    )
    chosen = sample.select(torch.tensor([True, False, True]))
    assert chosen.ids.tolist() == [7, 9]
    assert chosen.boxes.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [0, 2]
    assert chosen.masks is not None
    assert chosen.masks.shape == (2, 1, 3)
    assert isinstance(chosen.boxes, tv_tensors.BoundingBoxes)
    assert chosen.boxes.canvas_size == (4, 6)
    assert chosen.path == "a.jpg"


def test_an_image_of_which_nothing_is_known_is_a_sample_without_objects() -> None:
    sample = plain_sample(tv_tensors.Image(torch.zeros(3, 4, 6, dtype=torch.uint8)), "a.jpg")
    assert sample.boxes.shape == (0, 4)
    assert sample.ids.shape == (0,)
    assert sample.size == sample.original_size == (4, 6)
