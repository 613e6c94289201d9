"""Detectors of mmdet find the same here as there, or are refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interchange.foreign_files import aligndet, layer, mmdet
from tests.interchange.mmdet_peer import Peer
from torchvision import tv_tensors
from torchvision.models.detection.image_list import ImageList

from selfdet import export, import_weights
from selfdet.data.sample import plain_sample
from selfdet.detectors._torchvision_rcnn import box_features, roi_outputs, rpn_boxes
from selfdet.errors import UserError
from selfdet.interchange.companions.rebuild import build
from selfdet.interchange.export_check import compare_detections
from selfdet.interchange.export_detector import write_detector
from selfdet.interchange.imported import ImportedDetector
from selfdet.interchange.imports import NotTakenError
from selfdet.interchange.mmdet import import_detector
from selfdet.interchange.starts import build_detector, load_detector, resolve_start
from selfdet.models.backbones import evaluating

HEIGHT, WIDTH = 96, 160  # px; the fifth level has a row more than its stride would give an image of 64 px


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("mmdet") / "epoch_12.pth"
    with file.open("wb") as large:
        large.truncate(2**30)
    return file


def changed(content: Any, **tensors: torch.Tensor) -> Any:
    return {**content, "state_dict": {**content["state_dict"], **tensors}}


def same(ours: ImportedDetector, content: Any, masks: bool) -> None:
    """Every map, every logit and every detection are the peer's."""
    torch.manual_seed(0)
    peer, detector = Peer(content["state_dict"]), ours.detector
    image = tv_tensors.Image(torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8))
    batch = detector.prepare([plain_sample(image)])
    net: Any = detector.net
    close = {"atol": 1e-5, "rtol": 1e-4}
    with torch.no_grad(), evaluating(detector):
        maps, theirs = detector.features(batch), peer.maps(batch.tensor)
        for found, expected in zip(maps.values(), theirs, strict=True):
            torch.testing.assert_close(found, expected, **close)
        logits, deltas = net.rpn.head(list(maps.values()))
        for level, (objectness, boxes) in enumerate(peer.rpn(theirs)):
            torch.testing.assert_close(logits[level], objectness, **close)
            torch.testing.assert_close(deltas[level], boxes, **close)
        rois = peer.proposals(theirs, (HEIGHT, WIDTH))
        (boxes,), _ = rpn_boxes(net, batch.tensor, batch.sizes, maps)
        torch.testing.assert_close(boxes, rois, atol=1e-3, rtol=0)
        logits, deltas = roi_outputs(net.roi_heads, box_features(net.roi_heads, maps, [rois], batch.sizes))
        expected, moves = peer.heads(theirs, rois)
        torch.testing.assert_close(logits, expected.roll(1, 1), **close)
        torch.testing.assert_close(deltas[:, 4:], moves.repeat(1, 12 // moves.shape[1]), **close)
        # Which of two boxes suppresses the other can hang on the last bit.
        (found,) = detector.detections(batch)
        boxes, scores, labels = peer.found(batch.tensor, net.roi_heads.score_thresh)
        assert len(boxes) == 100
        own = {name: found[name] for name in ("boxes", "scores", "labels")}
        figures = compare_detections([own], [{"boxes": boxes, "scores": scores, "labels": labels}])
        assert figures["box_difference"] < 1e-3
        assert figures["score_difference"] < 1e-5
        if masks:
            chosen = peer.masks(theirs, found["boxes"])[torch.arange(100), found["labels"]].sigmoid()
            torch.testing.assert_close(found["masks"], chosen, atol=1e-5, rtol=0)


@pytest.mark.parametrize("box_head", ["2fc", "4conv1fc"])
def test_what_it_finds_is_what_mmdet_finds(place: Path, box_head: str) -> None:
    masks = box_head == "2fc"
    content = mmdet(masks=masks, box_head=box_head)
    ours = import_detector(place, content)
    assert (ours.classes, ours.image_size) == (["cat", "dog", "cow"], 1333)
    assert ours.detector.config()["detector"] == ("mask_rcnn" if masks else "faster_rcnn")
    assert all(row.share == 1 for row in ours.report.rows.values() if row.size)
    same(ours, content, masks)


def test_one_box_for_all_classes_is_that_for_each(place: Path) -> None:
    content = changed(mmdet(masks=False), **layer("roi_head.bbox_head.fc_reg", 4, 1024, std=0.005))
    same(import_detector(place, content), content, masks=False)


def test_blue_first_becomes_red_first(place: Path) -> None:
    content = mmdet(masks=False)
    turned = changed(content, **{"backbone.conv1.weight": content["state_dict"]["backbone.conv1.weight"].flip(1)})
    same(import_detector(place, turned, pixels="bgr"), content, masks=False)


def test_a_detector_becomes_a_file_that_finds_the_same_and_starts_a_training(tmp_path: Path) -> None:
    content = mmdet(masks=False)
    torch.save(content, tmp_path / "epoch_12.pth")
    made = import_weights(file=str(tmp_path / "epoch_12.pth"), out=str(tmp_path / "d.safetensors"))
    assert (made["kind"], made["format"], made["detector"]) == ("detector", "mmdet", "faster_rcnn")
    detector, note = load_detector(str(tmp_path / "d.safetensors"))
    assert (note["classes"], note["category_ids"], note["image_size"]) == (["cat", "dog", "cow"], [1, 2, 3], 1333)
    assert note["imported"]["format"] == "mmdet"
    again = import_detector(tmp_path / "epoch_12.pth", content)
    assert all(value.equal(again.detector.net.state_dict()[each]) for each, value in detector.net.state_dict().items())
    _, report = build_detector(resolve_start(str(tmp_path / "d.safetensors")), 5, None, None, {})
    assert report is not None
    assert {part: row.share for part, row in report.rows.items()} == {
        "backbone": 1,
        "neck": 1,
        "rpn": 1,
        "head": 1,
        "last": 0,
    }


def test_of_aligndets_file_the_last_layers_start_afresh(tmp_path: Path) -> None:
    torch.save(aligndet(), tmp_path / "epoch_12.pth")
    made = import_weights(file=str(tmp_path / "epoch_12.pth"), out=str(tmp_path / "d.safetensors"))
    assert (made["format"], made["classes"], made["left_out"]) == ("aligndet", ["object"], ["target_backbone"])
    shares = {part: row["reused"] > 0 for part, row in made["report"]["parts"].items()}
    assert shares == {"backbone": True, "neck": True, "rpn": True, "head": True, "last": False}
    assert resolve_start(str(tmp_path / "d.safetensors")).note["method"] == "aligndet"
    detector, _ = load_detector(str(tmp_path / "d.safetensors"))
    given = aligndet()["state_dict"]
    own = detector.net.state_dict()
    assert own["roi_heads.box_head.3.0.weight"].equal(
        given["online_backbone.roi_head.bbox_head.shared_convs.3.conv.weight"]
    )


def test_what_aligndets_program_extracts_is_taken_where_it_is_said(tmp_path: Path) -> None:
    online = {n.removeprefix("online_backbone."): v for n, v in aligndet()["state_dict"].items() if n[0] == "o"}
    extracted = {n: v for n, v in online.items() if ".fc_cls." not in n and ".fc_reg." not in n}
    torch.save({"state_dict": extracted}, tmp_path / "final_model.pth")
    words = {"file": str(tmp_path / "final_model.pth"), "out": str(tmp_path / "d.safetensors")}
    with pytest.raises(UserError, match="without its last layers") as error:
        import_weights(**words)  # type: ignore[arg-type]
    assert error.value.hint == "If AlignDet pre-trained it, add --format aligndet"
    made = import_weights(**words, format="aligndet")  # type: ignore[arg-type]
    assert (made["detector"], made["classes"], made["left_out"]) == ("faster_rcnn", ["object"], [])
    shares = {part: row["reused"] > 0 for part, row in made["report"]["parts"].items()}
    assert shares == {"backbone": True, "neck": True, "rpn": True, "head": True, "last": False}


def test_what_goes_out_places_anchors_and_regions_alike(place: Path, tmp_path: Path) -> None:
    ours = import_detector(place, mmdet(masks=False))
    about = {"classes": ours.classes, "category_ids": [1, 2, 3], "image_size": ours.image_size}
    write_detector(tmp_path, ours.detector, {**ours.detector.config(), **about})
    theirs, net = build(tmp_path), ours.detector.net
    maps = {name: torch.randn(1, 64, 96 // stride, 160 // stride) for name, stride in zip("0123", (4, 8, 16, 32))}
    images = ImageList(torch.zeros(1, 3, HEIGHT, WIDTH), [(HEIGHT, WIDTH)])
    every = [*maps.values(), torch.zeros(1, 64, 2, 3)]
    expected = net.rpn.anchor_generator(images, every)[0]  # type: ignore[union-attr, operator]
    assert theirs.rpn.anchor_generator(images, every)[0].equal(expected)  # type: ignore[union-attr, operator]
    boxes = [torch.tensor([[3.0, 4.0, 30.0, 50.0], [10.5, 20.0, 150.0, 90.0]])]
    expected = net.roi_heads.box_roi_pool(maps, boxes, [(HEIGHT, WIDTH)])  # type: ignore[union-attr, operator]
    found = theirs.roi_heads.box_roi_pool(maps, boxes, [(HEIGHT, WIDTH)])  # type: ignore[union-attr, operator]
    assert found.equal(expected)


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True])
def test_it_goes_out_to_torchvision_and_finds_the_same(tmp_path: Path, masks: bool) -> None:
    torch.save(mmdet(masks=masks), tmp_path / "epoch_12.pth")
    out = str(tmp_path / "d.safetensors")
    import_weights(file=str(tmp_path / "epoch_12.pth"), out=out, image_size=784)
    done = export(init=out, to="torchvision", out=str(tmp_path / "exported"))
    assert done["check"]["detections"] >= 100
    assert done["check"]["box_difference"] < 1e-3


def refused(place: Path, content: Any, **more: Any) -> UserError:
    with pytest.raises(UserError) as error:
        import_detector(place, content, **more)
    return error.value


@pytest.mark.parametrize("make", [mmdet, aligndet])
@pytest.mark.parametrize("part", ["backbone.layer2.", "neck.fpn_convs.1.", "rpn_head.rpn_conv.", "shared_fcs.0."])
def test_a_file_with_one_wrong_prefix_is_refused(place: Path, make: Any, part: str) -> None:
    state = {name.replace(part, f"x{part}"): value for name, value in make()["state_dict"].items()}
    error = refused(place, {"state_dict": state})
    assert isinstance(error, NotTakenError)
    assert error.report.missing


def test_half_the_names_transposed_or_not_finite_tensors_are_refused(place: Path) -> None:
    content = mmdet(masks=False)
    state = content["state_dict"]
    names = [name for name in state if not name.startswith("backbone.")]
    assert isinstance(
        refused(place, {"state_dict": {n: state[n] for n in state if n not in names[::2]}}), NotTakenError
    )
    wide = changed(content, **{"roi_head.bbox_head.shared_fcs.0.weight": torch.ones(64 * 49, 1024)})
    assert "shared_fcs" in refused(place, wide).message or "fc6.weight 3136×1024" in refused(place, wide).message
    broken = changed(content, **{"rpn_head.rpn_cls.bias": torch.full((3,), torch.inf)})
    assert "not finite" in refused(place, broken).message


def test_a_file_of_ours_with_settings_of_another_version_is_refused(place: Path) -> None:
    note = json.dumps({"kind": "detector", "options": {"unknown": 1}})
    error = refused(place, {**mmdet(masks=False), "meta": {"selfdet": note}})
    assert "unknown" in error.message
    assert error.hint == "Use the version of selfdet that wrote it"


def test_a_detector_is_no_whole_pre_training(tmp_path: Path) -> None:
    torch.save(mmdet(masks=False), tmp_path / "x.pth")
    with pytest.raises(UserError, match="no key encoder"):
        import_weights(file=str(tmp_path / "x.pth"), out=str(tmp_path / "y.safetensors"), part="pretraining")


def test_classes_are_named_once_each_and_all(place: Path) -> None:
    content = mmdet(masks=False)
    assert import_detector(place, content, classes=["a", "b", "c"]).classes == ["a", "b", "c"]
    assert "has 3 classes, and --classes names 4" in refused(place, content, classes=["a", "b", "c", "d"]).message
    extra = {**content, "meta": {"CLASSES": ["a", "b", "c", "d"]}}
    assert "has 3 classes, and the file names 4" in refused(place, extra).message
    assert "two classes are called 'a'" in refused(place, content, classes=["a", "a", "b"]).message
    assert import_detector(place, {"state_dict": content["state_dict"]}).classes == ["class 0", "class 1", "class 2"]


REFUSED = {
    "roi_head.bbox_head.0.fc_cls.weight": "a cascade",
    "bbox_head.shared_fcs.0.weight": "mmdet's first version",
    "roi_head.bbox_head.cls_convs.0.conv.weight": "more branches",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torchvisions_networks_cannot_be_is_refused_with_the_reason(place: Path, name: str) -> None:
    error = refused(place, changed(mmdet(masks=False), **{name: torch.ones(1)}))
    assert REFUSED[name] in error.message
    assert error.hint == "Take its backbone alone, with --part backbone"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("style='caffe'", "blue first"),
        ("dict(type='RoIAlign', aligned=False)", "half a pixel off"),
        ("sampling_ratio=2", "a fixed number of samples"),
        ("scales=[4]", "other sizes than 8 strides"),
        ("ratios=[0.33, 1.0, 3.0]", "other shapes"),
        ("target_stds=[0.05, 0.05, 0.1, 0.1]", "deltas are measured otherwise"),
        ("dict(type='RoIPool', output_size=7)", "pooled otherwise"),
        ("type='SingleRoIExtractor', finest_scale=28", "regions of other sizes"),
        ("nms=dict(type='soft_nms', iou_threshold=0.5)", "scored down"),
        ("rcnn=dict(max_per_img=100, nms=dict(iou_threshold=0.6, type='nms'))", "from another overlap on"),
    ],
)
def test_settings_in_the_file_that_make_it_another_network_are_refused(place: Path, text: str, reason: str) -> None:
    assert reason in refused(place, {**mmdet(masks=False), "meta": {"cfg": text}}).message


USUAL = """rpn_head=dict(
    anchor_generator=dict(
        ratios=[
            0.5,
            1.0,
            2.0,
        ],
        scales=[
            8,
        ],
        type='AnchorGenerator'),
    bbox_coder=dict(
        target_stds=[
            1.0,
            1.0,
            1.0,
            1.0,
        ])),
roi_head=dict(
    bbox_head=dict(bbox_coder=dict(target_stds=[
        0.1,
        0.1,
        0.2,
        0.2,
    ])),
    bbox_roi_extractor=dict(
        roi_layer=dict(output_size=7, sampling_ratio=0, type='RoIAlign'), type='SingleRoIExtractor')),
test_cfg=dict(
    rcnn=dict(max_per_img=100, nms=dict(iou_threshold=0.5, type='nms'), score_thr=0.05),
    rpn=dict(nms=dict(iou_threshold=0.7, type='nms')))
"""


def test_usual_settings_are_taken_as_mmengine_writes_them(place: Path) -> None:
    assert import_detector(place, {**mmdet(masks=False), "meta": {"cfg": USUAL}}).report.rows["head"].share == 1


def test_other_layers_and_small_images_are_refused(place: Path) -> None:
    content = changed(mmdet(masks=False), **{"neck.fpn_convs.4.conv.weight": torch.ones(64, 64, 3, 3)})
    assert "layers that ours does not have: backbone.fpn.layer_blocks.4.0.weight" in refused(place, content).message
    assert "--image-size 640" in refused(place, mmdet(masks=False), image_size=640).message
    norms = changed(mmdet(masks=False), **{"neck.lateral_convs.0.gn.weight": torch.ones(64)})
    assert isinstance(refused(place, norms), NotTakenError)


def test_the_backbone_alone_can_be_taken_of_any_detector(tmp_path: Path) -> None:
    content = changed(mmdet(masks=False), **{"bbox_head.conv_centerness.weight": torch.ones(1)})
    torch.save(content, tmp_path / "fcos.pth")
    words = {"file": str(tmp_path / "fcos.pth"), "out": str(tmp_path / "b.safetensors")}
    with pytest.raises(UserError, match="--classes is for detectors"):
        import_weights(**words, part="backbone", classes=["a"])  # type: ignore[arg-type]
    made = import_weights(**words, part="backbone")  # type: ignore[arg-type]
    assert (made["kind"], made["backbone"]) == ("backbone", "resnet18")
    torch.save(content["state_dict"]["rpn_head.rpn_cls.bias"], tmp_path / "x.pth")
    with pytest.raises(UserError, match="expected tensors by name"):
        import_weights(file=str(tmp_path / "x.pth"), out=str(tmp_path / "c.safetensors"), part="detector")
