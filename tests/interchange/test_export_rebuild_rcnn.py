"""rebuild.py gives the R-CNN that was exported: torchvision's own."""

import json
from functools import partial

import pytest
import torch
from tests.detectors.rcnn_scenes import masked, small_c4, small_cascade, small_faster, small_mask
from tests.detectors.scenes import sample
from tests.interchange.rebuilding import assert_same, noise, note_of, rebuilt, seen
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from selfdet.data.labelled import resize_sample
from selfdet.data.masks import encode_masks
from selfdet.detectors.zoo import DETECTORS
from selfdet.interchange.companions import rebuild
from selfdet.interchange.export_detector import describe, write_detector
from selfdet.interchange.starts import load_detector
from selfdet.models.backbones import build_backbone

SIZE = 64
STOCK = {"2fc": FasterRCNN, "4conv1fc": FasterRCNN, "c4": FasterRCNN, "mask": MaskRCNN}
SMALL = {
    "2fc": partial(small_faster, image_size=SIZE),
    "4conv1fc": partial(small_faster, image_size=SIZE, box_head="4conv1fc", neck_norm="bn"),
    "c4": partial(small_c4, image_size=SIZE),
    "mask": partial(small_mask, image_size=SIZE, detections=20),
}


@pytest.fixture(params=list(SMALL))
def kind(request):
    return request.param


def rebuilt_pair(detector, folder):
    """torchvision's network of the exported detector, and the detector, with few regions to look at."""
    net = rebuilt(detector, folder)
    for each in (net, detector.net):
        assert each.rpn._post_nms_top_n == {"training": 2000, "testing": 1000}
        each.rpn._post_nms_top_n["testing"] = 80
    return net, detector


def test_images_of_any_size_give_the_detectors_own_boxes_and_masks(tmp_path, kind):
    net, detector = rebuilt_pair(seen(SMALL[kind]()), tmp_path)
    assert type(net) is STOCK[kind]
    assert type(net.roi_heads.box_roi_pool) is MultiScaleRoIAlign
    assert type(net.rpn.anchor_generator) is AnchorGenerator
    assert not net.training
    # The first image is as small beside its padding as can be: it must not decide where regions are looked for.
    for size in ((17, 64), (64, 64), (37, 61), (300, 211), (5, 7)):
        assert_same(net, detector, noise(*size), SIZE)


def test_every_option_of_the_detector_arrives(tmp_path, kind):
    options = {"batch_norm": "frozen", "image_size": 96, "score_threshold": 0.02, "detections": 11, "num_classes": 5}
    net, detector = rebuilt_pair(seen(SMALL[kind](**options)), tmp_path)
    assert (net.roi_heads.score_thresh, net.roi_heads.detections_per_img) == (0.02, 11)
    assert_same(net, detector, noise(150, 100), 96)


@pytest.mark.parametrize("build", [small_mask, small_faster])
@pytest.mark.parametrize("box_head", ["2fc", "4conv1fc"])
def test_the_options_of_a_pyramid_arrive(tmp_path, build, box_head):
    options = {"neck_norm": "gn", "fpn_channels": 96, "box_head": box_head, "teacher_rois": "proposals"}
    detector = seen(build(image_size=SIZE, detections=20, **options))
    assert_same(*rebuilt_pair(detector, tmp_path), noise(150, 100), SIZE)


def test_a_cascade_is_rebuilt_from_torchvisions_parts_for_images_of_any_size(tmp_path):
    net, detector = rebuilt_pair(seen(small_cascade(image_size=SIZE, detections=20, score_threshold=0.02)), tmp_path)
    assert (net.roi_heads.score_thresh, net.refine[1].detections_per_img) == (0.02, 20)
    for size in ((17, 64), (150, 100), (5, 7)):
        assert_same(net, detector, noise(*size), SIZE)
    assert "masks" not in net([noise(64, 64).float() / 255])[0]
    with pytest.raises(RuntimeError, match="for detection"):
        net.train()([noise(64, 64).float() / 255], [{"boxes": torch.ones(0, 4), "labels": torch.ones(0).long()}])


def test_the_mask_branches_of_a_cascade_are_rebuilt(tmp_path):
    net, detector = rebuilt_pair(seen(small_cascade(image_size=SIZE, detections=20, masks=True)), tmp_path)
    for size in ((64, 64), (150, 100)):
        assert_same(net, detector, noise(*size), SIZE)


@pytest.mark.parametrize(("size", "scale"), [(128, 0.5), (560, 0.75), (800, 1)])
def test_what_is_scaled_with_the_working_size_is_written_down(tmp_path, size, scale):
    detector = small_faster(image_size=size)
    described = describe(detector, note_of(detector))
    assert described["anchor_sizes"] == [[int(8 * stride * scale)] for stride in (4, 8, 16, 32, 64)]
    assert described["canonical_scale"] == int(224 * scale)
    assert described["image_size"] == size
    net = rebuilt(detector, tmp_path)
    assert net.rpn.anchor_generator.sizes == detector.net.rpn.anchor_generator.sizes
    assert net.roi_heads.box_roi_pool.canonical_scale == int(224 * scale)
    c4 = small_c4(image_size=size)
    assert describe(c4, note_of(c4))["anchor_sizes"] == [[int(side * scale) for side in (32, 64, 128, 256, 512)]]


def test_anchors_that_are_no_halves_are_rebuilt_exactly(tmp_path):
    detector = seen(small_faster(image_size=560))
    assert_same(*rebuilt_pair(detector, tmp_path), noise(150, 100), 560)


@pytest.mark.parametrize(
    ("name", "value"),
    [("anchor_sizes", [[8], [16], [32], [64], [128]]), ("canonical_scale", 14), ("nms_threshold", 0.9)],
)
def test_the_description_decides_what_is_found(tmp_path, name, value):
    detector = seen(SMALL["2fc"]())
    write_detector(tmp_path, detector, note_of(detector))
    file = tmp_path / "detector.json"
    described = json.loads(file.read_text())
    assert described[name] != value
    file.write_text(json.dumps({**described, name: value}))
    with pytest.raises(AssertionError):
        assert_same(rebuild.build(tmp_path), detector, noise(150, 100), SIZE)


def test_of_c4_nothing_is_written_down_that_is_a_pyramids():
    detector = small_c4()
    described = describe(detector, note_of(detector))
    assert described["neck"] == "c4"
    assert not {"fpn_channels", "box_head", "neck_norm", "teacher_rois"} & described.keys()
    assert described["rpn_boxes"] == [12000, 6000]


@pytest.mark.parametrize("key", ["faster_rcnn", "mask_rcnn"])
def test_a_timm_body_brings_its_own_input_statistics(tmp_path, key):
    torch.manual_seed(0)
    body = build_backbone("tf_efficientnet_lite0")
    detector = seen(DETECTORS[key](2, body, fpn_channels=64, image_size=SIZE, detections=20))
    with torch.no_grad():
        detector.net.rpn.head.cls_logits.weight.normal_(std=0.1)
    assert describe(detector, note_of(detector))["mean"] == [0.5, 0.5, 0.5]
    assert_same(*rebuilt_pair(detector, tmp_path), noise(150, 100), SIZE)


def test_the_exported_file_is_a_detector_for_selfdet_again(tmp_path, kind):
    detector = SMALL[kind]()
    write_detector(tmp_path, detector, note_of(detector))
    again, note = load_detector(str(tmp_path / "detector.safetensors"))
    assert describe(again, note) == describe(detector, note_of(detector))
    assert all(torch.equal(value, again.net.state_dict()[key]) for key, value in detector.net.state_dict().items())


def test_it_can_be_trained_on_with_boxes_classes_and_masks_as_it_gives_them(tmp_path, kind):
    detector = seen(SMALL[kind]())
    net = rebuilt(detector, tmp_path).train()
    one = masked(sample(100, 200, [[20, 10, 160, 90], [40, 40, 80, 70]], [0, 2]))
    torch.manual_seed(1)  # which anchors and regions are drawn
    expected = detector.train().losses(detector.prepare([resize_sample(one, SIZE)]))
    target = {"boxes": one.boxes.as_subclass(torch.Tensor), "labels": one.labels}
    if kind == "mask":
        target["masks"] = one.masks.as_subclass(torch.Tensor)
    given = dict(target)
    torch.manual_seed(1)
    losses = net([one.image.float() / 255], [target])
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        assert loss > 0
        torch.testing.assert_close(losses[name], loss, atol=1e-5, rtol=1e-4)
    assert target.keys() == given.keys()
    assert all(target[name] is value for name, value in given.items())


def test_a_photo_without_anything_has_no_masks(tmp_path):
    detector = small_mask()
    write_detector(tmp_path, detector, note_of(detector))
    with torch.no_grad():
        found = rebuild.build(tmp_path, score_threshold=1.0)([noise(30, 50).float() / 255])[0]
    assert found["boxes"].shape == (0, 4)
    assert found["masks"].shape == (0, 1, 30, 50)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (240, 320)], ids=str)
def test_run_lengths_are_cocos_compressed_ones(size):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 1, 4, 6, generator=generator)
    blobs = torch.nn.functional.interpolate(coarse, size, mode="bilinear")[:, 0] > 0.5
    specks = torch.rand(3, *size, generator=generator) > 0.5
    masks = torch.cat([blobs, ~blobs, specks, torch.stack([specks[0] & False, specks[0] | True])])
    assert [rebuild.run_lengths(mask) for mask in masks] == encode_masks(masks)
