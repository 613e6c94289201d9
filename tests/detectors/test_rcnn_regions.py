"""Regions of the R-CNNs: which take part and whose they are, against matchers written down from the paper's rules."""

import copy

import numpy as np
import pytest
import torch
from tests.detectors.rcnn_scenes import BOXES, TWO_STAGE, random_maps, small_faster, zero_maps
from tests.detectors.scenes import EVERY_LEVEL, sample
from torch import nn

from selfdet.data.box_views import BoxViews
from selfdet.detectors._torchvision_rcnn import rpn_boxes
from selfdet.detectors.sampling import ObjectsFirst

DIM = 8


def regions_of(detector, samples, *, losses=False, most=None, seed=0, maps=random_maps):
    batch = detector.prepare(samples)
    torch.manual_seed(0)
    projector = detector.projector(DIM).to(batch.tensor.dtype)
    draw = torch.Generator().manual_seed(seed)
    return detector.regions(maps(batch), batch, projector, draw, losses=losses, samples=most)[0]


def overlaps(boxes, others):
    """IoU (N, M) of xyxy boxes."""
    corner, far = np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = (far - corner).clip(0).prod(2)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1] - shared)


def region_matches(boxes, proposed, ids):
    """Pairs (box, id) of the proposed regions and the boxes themselves: the best box's id where its IoU is 0.5."""
    places = np.concatenate([proposed, boxes])
    if not len(boxes):
        return []
    iou = overlaps(boxes, places)
    return sorted((*places[i].tolist(), int(ids[iou[:, i].argmax()])) for i in np.flatnonzero(iou.max(0) >= 0.5))


def anchor_labels(boxes, anchors):
    """1 from an IoU of 0.7 on and for the best anchors of a box, 0 below 0.3, −1 between."""
    if not len(boxes):
        return np.zeros(len(anchors))
    iou = overlaps(boxes, anchors)
    best = (iou >= iou.max(1, keepdims=True) - 1e-9).any(0)
    return np.where((iou.max(0) >= 0.7) | best, 1, np.where(iou.max(0) < 0.3, 0, -1))


def anchors_of(padded, image_size=128):
    """All anchors, level by level, row by row, those of a cell from wide to tall."""
    found = []
    for stride in (4, 8, 16, 32, 64):
        rows, columns = -(-padded[0] // stride), -(-padded[1] // stride)
        for y in range(rows):
            for x in range(columns):
                for ratio in (0.5, 1.0, 2.0):
                    half = np.round(np.float32([4 * stride / ratio**0.5, 4 * stride * ratio**0.5]) / 2)
                    centre = np.array([x * (padded[1] // columns), y * (padded[0] // rows)])
                    found.append([*(centre - half), *(centre + half)])
    return np.array(found)


def views_of(count):
    """Both views of images with 0 to 11 boxes of any size, whose ids are no positions."""
    views, rng = BoxViews((70, 90, 110), 128, seed=0), np.random.default_rng(0)
    for index in range(count):
        start = rng.uniform(0, 100, (int(rng.integers(0, 12)), 2))
        corners = np.concatenate([start, start + rng.uniform(4, 90, start.shape)], 1).clip(0, [[140, 110] * 2])
        one = sample(110, 140, corners.tolist(), seed=index)
        one.ids = torch.from_numpy(rng.permutation(1000)[: len(one.ids)])
        yield from views(one, 0, index)


@pytest.mark.parametrize("key", list(TWO_STAGE))
def test_ids_are_those_of_an_independent_matcher_on_both_views_of_fifty_images(key):
    detector, placed = TWO_STAGE[key](), 0
    for view in views_of(50):
        batch = detector.prepare([view])
        maps = zero_maps(batch)
        proposed, _ = rpn_boxes(detector.net, batch.tensor, batch.sizes, maps, counts=(2000, 1000))
        found = detector.regions(maps, batch, nn.Identity(), torch.Generator(), losses=False)[0]
        boxes = view.boxes.as_subclass(torch.Tensor).double().numpy()
        expected = region_matches(boxes, proposed[0].double().numpy(), view.ids.tolist())
        assert sorted((*box, i) for box, i in zip(found.boxes.tolist(), found.ids.tolist())) == expected
        assert {*view.ids.tolist()} >= {*found.ids.tolist()}
        placed += len(expected)
    assert placed > 1000


@pytest.fixture
def drawn(monkeypatch):
    """Pairs (labels, what was drawn of them) of every call of our sampler: of the RPN's anchors, then of the RoIs."""
    seen = []
    original = ObjectsFirst.__call__

    def listen(self, labels):
        seen.append((labels, original(self, labels)))
        return seen[-1][1]

    monkeypatch.setattr(ObjectsFirst, "__call__", listen)
    return seen


def test_the_anchors_that_train_the_rpn_are_those_of_an_independent_matcher(drawn):
    detector = small_faster()
    for view in views_of(10):
        drawn.clear()
        regions_of(detector, [view], losses=True, maps=zero_maps)
        labels, (objects, background) = drawn[0]
        boxes = view.boxes.as_subclass(torch.Tensor).double().numpy()
        expected = anchor_labels(boxes, anchors_of(detector.padded_size(*view.size)))
        assert labels[0].tolist() == expected.tolist()
        assert objects[0].equal(labels[0] == 1)
        assert int(background[0].sum()) == min(4096 - int(objects[0].sum()), int((labels[0] == 0).sum()))


def assert_trains(detector, found):
    (sum(found.losses.values()) + found.embeddings.sum()).backward()
    assert all(loss.isfinite() for loss in found.losses.values())
    for part in (detector.net.rpn, detector.net.roi_heads.box_head, detector.net.roi_heads.box_predictor):
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in part.parameters())


@pytest.mark.parametrize("level", range(5))
def test_proposals_that_all_fall_on_one_level_of_the_rpn_train_it(level, drawn):
    detector, half = small_faster(), 8 * 2**level
    box = [128 - half, 128 - half, 128 + half, 128 + half]
    found = regions_of(detector, [sample(256, 256, [box, box])], losses=True)
    anchors = [3 * (256 // stride) ** 2 for stride in (4, 8, 16, 32, 64)]
    objects = [bool(each.any()) for each in drawn[0][1][0][0].split(anchors)]
    assert objects == [each == level for each in range(5)]
    assert found.losses["loss_objectness"] > 0
    assert_trains(detector, found)


@pytest.mark.parametrize(("growth", "box", "level"), [(-3, [8, 8, 12, 12], 0), (4, [1, 1, 255, 255], 3)])
def test_regions_that_are_all_cut_from_one_map_train(growth, box, level):
    detector, one = small_faster(), sample(256, 256, [box])
    with torch.no_grad():
        for layer in (detector.net.rpn.head.bbox_pred, detector.net.rpn.head.cls_logits):
            layer.weight.zero_()
        detector.net.rpn.head.bbox_pred.bias.view(3, 4)[:, 2:] = growth  # of width and height
    batch = detector.prepare([one])
    boxes, _ = rpn_boxes(detector.net, batch.tensor, batch.sizes, random_maps(batch))
    assert detector.net.roi_heads.box_roi_pool.map_levels(boxes).unique().tolist() == [level]
    found = regions_of(detector, [one], losses=True)
    assert len(found.ids) >= 1
    assert_trains(detector, found)


def test_every_box_has_a_region_and_there_is_no_background():
    found = regions_of(small_faster(), [sample(128, 128, EVERY_LEVEL[:1]), sample(128, 128, BOXES)], losses=True)
    assert set(found.ids.tolist()) == {0, 1}
    assert found.embeddings.shape == (len(found.ids), DIM)
    assert found.boxes.shape == (len(found.ids), 4)


def test_no_more_than_the_asked_number_of_an_image_is_drawn_from_the_generator():
    detector = small_faster()
    samples = [sample(128, 128, [[8, 8, 120, 120], *BOXES]), sample(128, 128, BOXES)]
    everything = regions_of(detector, samples, maps=zero_maps)
    assert len(everything.ids) > 30
    few, again, other = (regions_of(detector, samples, most=3, seed=seed, maps=zero_maps) for seed in (0, 0, 1))
    assert len(few.ids) == len(other.ids) == 6
    assert few.boxes.equal(again.boxes)
    assert not few.boxes.equal(other.boxes)


def test_a_teacher_may_take_the_proposals_alone_and_never_runs_its_rpn():
    detector, samples = small_faster(teacher_rois="proposals"), [sample(128, 128, BOXES), sample(128, 128)]
    runs = []
    detector.net.rpn.head.register_forward_hook(lambda *_: runs.append(1))
    found = regions_of(detector, samples)
    assert runs == []
    assert found.boxes.tolist() == BOXES
    assert found.ids.tolist() == [0, 1]
    assert len(regions_of(detector, samples, losses=True, maps=zero_maps).ids) > 2
    assert runs == [1]


def test_embeddings_do_not_depend_on_losses_and_boxes_become_the_predicted_ones():
    samples = [sample(128, 128, EVERY_LEVEL[:1])]
    found, stood = regions_of(small_faster(), samples, losses=True), regions_of(small_faster(), samples)
    assert found.embeddings.equal(stood.embeddings)
    assert found.ids.equal(stood.ids)
    assert stood.losses == {}
    assert not found.boxes.requires_grad
    assert not found.boxes.equal(stood.boxes)


def test_losses_are_those_of_the_rpn_and_of_the_regions():
    losses = regions_of(small_faster(), [sample(128, 128, BOXES)], losses=True).losses
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_box_reg", "loss_classifier"}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())


def test_the_classifier_learns_alone_from_objects_and_background():
    detector = small_faster(num_classes=1)
    regions_of(detector, [sample(128, 128, BOXES)], losses=True).losses["loss_classifier"].backward()
    reached = {name for name, p in detector.net.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {f"roi_heads.box_predictor.cls_score.{kind}" for kind in ("weight", "bias")}


def test_box_regression_is_class_agnostic():
    detector = small_faster(num_classes=3)
    regions_of(detector, [sample(128, 128, BOXES)], losses=True).losses["loss_box_reg"].backward()
    rows = detector.net.roi_heads.box_predictor.bbox_pred.weight.grad.abs().sum(1) > 0
    assert rows.tolist() == [False] * 4 + [True] * 4 + [False] * 8


def test_batch_norm_of_the_box_head_sees_the_taken_regions_alone(monkeypatch):
    detector = small_faster(box_head="4conv1fc", neck_norm="bn").train()
    before = copy.deepcopy(detector.net.state_dict())
    regions_of(detector, [sample(128, 128, BOXES)], losses=True)
    once = {name: v.clone() for name, v in detector.net.state_dict().items() if name.startswith("roi_heads.box_head")}
    assert any(not value.equal(before[name]) for name, value in once.items())
    detector.net.load_state_dict(before)
    regions_of(detector, [sample(128, 128, BOXES)], losses=False)
    assert all(value.equal(detector.net.state_dict()[name]) for name, value in once.items())
    assert all(module.training for module in detector.net.roi_heads.box_head.modules())


def test_the_rpns_recall_is_the_share_of_proposals_it_meets():
    far = [[0, 0, 3, 3], [8, 8, 72, 40]]  # the second is as large as an anchor, and there is one
    figures = regions_of(small_faster(), [sample(128, 128, far)], losses=True, maps=zero_maps).figures
    assert figures["rpn_recall"] == 0.5
    assert regions_of(small_faster(), [sample(128, 128)], losses=True).figures == {}


@pytest.mark.parametrize("boxes", [[], [[3, 3, 3, 9]], [[200, 200, 250, 250]]], ids=["none", "flat", "outside"])
@pytest.mark.parametrize("options", [{}, {"box_head": "4conv1fc", "neck_norm": "bn"}], ids=["2fc", "4conv1fc"])
def test_without_boxes_there_are_no_regions_and_losses_stay_on_the_graph(boxes, options):
    detector = small_faster(**options)
    found = regions_of(detector, [sample(64, 64, boxes)], losses=True)
    assert len(found.ids) == 0
    assert found.losses["loss_box_reg"] == found.losses["loss_rpn_box_reg"] == 0
    (sum(found.losses.values()) + found.embeddings.sum()).backward()
    for part in (detector.net.rpn, detector.net.roi_heads.box_head, detector.net.roi_heads.box_predictor):
        assert all(parameter.grad is not None for parameter in part.parameters())
        assert all(parameter.grad.isfinite().all() for parameter in part.parameters())


def test_identical_boxes_all_go_to_one_id():
    found = regions_of(small_faster(), [sample(128, 128, [[20, 20, 90, 90]] * 3)], maps=zero_maps)
    assert found.ids.unique().tolist() == [0]
    assert len(found.ids) >= 3


def test_ids_beyond_256_keep_their_losses():
    """An id is no index: neither 0 nor 256 nor anything else stands for background or a class."""
    one = sample(128, 128, [[10, 10, 40, 40], [60, 50, 110, 120]])
    small_ids = regions_of(small_faster(), [one], losses=True)
    one.ids = torch.tensor([256, 70_000])
    large_ids = regions_of(small_faster(), [one], losses=True)
    assert set(large_ids.ids.tolist()) == {256, 70_000}
    assert (large_ids.ids == 256).equal(small_ids.ids == 0)
    assert large_ids.losses == small_ids.losses


def test_regions_are_nearly_the_same_under_bfloat16_autocast():
    samples = [sample(128, 128, BOXES)]
    exact = regions_of(small_faster(), samples, losses=True, maps=zero_maps)
    with torch.autocast("cpu", torch.bfloat16):
        found = regions_of(small_faster(), samples, losses=True, maps=zero_maps)
    assert found.ids.equal(exact.ids)
    assert found.boxes.dtype == torch.float32
    for name, loss in found.losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact.losses[name], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("teacher_rois", ["rpn", "proposals"])
def test_a_double_network_gives_double_regions(teacher_rois):
    detector = small_faster(teacher_rois=teacher_rois).double()
    samples = [sample(64, 64, [[10, 10, 30, 30]]), sample(64, 64)]

    def maps(batch):
        return {name: level.double() for name, level in random_maps(batch).items()}

    found = regions_of(detector, samples, losses=True, maps=maps)
    assert {value.dtype for value in (found.embeddings, found.boxes, *found.losses.values())} == {torch.float64}
    assert regions_of(detector, samples, maps=maps).embeddings.dtype == torch.float64


def test_the_projector_is_an_mlp_as_wide_as_a_regions_features():
    layers = [layer for layer in small_faster().projector(256).modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(1024, 1024), (1024, 256)]
