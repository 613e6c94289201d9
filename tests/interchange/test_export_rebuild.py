"""rebuild.py gives the one-stage detector that was exported: a torchvision network on its own."""

import ast
import json

import pytest
import torch
from PIL import Image
from tests.detectors.scenes import SMALL, small_fcos, small_retinanet
from tests.interchange.rebuilding import assert_same, noise, note_of, rebuilt, seen
from torchvision import tv_tensors
from torchvision.models.detection import FCOS, RetinaNet

from selfdet.data.images import read_image
from selfdet.data.labelled import resize_sample
from selfdet.data.sample import boxes_xyxy, plain_sample
from selfdet.detectors.zoo import DETECTORS
from selfdet.interchange.companions import rebuild
from selfdet.interchange.companions.texts import text_of
from selfdet.interchange.export_detector import describe, write_detector
from selfdet.interchange.starts import load_detector
from selfdet.models.backbones import build_backbone

STOCK = {"fcos": FCOS, "retinanet": RetinaNet}


@pytest.fixture(params=list(STOCK))
def small(request):
    return SMALL[request.param]


@pytest.mark.parametrize("program", ["rebuild", "segmenter", "detect", "run_onnx"])
def test_what_goes_along_imports_nothing_of_selfdet_and_has_each_name_once(program):
    text = text_of(program)
    tree = ast.parse(text)
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {"json", "numpy"} <= names
    assert not any(name.partition(".")[0] == "selfdet" for name in names)
    defined = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    defined += [
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    ]
    assert len(defined) == len(set(defined))
    assert "build" in defined or "main" in defined
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("size", [(128, 128), (37, 61), (300, 211), (128, 90), (5, 7)], ids=str)
def test_images_of_any_size_give_the_detectors_own_boxes(tmp_path, size, small):
    detector = seen(small())
    net = rebuilt(detector, tmp_path)
    assert type(net) is STOCK[detector.key]
    assert not net.training
    assert_same(net, detector, noise(*size), 128)


@pytest.mark.parametrize(
    "options",
    [
        {"neck_norm": "bn", "batch_norm": "frozen"},
        {"neck_norm": "gn", "batch_norm": "sync", "head_convs": 2},
        {"image_size": 200, "score_threshold": 0.2, "detections": 15, "fpn_channels": 96, "num_classes": 1},
    ],
    ids=str,
)
def test_every_option_of_the_detector_arrives(tmp_path, options, small):
    detector = seen(small(**options))
    assert_same(rebuilt(detector, tmp_path), detector, noise(150, 100), options.get("image_size", 128))


@pytest.mark.parametrize("convs", [4, 6])
def test_a_retinanet_keeps_the_towers_it_was_trained_with(tmp_path, convs):
    detector = seen(small_retinanet(head_convs=convs))
    assert_same(rebuilt(detector, tmp_path), detector, noise(150, 100), 128)


def test_anchors_of_another_shape_are_another_detector(tmp_path):
    detector = seen(small_retinanet())
    write_detector(tmp_path, detector, note_of(detector))
    file = tmp_path / "detector.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "aspect_ratios": [0.25, 1.0, 4.0]}))
    with pytest.raises(AssertionError):
        assert_same(rebuild.build(tmp_path), detector, noise(150, 100), 128)


def test_a_score_threshold_of_ones_own_leaves_the_best_boxes(tmp_path, small):
    detector = seen(small())
    image = noise(100, 128).float() / 255
    with torch.no_grad():
        found = rebuilt(detector, tmp_path)([image])[0]
        middle = float(found["scores"].median())
        best = rebuild.build(tmp_path, score_threshold=middle)([image])[0]
    assert len(found["scores"]) > len(best["scores"]) > 0
    torch.testing.assert_close(best["boxes"], found["boxes"][found["scores"] > middle])


@pytest.mark.parametrize("key", list(STOCK))
def test_a_timm_body_brings_its_own_input_statistics(tmp_path, key):
    torch.manual_seed(0)
    body = build_backbone("tf_efficientnet_lite0")
    detector = seen(DETECTORS[key](2, body, fpn_channels=64, head_convs=1, image_size=128))
    assert describe(detector, note_of(detector))["mean"] == [0.5, 0.5, 0.5]
    assert_same(rebuilt(detector, tmp_path), detector, noise(150, 100), 128)


def test_the_exported_file_is_a_detector_for_selfdet_again(tmp_path, small):
    detector = small(neck_norm="bn")
    write_detector(tmp_path, detector, note_of(detector))
    again, note = load_detector(str(tmp_path / "detector.safetensors"))
    assert describe(again, note) == describe(detector, note_of(detector))
    assert all(torch.equal(value, again.net.state_dict()[key]) for key, value in detector.net.state_dict().items())


def test_it_can_be_trained_on_with_boxes_in_pixels_of_the_images(tmp_path, small):
    detector = seen(small())
    net = rebuilt(detector, tmp_path).train()
    image, boxes, labels = noise(100, 200), torch.tensor([[20.0, 10, 160, 90], [40, 40, 80, 70]]), torch.tensor([0, 2])
    sample = plain_sample(tv_tensors.Image(image))
    sample.boxes, sample.ids, sample.labels = boxes_xyxy(boxes, (100, 200)), torch.arange(2), labels
    expected = detector.train().losses(detector.prepare([resize_sample(sample, 128)]))
    target = {"boxes": boxes, "labels": labels}
    losses = net([image.float() / 255], [target])
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, atol=1e-5, rtol=1e-4)
    assert target["boxes"] is boxes


def test_bytes_are_refused_where_floats_are_expected(tmp_path):
    net = rebuilt(small_fcos(), tmp_path)
    with pytest.raises(TypeError, match="0…1"):
        net([noise(64, 64)])


def test_image_files_are_read_as_selfdet_reads_them(tmp_path):
    pixels = noise(40, 60).permute(1, 2, 0).numpy()
    alpha = noise(40, 60, seed=1)[0].numpy()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.save(tmp_path / "photo.jpg")
    picture.convert("L").save(tmp_path / "grey.png")
    picture.quantize(32).save(tmp_path / "palette.png")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.putalpha(Image.fromarray(alpha))
    picture.save(tmp_path / "clear.png")
    for file in tmp_path.iterdir():
        expected = read_image(file).as_subclass(torch.Tensor).float()
        difference = (rebuild.read(file) * 255 - expected).abs().max()
        assert difference <= (1.01 if file.name == "clear.png" else 1e-3), file.name
