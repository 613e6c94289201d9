"""mmdet's RetinaNet and FCOS find the same here as there, or are refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.detectors.scenes import SMALL, sample
from tests.interchange.mmdet_one_stage_peer import (
    FCOS,
    RETINANET,
    TRICKS,
    FCOSPeer,
    OneStagePeer,
    RetinaPeer,
    mmdet_fcos,
    mmdet_retinanet,
    pretrained,
)
from tests.interchange.rebuilding import assert_same, noise, note_of
from torchvision import tv_tensors

from selfdet import export, import_weights
from selfdet.cli import main
from selfdet.data.images import read_image
from selfdet.data.sample import plain_sample
from selfdet.errors import UserError
from selfdet.interchange.companions.rebuild import build
from selfdet.interchange.export_check import compare_detections
from selfdet.interchange.export_detector import write_detector
from selfdet.interchange.imports import NotTakenError
from selfdet.interchange.mmdet import import_detector
from selfdet.interchange.starts import build_detector, load_detector, resolve_start, save_detector
from selfdet.models.backbones import evaluating

HEIGHT, WIDTH = 96, 160  # px: three rows of the fifth level, and one and a half of the sixth


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a size that no report is larger than."""
    file = tmp_path_factory.mktemp("mmdet") / "epoch_12.pth"
    with file.open("wb") as large:
        large.truncate(2**30)
    return file


def same(detector: Any, peer: OneStagePeer) -> None:
    """Every map and every detection are the peer's."""
    torch.manual_seed(0)
    image = tv_tensors.Image(torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8))
    batch = detector.prepare([plain_sample(image)])
    with torch.no_grad(), evaluating(detector):
        theirs = peer.maps(batch.tensor)
        for found, expected in zip(detector.features(batch).values(), theirs, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        (found,) = detector.detections(batch)
        boxes, scores, labels = peer.found_by(theirs, (HEIGHT, WIDTH), detector.net.score_thresh)
    assert len(boxes) == 100
    assert scores[-1] < scores[0] - 0.01
    # Which of two boxes suppresses the other can hang on the last bit.
    figures = compare_detections([found], [{"boxes": boxes, "scores": scores, "labels": labels}])
    assert figures["box_difference"] < 1e-3
    assert figures["score_difference"] < 1e-5


RELU = RETINANET.replace("))", "), neck=dict(relu_before_extra_convs=True)", 1)


@pytest.mark.parametrize(
    ("given", "source", "relu"),
    [
        ({}, "c5", False),
        ({"source": "p5", "norm": "bn", "convs": 1, "text": ""}, "p5", False),
        ({"norm": "gn", "convs": 4, "text": RELU}, "c5", True),
    ],
)
def test_what_retinanet_finds_is_what_mmdets_finds(place: Path, given: Any, source: str, relu: bool) -> None:
    content = mmdet_retinanet(**given)
    ours = import_detector(place, content)
    assert (ours.classes, ours.image_size) == (["cat", "dog", "cow"], 1333)
    assert all(row.share == 1 for row in ours.report.rows.values() if row.size)
    assert ours.said == (
        [] if given.get("text", "x") else ["the file has no settings of its network: taken as mmdet's published ones"]
    )
    same(ours.detector, RetinaPeer(content["state_dict"], source, relu))


@pytest.mark.parametrize(("norm", "on_reg"), [(False, False), (True, True), (False, True)])
def test_what_fcos_finds_is_what_mmdets_finds(place: Path, norm: bool, on_reg: bool) -> None:
    text = FCOS.replace("Head'", f"Head', norm_on_bbox={norm}, centerness_on_reg={on_reg}")
    content = mmdet_fcos(f"{text}, nms=dict(type='nms', iou_threshold=0.6), score_thr=0.1", bias=on_reg, norm=norm)
    ours = import_detector(place, content)
    assert all(row.share == 1 for row in ours.report.rows.values() if row.size)
    assert ours.detector.config()["options"]["score_threshold"] == 0.1
    same(ours.detector, FCOSPeer(content["state_dict"], norm, on_reg, overlap=0.6))


CONTENTS = {"retinanet": mmdet_retinanet, "fcos": lambda: mmdet_fcos(TRICKS, norm=True)}
CLASSIFIERS = {"retinanet": "bbox_head.retina_cls", "fcos": "bbox_head.conv_cls"}


@pytest.fixture(params=list(CONTENTS), scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def imported(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The content of a file of mmdet's, and the file that the command line makes of it."""
    folder = tmp_path_factory.mktemp("imported")
    content = CONTENTS[kind]()
    torch.save(content, folder / "epoch_12.pth")
    words = ["--file", str(folder / "epoch_12.pth"), "--out", str(folder / "d.safetensors"), "--image-size", "160"]
    assert main(["import-weights", *words]) == 0
    return content, folder / "d.safetensors"


def test_the_command_line_makes_a_detector_of_it_that_finds_the_same(kind: str, imported: Any, tmp_path: Path) -> None:
    content, file = imported
    detector, note = load_detector(str(file))
    again = import_detector(file, content, image_size=160).detector
    assert (note["detector"], note["classes"], note["image_size"]) == (kind, ["cat", "dog", "cow"], 160)
    assert detector.config() == again.config()
    assert all(value.equal(again.net.state_dict()[name]) for name, value in detector.net.state_dict().items())
    (tmp_path / "photos").mkdir()
    Image.fromarray(torch.randint(0, 256, (96, 160, 3), dtype=torch.uint8).numpy()).save(tmp_path / "photos" / "a.png")
    words = ["--init", str(file), "--images", str(tmp_path / "photos"), "--out", str(tmp_path / "found")]
    assert main(["predict", *words, "--threshold", "0", "--precision", "fp32"]) == 0
    results = json.loads((tmp_path / "found" / "results.json").read_text())
    (expected,) = detector.predict([plain_sample(read_image(tmp_path / "photos" / "a.png"))])
    assert len(results) == len(expected["scores"]) > 10
    best = max(result["score"] for result in results)
    assert best == pytest.approx(float(expected["scores"][0]), abs=1e-4)


def test_it_is_trained_on_with_other_classes_and_stays_mmdets(imported: Any) -> None:
    detector, report = build_detector(resolve_start(str(imported[1])), 5, None, None, {"image_size": 128})
    assert report is not None
    assert {part: row.share for part, row in report.rows.items()} == {"backbone": 1, "neck": 1, "head": 1, "last": 0}
    assert detector.config()["options"]["mmdet"] == load_detector(str(imported[1]))[0].config()["options"]["mmdet"]
    batch = detector.prepare([sample(96, 128, [[10, 8, 60, 70]], [4]), sample(96, 128)])
    losses = detector.losses(batch)
    torch.stack(list(losses.values())).sum().backward()
    assert all(bool(loss.isfinite()) for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.net.parameters() if p.requires_grad)


def test_it_goes_out_to_mmdet_and_comes_in_again_equal(imported: Any, tmp_path: Path) -> None:
    content, file = imported
    done = export(init=str(file), to="mmdet", out=str(tmp_path / "out"))
    assert "warning" not in done["check"]
    written = torch.load(tmp_path / "out" / "detector.pth", weights_only=True)["state_dict"]
    theirs = content["state_dict"]
    assert all(value.equal(written[name]) for name, value in theirs.items())
    more = written.keys() - theirs.keys()  # the biases of 0 that an FCOS gets before its norms
    assert all(name.endswith("conv.bias") and not written[name].any() for name in more)
    settings = (tmp_path / "out" / "config.py").read_text()
    assert "'start_level': 1" in settings
    # Whoever takes the tensors without our note learns from the settings what they are.
    bare = {"state_dict": written, "meta": {"cfg": settings, "CLASSES": ("cat", "dog", "cow")}}
    again = import_detector(tmp_path / "out" / "detector.pth", bare, image_size=160).detector
    assert again.config() == load_detector(str(file))[0].config()


def test_it_is_rebuilt_without_selfdet(imported: Any, tmp_path: Path) -> None:
    detector, note = load_detector(str(imported[1]))
    write_detector(tmp_path, detector, note)
    assert_same(build(tmp_path), detector, noise(96, 160), 160)


def test_torchvisions_own_is_not_exported_to_mmdet(kind: str, tmp_path: Path) -> None:
    detector = SMALL[kind]()
    save_detector(tmp_path / "d.safetensors", detector, note_of(detector))
    with pytest.raises(UserError, match="torchvision's"):
        export(init=str(tmp_path / "d.safetensors"), to="mmdet", out=str(tmp_path / "out"))


def test_of_aligndets_file_the_classifier_alone_starts_afresh(kind: str, tmp_path: Path) -> None:
    content = pretrained(CONTENTS[kind](), CLASSIFIERS[kind])
    torch.save(content, tmp_path / "epoch_12.pth")
    made = import_weights(file=str(tmp_path / "epoch_12.pth"), out=str(tmp_path / "d.safetensors"))
    assert (made["format"], made["classes"], made["left_out"]) == ("aligndet", ["object"], ["target_backbone"])
    shares = {part: row["reused"] > 0 for part, row in made["report"]["parts"].items()}
    assert shares == {"backbone": True, "neck": True, "head": True, "last": False}
    detector, note = load_detector(str(tmp_path / "d.safetensors"))
    assert note["method"] == "aligndet"
    assert note["options"]["score_threshold"] == 0.01  # ours: there are no detections yet to be equal
    given = content["state_dict"]["online_backbone.bbox_head.reg_convs.0.conv.weight"]
    assert any(value.shape == given.shape and value.equal(given) for value in detector.net.state_dict().values())


def test_what_aligndets_program_extracts_has_all_but_the_last_layers(kind: str, place: Path) -> None:
    last = ("retina_", "conv_cls", "conv_reg", "conv_centerness")
    state = {n: v for n, v in CONTENTS[kind]()["state_dict"].items() if not any(each in n for each in last)}
    assert "without its last layers" in refused(place, {"state_dict": state}).message
    taken = import_detector(place, {"state_dict": state}, pretrained=True)
    assert taken.detector.config()["detector"] == kind
    reused = {part: row.share for part, row in taken.report.rows.items()}
    assert reused == {"backbone": 1, "neck": 1, "head": 1, "last": 0}


def refused(place: Path, content: Any, **more: Any) -> UserError:
    with pytest.raises(UserError) as error:
        import_detector(place, content, **more)
    return error.value


PARTS = ["backbone.layer2.", "neck.fpn_convs.1.", "neck.fpn_convs.4.", "bbox_head.cls_convs.0.", "bbox_head.reg_convs."]


@pytest.mark.parametrize("part", PARTS)
def test_a_file_with_one_wrong_prefix_is_refused(place: Path, kind: str, part: str) -> None:
    content = CONTENTS[kind]()
    for each in (content, pretrained(content, CLASSIFIERS[kind])):
        state = {name.replace(part, f"x{part}"): value for name, value in each["state_dict"].items()}
        error = refused(place, {**each, "state_dict": state})
        assert isinstance(error, NotTakenError)
        assert error.report.missing


def test_an_fcos_needs_the_factors_of_all_levels_and_the_norms_of_its_towers(place: Path) -> None:
    content = mmdet_fcos(FCOS)
    for gone in ("bbox_head.scales.3.", "bbox_head.reg_convs.1.gn.", "bbox_head.conv_centerness.bias"):
        state = {name: value for name, value in content["state_dict"].items() if not name.startswith(gone)}
        assert isinstance(refused(place, {**content, "state_dict": state}), NotTakenError)


def test_half_the_names_other_widths_and_tensors_that_are_not_finite_are_refused(place: Path, kind: str) -> None:
    content = CONTENTS[kind]()
    state, tower = content["state_dict"], "bbox_head.reg_convs.0.conv.weight"
    names = [name for name in state if not name.startswith("backbone.")]
    half = {name: value for name, value in state.items() if name not in names[::2]}
    for broken in (half, {**state, tower: torch.ones(32, 64, 3, 3)}):
        assert isinstance(refused(place, {**content, "state_dict": broken}), NotTakenError)
    assert "not finite" in refused(place, {**content, "state_dict": {**state, tower: state[tower] * torch.inf}}).message
    more = {**state, "neck.fpn_convs.5.conv.weight": torch.ones(64, 64, 3, 3)}
    assert "layers that ours does not have" in refused(place, {**content, "state_dict": more}).message


def test_an_fcos_without_settings_is_refused_unless_they_are_named(tmp_path: Path) -> None:
    torch.save(mmdet_fcos(""), tmp_path / "epoch_12.pth")
    words: Any = {"file": str(tmp_path / "epoch_12.pth"), "out": str(tmp_path / "d.safetensors")}
    with pytest.raises(UserError, match="don't tell norm_on_bbox and centerness_on_reg"):
        import_weights(**words)
    settings = tmp_path / "config.py"
    for text, reason in (("_base_ = 'x.py'", "takes others in"), ("a = 1", "no head"), (None, "No such file")):
        if text is not None:
            settings.write_text(text)
        with pytest.raises(UserError, match=reason):
            import_weights(**words, settings=str(settings if text is not None else tmp_path / "y.py"))
    settings.write_text(TRICKS)
    import_weights(**words, settings=str(settings))
    assert load_detector(words["out"])[0].config()["options"]["mmdet"]["norm_on_bbox"]
    with pytest.raises(UserError, match="--settings is for detectors"):
        import_weights(file=words["file"], out=str(tmp_path / "b"), part="backbone", settings=str(settings))


SETTINGS = {
    "type='FreeAnchorRetinaHead'": "another head of the same names",
    "'octave_base_scale': 8": "other sizes than 4 strides",
    "scales_per_octave=1": "has not 3 sizes",
    "ratios=[1.0]": "other shapes",
    "center_offset=0.5": "stand elsewhere",
    "target_stds=[0.1, 0.1, 0.2, 0.2]": "deltas are measured otherwise",
    '"use_sigmoid": false': "exclude each other",
    "add_extra_convs='on_lateral'": "a lateral map",
    "nms=dict(type='soft_nms', iou_threshold=0.5)": "scored down",
    "num_groups=16": "other groups than 32",
    "upsample_cfg=dict(mode='bilinear')": "interpolated",
    "style='caffe'": "blue first",
}


@pytest.mark.parametrize("text", SETTINGS)
def test_settings_that_make_it_another_network_are_refused(place: Path, text: str) -> None:
    assert SETTINGS[text] in refused(place, mmdet_retinanet(text=f"{RETINANET}, {text}")).message


def test_usual_settings_are_taken_in_python_and_in_json(place: Path) -> None:
    usual = {
        "neck": {"add_extra_convs": "on_input"},
        "bbox_head": {
            "type": "RetinaHead",
            "anchor_generator": {"octave_base_scale": 4, "scales_per_octave": 3, "ratios": [0.5, 1.0, 2.0]},
            "bbox_coder": {"target_stds": [1.0, 1.0, 1.0, 1.0]},
            "loss_cls": {"use_sigmoid": True},
        },
        "test_cfg": {"nms": {"type": "nms", "iou_threshold": 0.6}},
    }
    lines = repr(usual).replace("[0.5, 1.0, 2.0]", "[\n  0.5,\n  1.0,\n  2.0,\n]")  # as mmengine writes them
    for text in (json.dumps(usual), repr(usual), lines):
        form = import_detector(place, mmdet_retinanet(text=text)).detector.config()["options"]["mmdet"]
        assert form == {"add_extra_convs": "on_input", "relu_before_extra_convs": False, "iou_threshold": 0.6}
