"""Regions: which places take part and whose they are, against matchers written down from the papers' rules."""

import numpy as np
import pytest
import torch
from tests.detectors.scenes import EVERY_LEVEL, SMALL, sample

from selfdet.data.box_views import BoxViews

STRIDES = [8, 16, 32, 64, 128]
SIDES = [4, 8, 16, 32, 64]  # of the levels up to 400 px
DIM = 8


def zero_maps(batch):
    """Maps of the right shapes: what is assigned does not depend on what is seen."""
    height, width = batch.tensor.shape[-2:]
    count = len(batch.sizes)
    return {str(stride): torch.zeros(count, 64, -(-height // stride), -(-width // stride)) for stride in STRIDES}


def regions_of(detector, samples, *, losses=False, most=None, seed=0, maps=None):
    batch = detector.prepare(samples)
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(seed)
    maps = zero_maps(batch) if maps is None else maps(batch)
    return detector.regions(maps, batch, detector.projector(DIM), draw, losses=losses, samples=most)[0]


def grid(sizes):
    """(x, y, level) of every cell, with torchvision's cells centred on multiples of the stride."""
    height, width = sizes
    for level, stride in enumerate(STRIDES):
        for y in range(-(-height // stride)):
            for x in range(-(-width // stride)):
                yield x * stride, y * stride, level


def fcos_matches(boxes, sizes):
    """Pairs (anchor, row of its box): near the centre, inside, of the level's range, and the smallest of such boxes."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    found = set()
    for x, y, level in grid(sizes):
        distances = np.stack([x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y])
        near = np.abs(centre - [x, y]).max(1) < 1.5 * STRIDES[level]
        low = 4 * SIDES[level] if level else 0
        high = 8 * SIDES[level] if level < 4 else np.inf
        farthest = distances.max(0)
        fits = near & (distances.min(0) > 0) & (farthest > low) & (farthest < high)
        if fits.any():
            half = SIDES[level] / 2
            found.add((x - half, y - half, x + half, y + half, int(np.where(fits, area, np.inf).argmin())))
    return found


def retinanet_matches(boxes, sizes):
    """Pairs (anchor, row of its box): the box of the highest IoU if that is 0.5 or the anchor is some box's best."""
    anchors = []
    for x, y, level in grid(sizes):
        for ratio in (0.5, 1.0, 2.0):
            for third in range(3):
                side = int(4 * SIDES[level] * 2 ** (third / 3))
                half = np.round([side / ratio**0.5 / 2, side * ratio**0.5 / 2])
                anchors.append([x - half[0], y - half[1], x + half[0], y + half[1]])
    anchors = np.array(anchors)
    corner, other = np.maximum(boxes[:, None, :2], anchors[:, :2]), np.minimum(boxes[:, None, 2:], anchors[:, 2:])
    shared = (other - corner).clip(0).prod(2)
    area = [(each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, anchors)]
    iou = shared / (area[0][:, None] + area[1] - shared)
    positive = (iou.max(0) >= 0.5) | (iou >= iou.max(1, keepdims=True) - 1e-9).any(0)
    return {(*anchors[i].tolist(), int(iou[:, i].argmax())) for i in np.flatnonzero(positive)}


MATCHERS = {"fcos": fcos_matches, "retinanet": retinanet_matches}


@pytest.fixture(params=list(SMALL))
def key(request):
    return request.param


def test_ids_are_those_of_an_independent_matcher_on_both_views_of_fifty_images(key):
    detector, views = SMALL[key](), BoxViews((70, 90, 110), 128, seed=0)
    rng = np.random.default_rng(0)
    placed = 0
    for index in range(50):
        start = rng.uniform(0, 100, (int(rng.integers(0, 12)), 2))
        corners = np.concatenate([start, start + rng.uniform(4, 90, start.shape)], 1).clip(0, [[140, 110] * 2])
        one = sample(110, 140, corners.tolist(), seed=index)
        one.ids = torch.from_numpy(rng.permutation(1000)[: len(one.ids)])
        for view in views(one, 0, index):
            found = regions_of(detector, [view], most=10_000)
            sizes = detector.padded_size(*view.size)
            boxes = view.boxes.as_subclass(torch.Tensor).double().numpy()
            expected = MATCHERS[key](boxes, sizes) if len(boxes) else set()
            expected = {(*match[:4], int(view.ids[match[4]])) for match in expected}
            ours = {(*box, i) for box, i in zip(found.boxes.tolist(), found.ids.tolist()) if i >= 0}
            assert ours == expected
            placed += len(ours)
    assert placed > 500


def test_objects_come_first_and_background_from_inside_the_images_fills_up(key):
    detector = SMALL[key]()
    samples = [sample(70, 100, [[5, 5, 60, 60], [30, 10, 90, 50]]), sample(128, 128)]
    everything = regions_of(detector, samples, most=10_000)
    objects = int((everything.ids >= 0).sum())
    assert 0 < objects < 60
    background = everything.boxes[everything.ids < 0]
    centres = (background[:, :2] + background[:, 2:]) / 2
    assert (everything.ids >= -1).all()
    assert (centres >= 0).all()
    assert (centres < 128).all()
    inside = ((centres[:, 0] < 100) & (centres[:, 1] < 70)).sum()
    assert len(centres) > inside > 0  # the second image is larger than the first
    first = regions_of(detector, samples[:1], most=10_000)
    centres = (first.boxes[:, :2] + first.boxes[:, 2:]) / 2
    assert (centres[first.ids < 0] < torch.tensor([100, 70])).all()

    some = regions_of(detector, samples, most=60)
    assert int((some.ids >= 0).sum()) == objects
    assert len(some.ids) == (60 if key == "fcos" else 120)  # a batch and view, an image
    few = regions_of(detector, samples, most=3)
    assert len(few.ids) == (3 if key == "fcos" else 6)
    assert (few.ids[:3] >= 0).all()


def test_usually_2048_places_are_taken(key):
    samples = [sample(256, 256, EVERY_LEVEL[:2], seed=seed) for seed in range(2)]
    assert len(regions_of(SMALL[key](), samples).ids) == (2048 if key == "fcos" else 2 * 2048)


def test_what_is_drawn_follows_from_the_generator(key):
    detector, samples = SMALL[key](), [sample(128, 128, [[5, 5, 60, 60]])]
    once, again, other = (regions_of(detector, samples, most=50, seed=seed).boxes for seed in (0, 0, 1))
    assert once.equal(again)
    assert not once.equal(other)


def random_maps(batch):
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(level.shape, generator=generator) for name, level in zero_maps(batch).items()}


def test_embeddings_are_the_projectors_of_the_classification_tower_and_boxes_the_networks_own(key):
    detector = SMALL[key]()
    found = regions_of(detector, [sample(128, 128, EVERY_LEVEL[:1])], losses=True, most=10_000, maps=random_maps)
    stood = regions_of(detector, [sample(128, 128, EVERY_LEVEL[:1])], most=10_000, maps=random_maps)
    assert found.embeddings.shape == (len(found.ids), DIM)
    assert found.embeddings.equal(stood.embeddings)
    assert found.ids.equal(stood.ids)
    assert stood.losses == {}
    assert not found.boxes.requires_grad
    assert not found.boxes.equal(stood.boxes)
    assert found.boxes.shape == stood.boxes.shape


def test_box_losses_are_those_of_training_with_the_same_boxes(key):
    detector = SMALL[key](num_classes=1)
    samples = [sample(128, 128, [*EVERY_LEVEL[:1], [50, 40, 110, 126]], [0, 0]), sample(128, 128)]
    batch = detector.prepare(samples)
    found = detector.regions(detector.features(batch), batch, detector.projector(DIM), torch.Generator(), losses=True)[
        0
    ]
    own = detector.losses(batch)
    objectness = found.losses.pop("objectness")
    assert set(found.losses) == set(own) - {"classification"}
    for name, loss in found.losses.items():
        torch.testing.assert_close(loss, own[name])
    # Alike but for RetinaNet's mean, which is over images first.
    assert 0.2 * own["classification"] < objectness < 5 * own["classification"]


def test_objectness_trains_the_classifier_alone_and_boxes_do_not_train_it(key):
    detector = SMALL[key](num_classes=1)
    for name, trained in {
        "objectness": {"classification_head.cls_logits"},
        "bbox_regression": {"regression_head.bbox_reg", "regression_head.conv"},
    }.items():
        detector.zero_grad()
        samples = [sample(128, 128, [*EVERY_LEVEL[:1], [50, 40, 110, 126]])]
        regions_of(detector, samples, losses=True, maps=random_maps).losses[name].backward()
        reached = {each for each, p in detector.net.head.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached
        assert all(any(each.startswith(layer) for layer in trained) for each in reached)


def test_an_objects_places_become_the_best_scored_when_only_objectness_trains(key):
    detector = SMALL[key](num_classes=1)
    samples = [sample(128, 128, [[16, 16, 80, 80]])]
    classifier = detector.net.head.classification_head.cls_logits
    optimizer = torch.optim.Adam(classifier.parameters(), 0.05)
    seen = []
    for _ in range(25):
        loss = regions_of(detector, samples, losses=True, maps=random_maps).losses["objectness"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.5 * seen[0]


@pytest.mark.parametrize("boxes", [[], [[3, 3, 3, 9]], [[200, 200, 250, 250]]], ids=["none", "flat", "outside"])
def test_without_boxes_everything_is_background_and_losses_are_zero_on_the_graph(boxes, key):
    detector = SMALL[key]()
    found = regions_of(detector, [sample(64, 64, boxes)], losses=True, maps=random_maps)
    assert (found.ids == -1).all()
    assert len(found.ids)
    box_loss = sum(loss for name, loss in found.losses.items() if name != "objectness")
    assert box_loss == 0
    (box_loss + found.losses["objectness"] + found.embeddings.sum()).backward()
    assert all(parameter.grad is not None for parameter in detector.net.head.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in detector.net.head.parameters())


def test_identical_boxes_all_go_to_one_id(key):
    found = regions_of(SMALL[key](), [sample(128, 128, [[20, 20, 90, 90]] * 3)])
    assert len(found.ids[found.ids >= 0].unique()) == 1


def test_ids_beyond_256_keep_their_losses(key):
    """An id is no index: neither 256 nor anything else stands for background."""
    one = sample(128, 128, [[10, 10, 40, 40], [60, 50, 110, 120]])
    small_ids = regions_of(SMALL[key](), [one], losses=True, maps=random_maps)
    one.ids = torch.tensor([256, 70_000])
    large_ids = regions_of(SMALL[key](), [one], losses=True, maps=random_maps)
    assert set(large_ids.ids.tolist()) == {-1, 256, 70_000}
    assert (large_ids.ids >= 0).equal(small_ids.ids >= 0)
    assert large_ids.losses == small_ids.losses


def test_regions_are_exact_under_bfloat16_autocast(key):
    detector = SMALL[key]()
    samples = [sample(128, 128, EVERY_LEVEL[:1])]
    exact = regions_of(detector, samples, losses=True, maps=random_maps)
    with torch.autocast("cpu", torch.bfloat16):
        found = regions_of(detector, samples, losses=True, maps=random_maps)
    assert found.ids.equal(exact.ids)
    assert found.boxes.dtype == torch.float32
    for name, loss in found.losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact.losses[name], atol=0.05, rtol=0.05)


def test_a_double_network_gives_double_regions(key):
    detector = SMALL[key]().double()
    batch = detector.prepare([sample(64, 64, [[10, 10, 30, 30]])])
    maps = {name: level.double() for name, level in zero_maps(batch).items()}
    projector = detector.projector(DIM).double()
    found = detector.regions(maps, batch, projector, torch.Generator(), losses=True)[0]
    assert {value.dtype for value in (found.embeddings, found.boxes, *found.losses.values())} == {torch.float64}
