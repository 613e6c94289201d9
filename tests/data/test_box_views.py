"""Both views show the same objects under the same ids, exactly where their boxes say, recoloured as published."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from selfdet.data import box_views
from selfdet.data.box_views import (
    PHOTOMETRIC,
    BoxViewBatch,
    BoxViewDataset,
    BoxViews,
    box_view_preset,
    collate_box_views,
    recolour,
)
from selfdet.data.images import UnreadableImage
from selfdet.data.labels import ImageRecord
from selfdet.data.loader import training_batches
from selfdet.data.sample import Sample, boxes_xyxy, plain_sample
from selfdet.errors import UserError

# Object i is painted in channel i only, so that any of them can be found in a view.
BOXES = [[12, 16, 60, 56], [84, 8, 108, 72], [30, 60, 50, 78]]
IDS = [7, 2**40, 0]


def scene(height: int = 80, width: int = 120, boxes: list[list[int]] = BOXES) -> Sample:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for row, (left, top, right, bottom) in enumerate(boxes):
        image[row, top:bottom, left:right] = 255
    return Sample(
        image=tv_tensors.Image(image),
        boxes=boxes_xyxy(torch.tensor(boxes, dtype=torch.float32), (height, width)),
        ids=torch.tensor(IDS[: len(boxes)], dtype=torch.int64),
        original_size=(height, width),
    )


def noise(height: int = 40, width: int = 60, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def extent(mask: Tensor) -> list[int]:
    """The xyxy pixel box of what is set in a (H, W) mask."""
    rows, columns = torch.nonzero(mask.any(1))[:, 0], torch.nonzero(mask.any(0))[:, 0]
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def views(**options: object) -> BoxViews:
    return BoxViews(**{"short_sides": (40, 53, 64), "long_side": 100, "seed": 0, **options})  # type: ignore[arg-type]


@pytest.fixture
def unchanged_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but identity is drawn."""
    monkeypatch.setattr(box_views, "PHOTOMETRIC", {"identity": PHOTOMETRIC["identity"]})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is drawn: (operation, magnitude) of one view after the other."""
    found: list[tuple[str, int]] = []

    def spy(image: Tensor, operation: str, magnitude: int) -> tv_tensors.Image:
        found.append((operation, magnitude))
        return tv_tensors.Image(image)

    monkeypatch.setattr(box_views, "recolour", spy)
    return found


def test_boxes_lie_on_their_objects_in_both_views(unchanged_colours: None) -> None:
    sizes, sides = set(), set()
    for epoch in range(12):
        for view in views()(scene(), epoch, index=3):
            sizes.add(view.size)
            sides.add(bool(view.boxes[0, 0] > view.boxes[1, 0]))
            assert view.boxes.canvas_size == view.size
            assert view.original_size == (80, 120)
            assert view.ids.tolist() == IDS
            for channel, box in enumerate(view.boxes.tolist()):
                # A pixel is counted when its centre is inside, hence half a pixel.
                seen = extent((view.image[channel] > 127).as_subclass(Tensor))
                assert np.abs(np.array(seen) - box).max() <= 0.5 + 1e-4
    assert sizes == {(40, 60), (53, 80), (64, 96)}
    assert sides == {True, False}, "both mirrored and unmirrored views occur"


def test_boxes_are_the_source_boxes_scaled_side_by_side_and_mirrored(unchanged_colours: None) -> None:
    source = np.array(BOXES, np.float64)
    for epoch in range(12):
        for view in views()(scene(), epoch, index=0):
            height, width = view.size
            expected = source * ([width / 120, height / 80] * 2)
            if view.boxes[0, 0] > view.boxes[1, 0]:
                expected = np.stack(
                    [width - expected[:, 2], expected[:, 1], width - expected[:, 0], expected[:, 3]], axis=1
                )
            np.testing.assert_allclose(np.array(view.boxes.tolist()), expected, rtol=0, atol=1e-4)


def test_a_box_that_vanishes_in_one_view_leaves_with_its_id_in_that_view_only() -> None:
    # 2 px wide in the source: half a pixel at a short side of 20, 1.6 pixels at 64.
    sample = scene(boxes=[[10, 10, 60, 60], [80, 20, 82, 60]])
    found = set()
    for epoch in range(30):
        for view in views(short_sides=(20, 64))(sample, epoch, 0):
            assert len(view.ids) == len(view.boxes)
            found.add((min(view.size), tuple(view.ids.tolist())))
    assert found == {(20, (IDS[0],)), (64, (IDS[0], IDS[1]))}


def test_views_are_a_function_of_seed_epoch_and_index() -> None:
    sample = replace_image(scene(), noise(80, 120))
    expected = [views()(sample, epoch, index) for epoch in range(4) for index in range(4)]
    again = [views()(sample, epoch, index) for epoch in reversed(range(4)) for index in reversed(range(4))][::-1]
    for pair, other in zip(expected, again):
        for view, twin in zip(pair, other):
            assert torch.equal(view.image, twin.image)
            assert torch.equal(view.boxes, twin.boxes)
    images = {view.image.numpy().tobytes() for pair in expected for view in pair}
    assert len(images) > 20, "views of a pair, epochs and indices differ"
    assert any(not same(views(seed=1)(sample, 0, index)[0], expected[index][0]) for index in range(4))


def replace_image(sample: Sample, image: Tensor) -> Sample:
    sample.image = tv_tensors.Image(image)
    return sample


def same(view: Sample, other: Sample) -> bool:
    return view.size == other.size and torch.equal(view.image, other.image)


def test_the_source_is_left_alone() -> None:
    sample = replace_image(scene(), noise(80, 120))
    before = sample.image.clone()
    for epoch in range(20):
        views(short_sides=(80,), long_side=120)(sample, epoch, 0)
    assert torch.equal(sample.image, before)
    assert sample.boxes.tolist() == BOXES


def test_without_flip_only_the_mirroring_is_missing(unchanged_colours: None) -> None:
    for epoch in range(10):
        for view, other in zip(views()(scene(), epoch, 0), views(flip=False)(scene(), epoch, 0)):
            assert view.size == other.size
            assert other.boxes[0, 0] < other.boxes[1, 0]


def test_every_operation_and_every_magnitude_is_drawn_about_as_often(drawn: list[tuple[str, int]]) -> None:
    sample = plain_sample(tv_tensors.Image(noise(4, 4)))
    for index in range(900):
        views(short_sides=(4,))(sample, 0, index)
    for position, values in ((0, list(PHOTOMETRIC)), (1, range(1, 10))):
        counts = [sum(draw[position] == value for draw in drawn) for value in values]
        assert sum(counts) == 1800
        assert min(counts) > 150
        assert max(counts) < 250


def test_half_of_the_views_are_mirrored(unchanged_colours: None) -> None:
    sides = [view.boxes[0, 0] > view.boxes[1, 0] for i in range(200) for view in views()(scene(), 0, i)]
    assert 160 < sum(map(bool, sides)) < 240


def factor(function: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, int], Tensor]:
    return lambda image, magnitude: function(image, 0.1 + 0.18 * magnitude)


BITS = {1: 4, 2: 4, 3: 3, 4: 3, 5: 2, 6: 2, 7: 2, 8: 1, 9: 1}
LIBRARY: dict[str, Callable[[Tensor, int], Tensor]] = {
    "identity": lambda image, _: image,
    "auto-contrast": lambda image, _: F.autocontrast(image),
    "equalise": lambda image, _: F.equalize(image),
    "solarise": lambda image, magnitude: F.solarize(image, 25.6 * magnitude),
    "colour": factor(F.adjust_saturation),
    "contrast": factor(F.adjust_contrast),
    "brightness": factor(F.adjust_brightness),
    "sharpness": factor(F.adjust_sharpness),
    "posterise": lambda image, magnitude: F.posterize(image, BITS[magnitude]),
}


@pytest.mark.parametrize("operation", LIBRARY)
def test_operations_are_the_librarys_at_the_published_magnitudes(operation: str) -> None:
    image = tv_tensors.Image(noise())
    results = []
    for magnitude in range(1, 10):
        result = recolour(image, operation, magnitude)
        assert result.dtype == torch.uint8
        assert torch.equal(result, LIBRARY[operation](image, magnitude))
        results.append(result)
    if operation not in ("identity", "auto-contrast", "equalise"):
        assert not torch.equal(results[0], results[8])
    assert set(LIBRARY) == set(PHOTOMETRIC)


def test_solarise_inverts_from_its_threshold_on_and_posterise_keeps_the_highest_bits() -> None:
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
    solarised = recolour(image, "solarise", 3)[0].flatten().tolist()
    assert solarised == [255 - value if value >= 76.8 else value for value in range(256)]
    assert recolour(image, "posterise", 8)[0].flatten().unique().tolist() == [0, 128]
    assert len(recolour(image, "posterise", 1)[0].flatten().unique()) == 16


def test_colours_do_not_depend_on_the_number_of_threads() -> None:
    image = noise(300, 400)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append([recolour(image, operation, 7) for operation in PHOTOMETRIC])
            assert torch.get_num_threads() == count
        assert all(torch.equal(one, three) for one, three in zip(*results))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((40, 2000), (27, 1333)), ((2000, 40), (1333, 27)), ((1, 1), (640, 640)), ((1, 9000), (1, 1333))],
)
def test_images_of_any_shape_become_views_within_the_long_side(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    sample = plain_sample(tv_tensors.Image(noise(*size)))
    for index in range(4):
        for view in BoxViews((640,), 1333, seed=0)(sample, 0, index):
            assert view.size == expected
            assert view.boxes.shape == (0, 4)
            assert view.ids.shape == (0,)


@pytest.mark.parametrize("operation", PHOTOMETRIC)
def test_one_pixel_can_be_recoloured(operation: str) -> None:
    for value in (0, 128, 255):
        pixel = torch.full((3, 1, 1), value, dtype=torch.uint8)
        assert recolour(pixel, operation, 9).shape == (3, 1, 1)


def test_presets_are_the_published_sides_and_their_shares_for_smaller_images() -> None:
    assert box_view_preset(1333) == ((640, 672, 704, 736, 768, 800), 1333)
    assert box_view_preset(320) == ((192, 202, 211, 221, 230, 240), 320)
    assert box_view_preset(256) == ((154, 161, 169, 177, 184, 192), 256)
    assert box_view_preset(640).short_sides == (384, 403, 422, 442, 461, 480)
    assert box_view_preset(1).short_sides == (1,) * 6
    photograph = plain_sample(tv_tensors.Image(noise(48, 64)))
    sides = {max(v.size) for i in range(30) for v in BoxViews(*box_view_preset(64), seed=0)(photograph, 0, i)}
    assert min(sides) >= 50
    assert max(sides) == 64


@pytest.mark.parametrize(("short_sides", "long_side"), [((), 100), ((0, 40), 100), ((40,), 0)])
def test_sides_without_pixels_are_refused(short_sides: tuple[int, ...], long_side: int) -> None:
    with pytest.raises(UserError, match="hold no image"):
        BoxViews(short_sides, long_side, seed=0)
    with pytest.raises(UserError, match="holds no image"):
        box_view_preset(0)


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    """Three readable 60 × 40 images with 2, 1 and 0 boxes."""
    found = []
    for key, boxes in enumerate([[[0, 0, 20, 10], [30, 5, 50, 40]], [[5, 5, 25, 25]], []]):
        Image.fromarray(noise(seed=key).permute(1, 2, 0).numpy()).save(tmp_path / f"{key}.png")
        array, labels = np.array(boxes, np.float32).reshape(-1, 4), np.zeros(len(boxes), np.int64)
        path, ids = tmp_path / f"{key}.png", list(range(len(boxes)))
        found.append(ImageRecord(key, path, 60, 40, array, labels, [None] * len(boxes), ids))
    return found


def test_a_dataset_of_records_gives_batches_of_both_views_with_their_paths(records: list[ImageRecord]) -> None:
    dataset = BoxViewDataset(records, views())
    batch = collate_box_views([dataset.load(index, epoch=2) for index in range(len(dataset))])
    assert isinstance(batch, BoxViewBatch)
    assert len(batch) == 3
    assert batch.paths == [str(record.path) for record in records]
    for side in (batch.online, batch.teacher):
        assert [sample.ids.tolist() for sample in side] == [[0, 1], [0], []]
        assert [sample.path for sample in side] == batch.paths
        assert all(sample.labels is None for sample in side)
    assert same(batch.teacher[1], dataset.load(1, epoch=2)[1])
    assert len(records[0].segmentations) == 2, "the caller's records are left as they are"


def test_batches_cross_processes_unchanged(records: list[ImageRecord]) -> None:
    dataset = pickle.loads(pickle.dumps(BoxViewDataset(records, views())))
    batch = collate_box_views([dataset.load(0, 0), dataset.load(2, 0)])
    copy = pickle.loads(pickle.dumps(batch))
    assert copy.paths == batch.paths
    for original, received in zip([*batch.online, *batch.teacher], [*copy.online, *copy.teacher]):
        assert same(original, received)
        assert torch.equal(original.boxes, received.boxes)
        assert torch.equal(original.ids, received.ids)


def test_unreadable_images_are_reported_and_replaced_in_training(records: list[ImageRecord]) -> None:
    records[1].path.write_bytes(b"no image")
    dataset = BoxViewDataset(records, views())
    with pytest.raises(UnreadableImage):
        dataset.load(1, 0)
    stream = training_batches(
        dataset, batch_size=3, seed=0, start_step=0, total_steps=1, workers=0, collate=collate_box_views
    )
    ((_, _, batch),) = list(stream)
    assert str(records[1].path) not in batch.paths
    assert len(batch) == 3
